//! One connection in transmission: what it has received, what it is to send, what it waits for.

use std::collections::VecDeque;
use std::rc::Rc;

use super::desk::Place;
use super::pool::Request;
use crate::io::IoResult;
use crate::nbd::replies::{To, longest};
use crate::nbd::transmission::{Incoming, Wanted};
use crate::nbd::{Headers, SimpleReply};
use crate::port::clock::Deadline;
use crate::port::stream::{Buffer, Socket};

/// Bytes that are received at once: what a client that has 64 requests of 4 KiB in flight sends
/// together fits.
pub(super) const RECEIVE_BUFFER: usize = 272 << 10;

/// Bytes that are received at once where long payloads come: the head of one, whose bytes then go right into their slots.
pub(super) const RECEIVE_HEAD: usize = 4 << 10;

/// Bytes of replies that are gathered while others are being sent. As above.
pub(super) const SEND_BUFFER: usize = 272 << 10;

/// Bytes that a connection has to move for others to be patient with it once more.
const PROGRESS: u32 = 1 << 20;

/// The life of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Requests are taken.
    Open,
    /// No more are taken; those that were are answered.
    Draining,
    /// Nobody is there any more, and nothing is sent.
    Broken,
}

/// What a transfer works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    No,
    /// The connection's own buffer.
    Buffer,
    /// A slot of a request.
    Slot,
}

/// A write whose payload comes in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    pub request: u16,
    /// Where in the request the piece begins that comes in.
    pub start: u32,
    /// Bytes of the piece that are there.
    pub filled: u32,
    /// The slot of the piece.
    pub slot: Option<u16>,
}

/// A long reply to a read that is sent out of its slots, behind what was gathered.
#[derive(Clone, Copy, Debug)]
pub(super) struct LongReply {
    pub request: u16,
    /// The slot that comes next, and how much of it was sent.
    pub slot: u16,
    pub sent_of_slot: u32,
    /// Bytes of the request that were sent, or told to be a hole.
    pub sent: u32,
    /// Up to where the client was told that data come.
    pub announced: u32,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub socket: Rc<Socket>,
    pub state: State,
    pub incoming: Incoming,
    pub headers: Headers,
    /// Bytes in the buffer that is sent next which are set aside for each request: its reply, or the head of it.
    pub reply_room: usize,
    /// Not here while something is received into it.
    pub received: Option<Buffer>,
    pub receiving: Busy,
    /// Everything that was received has been looked at, and more is wanted.
    pub hungry: bool,
    /// How much of it: what was received too much of a long payload has to be copied.
    pub appetite: usize,
    pub payload: Option<Payload>,
    /// A request that waits for slots.
    pub parked: Option<Wanted>,
    /// What is parked, or the payload, waits for slots of this connection's own.
    pub waits_for_own: bool,
    /// Nothing is looked at until replies were sent.
    pub waits_for_room: bool,
    pub to_send: Buffer,
    /// The other one, not here while it is sent.
    pub spare: Option<Buffer>,
    pub sending: Busy,
    /// Reads that are over, whose replies had no room or are long.
    pub late: VecDeque<u16>,
    pub long: Option<LongReply>,
    /// For how many looks of the queue others have waited for this one's client.
    pub looks: u32,
    /// Bytes that it has moved meanwhile.
    moved: u32,
    /// The other side sends nothing more.
    pub has_heard_all: bool,
    /// All was said, and said to be all: until then the rest of what comes is thrown away.
    pub lingers: Option<Deadline>,
    /// Slots that its requests hold.
    pub slots: u16,
    /// Requests that were begun and are not answered.
    pub requests: u16,
    /// It is in the list of connections with bytes to look at.
    pub is_runnable: bool,
    /// It is in the list of those that this turn touched.
    pub is_touched: bool,
    _place: Place,
}

impl Connection {
    pub fn new(
        socket: Socket,
        received: &[u8],
        incoming: Incoming,
        place: Place,
        most_late: u16,
    ) -> Connection {
        let mut buffer = Buffer::new(RECEIVE_BUFFER.max(received.len()));
        buffer.add(received);
        Connection {
            socket: Rc::new(socket),
            state: State::Open,
            headers: incoming.headers(),
            reply_room: longest(incoming.headers()),
            incoming,
            received: Some(buffer),
            receiving: Busy::No,
            hungry: false,
            appetite: RECEIVE_BUFFER,
            payload: None,
            parked: None,
            waits_for_own: false,
            waits_for_room: false,
            to_send: Buffer::new(SEND_BUFFER),
            spare: Some(Buffer::new(SEND_BUFFER)),
            sending: Busy::No,
            late: VecDeque::with_capacity(usize::from(most_late)),
            long: None,
            looks: 0,
            moved: 0,
            has_heard_all: false,
            lingers: None,
            slots: 0,
            requests: 0,
            is_runnable: false,
            is_touched: false,
            _place: place,
        }
    }

    /// Takes the memory of its buffers now, and none later.
    pub fn touch(&mut self) {
        [&mut self.received, &mut self.spare].into_iter().flatten().for_each(Buffer::touch);
        self.to_send.touch();
    }

    /// Where a reply to a request goes.
    #[inline]
    pub fn to(&self, request: &Request) -> To {
        To { headers: self.headers, cookie: request.cookie, offset: request.offset }
    }

    /// Adds a reply without data, for which there is room.
    #[inline]
    pub fn add_ended(&mut self, cookie: u64, offset: u64, result: IoResult) {
        match self.headers {
            Headers::Simple => self.add(&SimpleReply::new(cookie, result).encode()),
            headers => self.add(To { headers, cookie, offset }.ended(result).bytes()),
        }
    }

    /// Adds some of a reply, for which there is room.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let added = self.to_send.add(bytes);
        debug_assert_eq!(added, bytes.len(), "a reply has no room");
    }

    /// Whether, with so many bytes more, there is still the room that was set aside: for each request that was begun, and
    /// for the one that waits for slots, which begins without another look.
    #[inline]
    pub fn has_room(&self, bytes: usize) -> bool {
        let requests = usize::from(self.requests) + usize::from(self.parked.is_some());
        self.to_send.room() >= bytes + self.reply_room * requests
    }

    /// Its payload has a slot, which is free again as soon as the piece has come and is written.
    #[inline]
    pub fn fills_slot(&self) -> bool {
        self.payload.is_some_and(|payload| payload.slot.is_some())
    }

    /// It holds slots that only its client can free: by taking replies, or by sending the rest of a piece.
    /// What waits for the disk, or for a slot, is not the client's fault.
    pub fn waits_for_client(&self) -> bool {
        let has_replies = self.long.is_some() || !self.late.is_empty();
        (self.sending != Busy::No && has_replies) || (self.receiving != Busy::No && self.fills_slot())
    }

    /// Its client moved bytes. A few now and then do not count.
    #[inline]
    pub fn moved(&mut self, bytes: u32) {
        self.moved = self.moved.saturating_add(bytes);
        if self.moved >= PROGRESS {
            self.forgive();
        }
    }

    /// Others do not wait for its client, or no longer.
    #[inline]
    pub fn forgive(&mut self) {
        (self.looks, self.moved) = (0, 0);
    }

    /// Every reply that it is to get has been sent. A payload that is still being received gets none.
    pub fn has_said_all(&self) -> bool {
        self.state == State::Draining
            && self.sending == Busy::No
            && self.to_send.is_empty()
            && self.requests == u16::from(self.payload.is_some())
    }

    /// Nothing of it is under way and nothing is left to be done.
    pub fn is_over(&self) -> bool {
        self.receiving == Busy::No
            && self.sending == Busy::No
            && self.requests == 0
            && (self.state == State::Broken || (self.has_said_all() && self.has_heard_all))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::io::{Flags, Op};
    use crate::nbd::transmission::{Reply, Rules};
    use crate::nbd::{BlockSizes, Export, ExportFlags, Settled};

    fn connection() -> Connection {
        let export = Export {
            name: String::new(),
            description: String::new(),
            size: 1 << 20,
            flags: ExportFlags::HAS_FLAGS,
            block: BlockSizes { minimum: 1, preferred: 4096, maximum: 4096 },
        };
        let incoming = Incoming::new(Rules::new(&export), Settled::default());
        let place = Place::take(&Arc::default(), 1).unwrap();
        Connection::new(Socket::pair().unwrap().0, &[], incoming, place, 4)
    }

    /// A write is in service and a flush waits for a slot, while the reply to a read is gathered that takes all the room
    /// there is for it.
    #[test]
    fn a_request_that_waits_for_slots_keeps_the_room_of_its_reply() {
        for (requests, parks) in [(0, true), (1, true), (3, true), (3, false)] {
            let mut connection = connection();
            connection.requests = requests;
            let (flags, reply) = (Flags::empty(), Reply::Done);
            let flush = Wanted { op: Op::Flush, flags, reply, offset: 0, len: 0, cookie: 9 };
            connection.parked = parks.then_some(flush);
            let most = (0..=SEND_BUFFER).rev().find(|&len| connection.has_room(len)).unwrap();
            connection.to_send.add(&vec![7; most]);
            let replies = usize::from(requests) + usize::from(parks);
            let begins = connection.parked.take();
            connection.requests += u16::from(begins.is_some());
            (0..replies).for_each(|cookie| connection.add_ended(cookie as u64, 0, Ok(())));
            assert_eq!(connection.to_send.content().len(), most + replies * SimpleReply::SIZE);
            assert_eq!(connection.to_send.room(), 0, "no more is set aside than is needed");
        }
    }
}
