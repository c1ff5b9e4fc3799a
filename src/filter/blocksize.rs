//! `blocksize`: requests in smaller blocks than the disk below has, by reading, changing and
//! writing whole ones.

use std::sync::Arc;

use crate::backend::{Backend, Queue, QueueContext, pass_on};
use crate::error::{Error, Result};
use crate::filter::notes;
use crate::io::extents::narrow;
use crate::io::{Capabilities, Errno, Flags, Geometry, Io, IoResult, Op};
use crate::payload::Payload;
use crate::port::scratch::Scratch;
#[cfg(feature = "sim")]
use crate::port::sim;

mod range_lock;

use range_lock::{Mode, QueuePart, RangeLock};

/// Bytes of memory of its own that a slot has, or one block where that is more.
const BOUNCE: usize = 16 << 10;

/// Shows a disk in blocks of another size.
#[derive(Debug)]
pub struct Blocksize<B> {
    below: B,
    unit: u32,
    lock: Arc<RangeLock>,
}

impl<B: Backend> Blocksize<B> {
    /// The disk below in blocks of `unit` bytes, a power of two. What is left of its size behind the
    /// last whole block, of its own or of this size, is not shown.
    pub fn new(below: B, unit: u32) -> Result<Blocksize<B>> {
        let what = || format!("cannot show the disk in blocks of {unit} bytes");
        if !unit.is_power_of_two() {
            return Err(Error::invalid(what(), "it is no power of two").cure("give 512, 1024, 2048 or 4096"));
        }
        let block = below.geometry().logical_block_size;
        if !block.is_power_of_two() {
            let why = format!("its own have {block}, which is no power of two");
            return Err(Error::invalid(what(), why).cure("give the disk below blocks of 512 or 4096 bytes"));
        }
        let filter = Blocksize { below, unit, lock: Arc::default() };
        let size = filter.below.geometry().size;
        if filter.geometry().size == 0 {
            let why = format!("the disk has {size} bytes, less than a block");
            return Err(Error::invalid(what(), why).cure("make the disk larger, or the block smaller"));
        }
        Ok(filter)
    }

    /// Whether blocks below have to be changed in part.
    fn finer(&self) -> bool {
        self.unit < self.below.geometry().logical_block_size
    }
}

impl<B: Backend> Backend for Blocksize<B> {
    type Queue = BlocksizeQueue<B::Queue>;

    fn geometry(&self) -> Geometry {
        let below = self.below.geometry();
        let whole = u64::from(below.logical_block_size.max(self.unit));
        Geometry {
            size: below.size - below.size % whole,
            logical_block_size: self.unit,
            physical_block_size: below.physical_block_size.max(below.logical_block_size).max(self.unit),
            ..below
        }
    }

    fn capabilities(&self) -> Capabilities {
        let below = self.below.capabilities();
        match self.finer() {
            // Bytes are copied. A discard leaves the edges of its range as they were.
            true => below - Capabilities::HIDDEN_PAYLOAD - Capabilities::DISCARD_ZEROES,
            false => below,
        }
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<BlocksizeQueue<B::Queue>> {
        let geometry = self.below.geometry();
        let block = geometry.logical_block_size as usize;
        let below = self.below.open_queue(context)?;
        if !self.finer() {
            return Ok(BlocksizeQueue { below, finer: None });
        }
        let bounce = Scratch::new(context.ring, context.depth, BOUNCE.max(block))
            .map_err(|error| Error::system("no memory for the buffers of the blocksize filter", error))?;
        let lock = &self.lock;
        #[cfg(feature = "sim")]
        let lock = if sim::has(sim::Bug::RangeLockOfOneQueue) { &Arc::default() } else { lock };
        let finer = Finer {
            block: block as u64,
            bounce_size: BOUNCE.max(block) as u64,
            memory_mask: geometry.memory_alignment.max(1) as usize - 1,
            bounce,
            lock: lock.part(context.depth),
        };
        Ok(BlocksizeQueue { below, finer: Some(finer) })
    }

    fn notes(&self) -> Vec<String> {
        let below = self.below.geometry();
        let mut own = format!("blocksize: blocks of {} bytes", self.unit);
        if self.finer() {
            own += &format!(
                " on a disk of blocks of {}: what is smaller is read, changed and written",
                below.logical_block_size
            );
        }
        let hidden = below.size - self.geometry().size;
        if hidden != 0 {
            own += &format!("; the last {hidden} bytes of the disk are no whole block and not shown");
        }
        notes(own, self.below.notes())
    }

    pass_on!(below);
}

/// One queue's handle.
#[derive(Debug)]
pub struct BlocksizeQueue<Q> {
    below: Q,
    /// `None` where every block of ours is a whole number of blocks below.
    finer: Option<Finer>,
}

/// What is needed where blocks below are larger than ours.
#[derive(Debug)]
struct Finer {
    /// Of the disk below; a power of two.
    block: u64,
    bounce_size: u64,
    /// Bits of an address that must be 0.
    memory_mask: usize,
    bounce: Scratch,
    lock: QueuePart,
}

/// A step of a request: whole blocks below, and the bytes of the request that lie in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// The blocks.
    first: u64,
    last: u64,
    /// The bytes: all of the blocks, unless they go through the bounce buffer.
    start: u64,
    end: u64,
    bounce: bool,
}

impl Finer {
    fn down(&self, offset: u64) -> u64 {
        offset & !(self.block - 1)
    }

    /// A disk ends with a whole block, so that this is never beyond it.
    fn up(&self, offset: u64) -> u64 {
        self.down(offset + (self.block - 1))
    }

    fn aligned(&self, io: &Io) -> bool {
        (io.offset | io.len) & (self.block - 1) == 0
    }

    /// Where a request can go down as it is.
    fn fits(&self, io: &Io, payload: &Payload<'_>) -> bool {
        self.aligned(io) && self.in_place(payload, 0)
    }

    /// Whether the disk below takes the memory from `skip` bytes into the payload on.
    fn in_place(&self, payload: &Payload<'_>, skip: u64) -> bool {
        (payload.place().start as usize).wrapping_add(skip as usize) & self.memory_mask == 0
    }

    /// The step that begins with byte `start` of a request that ends with `end`; `in_place` says of an
    /// offset whether whole blocks from there on can be served where they are. All that is left goes
    /// through the bounce buffer when it fits there, since one request below is less than three.
    fn step(&self, start: u64, end: u64, most: u64, in_place: impl Fn(u64) -> bool) -> Step {
        let inner = self.down(end);
        if start == self.down(start) && start < inner && in_place(start) {
            return Step { first: start, last: inner, start, end: inner, bounce: false };
        }
        let first = self.down(start);
        let whole = self.up(end);
        let last = match whole - first {
            rest if rest <= most => whole,
            // The head alone, so that what follows can be served where it is.
            _ if start != first && in_place(self.up(start)) => first + self.block,
            _ => first + self.down(most),
        };
        Step { first, last, start, end: end.min(last), bounce: true }
    }
}

impl<Q: Queue> Queue for BlocksizeQueue<Q> {
    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        match &self.finer {
            // What changes anything has to hold its blocks first.
            Some(finer) if io.op != Op::Flush && (io.op.modifies() || !finer.fits(io, payload)) => None,
            _ => self.below.serve_now(io, payload),
        }
    }

    #[inline]
    async fn serve(&self, io: Io, payload: Payload<'_>) -> IoResult {
        let Some(finer) = &self.finer else { return self.below.serve(io, payload).await };
        match io.op {
            Op::Flush => self.below.serve(io, payload).await,
            Op::Read if finer.fits(&io, &payload) => self.below.serve(io, payload).await,
            Op::Read => self.read(finer, io, payload).await,
            Op::Discard => self.discard(finer, io, payload).await,
            Op::Write | Op::WriteZeroes => self.change(finer, io, payload).await,
            Op::Extents => self.extents(finer, io, payload).await,
        }
    }
}

impl<Q: Queue> BlocksizeQueue<Q> {
    /// Those of the whole blocks that the range touches, as far as they are in it.
    async fn extents(&self, finer: &Finer, io: Io, mut payload: Payload<'_>) -> IoResult {
        let first = finer.down(io.offset);
        // The first run there may end before the range begins.
        let flags = if first == io.offset { io.flags } else { io.flags - Flags::FIRST_EXTENT };
        let below = Io { flags, offset: first, len: finer.up(io.offset + io.len) - first, ..io };
        self.below.serve(below, payload.part(0..payload.len())?).await?;
        narrow(payload.bytes_mut()?, io.offset - first, io.len);
        Ok(())
    }

    async fn read(&self, finer: &Finer, io: Io, mut payload: Payload<'_>) -> IoResult {
        let end = io.offset + io.len;
        let mut start = io.offset;
        while start < end {
            let in_place = |offset: u64| finer.in_place(&payload, offset - io.offset);
            let step = finer.step(start, end, finer.bounce_size, in_place);
            let below = Io { offset: step.first, len: step.last - step.first, ..io };
            let mut ours =
                payload.part((step.start - io.offset) as usize..(step.end - io.offset) as usize)?;
            if step.bounce {
                let mut loan = finer.bounce.lend(io.slot)?;
                let bounced = loan.payload(below.len as usize)?;
                self.below.serve(below, bounced).await?;
                let bounced = loan.payload(below.len as usize)?;
                let bytes = &bounced.bytes()?[(step.start - step.first) as usize..];
                let ours = ours.bytes_mut()?;
                ours.copy_from_slice(bytes.get(..ours.len()).ok_or(Errno::EINVAL)?);
            } else {
                self.below.serve(below, ours).await?;
            }
            start = step.end;
        }
        Ok(())
    }

    /// Only whole blocks inside the range; a neighbour's bytes are never given up.
    async fn discard(&self, finer: &Finer, io: Io, payload: Payload<'_>) -> IoResult {
        let (first, last) = (finer.up(io.offset), finer.down(io.offset + io.len));
        if first >= last {
            return Ok(());
        }
        let _held = finer.lock.hold(io.slot, first, last, Mode::Shared).await;
        self.below.serve(Io { offset: first, len: last - first, ..io }, payload).await
    }

    /// A write or write-zeroes. Whoever changes blocks in part has them alone, from the first byte that
    /// is read until the last is written; whole blocks are only kept from those.
    async fn change(&self, finer: &Finer, io: Io, mut payload: Payload<'_>) -> IoResult {
        let end = io.offset + io.len;
        let mode = if finer.aligned(&io) { Mode::Shared } else { Mode::Exclusive };
        let _held = finer.lock.hold(io.slot, finer.down(io.offset), finer.up(end), mode).await;
        let zeroes = io.op == Op::WriteZeroes;
        // Zeros come from the disk below, except at the edges.
        let most = if zeroes { finer.block } else { finer.bounce_size };
        let mut start = io.offset;
        while start < end {
            let in_place = |offset: u64| zeroes || finer.in_place(&payload, offset - io.offset);
            let step = finer.step(start, end, most, in_place);
            let part = (step.start - io.offset) as usize..(step.end - io.offset) as usize;
            if step.bounce {
                let source = if zeroes { None } else { Some(payload.part(part)?) };
                self.merge(finer, &io, step, source).await?;
            } else {
                let below = Io { offset: step.first, len: step.last - step.first, ..io };
                let memory = payload.part(if zeroes { 0..payload.len() } else { part })?;
                self.below.serve(below, memory).await?;
            }
            start = step.end;
        }
        Ok(())
    }

    /// Reads the blocks of a step as far as they are not written wholly, puts `source` or zeros in
    /// their place, and writes them.
    async fn merge(&self, finer: &Finer, io: &Io, step: Step, source: Option<Payload<'_>>) -> IoResult {
        let len = (step.last - step.first) as usize;
        let block = finer.block as usize;
        let mut loan = finer.bounce.lend(io.slot)?;
        let head = step.start != step.first;
        let tail = step.end != step.last && (len > block || !head);
        // The last block first: it is read to where memory is aligned for any disk, and moved from there.
        for (needed, offset) in [(tail, len - block), (head, 0)] {
            if needed {
                let mut bounced = loan.payload(len)?;
                let offset_below = step.first + offset as u64;
                let read =
                    Io { op: Op::Read, flags: Flags::empty(), offset: offset_below, len: finer.block, ..*io };
                let place = if offset & finer.memory_mask == 0 { offset } else { 0 };
                self.below.serve(read, bounced.part(place..place + block)?).await?;
                if place != offset {
                    bounced.bytes_mut()?.copy_within(place..place + block, offset);
                }
            }
        }
        let mut bounced = loan.payload(len)?;
        let inside = (step.start - step.first) as usize..(step.end - step.first) as usize;
        let target = bounced.bytes_mut()?.get_mut(inside).ok_or(Errno::EINVAL)?;
        match &source {
            Some(source) => target.copy_from_slice(source.bytes()?),
            None => target.fill(0),
        }
        let write = Io {
            op: Op::Write,
            flags: io.flags & Flags::FUA,
            offset: step.first,
            len: len as u64,
            slot: io.slot,
        };
        self.below.serve(write, bounced).await
    }
}
