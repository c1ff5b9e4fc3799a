//! The pinned thread's work: slots, buffers, tasks, and one turn of the loop.
//!
//! A [`FrontEnd`] owns arrival and completion; a task only serves one [`Io`] and yields a result.
//! The loop stands between: it admits a request, offers it to the backend's fast path, and
//! otherwise keeps the backend's future in the slot until the operations it waits for are back.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::backend::dynamic::Dynamic;
use crate::backend::{Backend, Queue, QueueContext};
use crate::error::{Error, Result};
use crate::io::{Admission, Capabilities, Errno, Geometry, Io, IoResult, Op};
use crate::metrics::QueueMetrics;
use crate::payload::Place;
use crate::port::remote::Message;
use crate::port::ring::{Completion, Ring, Single, Token, turn_capacity};

mod buffers;
mod meter;
mod slots;

/// Bytes of requests that the front end has yielded one by one and a turn of the loop begins, roughly, before it looks
/// at what has come meanwhile; a request counts as a block at least. A client that sends requests faster than they are answered at once
/// would otherwise keep the loop from everything else.
const TURN_LEN: u64 = 64 << 20;
const LEAST_LEN: u64 = 4096;

pub use buffers::Buffers;
use meter::{Came, Meter};
use slots::{Slot, Slots};

/// What came of a command of a front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// No request.
    Nothing,
    /// One request.
    One(Io),
    /// Requests that [`FrontEnd::next`] yields one by one.
    Many,
    /// A request of this slot, whose data is not there yet: it follows as [`Ready`](Self::Ready), or was
    /// refused.
    Coming(u16),
    /// The request whose slot was [`Coming`](Self::Coming).
    Ready(Io),
}

/// What an engine knows of arrivals and completions on one queue.
///
/// A request names the slot that carries it. Slots are the front end's to give: it takes none that
/// is in service, and has one back when [`complete`](Self::complete) is called for it.
pub trait FrontEnd {
    /// Asks for the first requests. From here on completions come. Who sends no commands is
    /// [`notified`](Self::notified) once, of what came before this thread listened, and since nothing else would end
    /// the first sleep.
    fn start(&mut self, ring: &Ring) -> Result<()> {
        ring.remote().notify_front();
        Ok(())
    }

    /// A command of this front end came back; yields the requests that it brought. Not called for who sends none.
    fn arrived(&mut self, ring: &Ring, number: u32, completion: &Completion) -> Result<Arrival> {
        let _ = (ring, completion);
        debug_assert!(false, "this front end sends no commands, and {number} came back");
        Ok(Arrival::Nothing)
    }

    /// The next of many requests; asked until there is none, after [`Arrival::Many`], and after an
    /// [`end_turn`](Self::end_turn) that said so.
    fn next(&mut self, ring: &Ring) -> Result<Option<Io>> {
        let _ = ring;
        Ok(None)
    }

    /// Completes the request `io` with `result`; its slot may arrive again afterwards.
    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()>;

    /// Whether the operation that serves a request which has come alone ([`Arrival::One`]) and the command that
    /// completes it can be one chain. So
    /// it is where its payload is hidden, since nobody waits for the end of a chain before the slots' memory
    /// goes (nor before memory that the command itself reads, which the front end sees to), and where one command completes it whose end nobody waits for: it comes back with the number
    /// and the next request of the slot, or not at all.
    fn can_chain(&self, io: &Io) -> bool {
        let _ = io;
        false
    }

    /// Whether there are requests that [`can_chain`](Self::can_chain). Constant.
    fn chains(&self) -> bool {
        false
    }

    /// Sends, and at once, the command that completes a request which was served in full.
    fn chain(&mut self, ring: &Ring, io: &Io) -> Result<()> {
        self.complete(ring, io, Ok(()))
    }

    /// Another thread called [`Remote::notify_front`](crate::port::remote::Remote::notify_front).
    fn notified(&mut self, ring: &Ring) -> Result<()> {
        let _ = ring;
        Ok(())
    }

    /// Nothing new is to be taken; what has arrived is still to be completed.
    fn stop(&mut self, ring: &Ring) -> Result<()> {
        let _ = ring;
        Ok(())
    }

    /// The end of a turn of the loop: what was gathered in it can go out. True where requests wait
    /// that [`next`](Self::next) can now yield, since a slot became free. Where the turn is `full`, `next` is
    /// asked again in the next one.
    fn end_turn(&mut self, ring: &Ring, full: bool) -> Result<bool> {
        let _ = (ring, full);
        Ok(false)
    }

    /// The queue has failed, and only waits for what is in flight: what the outside may never end is
    /// to be ended.
    fn give_up(&mut self) {}

    /// Whether nothing will arrive any more.
    fn finished(&self) -> bool;
}

/// A backend with its type erased, once, above the loop: what an engine serves.
pub trait Stack: Send + Sync {
    /// The disk's shape.
    fn geometry(&self) -> Geometry;
    /// What the disk can do.
    fn capabilities(&self) -> Capabilities;
    /// Bytes of memory that the contents take, where they are in memory.
    fn memory_used(&self) -> Option<u64>;
    /// As [`Backend::outlives_process`].
    fn outlives_process(&self) -> bool;
    /// What was chosen when it was opened, and why.
    fn notes(&self) -> Vec<String>;
    /// The disk can be opened by everybody: what was made for it now stays.
    fn started(&self);
    /// The process ends at once and does not drop this: what was made for it goes.
    fn abandoned(&self);
    /// Makes everything durable, after the last queue.
    fn close(&self) -> Result<()>;
    /// Serves one queue on this thread until its front end has finished, and counts what it does.
    fn serve(
        &self,
        context: &QueueContext<'_>,
        buffers: &Buffers,
        front: &mut dyn FrontEnd,
        metrics: &QueueMetrics,
    ) -> Result<()>;
    /// As a backend, for a filter to stand on.
    fn into_backend(self: Arc<Self>) -> Dynamic;
}

impl<B: Backend> Stack for B {
    fn geometry(&self) -> Geometry {
        Backend::geometry(self)
    }

    fn capabilities(&self) -> Capabilities {
        Backend::capabilities(self)
    }

    fn memory_used(&self) -> Option<u64> {
        Backend::memory_used(self)
    }

    fn outlives_process(&self) -> bool {
        Backend::outlives_process(self)
    }

    fn notes(&self) -> Vec<String> {
        Backend::notes(self)
    }

    fn started(&self) {
        Backend::started(self);
    }

    fn abandoned(&self) {
        Backend::abandoned(self);
    }

    fn close(&self) -> Result<()> {
        Backend::close(self)
    }

    fn serve(
        &self,
        context: &QueueContext<'_>,
        buffers: &Buffers,
        front: &mut dyn FrontEnd,
        metrics: &QueueMetrics,
    ) -> Result<()> {
        let queue = self.open_queue(context)?;
        let ring = context.ring;
        let admission = Admission::new(&Backend::geometry(self), Backend::capabilities(self));
        let task = |io: Io| {
            let payload = buffers.payload(ring, &io);
            let queue = &queue;
            async move { queue.serve(io, payload?).await }
        };
        let admit = |io: &Io| {
            if let Err(errno) = admission.check(io) {
                return Admitted::Over(Err(errno));
            }
            let mut payload = match buffers.payload(ring, io) {
                Ok(payload) => payload,
                Err(errno) => return Admitted::Over(Err(errno)),
            };
            if io.len != 0
                && let Some(single) = queue.single(io)
            {
                return Admitted::Single(single, payload.place());
            }
            match queue.serve_now(io, &mut payload) {
                Some(result) => Admitted::Over(result),
                None => Admitted::Task,
            }
        };
        let slots = Slots::new(ring, context.depth, &task);
        let mut turns = Turns {
            ring,
            chains: front.chains(),
            front,
            slots,
            admit,
            task: &task,
            meter: Meter::new(metrics),
            stopping: false,
            alone: false,
            left: TURN_LEN,
            begun: 0,
        };
        let result = turns.run();
        turns.drain();
        result
    }

    fn into_backend(self: Arc<Self>) -> Dynamic {
        Dynamic::new(self)
    }
}

/// What becomes of a request that has arrived.
enum Admitted {
    /// It is answered, or refused.
    Over(IoResult),
    /// One operation serves it.
    Single(Single, Place),
    /// A future serves it.
    Task,
}

/// The loop: what it owns while it runs.
struct Turns<'a, F, A, T> {
    ring: &'a Ring,
    front: &'a mut dyn FrontEnd,
    /// The front end has requests that can be chains.
    chains: bool,
    slots: Slots<F>,
    admit: A,
    task: &'a T,
    meter: Meter<'a>,
    stopping: bool,
    /// This turn of the loop has one completion to react to.
    alone: bool,
    /// Bytes that this turn can still begin; none where it is full, and the next one goes on with it.
    left: u64,
    /// Bytes that this turn has begun to move, a request counted as a block at least.
    begun: u64,
}

impl<F, A, T> Turns<'_, F, A, T>
where
    F: Future<Output = IoResult>,
    A: Fn(&Io) -> Admitted,
    T: Fn(Io) -> F,
{
    fn run(&mut self) -> Result<()> {
        let mut completions = Vec::with_capacity(turn_capacity(self.slots.slots.len() as u16));
        self.front.start(self.ring)?;
        while !self.done() {
            let goes_on = self.left == 0;
            self.left = TURN_LEN;
            let submitted = if goes_on { self.ring.submit() } else { self.ring.submit_and_wait() };
            submitted.map_err(ring_failed)?;
            self.ring.completions(&mut completions);
            self.meter.begin_turn();
            self.alone = completions.len() == 1;
            let mut rest = completions.iter();
            let result = rest.try_for_each(|completion| self.react(completion));
            // After a failure what has ended has ended, and is not waited for.
            rest.for_each(|completion| self.account(completion));
            result?;
            while let Some(message) = self.ring.remote().receive() {
                self.hear(message)?;
            }
            if goes_on {
                self.begin_all()?;
            }
            while self.front.end_turn(self.ring, self.left == 0)? && self.left != 0 {
                self.begin_all()?;
            }
            self.meter.end_turn();
            self.ring.found(std::mem::take(&mut self.begun));
        }
        Ok(())
    }

    /// After a failure: waits for the operations that are still somewhere else, since they may touch
    /// the buffers, which the caller is about to free.
    fn drain(&mut self) {
        let depth = self.slots.slots.len() as u16;
        let mut completions = Vec::with_capacity(turn_capacity(depth));
        if self.ring.transfers_in_flight() != 0 {
            self.front.give_up();
        }
        while self.ring.transfers_in_flight() != 0
            || self.slots.single != 0
            || (0..depth).any(|slot| self.ring.slot(slot).in_flight() != 0)
        {
            if self.ring.submit_and_wait().is_err() {
                // Nothing can tell any more when the kernel lets go of this memory.
                std::process::abort();
            }
            self.ring.completions(&mut completions);
            completions.iter().for_each(|completion| self.account(completion));
            while let Some(message) = self.ring.remote().receive() {
                if let Message::Finished { slot, entry, result } = message {
                    self.ring.slot(slot).finish(entry, result);
                }
            }
        }
    }

    /// Takes a completion for what it says about the memory, and for nothing else.
    fn account(&mut self, completion: &Completion) {
        match completion.token() {
            Token::Operation { slot, entry } => self.ring.slot(slot).finish(entry, completion.result),
            Token::Single(_) => self.slots.single -= 1,
            Token::Wake => {
                if self.ring.arm_wake().is_err() {
                    // Another thread may have memory of ours, and could not say when it is done.
                    std::process::abort();
                }
            }
            // What a chain moves is pages of the driver's, which are not ours to wait for.
            Token::Front(_) | Token::Quiet(_) | Token::Chained(_) => {}
        }
    }

    fn done(&self) -> bool {
        (self.front.finished() || self.stopping) && self.slots.in_service == 0
    }

    #[inline]
    fn react(&mut self, completion: &Completion) -> Result<()> {
        match completion.token() {
            Token::Front(number) | Token::Quiet(number) => {
                if self.slots.chained != 0 {
                    let _ = self.end_of_chain(number);
                }
                // Before a byte of a request is moved. What comes alone may go as a chain, which is to cost no
                // look at the clock.
                if !(self.alone && self.chains) {
                    self.meter.look();
                }
                let (io, since) = match self.front.arrived(self.ring, number, completion)? {
                    Arrival::One(io) => (io, None),
                    Arrival::Nothing => return Ok(()),
                    Arrival::Many => return self.begin_all(),
                    Arrival::Coming(slot) => {
                        self.slots.slots[usize::from(slot)].came = self.meter.coming();
                        return Ok(());
                    }
                    Arrival::Ready(io) => (io, Some(self.slots.slots[usize::from(io.slot)].came)),
                };
                self.begin(io, self.alone, since)
            }
            Token::Operation { slot, entry } => self.operation_ended(slot, entry, completion.result),
            Token::Single(slot) => self.single_ended(slot, completion.result),
            // It has failed, or moved too little, and so the command behind it was cancelled.
            Token::Chained(slot) => match self.end_of_chain(slot.into()) {
                Some(io) => self.serve(io, Came::CHAINED),
                None => Ok(()),
            },
            Token::Wake => self.ring.arm_wake().map_err(ring_failed),
        }
    }

    fn hear(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Finished { slot, entry, result } => self.operation_ended(slot, entry, result),
            Message::Wake(slot) => {
                self.slots.slots[usize::from(slot)].woken.received();
                self.advance(slot)
            }
            Message::Front => self.front.notified(self.ring),
            Message::Stop => {
                self.stopping = true;
                self.front.stop(self.ring)
            }
        }
    }

    /// Begins what the front end has, until the turn is full.
    fn begin_all(&mut self) -> Result<()> {
        self.meter.look();
        while self.left != 0
            && let Some(io) = self.front.next(self.ring)?
        {
            self.left = self.left.saturating_sub(io.len.max(LEAST_LEN));
            self.begin(io, false, None)?;
        }
        Ok(())
    }

    /// A request arrived, `alone` where it is all that this turn has to react to: refuse it, answer it at
    /// once, or start what serves it. It came in this turn, unless `since` says when.
    #[inline(always)]
    fn begin(&mut self, io: Io, alone: bool, since: Option<Came>) -> Result<()> {
        self.begun += io.len.max(LEAST_LEN);
        if self.slots.chained != 0 {
            // The slot's next request says that its last one was completed.
            let _ = self.end_of_chain(io.slot.into());
        }
        let may_chain = alone && self.chains && self.front.can_chain(&io);
        // Else before the backend is asked, which may serve it at once, and take its time to copy.
        let mut came = if may_chain { Came::default() } else { self.meter.arrived(since) };
        let admitted = (self.admit)(&io);
        if may_chain {
            came = match &admitted {
                Admitted::Single(single, place) => match self.meter.sample(&io) {
                    Some(came) => came,
                    None => return self.start_chain(io, *single, *place),
                },
                // Its bytes are hidden, so that nobody here has copied them.
                Admitted::Over(_) | Admitted::Task => self.meter.arrived(None),
            };
        }
        match admitted {
            Admitted::Over(result) => self.complete(&io, result, came),
            Admitted::Single(single, place) => self.start_single(io, came, single, place),
            Admitted::Task => self.serve(io, came),
        }
    }

    /// A request of this front end's has been served, or has failed.
    #[inline(always)]
    fn complete(&mut self, io: &Io, result: IoResult, came: Came) -> Result<()> {
        match came.was_chained() {
            true => self.meter.unchained(io, result),
            false => self.meter.completed(io, result, came),
        }
        self.front.complete(self.ring, io, result)
    }

    /// Starts the task of a request. Not inlined, as what follows is much longer than all the rest.
    #[inline(never)]
    fn serve(&mut self, io: Io, came: Came) -> Result<()> {
        let task = (self.task)(io);
        let slot = self.take_slot(io);
        slot.came = came;
        slot.task.set(Some(task));
        self.slots.in_service += 1;
        self.advance(io.slot)
    }

    #[inline]
    fn take_slot(&mut self, io: Io) -> &mut Slot<F> {
        let slot = &mut self.slots.slots[usize::from(io.slot)];
        let free = self.ring.slot(io.slot).lend();
        debug_assert!(free && slot.io.is_none(), "a slot arrived that is in service");
        slot.io = Some(io);
        slot
    }

    /// The slot is its front end's again; yields the request that it had.
    #[inline]
    fn give_slot_back(&mut self, number: u16) -> Option<Io> {
        let io = self.slots.slots[usize::from(number)].io.take();
        debug_assert!(io.is_some(), "a task without a request");
        if io.is_some() {
            self.ring.slot(number).give_back();
        }
        io
    }

    /// Starts the one operation of a request.
    #[inline(always)]
    fn start_single(&mut self, io: Io, came: Came, single: Single, place: Place) -> Result<()> {
        let slot = self.take_slot(io);
        slot.chained = false;
        slot.came = came;
        self.ring.start_single(single, io.op == Op::Write, place).map_err(ring_failed)?;
        self.slots.single += 1;
        self.slots.in_service += 1;
        Ok(())
    }

    /// Starts the one operation of a request, and sends its completion right behind it. That is where no other
    /// request is there whose operation would share the next turn: it saves a turn, and a chain costs the
    /// kernel more than two entries do.
    #[inline(never)]
    fn start_chain(&mut self, io: Io, single: Single, place: Place) -> Result<()> {
        self.take_slot(io).chained = true;
        self.slots.chained += 1;
        self.meter.chained(&io);
        self.ring.start_chained(single, io.op == Op::Write, place).map_err(ring_failed)?;
        self.front.chain(self.ring, &io)
    }

    /// The one operation of a request came back: it has served it, or a task has to.
    #[inline]
    fn single_ended(&mut self, number: u16, result: i32) -> Result<()> {
        self.slots.single -= 1;
        self.slots.in_service -= 1;
        let Some(io) = self.give_slot_back(number) else { return Ok(()) };
        let came = self.slots.slots[usize::from(number)].came;
        match u64::try_from(result) == Ok(io.len) {
            true => self.complete(&io, Ok(()), came),
            false => self.serve(io, came),
        }
    }

    /// The command with this number came back, or what was chained before it in its place. Where it was the
    /// end of a chain, yields the request that the chain was about.
    #[inline]
    fn end_of_chain(&mut self, number: u32) -> Option<Io> {
        let slot = self.slots.slots.get_mut(number as usize)?;
        if !std::mem::take(&mut slot.chained) {
            return None;
        }
        self.slots.chained -= 1;
        self.give_slot_back(number as u16)
    }

    #[inline]
    fn operation_ended(&mut self, slot: u16, entry: u8, result: i32) -> Result<()> {
        self.ring.slot(slot).finish(entry, result);
        self.advance(slot)
    }

    /// Polls the slot's task, and completes its request when the task and all its operations are
    /// over: not before, since until then the kernel may still touch the slot's memory.
    #[inline]
    fn advance(&mut self, number: u16) -> Result<()> {
        let slot = &mut self.slots.slots[usize::from(number)];
        while let Some(task) = slot.task.as_mut().as_pin_mut() {
            if let Poll::Ready(result) = task.poll(&mut Context::from_waker(&slot.waker)) {
                slot.task.set(None);
                slot.result = Some(result);
            } else if !self.ring.slot(number).can_go_on() {
                break;
            }
        }
        if let Some(result) = slot.result
            && self.ring.slot(number).in_flight() == 0
        {
            slot.result = None;
            let came = slot.came;
            self.slots.in_service -= 1;
            if let Some(io) = self.give_slot_back(number) {
                return self.complete(&io, result, came);
            }
        }
        Ok(())
    }
}

#[cold]
fn ring_failed(error: std::io::Error) -> Error {
    Error::system("a queue's io_uring failed", error)
}

/// Bytes of payload that a request carries, given the size of its slot's buffer.
fn payload_len(io: &Io, slot_size: usize) -> Result<usize, Errno> {
    match io.op {
        Op::Read | Op::Write => {
            usize::try_from(io.len).ok().filter(|&len| len <= slot_size).ok_or(Errno::EINVAL)
        }
        Op::WriteZeroes | Op::Extents => Ok(slot_size),
        Op::Flush | Op::Discard => Ok(0),
    }
}
