//! What the thread of a disk has to do: a request of a queue, or something of its own.

use std::sync::Arc;

use crate::io::extents::{Answer, Extent};
use crate::io::{Errno, Flags, Io, IoResult, Op};
use crate::port::channel::Sender;
use crate::port::clock::Instant;
use crate::port::remote::Ticket;

/// A request on its way from a queue.
#[derive(Debug)]
pub(super) struct Job {
    pub io: Io,
    pub ticket: Ticket,
}

/// For whom something is done.
#[derive(Debug)]
pub(super) enum Owner {
    /// A request of a queue, and its bytes.
    Request(Ticket),
    /// The end of the disk, which makes everything durable.
    Close(Sender<IoResult>),
    /// A flush of our own, to empty the journal.
    Flush,
    /// A change that the server may have lost, and its data.
    Replay(Arc<[u8]>),
}

#[derive(Debug)]
pub(super) struct Work {
    pub owner: Owner,
    pub op: Op,
    pub flags: Flags,
    pub offset: u64,
    pub len: u64,
    /// In which order it came.
    pub number: u64,
    /// When it came, or got on last.
    pub since: Instant,
    /// Bytes of the range that are done with: what is too long for one request is several, one after the other.
    pub done: u64,
    /// A change that a lost session may have begun: it comes before everything else.
    pub again: bool,
    /// Of a flush: the number of the first change of the journal that it does not cover, and which flush it is.
    pub covers: u64,
    pub flush: u64,
}

impl Work {
    pub fn of(job: Job, number: u64, since: Instant) -> Work {
        let Io { op, flags, offset, len, .. } = job.io;
        Work::new(Owner::Request(job.ticket), op, flags, offset, len, number, since)
    }

    pub fn flush(owner: Owner, number: u64, since: Instant) -> Work {
        Work::new(owner, Op::Flush, Flags::empty(), 0, 0, number, since)
    }

    pub fn new(
        owner: Owner,
        op: Op,
        flags: Flags,
        offset: u64,
        len: u64,
        number: u64,
        since: Instant,
    ) -> Work {
        Work { owner, op, flags, offset, len, number, since, done: 0, again: false, covers: 0, flush: 0 }
    }

    /// What a write is to write.
    pub fn data(&self) -> &[u8] {
        match &self.owner {
            Owner::Request(ticket) if self.op == Op::Write => ticket.content(),
            Owner::Replay(data) => data,
            _ => &[],
        }
    }

    /// Where a read goes, or the answer to what takes space.
    pub fn target(&mut self) -> &mut [u8] {
        match &mut self.owner {
            Owner::Request(ticket) if matches!(self.op, Op::Read | Op::Extents) => ticket.bytes(),
            _ => &mut [],
        }
    }

    /// Answers what takes space, as far as these extents go. An error where there is no room for any.
    pub fn answer(&mut self, extents: &[Extent]) -> IoResult {
        let Work { op, flags, offset, len, .. } = *self;
        let mut answer = Answer::new(&Io { op, flags, offset, len, slot: 0 }, self.target())?;
        let _ = extents.iter().all(|extent| answer.add(extent.len, extent.state));
        Ok(())
    }

    pub fn is_replay(&self) -> bool {
        matches!(self.owner, Owner::Replay(_))
    }

    /// Tells whoever waits for it.
    pub fn finish(self, result: IoResult) {
        match self.owner {
            Owner::Request(ticket) => ticket.finish(result),
            // Nobody waits any more where that fails.
            Owner::Close(sender) => drop(sender.try_send(result)),
            Owner::Flush | Owner::Replay(_) => {}
        }
    }

    pub fn fail(self) {
        self.finish(Err(Errno::EIO));
    }
}
