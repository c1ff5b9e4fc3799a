//! A backend of the simple door: plain methods that block, for a while of the world's own.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use blockhaus::backend::blocking::BlockDevice;
use blockhaus::io::extents::{Answer, State};
use blockhaus::port::clock::{Duration, sleep};
use blockhaus::port::sim::Random;

/// Contents that outlive every server, so that what was acknowledged must be there.
#[derive(Clone, Debug)]
pub struct Slow {
    contents: Arc<Mutex<Vec<u8>>>,
    block: u32,
    random: Arc<Mutex<Random>>,
}

impl Slow {
    pub fn new(size: u64, block: u32, seed: u64) -> Slow {
        let contents = Arc::new(Mutex::new(vec![0; size as usize]));
        Slow { contents, block, random: Arc::new(Mutex::new(Random::new(seed))) }
    }

    fn below(&self, end: u64) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).below(end)
    }

    /// Blocks, does it, and blocks again: whoever is killed meanwhile has done it or not.
    fn with(&self, offset: u64, len: usize, work: impl FnOnce(&mut [u8])) -> io::Result<()> {
        sleep(Duration::from_micros(self.below(80)));
        let from = offset as usize;
        work(&mut self.contents.lock().unwrap_or_else(PoisonError::into_inner)[from..from + len]);
        sleep(Duration::from_micros(self.below(20)));
        Ok(())
    }
}

impl BlockDevice for Slow {
    fn size(&self) -> u64 {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn block_size(&self) -> u32 {
        self.block
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(offset, bytes.len(), |contents| bytes.copy_from_slice(contents))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(offset, bytes.len(), |contents| contents.copy_from_slice(bytes))
    }

    fn flush(&self) -> io::Result<()> {
        self.with(0, 0, |_| {})
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn knows_extents(&self) -> bool {
        true
    }

    fn extents(&self, offset: u64, len: u64, answer: &mut Answer<'_>) -> io::Result<()> {
        self.with(offset, len as usize, |contents| {
            for block in contents.chunks(self.block as usize) {
                let is_zero = block[0] == 0 && block[1..] == block[..block.len() - 1];
                if !answer.add(block.len() as u64, if is_zero { State::ZERO } else { State::empty() }) {
                    return;
                }
            }
        })
    }

    /// A discard may leave anything.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let left = self.below(3);
        self.with(offset, len as usize, |contents| match left {
            0 => contents.fill(0),
            1 => contents.fill(0xdd),
            _ => {}
        })
    }
}
