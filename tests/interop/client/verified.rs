//! Requests at random, many at a time, of which each read is held against what was written.

use blockhaus::io::{Capabilities, Flags, Op};
use blockhaus::random::Random;

use super::disk;
use crate::played::{Disk, MAX_IO, Request};

/// What a disk must hold; `None` where it may be anything.
pub struct Verified {
    contents: Vec<Option<u8>>,
    random: Random,
    block: u64,
}

/// Writes and reads back through all of a disk that reads as zeros.
pub fn works(spec: &str) {
    let mut disk = disk(spec, 16);
    let mut verified = Verified::new(&disk, 7);
    verified.rounds(&mut disk, 40, 32);
    verified.check(&mut disk);
    disk.close();
}

impl Verified {
    /// A disk that reads as zeros.
    pub fn new(disk: &Disk, seed: u64) -> Verified {
        let geometry = disk.stack.geometry();
        let block = u64::from(geometry.logical_block_size);
        Verified { contents: vec![Some(0); geometry.size as usize], random: Random::new(seed), block }
    }

    /// A range of whole blocks up to `most` bytes that none of `taken` touches.
    fn range(&mut self, most: u64, taken: &[(u64, u64)]) -> Option<(u64, u64)> {
        let blocks = self.contents.len() as u64 / self.block;
        let start = self.random.below(blocks);
        let most = (most / self.block).min(blocks - start);
        // Short ones more often than long ones.
        let most = if self.random.below(4) == 0 { most } else { most.min(16) };
        let len = 1 + self.random.below(most);
        let (start, end) = (start * self.block, (start + len) * self.block);
        let is_free = taken.iter().all(|&(other, other_end)| end <= other || other_end <= start);
        is_free.then_some((start, end))
    }

    /// So many rounds of requests that are under way together; all must go well.
    pub fn rounds(&mut self, disk: &mut Disk, rounds: usize, at_once: usize) {
        self.rounds_while(disk, at_once, &mut {
            let mut left = rounds;
            move || {
                left = left.wrapping_sub(1);
                left != usize::MAX
            }
        });
    }

    /// The same as long as `goes_on`; yields how many requests there were.
    pub fn rounds_while(
        &mut self,
        disk: &mut Disk,
        at_once: usize,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> usize {
        let capabilities = disk.stack.capabilities();
        let mut count = 0;
        while goes_on() {
            let mut taken = Vec::new();
            let mut asked = std::collections::HashMap::new();
            for turn in 0..at_once {
                let op = match self.random.below(20) {
                    0..=7 => Op::Read,
                    8..=15 => Op::Write,
                    16 => Op::Flush,
                    17 | 18 if capabilities.contains(Capabilities::WRITE_ZEROES) => Op::WriteZeroes,
                    _ if capabilities.contains(Capabilities::DISCARD) => Op::Discard,
                    _ => Op::Read,
                };
                let most = if matches!(op, Op::Read | Op::Write) { u64::from(MAX_IO) } else { 1 << 20 };
                let Some((start, end)) = self.range(most, &taken) else { continue };
                let len = end - start;
                let mut request = match op {
                    Op::Flush => Request::new(op, 0, 0),
                    Op::Write => {
                        let mut data = vec![0; len as usize];
                        self.random.fill(&mut data);
                        Request::write(start, data)
                    }
                    _ => Request::new(op, start, len),
                };
                let fua = capabilities.contains(Capabilities::FUA) && self.random.below(8) == 0;
                if fua && matches!(op, Op::Write | Op::WriteZeroes) {
                    request.flags |= Flags::FUA;
                }
                if op != Op::Flush {
                    taken.push((start, end));
                }
                let number = disk.ask(turn, request.clone());
                asked.insert(number, request);
            }
            for _ in 0..asked.len() {
                let ended = disk.wait();
                let request = asked.remove(&ended.number).expect("it was asked");
                assert_eq!(ended.result, Ok(()), "{:?} {}+{}", request.op, request.offset, request.len);
                self.note(&request, &ended.data);
                count += 1;
            }
        }
        count
    }

    fn note(&mut self, request: &Request, data: &[u8]) {
        let range = request.offset as usize..(request.offset + request.len) as usize;
        let contents = &mut self.contents[range];
        match request.op {
            Op::Read => {
                let wrong = contents
                    .iter()
                    .zip(data)
                    .position(|(expected, is)| expected.is_some_and(|expected| expected != *is));
                assert_eq!(wrong, None, "a read of {} bytes at {} is wrong", request.len, request.offset);
            }
            Op::Write => contents.iter_mut().zip(&request.data).for_each(|(byte, data)| *byte = Some(*data)),
            Op::WriteZeroes => contents.fill(Some(0)),
            Op::Discard => contents.fill(None),
            Op::Flush | Op::Extents => {}
        }
    }

    /// Reads all of it.
    pub fn check(&mut self, disk: &mut Disk) {
        let size = self.contents.len() as u64;
        let mut offset = 0;
        while offset < size {
            let len = (size - offset).min(u64::from(MAX_IO));
            let request = Request::new(Op::Read, offset, len);
            let (result, data) = disk.call(request.clone());
            assert_eq!(result, Ok(()), "a read at {offset}");
            self.note(&request, &data);
            offset += len;
        }
    }

    /// Holds bytes of a file against it.
    pub fn check_bytes(&self, bytes: &[u8]) {
        assert!(bytes.len() >= self.contents.len());
        let wrong = self
            .contents
            .iter()
            .zip(bytes)
            .position(|(expected, is)| expected.is_some_and(|expected| expected != *is));
        assert_eq!(wrong, None, "the file is not what was written");
    }
}
