//! The front end of a job: a free slot is the next request.

use std::sync::atomic::{AtomicU64, Ordering};

use super::measured::CpuTime;
use super::offsets::Offsets;
use super::tally::Tally;
use super::window::Window;
use crate::error::Result;
use crate::io::{Errno, Flags, Io, IoResult, Op};
use crate::port::clock;
use crate::port::ring::Ring;
use crate::queue::{Buffers, FrontEnd};
use crate::random::Random;

/// Requests of a job's warm-up that are looked at for what they read.
const LOOKS: u64 = 64;

/// Keeps all slots busy until the window ends, and then waits for what is in flight.
pub(super) struct Front<'a> {
    buffers: &'a Buffers,
    window: &'a Window,
    /// Requests that ended, for whoever watches; told once a turn.
    ended: &'a AtomicU64,
    op: Op,
    block_size: u64,
    offsets: Offsets,
    tally: Tally,
    free: Vec<u16>,
    /// When the request of each slot began.
    began_ns: Box<[u64]>,
    ended_here: u64,
    /// When this thread saw the window begin, and what processor time the process had used by then.
    cpu_at_begin: Option<(u64, CpuTime)>,
    /// No request is made any more.
    is_over: bool,
}

impl<'a> Front<'a> {
    pub fn new(
        buffers: &'a Buffers,
        window: &'a Window,
        ended: &'a AtomicU64,
        op: Op,
        block_size: u32,
        depth: u16,
        offsets: Offsets,
    ) -> Result<Front<'a>> {
        Ok(Front {
            buffers,
            window,
            ended,
            op,
            block_size: block_size.into(),
            offsets,
            tally: Tally::new()?,
            free: (0..depth).collect(),
            began_ns: vec![0; depth.into()].into_boxed_slice(),
            ended_here: 0,
            cpu_at_begin: None,
            is_over: false,
        })
    }

    /// What was counted.
    pub fn into_tally(self) -> Tally {
        self.tally
    }

    /// The window has ended.
    #[cold]
    fn end(&mut self, now_ns: u64) {
        if !std::mem::replace(&mut self.is_over, true)
            && let Some((begin_ns, at_begin)) = self.cpu_at_begin
        {
            self.tally.cpu = Some((now_ns.saturating_sub(begin_ns), CpuTime::now().since(at_begin)));
        }
    }

    /// Whether there is data on the disk at all.
    #[cold]
    fn look(&mut self, ring: &Ring, io: &Io) {
        let only_zeros = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        let looked =
            self.buffers.with_slot(ring, io.slot, io.len as usize, |payload| payload.bytes().map(only_zeros));
        if let Ok(Ok(only_zeros)) = looked {
            self.tally.looked(only_zeros);
        }
    }
}

impl FrontEnd for Front<'_> {
    #[inline]
    fn next(&mut self, _ring: &Ring) -> Result<Option<Io>> {
        if self.is_over {
            return Ok(None);
        }
        let Some(slot) = self.free.pop() else { return Ok(None) };
        let offset = self.offsets.next();
        let now_ns = clock::monotonic_nanoseconds();
        if now_ns >= self.window.end_ns() {
            self.end(now_ns);
            self.free.push(slot);
            return Ok(None);
        }
        self.began_ns[usize::from(slot)] = now_ns;
        Ok(Some(Io { op: self.op, flags: Flags::empty(), offset, len: self.block_size, slot }))
    }

    #[inline]
    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        let now_ns = clock::monotonic_nanoseconds();
        self.free.push(io.slot);
        self.ended_here += 1;
        if now_ns < self.window.begin_ns() {
            match result {
                Err(errno) => self.tally.warm_up_failures.add(errno, 1),
                Ok(()) if self.op == Op::Read && self.tally.looked_at < LOOKS => self.look(ring, io),
                Ok(()) => {}
            }
            return Ok(());
        }
        if self.cpu_at_begin.is_none() {
            self.cpu_at_begin = Some((now_ns, CpuTime::now()));
        }
        let latency_ns = now_ns.saturating_sub(self.began_ns[usize::from(io.slot)]);
        let inside = now_ns < self.window.end_ns();
        self.tally.ended(latency_ns, inside, result);
        if !inside && !self.is_over {
            self.end(now_ns);
        }
        Ok(())
    }

    /// The window may have been closed.
    fn notified(&mut self, _ring: &Ring) -> Result<()> {
        let now_ns = clock::monotonic_nanoseconds();
        if now_ns >= self.window.end_ns() {
            self.end(now_ns);
        }
        Ok(())
    }

    #[inline]
    fn end_turn(&mut self, _ring: &Ring, _full: bool) -> Result<bool> {
        self.ended.store(self.ended_here, Ordering::Relaxed);
        Ok(!self.is_over && !self.free.is_empty())
    }

    fn finished(&self) -> bool {
        self.is_over
    }
}

/// Fills the slots with what a disk cannot make shorter or find already there.
pub(super) fn fill(
    buffers: &Buffers,
    ring: &Ring,
    depth: u16,
    block_size: u32,
    random: &mut Random,
) -> Result<(), Errno> {
    for slot in 0..depth {
        buffers.with_slot(ring, slot, block_size as usize, |mut payload| {
            payload.bytes_mut().map(|bytes| random.fill(bytes))
        })??;
    }
    Ok(())
}
