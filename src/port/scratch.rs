//! Memory of its own for each slot of a queue, for a filter that needs more than the request's.

use std::cell::Cell;
use std::io;

use crate::io::Errno;
use crate::payload::Payload;
use crate::port::memory::{HugePages, Mapping};
use crate::port::ring::Ring;

/// So many bytes for each slot of one queue, made when the queue is opened.
#[derive(Debug)]
pub struct Scratch {
    ring: Ring,
    memory: Option<Mapping>,
    slot_size: usize,
    lent: Box<[Cell<bool>]>,
}

impl Scratch {
    /// `slot_size` bytes for each of the `depth` slots of the ring's queue, on this thread's node.
    pub fn new(ring: &Ring, depth: u16, slot_size: usize) -> io::Result<Scratch> {
        let bytes = (slot_size as u64).checked_mul(u64::from(depth)).ok_or(io::ErrorKind::InvalidInput)?;
        let mut memory = Mapping::anonymous(bytes, HugePages::Never)?;
        memory.touch();
        let lent = (0..depth).map(|_| Cell::new(false)).collect();
        Ok(Scratch { ring: ring.clone(), memory: Some(memory), slot_size, lent })
    }

    /// The memory of `slot`, alone: EBUSY while it is lent, EINVAL where there is no such slot.
    #[inline]
    pub fn lend(&self, slot: u16) -> Result<Loan<'_>, Errno> {
        let lent = self.lent.get(usize::from(slot)).ok_or(Errno::EINVAL)?;
        let memory = self.memory.as_ref().ok_or(Errno::EINVAL)?;
        if lent.replace(true) {
            return Err(Errno::EBUSY);
        }
        // SAFETY: the mapping has slot_size bytes for each slot that `lent` has.
        let start = unsafe { memory.start().add(self.slot_size * usize::from(slot)) };
        // SAFETY: touched, so initialised. `lent` keeps a second payload from being made while the
        // loan lives. An operation that outlives the loan is known to the slot's state, so that
        // the next one to borrow is refused its bytes; the mapping outlives it by `drop` below.
        let payload = unsafe { Payload::new(start, self.slot_size, self.ring.slot(slot), slot, None) };
        Ok(Loan { payload, lent })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The memory of a process that was killed goes with it, and many of those live in one of ours.
        #[cfg(feature = "sim")]
        if crate::port::sim::is_dead() {
            return;
        }
        let slots = 0..self.lent.len() as u16;
        if slots.into_iter().any(|slot| self.ring.slot(slot).in_flight() != 0) {
            // An operation of a slot may still touch this memory: it stays mapped.
            std::mem::forget(self.memory.take());
        }
    }
}

/// A slot's scratch memory for as long as it is needed.
#[derive(Debug)]
pub struct Loan<'a> {
    payload: Payload<'a>,
    lent: &'a Cell<bool>,
}

impl Loan<'_> {
    /// The first `len` bytes. EINVAL where there are fewer.
    #[inline]
    pub fn payload(&mut self, len: usize) -> Result<Payload<'_>, Errno> {
        self.payload.part(0..len)
    }
}

impl Drop for Loan<'_> {
    #[inline]
    fn drop(&mut self) {
        self.lent.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::remote::Remote;

    #[test]
    fn a_slots_memory_is_lent_once_at_a_time() {
        let ring = Ring::new(2, Remote::new(2).unwrap()).unwrap();
        let scratch = Scratch::new(&ring, 2, 4096).unwrap();
        let mut first = scratch.lend(0).unwrap();
        assert_eq!(scratch.lend(0).unwrap_err(), Errno::EBUSY);
        first.payload(4096).unwrap().bytes_mut().unwrap().fill(7);
        assert!(first.payload(4097).is_err());
        let mut second = scratch.lend(1).unwrap();
        assert!(second.payload(4096).unwrap().bytes().unwrap().iter().all(|&byte| byte == 0));
        drop(first);
        assert!(scratch.lend(0).unwrap().payload(1).unwrap().bytes().unwrap() == [7]);
        assert_eq!(scratch.lend(2).unwrap_err(), Errno::EINVAL);
    }
}
