//! The front end of a queue that serves connections: requests out of what they send, replies into
//! what they get.
//!
//! Requests are taken from the connections in turns, one each, as long as there are slots. A read starts
//! when all slots that it needs are free; a write takes one for each piece as the piece comes in. What
//! cannot be taken waits where it is, and then its connection is not read from; nor does anything behind it
//! start, but for payloads that have a slot: these come first, since others wait for it.

use std::collections::VecDeque;

use super::connection::{Busy, Connection, Payload, State};
use super::desk::{Desk, Guest};
use super::pool::{Pool, Request};
use crate::error::{Error, Result};
use crate::io::{Capabilities, Flags, Io, IoResult, Op};
use crate::nbd::Headers;
use crate::nbd::transmission::{Event, Incoming, Reply, Rules, Wanted};
use crate::port::clock::{Deadline, Duration};
use crate::port::ring::{Completion, Ring};
use crate::queue::{Arrival, Buffers, FrontEnd};

mod replies;
mod taking;

/// For how many looks others wait for the slots that a connection's client holds, unless it moves
/// a megabyte meanwhile. The door has the queues look about every second.
const PATIENCE: u32 = 10;

/// For how long what still comes is taken from a client that has got all its replies. If it were not, TCP
/// would throw away those that are on their way (RFC 1122, 4.2.2.13).
const LINGER: Duration = Duration::from_secs(1);

/// A queue's connections, and what they asked for.
pub(super) struct Front<'a> {
    desk: &'a Desk,
    buffers: &'a Buffers,
    rules: Rules,
    /// The disk loses what it was told unless it is flushed, and knows no FUA.
    flush_for_fua: bool,
    /// The disk knows which runs of it take space; else all is data.
    knows_extents: bool,
    /// To read what nobody gets fills a cache; else there is nothing to be done for it.
    has_read_cache: bool,
    /// Requests to be in service at once.
    depth: usize,
    in_service: usize,
    pool: Pool,
    slots: usize,
    connections: Vec<Option<Box<Connection>>>,
    /// How many there are.
    open: usize,
    /// Connections with bytes to look at, each once.
    runnable: VecDeque<u16>,
    /// Connections that this turn touched, each once.
    touched: Vec<u16>,
    /// Requests that can be served.
    ready: VecDeque<Io>,
    /// The first of the runnable needs more slots than are free.
    blocked: bool,
    closing: bool,
}

/// What came of looking at a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Something, and there may be more.
    Again,
    /// It has nothing more to look at, or must wait for something of its own.
    Done,
    /// It needs slots that others have.
    NoSlots,
}

/// Sizes of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub depth: u16,
    pub slots: u16,
    pub connections: u16,
}

impl<'a> Front<'a> {
    pub fn new(
        desk: &'a Desk,
        buffers: &'a Buffers,
        rules: Rules,
        capabilities: Capabilities,
        sizes: Sizes,
    ) -> Front<'a> {
        let slots = usize::from(sizes.slots);
        // Each holds a slot, or is the one that its connection receives.
        let requests = sizes.slots.saturating_add(sizes.connections);
        Front {
            desk,
            buffers,
            rules,
            flush_for_fua: capabilities.contains(Capabilities::VOLATILE_CACHE)
                && !capabilities.contains(Capabilities::FUA),
            knows_extents: capabilities.contains(Capabilities::EXTENTS),
            has_read_cache: capabilities.contains(Capabilities::READ_CACHE),
            depth: usize::from(sizes.depth),
            in_service: 0,
            pool: Pool::new(sizes.slots, requests),
            slots,
            connections: (0..sizes.connections).map(|_| None).collect(),
            open: 0,
            runnable: VecDeque::with_capacity(usize::from(sizes.connections)),
            touched: Vec::with_capacity(usize::from(sizes.connections)),
            ready: VecDeque::with_capacity(slots),
            blocked: false,
            closing: false,
        }
    }

    /// Room for so many transfers is to be reserved in the ring: a receive and a send each.
    fn transfers(&self) -> u32 {
        self.connections.len() as u32 * 2
    }

    fn receive_number(index: u16) -> u32 {
        u32::from(index) * 2
    }

    fn send_number(index: u16) -> u32 {
        u32::from(index) * 2 + 1
    }

    #[inline]
    fn connection(&mut self, index: u16) -> Option<&mut Connection> {
        self.connections.get_mut(usize::from(index))?.as_deref_mut()
    }

    /// Who holds a slot is looked at first: the one at the front may wait for just that slot.
    #[inline]
    fn make_runnable(&mut self, index: u16) {
        if let Some(connection) = self.connection(index)
            && !std::mem::replace(&mut connection.is_runnable, true)
        {
            if connection.fills_slot() {
                self.runnable.push_front(index);
                self.blocked = false;
            } else {
                self.runnable.push_back(index);
            }
        }
    }

    #[inline]
    fn touch(&mut self, index: u16) {
        if let Some(connection) = self.connection(index)
            && !std::mem::replace(&mut connection.is_touched, true)
        {
            self.touched.push(index);
        }
    }

    fn welcome(&mut self, guest: Guest) {
        let free = self.connections.iter().position(Option::is_none);
        let (false, Some(index)) = (self.closing, free) else { return self.desk.gone() };
        let incoming = Incoming::new(self.rules, guest.settled);
        // A reply that is late holds a slot.
        let most_late = self.slots as u16;
        let mut connection = Connection::new(guest.socket, &guest.received, incoming, guest.place, most_late);
        if guest.is_kernel {
            connection.touch();
        }
        self.connections[index] = Some(Box::new(connection));
        self.open += 1;
        self.make_runnable(index as u16);
        self.touch(index as u16);
    }

    /// Nothing more is taken from a connection; what it asked for is answered if somebody is there.
    fn leave(&mut self, index: u16, state: State) {
        let Some(connection) = self.connection(index) else { return };
        match (connection.state, state) {
            (State::Open, _) | (State::Draining, State::Broken) => connection.state = state,
            _ => return,
        }
        connection.parked = None;
        self.blocked = false;
        let Some(connection) = self.connection(index) else { return };
        let receiving = connection.receiving;
        if state == State::Broken {
            connection.socket.end();
        }
        // While a slot is being filled its end is waited for.
        if receiving != Busy::Slot {
            self.drop_payload(index);
        }
        if state == State::Broken {
            self.drop_replies(index);
        }
        self.touch(index);
    }

    /// Counts slots of a connection that were freed, and lets on who waits for such.
    #[inline]
    fn slots_freed(&mut self, index: u16, count: u16) {
        self.blocked &= count == 0;
        let Some(connection) = self.connection(index) else { return };
        connection.slots -= count;
        if std::mem::take(&mut connection.waits_for_own) {
            self.make_runnable(index);
        }
    }

    /// A request is over and answered, or nobody wants the answer.
    #[inline]
    fn end_request(&mut self, number: u16) {
        let index = self.pool.request(number).connection;
        let freed = self.pool.end(number);
        if let Some(connection) = self.connection(index) {
            connection.requests -= 1;
        }
        self.slots_freed(index, freed);
        self.touch(index);
    }

    /// Where others wait for slots: cuts off who holds some and neither takes replies nor goes on
    /// sending, or too slowly. While nobody waits, a client may be silent for ever.
    fn look_around(&mut self) {
        let blocked = self.blocked;
        for index in 0..self.connections.len() as u16 {
            let Some(connection) = self.connection(index) else { continue };
            if !blocked || !connection.waits_for_client() {
                connection.forgive();
                continue;
            }
            connection.looks += 1;
            // One at a time: its slots may be enough.
            if connection.looks > PATIENCE && self.blocked {
                self.leave(index, State::Broken);
            }
        }
    }

    /// Ends connections whose clients go on, or do nothing, after the end of what is said to them.
    fn end_lingering(&mut self) {
        for index in 0..self.connections.len() as u16 {
            let Some(connection) = self.connection(index) else { continue };
            if connection.lingers.is_some_and(Deadline::passed) {
                self.leave(index, State::Broken);
            }
        }
    }

    /// The end of a turn for a connection: sends what was gathered, receives where more is wanted, and
    /// forgets it where it is over.
    fn settle(&mut self, ring: &Ring, index: u16) -> Result<()> {
        self.pump(ring, index)?;
        let Some(connection) = self.connection(index) else { return Ok(()) };
        let lingers = connection.has_said_all() && !connection.has_heard_all;
        if lingers && connection.lingers.is_none() {
            connection.socket.stop_sending();
            connection.lingers = Some(Deadline::after(LINGER));
        }
        let is_hungry = connection.state == State::Open && connection.hungry;
        if (is_hungry || lingers) && connection.receiving == Busy::No {
            connection.hungry = false;
            if let Some(mut buffer) = connection.received.take() {
                if lingers {
                    buffer.consume(usize::MAX);
                }
                buffer.make_room();
                connection.receiving = Busy::Buffer;
                let most = connection.appetite;
                ring.receive(Self::receive_number(index), &connection.socket, buffer, most)
                    .map_err(failed)?;
            }
        }
        if connection.is_over() {
            let runnable = connection.is_runnable;
            self.connections[usize::from(index)] = None;
            if runnable {
                self.runnable.retain(|&other| other != index);
            }
            self.open -= 1;
            self.desk.gone();
        }
        Ok(())
    }

    /// A receive has ended.
    fn received(&mut self, ring: &Ring, index: u16, result: i32) {
        let Some(connection) = self.connection(index) else { return };
        let busy = std::mem::replace(&mut connection.receiving, Busy::No);
        if busy == Busy::Buffer {
            connection.received = ring.take_back(Self::receive_number(index));
        }
        if busy == Busy::Slot
            && result > 0
            && let Some(payload) = &mut connection.payload
        {
            payload.filled += result as u32;
        }
        connection.has_heard_all |= result == 0 || (result < 0 && !is_passing(result));
        if connection.state != State::Open {
            self.drop_payload(index);
            return self.touch(index);
        }
        match result {
            1.. => self.make_runnable(index),
            0 => self.leave(index, State::Draining),
            error if is_passing(error) => self.make_runnable(index),
            _ => self.leave(index, State::Broken),
        }
    }
}

impl FrontEnd for Front<'_> {
    fn start(&mut self, ring: &Ring) -> Result<()> {
        ring.reserve_transfers(self.transfers());
        Ok(())
    }

    #[inline]
    fn arrived(&mut self, ring: &Ring, number: u32, completion: &Completion) -> Result<Arrival> {
        let index = (number / 2) as u16;
        if let Some(connection) = self.connection(index) {
            connection.moved(u32::try_from(completion.result).unwrap_or(0));
        }
        match number.is_multiple_of(2) {
            true => self.received(ring, index, completion.result),
            false => self.sent(ring, index, completion.result)?,
        }
        Ok(Arrival::Many)
    }

    #[inline]
    fn next(&mut self, ring: &Ring) -> Result<Option<Io>> {
        loop {
            if self.in_service == self.depth {
                return Ok(None);
            }
            if let Some(io) = self.ready.pop_front() {
                self.in_service += 1;
                return Ok(Some(io));
            }
            let Some(&index) = self.runnable.front() else { return Ok(None) };
            match self.step(ring, index)? {
                Step::Again if self.runnable.len() == 1 => {}
                Step::Again => self.runnable.rotate_left(1),
                Step::Done => {
                    self.runnable.pop_front();
                    if let Some(connection) = self.connection(index) {
                        connection.is_runnable = false;
                    }
                    self.touch(index);
                }
                Step::NoSlots => {
                    self.blocked = true;
                    return Ok(None);
                }
            }
        }
    }

    #[inline]
    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        self.in_service -= 1;
        let number = self.pool.holder(io.slot);
        let request = self.pool.request(number);
        request.error = request.error.or(result.err());
        request.pending -= 1;
        if !request.whole && request.is_range() {
            self.next_range(number, io.slot);
        }
        let request = self.pool.request(number);
        let is_last = request.whole && request.pending == 0;
        if is_last && request.flush_after && request.error.is_none() {
            request.flush_after = false;
            request.pending = 1;
            let flush = Io { op: Op::Flush, flags: Flags::empty(), offset: 0, len: 0, slot: io.slot };
            self.ready.push_back(flush);
            return Ok(());
        }
        if is_last {
            return self.answer(ring, number);
        }
        if request.op == Op::Write {
            let index = request.connection;
            self.pool.free_slot(io.slot);
            self.slots_freed(index, 1);
        }
        Ok(())
    }

    fn notified(&mut self, _ring: &Ring) -> Result<()> {
        while let Some(guest) = self.desk.receive() {
            self.welcome(guest);
        }
        if self.desk.is_to_look() {
            self.look_around();
        }
        self.end_lingering();
        if let Some(at_once) = self.desk.closing() {
            self.closing = true;
            let state = if at_once { State::Broken } else { State::Draining };
            for index in 0..self.connections.len() as u16 {
                self.leave(index, state);
            }
        }
        Ok(())
    }

    #[inline]
    fn end_turn(&mut self, ring: &Ring, full: bool) -> Result<bool> {
        // What has become runnable outside of `next` is looked at before anything is sent.
        if !full && self.can_go_on() {
            return Ok(true);
        }
        while let Some(index) = self.touched.pop() {
            if let Some(connection) = self.connection(index) {
                connection.is_touched = false;
            }
            self.settle(ring, index)?;
        }
        Ok(!full && self.can_go_on())
    }

    fn give_up(&mut self) {
        for connection in self.connections.iter().flatten() {
            connection.socket.end();
        }
    }

    fn finished(&self) -> bool {
        self.closing && self.open == 0
    }
}

impl Front<'_> {
    /// Whether `next` would get on.
    #[inline]
    fn can_go_on(&self) -> bool {
        self.in_service < self.depth
            && (!self.ready.is_empty() || (!self.runnable.is_empty() && !self.blocked))
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::system("a queue cannot use its io_uring", error)
}

/// Whether an operation that ended with this negative errno is only to be tried again.
fn is_passing(result: i32) -> bool {
    const EINTR: i32 = 4;
    const EAGAIN: i32 = 11;
    matches!(-result, EINTR | EAGAIN)
}
