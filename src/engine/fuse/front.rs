//! The front end of a queue: requests from its line, replies to the kernel.

use std::collections::VecDeque;

use super::LONGEST_ZEROES;
use super::line::{Counter, Order, Place};
use crate::error::Result;
use crate::io::{Capabilities, Errno, Flags, Io, IoResult, Op};
use crate::port::fuse::Reply;
use crate::port::ring::Ring;
use crate::queue::{Buffers, FrontEnd};

/// A queue's requests.
pub(super) struct Front<'a> {
    counter: Counter,
    buffers: &'a Buffers,
    /// The disk loses what it was told unless it is flushed, and knows no FUA.
    flush_for_fua: bool,
    /// How a range becomes zeros, if it can.
    zeroes: Option<Op>,
    /// What each slot is about, while it is about something.
    requests: Box<[Option<Request>]>,
    /// The next steps of requests that take several.
    ready: VecDeque<Io>,
    /// Somebody has left something since the line was last found empty.
    called: bool,
}

/// A request in service.
struct Request {
    place: Place,
    reply: Reply,
    /// What is still to be zeroed: of a range that is longer than one step.
    rest: (u64, u64),
    /// A flush is still to follow.
    flush_after: bool,
}

impl<'a> Front<'a> {
    pub fn new(counter: Counter, buffers: &'a Buffers, depth: u16, capabilities: Capabilities) -> Front<'a> {
        let zeroes = match () {
            () if capabilities.contains(Capabilities::WRITE_ZEROES) => Some(Op::WriteZeroes),
            () if capabilities.contains(Capabilities::DISCARD | Capabilities::DISCARD_ZEROES) => {
                Some(Op::Discard)
            }
            () => None,
        };
        Front {
            counter,
            buffers,
            flush_for_fua: capabilities.contains(Capabilities::VOLATILE_CACHE)
                && !capabilities.contains(Capabilities::FUA),
            zeroes,
            requests: (0..depth).map(|_| None).collect(),
            ready: VecDeque::with_capacity(depth.into()),
            called: false,
        }
    }

    /// Begins what a program asked for: its first step, or the errno that ends it.
    #[inline]
    fn begin(&mut self, ring: &Ring, order: Order) -> Option<Io> {
        let Order { place, mut op, mut flags, offset, mut len, reply } = order;
        let slot = place.slot;
        let mut rest = (0, 0);
        let moved = match op {
            Op::Write => self.fill(ring, &place, len),
            Op::WriteZeroes => match self.zeroes {
                // That gives space back, which was not to be.
                Some(Op::Discard) if flags.contains(Flags::NO_UNMAP) => Err(Errno::EOPNOTSUPP),
                Some(how) => {
                    op = how;
                    let first = len.min(LONGEST_ZEROES);
                    rest = (offset + first, len - first);
                    len = first;
                    Ok(())
                }
                None => Err(Errno::EOPNOTSUPP),
            },
            _ => Ok(()),
        };
        let flush_after = flags.contains(Flags::FUA) && self.flush_for_fua;
        if flush_after {
            flags -= Flags::FUA;
        }
        if let Err(errno) = moved {
            self.end(place, || reply.failed(errno));
            return None;
        }
        self.requests[usize::from(slot)] = Some(Request { place, reply, rest, flush_after });
        Some(Io { op, flags, offset, len, slot })
    }

    /// Moves what is to be written to where the disk takes it from.
    #[inline]
    fn fill(&self, ring: &Ring, place: &Place, len: u64) -> IoResult {
        let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
        let from = place.bytes.get(..len).ok_or(Errno::EINVAL)?;
        self.buffers.with_slot(ring, place.slot, len, |mut payload| {
            payload.bytes_mut().map(|bytes| bytes.copy_from_slice(from))
        })?
    }

    /// Answers, and lets the slot go.
    #[inline]
    fn end(&self, place: Place, answer: impl FnOnce()) {
        answer();
        // There is room for every slot that there is; where nobody is left to take one, none is needed.
        let _ = self.counter.free.send(place);
    }

    /// Answers a request that was served.
    #[inline]
    fn served(&self, ring: &Ring, io: &Io, request: Request) {
        let Request { place, reply, .. } = request;
        let slot = place.slot;
        self.end(place, || {
            if io.op != Op::Read {
                return reply.done(&[]);
            }
            // At most a slot's size.
            let sent = self.buffers.with_slot(ring, slot, io.len as usize, |payload| match payload.bytes() {
                Ok(bytes) => reply.done(bytes),
                Err(errno) => reply.failed(errno),
            });
            // Where it could not even be looked at the reply was dropped, and says EIO.
            debug_assert!(sent.is_ok(), "the slot of a request that was served is not its front end's");
        });
    }
}

impl FrontEnd for Front<'_> {
    #[inline]
    fn next(&mut self, ring: &Ring) -> Result<Option<Io>> {
        if let Some(io) = self.ready.pop_front() {
            return Ok(Some(io));
        }
        while let Ok(order) = self.counter.orders.try_recv() {
            if let Some(io) = self.begin(ring, order) {
                return Ok(Some(io));
            }
        }
        self.called = false;
        Ok(None)
    }

    #[inline]
    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        let Some(mut request) = self.requests[usize::from(io.slot)].take() else { return Ok(()) };
        if let Err(errno) = result {
            let Request { place, reply, .. } = request;
            self.end(place, || reply.failed(errno));
            return Ok(());
        }
        let next = match request.rest {
            (_, 0) if request.flush_after => {
                request.flush_after = false;
                Io { op: Op::Flush, flags: Flags::empty(), offset: 0, len: 0, slot: io.slot }
            }
            (_, 0) => {
                self.served(ring, io, request);
                return Ok(());
            }
            (offset, left) => {
                let len = left.min(LONGEST_ZEROES);
                request.rest = (offset + len, left - len);
                Io { offset, len, ..*io }
            }
        };
        self.requests[usize::from(io.slot)] = Some(request);
        self.ready.push_back(next);
        Ok(())
    }

    #[inline]
    fn notified(&mut self, _ring: &Ring) -> Result<()> {
        self.called = true;
        Ok(())
    }

    #[inline]
    fn end_turn(&mut self, _ring: &Ring, _full: bool) -> Result<bool> {
        Ok(self.called || !self.ready.is_empty())
    }

    fn finished(&self) -> bool {
        // Requests come until the file is unmounted, which whoever does that says.
        false
    }
}
