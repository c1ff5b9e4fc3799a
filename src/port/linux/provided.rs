//! Buffers that the kernel chooses from when a multishot command completes: a ring of its own beside the
//! io_uring's two (`io_uring_register_buf_ring(3)`).

use std::io;
use std::mem::size_of;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::port::memory::{HugePages, Mapping};

/// The buffers, and the ring through which the kernel has them.
pub(super) struct Provided {
    ring: Mapping,
    memory: Mapping,
    /// Bytes of a buffer.
    len: u32,
    /// Buffers, a power of two.
    count: u16,
    tail: u16,
}

impl Provided {
    /// The only group there is.
    pub const GROUP: u16 = 0;

    /// `count` buffers of `len` bytes each, all of them the kernel's.
    pub fn new(count: u16, len: u32) -> io::Result<Provided> {
        if !count.is_power_of_two() || len == 0 || !len.is_multiple_of(size_of::<u16>() as u32) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let ring = usize::from(count) * size_of::<BufRingEntry>();
        let mut memory = Mapping::anonymous(u64::from(count) * u64::from(len), HugePages::Never)?;
        let mut ring = Mapping::anonymous(ring as u64, HugePages::Never)?;
        memory.touch();
        ring.touch();
        let mut provided = Provided { ring, memory, len, count, tail: 0 };
        (0..count).for_each(|buffer| provided.give(buffer));
        Ok(provided)
    }

    /// For the registration.
    pub fn ring_address(&self) -> u64 {
        self.ring.start().as_ptr() as u64
    }

    fn start_of(&self, buffer: u16) -> *mut u8 {
        // SAFETY: a buffer's number is below `count`, and so its start inside the mapping.
        unsafe { self.memory.start().as_ptr().add(usize::from(buffer) * self.len as usize) }
    }

    /// Gives a buffer to the kernel.
    #[inline]
    fn give(&mut self, buffer: u16) {
        let at = usize::from(self.tail & (self.count - 1));
        let ring = self.ring.start().as_ptr().cast::<BufRingEntry>();
        // SAFETY: `at` is below `count`. The kernel reads no entry between its head and our tail, where this
        // one is: there are as many places as buffers, and this buffer is in none of them.
        let entry = unsafe { &mut *ring.add(at) };
        entry.set_addr(self.start_of(buffer) as u64);
        entry.set_len(self.len);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry, in bytes that no setter above writes; it is aligned, and
        // mapped as long as the ring is.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(ring).cast_mut()) };
        // Release: the entry is written before the kernel sees that it is there.
        tail.store(self.tail, Ordering::Release);
    }

    /// The numbers in the first `len` bytes of a buffer that came with a completion; the kernel has it back.
    #[inline]
    pub fn take_numbers(&mut self, buffer: u16, len: usize, into: &mut Vec<u16>) {
        if buffer >= self.count {
            return;
        }
        let count = len.min(self.len as usize) / size_of::<u16>();
        // SAFETY: the kernel wrote so many bytes before it completed with this buffer, and leaves it alone
        // until it is given again, below. Buffers have an even length (new checked), so that all are aligned.
        let numbers = unsafe { std::slice::from_raw_parts(self.start_of(buffer).cast::<u16>(), count) };
        into.extend_from_slice(numbers);
        self.give(buffer);
    }
}
