//! A queue's buffers: one a slot, in one piece of memory that lies on the thread's own node, or the
//! client's own pages, registered with the ring and hidden.

use std::cell::Cell;
use std::io;

use crate::io::{Errno, Flags, Io, Op};
use crate::payload::Payload;
use crate::port::memory::{HugePages, Mapping};
use crate::port::ring::Ring;
use crate::port::system::page_size;

/// The memory of all slots of one queue.
#[derive(Debug)]
pub struct Buffers {
    memory: Mapping,
    slot_size: usize,
    /// A slot each: whether the data of its request is hidden, in the registered buffer of the
    /// slot's number. Empty where it never is.
    hidden: Box<[Cell<bool>]>,
}

impl Buffers {
    /// Buffers for `depth` slots of `slot_size` bytes each, rounded up to pages. To be called on
    /// the queue's own thread: touching the pages is what places them.
    pub fn new(depth: u16, slot_size: u32) -> io::Result<Buffers> {
        let slot_size = (slot_size as usize).next_multiple_of(page_size());
        let mut memory = Mapping::anonymous(slot_size as u64 * u64::from(depth), HugePages::Wanted)?;
        memory.touch();
        Ok(Buffers { memory, slot_size, hidden: Box::default() })
    }

    /// For payloads that are hidden unless [`show`](Self::show) says otherwise. The slots' own
    /// buffers are there as well, for what no page of a client carries, but take no memory before
    /// they are used.
    pub fn hidden(depth: u16, slot_size: u32) -> io::Result<Buffers> {
        let slot_size = (slot_size as usize).next_multiple_of(page_size());
        let memory = Mapping::anonymous(slot_size as u64 * u64::from(depth), HugePages::Never)?;
        Ok(Buffers { memory, slot_size, hidden: (0..depth).map(|_| Cell::new(true)).collect() })
    }

    /// The data of the slot's next request is in its own buffer, not hidden; or hidden again.
    #[inline]
    pub fn show(&self, slot: u16, in_own_buffer: bool) {
        if let Some(hidden) = self.hidden.get(usize::from(slot)) {
            hidden.set(!in_own_buffer);
        }
    }

    /// Whether the data of the slot's request is hidden.
    #[inline]
    pub fn is_hidden(&self, slot: u16) -> bool {
        self.hidden.get(usize::from(slot)).is_some_and(Cell::get)
    }

    /// Bytes that they take.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// Registers the buffers with the ring; false where the kernel would not.
    ///
    /// # Safety
    /// The ring is dropped before these buffers.
    pub unsafe fn register(&self, ring: &Ring) -> bool {
        // SAFETY: the caller drops the ring first; until then the mapping stays.
        unsafe { ring.register_buffers(self.memory.start().as_ptr(), self.memory.len()) }
    }

    /// Address of a slot's buffer, to be told to the kernel.
    pub fn address(&self, slot: u16) -> u64 {
        self.memory.start().as_ptr() as u64 + self.offset(slot) as u64
    }

    fn offset(&self, slot: u16) -> usize {
        self.slot_size * usize::from(slot)
    }

    /// Bytes in a slot's buffer.
    #[inline]
    pub fn slot_size(&self) -> usize {
        self.slot_size
    }

    /// Lets the front end at the first `len` bytes of a slot that is not in service. EBUSY where it is,
    /// EINVAL where the slot has fewer.
    #[inline]
    pub fn with_slot<R>(
        &self,
        ring: &Ring,
        slot: u16,
        len: usize,
        look: impl FnOnce(Payload<'_>) -> R,
    ) -> Result<R, Errno> {
        let flags = Flags::empty();
        let io = Io { op: Op::Read, flags, offset: 0, len: len as u64, slot };
        let payload = self.payload(ring, &io)?;
        if !ring.slot(slot).lend() {
            return Err(Errno::EBUSY);
        }
        let result = look(payload);
        ring.slot(slot).give_back();
        Ok(result)
    }

    /// The payload of a request: all bytes it carries, at the start of its slot's buffer.
    #[inline]
    pub(crate) fn payload<'s>(&'s self, ring: &'s Ring, io: &Io) -> Result<Payload<'s>, Errno> {
        let len = super::payload_len(io, self.slot_size)?;
        if matches!(io.op, Op::Read | Op::Write) && self.is_hidden(io.slot) {
            return Ok(Payload::hidden(len, ring.slot(io.slot), io.slot, io.slot));
        }
        let offset = self.offset(io.slot);
        if offset + self.slot_size > self.memory.len() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the slot's range is inside the mapping, checked above.
        let start = unsafe { self.memory.start().add(offset) };
        let registered = ring.registered_index(offset, self.slot_size);
        // SAFETY: touched, so initialised; mapped as long as 's, which covers the loop, and the
        // loop ends only when no operation is in flight. One request at a time has a slot: the
        // loop makes a payload for serve_now, drops it, and only then one for the task, to which the
        // slot is lent; `with_slot` makes one only while nobody has it.
        Ok(unsafe { Payload::new(start, len, ring.slot(io.slot), io.slot, registered) })
    }
}
