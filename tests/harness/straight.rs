//! A front end that asks for one and the same over and over, and makes nothing doing so.

use blockhaus::error::Result;
use blockhaus::io::{Flags, Io, IoResult, Op};
use blockhaus::port::ring::Ring;
use blockhaus::queue::FrontEnd;

/// Keeps all slots busy until so many requests have ended.
pub struct Straight<'a> {
    /// Every second request is a write.
    pub len: u64,
    pub size: u64,
    pub left: u64,
    pub free: Vec<u16>,
    pub asked: u64,
    pub depth: u16,
    pub failed: u64,
    /// Called once `warm` requests have been asked for, and when the last one has ended.
    pub warm: u64,
    pub mark: &'a mut dyn FnMut(),
}

impl<'a> Straight<'a> {
    pub fn new(depth: u16, len: u64, size: u64, warm: u64, count: u64, mark: &'a mut dyn FnMut()) -> Self {
        let free = (0..depth).collect();
        Straight { len, size, left: warm + count, free, asked: 0, depth, failed: 0, warm, mark }
    }
}

impl FrontEnd for Straight<'_> {
    #[inline]
    fn next(&mut self, _ring: &Ring) -> Result<Option<Io>> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(slot) = self.free.pop() else { return Ok(None) };
        self.left -= 1;
        self.asked += 1;
        if self.asked == self.warm {
            (self.mark)();
        }
        let op = if self.asked.is_multiple_of(2) { Op::Write } else { Op::Read };
        let offset = self.asked * self.len % self.size;
        Ok(Some(Io { op, flags: Flags::empty(), offset, len: self.len, slot }))
    }

    #[inline]
    fn complete(&mut self, _ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        self.failed += u64::from(result.is_err());
        self.free.push(io.slot);
        if self.left == 0 && self.free.len() == usize::from(self.depth) {
            (self.mark)();
        }
        Ok(())
    }

    #[inline]
    fn end_turn(&mut self, _ring: &Ring, _full: bool) -> Result<bool> {
        Ok(self.left != 0 && !self.free.is_empty())
    }

    fn finished(&self) -> bool {
        self.left == 0
    }
}
