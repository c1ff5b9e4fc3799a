//! `ram:SIZE`: a disk in memory. Sparse: what was never written takes nothing, and a discard gives
//! memory back. Gone when the server ends.

use std::ptr;
use std::sync::{Arc, OnceLock};

use crate::backend::{Backend, Queue, QueueContext};
use crate::error::{Error, Result};
use crate::io::extents::{Answer, State};
use crate::io::{Capabilities, Errno, Flags, Geometry, Io, IoResult, Op};
use crate::payload::Payload;
use crate::port::memory::pages::PageMap;
use crate::port::memory::{HugePages, Mapping};
use crate::port::ring::Ring;
use crate::port::system::page_size;

/// What is zeroed or given back in one piece; several of the largest pages, so that none is split.
const PIECE: u64 = 4 << 20;

/// Most bytes whose pages are looked at for one request; the answer ends there.
const MOST_LOOKED_AT: u64 = 256 << 20;

/// After so many nanoseconds of that the queue's other requests get their turn.
const TURN: u64 = 1_000_000;

/// For so long, in nanoseconds: a timer that is over already would not wait for a turn.
const PAUSE: u64 = 20_000;

/// A disk in memory.
#[derive(Debug)]
pub struct Ram {
    contents: Arc<Contents>,
    geometry: Geometry,
}

/// One queue's handle on it.
#[derive(Debug)]
pub struct RamQueue {
    contents: Arc<Contents>,
    ring: Ring,
}

impl Ram {
    /// A disk of `size` bytes in blocks of `block_size`, all zeros. With `huge_pages` large copies
    /// are cheaper and a small write may take 2 MiB.
    pub fn new(size: u64, block_size: u32, huge_pages: bool) -> Result<Ram> {
        let what = || format!("cannot make a RAM disk of {size} bytes");
        if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
            return Err(Error::invalid(
                what(),
                format!("the size is no multiple of the block size {block_size}, or 0"),
            )
            .cure("give a size such as ram:512M"));
        }
        let huge_pages = if huge_pages { HugePages::Wanted } else { HugePages::Never };
        let memory = Mapping::anonymous(size, huge_pages)
            .map_err(|error| Error::system(what(), error).cure("give a smaller size"))?;
        // The process locks its memory; the contents of a disk are the exception. Where nothing is
        // locked there is nothing to undo, so a refusal does not matter.
        let _ = memory.unlock();
        let geometry = Geometry {
            logical_block_size: block_size,
            physical_block_size: block_size.max(page_size() as u32),
            discard_granularity: page_size() as u32,
            ..Geometry::plain(size)
        };
        Ok(Ram { contents: Arc::new(Contents { memory, size, pages: OnceLock::new() }), geometry })
    }
}

impl Backend for Ram {
    type Queue = RamQueue;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::WRITE
            | Capabilities::DISCARD
            | Capabilities::DISCARD_ZEROES
            | Capabilities::WRITE_ZEROES
            | Capabilities::EXTENTS
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<RamQueue> {
        Ok(RamQueue { contents: self.contents.clone(), ring: context.ring.clone() })
    }

    fn memory_used(&self) -> Option<u64> {
        self.contents.memory.resident()
    }

    fn notes(&self) -> Vec<String> {
        vec!["ram: contents are lost when the server ends".into()]
    }
}

impl Queue for RamQueue {
    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        if is_long(io) { None } else { Some(self.contents.serve(io, payload)) }
    }

    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        if !is_long(&io) {
            return self.contents.serve(&io, &mut payload);
        }
        self.contents.range(io.offset, io.len)?;
        let end = io.offset + io.len;
        let mut start = io.offset;
        let mut since = self.ring.now();
        while start < end {
            let next = end.min((start / PIECE + 1) * PIECE);
            self.contents.serve(&Io { offset: start, len: next - start, ..io }, &mut payload)?;
            start = next;
            if start < end && self.ring.now().saturating_sub(since) >= TURN {
                self.ring.sleep_until(&payload, self.ring.now() + PAUSE).await?;
                since = self.ring.now();
            }
        }
        Ok(())
    }
}

/// Whether a request may take longer than the others of its queue should wait. A read or a write is
/// no longer than a slot's buffer, a range without bytes up to 4 GiB.
#[inline]
fn is_long(io: &Io) -> bool {
    matches!(io.op, Op::Discard | Op::WriteZeroes) && io.len > PIECE
}

#[derive(Debug)]
struct Contents {
    memory: Mapping,
    size: u64,
    /// What says which pages there are; nothing where the kernel does not. Opened when it is first asked.
    pages: OnceLock<Option<PageMap>>,
}

impl Contents {
    #[inline]
    fn serve(&self, io: &Io, payload: &mut Payload<'_>) -> IoResult {
        match io.op {
            Op::Read => self.read(io.offset, payload.bytes_mut()?),
            Op::Write => self.write(io.offset, payload.bytes()?),
            Op::Flush => Ok(()),
            Op::Discard => self.zero(io.offset, io.len, true),
            Op::WriteZeroes => self.zero(io.offset, io.len, !io.flags.contains(Flags::NO_UNMAP)),
            Op::Extents => self.extents(io, payload.bytes_mut()?),
        }
    }

    /// What has no page of its own was not written since it was last given back: it takes nothing and reads as zeros.
    fn extents(&self, io: &Io, bytes: &mut [u8]) -> IoResult {
        self.range(io.offset, io.len)?;
        let mut answer = Answer::new(io, bytes)?;
        let Some(pages) = self.pages.get_or_init(|| PageMap::open().ok()) else {
            answer.add(io.len, State::empty());
            return Ok(());
        };
        let looked = pages.look(&self.memory, io.offset, io.len.min(MOST_LOOKED_AT), |len, has_contents| {
            answer.add(len, if has_contents { State::empty() } else { State::HOLE | State::ZERO })
        });
        looked.map_err(Errno::from)
    }

    /// Address of a range that is inside the disk.
    #[inline]
    fn range(&self, offset: u64, len: u64) -> Result<*mut u8, Errno> {
        match offset.checked_add(len) {
            // SAFETY: the size is at most the mapping's length, so the sum stays inside.
            Some(end) if end <= self.size => Ok(unsafe { self.memory.start().as_ptr().add(offset as usize) }),
            _ => Err(Errno::EINVAL),
        }
    }

    // The contents are only ever copied in and out through raw pointers, never borrowed: two queues
    // may be asked for the same block at once, and then, as on any disk, the client gets one of the
    // two or a mixture. No value is made of what is copied, so a torn copy can break nothing here.

    #[inline]
    fn read(&self, offset: u64, into: &mut [u8]) -> IoResult {
        let from = self.range(offset, into.len() as u64)?;
        // SAFETY: `from` has that many bytes inside the mapping; `into` is a slot's buffer, elsewhere.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    #[inline]
    fn write(&self, offset: u64, from: &[u8]) -> IoResult {
        let into = self.range(offset, from.len() as u64)?;
        // SAFETY: `into` has that many bytes inside the mapping; `from` is a slot's buffer, elsewhere.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    /// Zeros a range, giving whole pages back where that is allowed.
    fn zero(&self, offset: u64, len: u64, give_back: bool) -> IoResult {
        let start = self.range(offset, len)?;
        let (offset, len) = (offset as usize, len as usize);
        let page = page_size();
        let first = offset.next_multiple_of(page).min(offset + len);
        let last = ((offset + len) / page * page).max(first);
        let (head, tail) = if give_back { (first - offset, offset + len - last) } else { (len, 0) };
        // SAFETY: head bytes from start and tail bytes before start + len are inside the range.
        unsafe {
            ptr::write_bytes(start, 0, head);
            ptr::write_bytes(start.add(len - tail), 0, tail);
        }
        if give_back && last > first {
            // SAFETY: the request gave the contents up, and nothing borrows from the mapping.
            unsafe { self.memory.give_back(first, last - first) }.map_err(Errno::from)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 64 << 10;

    proptest! {
        /// Whatever is written, discarded and zeroed: it reads as a plain array would.
        #[test]
        fn behaves_as_an_array(steps in prop::collection::vec((0u8..4, 0usize..128, 1usize..64, any::<u8>()), 1..60)) {
            let disk = Ram::new(SIZE as u64, 512, false).unwrap();
            let mut model = vec![0u8; SIZE];
            for (what, block, blocks, byte) in steps {
                let start = block * 512;
                let end = (start + blocks * 512).min(SIZE);
                let (offset, len) = (start as u64, (end - start) as u64);
                match what {
                    0 => {
                        disk.contents.write(offset, &vec![byte; end - start]).unwrap();
                        model[start..end].fill(byte);
                    }
                    1 | 2 => {
                        disk.contents.zero(offset, len, what == 1).unwrap();
                        model[start..end].fill(0);
                    }
                    _ => {
                        let mut got = vec![1; end - start];
                        disk.contents.read(offset, &mut got).unwrap();
                        prop_assert!(got == model[start..end]);
                    }
                }
            }
            let mut all = vec![1; SIZE];
            disk.contents.read(0, &mut all).unwrap();
            prop_assert!(all == model);
        }
    }

    #[test]
    fn a_discard_gives_memory_back() {
        let disk = Ram::new(1 << 20, 512, false).unwrap();
        disk.contents.write(0, &vec![1; 1 << 20]).unwrap();
        assert_eq!(Backend::memory_used(&disk), Some(1 << 20));
        disk.contents.zero(512, (1 << 20) - 512, true).unwrap();
        assert_eq!(Backend::memory_used(&disk), Some(4096));
    }

    #[test]
    fn a_range_past_the_end_is_an_error() {
        let disk = Ram::new(4096, 512, false).unwrap();
        assert_eq!(disk.contents.write(4096, &[1; 512]), Err(Errno::EINVAL));
        assert_eq!(disk.contents.zero(u64::MAX, 512, true), Err(Errno::EINVAL));
        assert!(Ram::new(0, 512, false).is_err());
        assert!(Ram::new(1000, 512, false).is_err());
    }
}
