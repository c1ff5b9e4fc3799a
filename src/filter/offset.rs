//! `offset`: a window of the disk below.

use crate::backend::{Backend, Queue, QueueContext, pass_on};
use crate::error::{Error, Result};
use crate::filter::notes;
use crate::io::{Capabilities, Geometry, Io, IoResult};
use crate::payload::Payload;
use crate::port::ring::Single;

/// Shows only some of a disk's blocks, which lie beside each other.
#[derive(Debug)]
pub struct Offset<B> {
    below: B,
    start: u64,
    size: u64,
}

impl<B: Backend> Offset<B> {
    /// The `length` bytes from `start`, or all bytes from there on. Whole blocks of the disk below.
    pub fn new(below: B, start: u64, length: Option<u64>) -> Result<Offset<B>> {
        let what = || format!("cannot show a window of the disk from byte {start}");
        let geometry = below.geometry();
        let block = u64::from(geometry.logical_block_size);
        if !(start | length.unwrap_or(0)).is_multiple_of(block) {
            let why = format!("start and length must be whole blocks of {block} bytes");
            return Err(Error::invalid(what(), why)
                .cure("round them, or give --filter blocksize,size=512 behind this filter"));
        }
        let left = geometry.size.saturating_sub(start);
        let size = length.unwrap_or(left);
        if size == 0 || size > left {
            let why = format!("the disk has {} bytes, {left} of them behind the start", geometry.size);
            return Err(Error::invalid(what(), why).cure("give a smaller start or length"));
        }
        Ok(Offset { below, start, size })
    }
}

impl<B: Backend> Backend for Offset<B> {
    type Queue = OffsetQueue<B::Queue>;

    fn geometry(&self) -> Geometry {
        Geometry { size: self.size, ..self.below.geometry() }
    }

    fn capabilities(&self) -> Capabilities {
        self.below.capabilities()
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<OffsetQueue<B::Queue>> {
        Ok(OffsetQueue { below: self.below.open_queue(context)?, start: self.start })
    }

    fn notes(&self) -> Vec<String> {
        let own = format!("offset: {} bytes from byte {} of the disk below", self.size, self.start);
        notes(own, self.below.notes())
    }

    pass_on!(below);
}

/// One queue's handle.
#[derive(Debug)]
pub struct OffsetQueue<Q> {
    below: Q,
    start: u64,
}

impl<Q> OffsetQueue<Q> {
    #[inline]
    fn moved(&self, io: &Io) -> Io {
        // Inside the window, so the sum is inside the disk; a flush has no offset, whatever it says.
        Io { offset: io.offset.wrapping_add(self.start), ..*io }
    }
}

impl<Q: Queue> Queue for OffsetQueue<Q> {
    #[inline]
    fn single(&self, io: &Io) -> Option<Single> {
        self.below.single(&self.moved(io))
    }

    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        self.below.serve_now(&self.moved(io), payload)
    }

    #[inline]
    fn serve(&self, io: Io, payload: Payload<'_>) -> impl Future<Output = IoResult> {
        self.below.serve(self.moved(&io), payload)
    }
}
