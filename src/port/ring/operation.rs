//! An operation of the ring as a future: booked in its slot with the first poll, and waited for by the slot if
//! nobody else does.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::{Entry, Ring, Token};
use crate::io::Errno;
use crate::payload::Payload;
use crate::port::remote::Ticket;

/// What an operation has still to do.
pub(super) enum Work {
    /// Not yet in the ring.
    Entry(Entry),
    /// In the ring or with another thread, or done with.
    Started,
}

/// An operation on the ring: a future of its result, a length or an errno. Started by its first
/// poll. Dropping it is safe, and does not cancel it: the slot waits for it.
#[must_use = "an operation starts when it is polled"]
pub struct Operation<'a> {
    ring: &'a Ring,
    slot: u16,
    entry: Option<u8>,
    memory: (usize, usize),
    work: Work,
}

impl<'a> Operation<'a> {
    #[inline]
    pub(super) fn new(ring: &'a Ring, payload: &'a Payload<'_>, work: Work) -> Operation<'a> {
        let place = payload.place();
        let start = place.start as usize;
        Operation { ring, slot: place.slot, entry: None, memory: (start, start + place.len), work }
    }

    /// One that touches none of the payload's bytes.
    pub(super) fn without_memory(ring: &'a Ring, payload: &'a Payload<'_>, work: Work) -> Operation<'a> {
        let mut operation = Operation::new(ring, payload, work);
        operation.memory = (0, 0);
        operation
    }

    /// Books an entry; `None` while the slot has none, and then a completion of the slot polls again.
    #[inline]
    fn book(&mut self) -> Option<u8> {
        let entry = self.ring.slot(self.slot).begin(self.memory.0..self.memory.1)?;
        self.entry = Some(entry);
        Some(entry)
    }

    #[inline]
    fn outcome(&mut self) -> Poll<Result<u32, Errno>> {
        let Some(entry) = self.entry else { return Poll::Pending };
        match self.ring.slot(self.slot).take(entry) {
            None => Poll::Pending,
            Some(result) => {
                self.entry = None;
                Poll::Ready(if result >= 0 { Ok(result as u32) } else { Err(Errno::new(-result)) })
            }
        }
    }
}

impl Future for Operation<'_> {
    type Output = Result<u32, Errno>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Work::Entry(prepared) = self.work {
            let Some(entry) = self.book() else { return Poll::Pending };
            self.work = Work::Started;
            let token = Token::Operation { slot: self.slot, entry };
            if let Err(error) = self.ring.push(prepared, token) {
                let errno = Errno::from(error);
                self.ring.slot(self.slot).finish(entry, -errno.number());
            }
        }
        self.outcome()
    }
}

impl Drop for Operation<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            self.ring.slot(self.slot).abandon(entry);
        }
    }
}

/// An operation that another thread carries out.
#[must_use = "an operation starts when it is polled"]
pub struct HandOff<'a, F> {
    pub(super) operation: Operation<'a>,
    pub(super) start: Option<F>,
}

impl<F: FnOnce(Ticket) + Unpin> Future for HandOff<'_, F> {
    type Output = Result<(), Errno>;

    fn poll(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.start.is_some() {
            let Some(entry) = self.operation.book() else { return Poll::Pending };
            let operation = &self.operation;
            let (start, end) = operation.memory;
            let remote = operation.ring.remote().clone();
            // SAFETY: the entry was booked a line above over exactly these bytes, which are the
            // payload's that this future borrows exclusively.
            let ticket = unsafe { Ticket::new(remote, operation.slot, entry, start as *mut u8, end - start) };
            if let Some(pass_on) = self.start.take() {
                pass_on(ticket);
            }
        }
        self.operation.outcome().map_ok(|_| ())
    }
}
