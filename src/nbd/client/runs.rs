//! The runs that a chunk of a reply to BLOCK_STATUS tells, as they come.

use crate::io::extents::{Extent, MOST_EXTENTS, State};
use crate::nbd::wire::Headers;
use crate::nbd::wire::status::Run;

/// The runs of one chunk, of which a connection has one at a time: those that are known so far, and how many come.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// What is behind each other is unlike, and none is empty.
    extents: Vec<Extent>,
    /// There was one more than an answer has room for: what follows is left away.
    is_cut: bool,
    /// Runs that have not come yet.
    left: usize,
    /// Bytes of the range that was asked about which no run has told of.
    untold: u64,
}

impl Runs {
    /// A chunk of `count` runs comes, about a range of `len` bytes.
    pub fn begin(&mut self, count: usize, len: u64) {
        self.extents.clear();
        (self.is_cut, self.left, self.untold) = (false, count, len);
    }

    /// Takes those off the front of `bytes` that are there as a whole; yields how many bytes these were. An error where a
    /// run is empty, or begins behind the range that was asked about.
    pub fn take(&mut self, headers: Headers, bytes: &[u8]) -> Result<usize, &'static str> {
        let size = Run::size(headers);
        let mut used = 0;
        for run in bytes.chunks_exact(size).take(self.left) {
            let run = Run::decode(headers, run);
            if run.len == 0 || self.untold == 0 {
                return Err("it tells a run of no bytes, or of bytes that were not asked about");
            }
            // The last may go on behind the range.
            let len = run.len.min(self.untold);
            self.untold -= len;
            self.add(Extent { len, state: State::from_bits_truncate(run.flags as u32) });
            used += size;
        }
        self.left -= used / size;
        Ok(used)
    }

    fn add(&mut self, extent: Extent) {
        let is_full = self.extents.len() == MOST_EXTENTS;
        match self.extents.last_mut() {
            _ if self.is_cut => {}
            Some(last) if last.state == extent.state => last.len += extent.len,
            _ if is_full => self.is_cut = true,
            _ => self.extents.push(extent),
        }
    }

    /// Whether all have come.
    pub fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// Those that are known, in their order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_runs() -> impl Strategy<Value = Vec<Run>> {
        prop::collection::vec((1u64..50, 0u64..8).prop_map(|(len, flags)| Run { len, flags }), 1..60)
    }

    fn bytewise(runs: impl Iterator<Item = (u64, State)>) -> Vec<State> {
        runs.flat_map(|(len, state)| std::iter::repeat_n(state, len as usize)).collect()
    }

    proptest! {
        /// However the bytes arrive.
        #[test]
        fn runs_are_what_was_told(runs in any_runs(), extended: bool, beyond in 0u64..49, piece in 1usize..100) {
            let headers = if extended { Headers::Extended } else { Headers::Structured };
            let bytes: Vec<u8> =
                runs.iter().flat_map(|run| run.encode(headers)[..Run::size(headers)].to_vec()).collect();
            // The last may go on for a while.
            let sum: u64 = runs.iter().map(|run| run.len).sum();
            let len = sum - beyond.min(runs[runs.len() - 1].len - 1);
            let mut told = Runs::default();
            told.begin(runs.len(), len);
            let mut buffer = Vec::new();
            for piece in bytes.chunks(piece) {
                prop_assert!(!told.is_whole());
                buffer.extend_from_slice(piece);
                let used = told.take(headers, &buffer).unwrap();
                buffer.drain(..used);
            }
            prop_assert!(told.is_whole() && buffer.is_empty());
            let mut expected =
                bytewise(runs.iter().map(|run| (run.len, State::from_bits_truncate(run.flags as u32))));
            expected.truncate(len as usize);
            prop_assert_eq!(bytewise(told.extents().iter().map(|run| (run.len, run.state))), expected);
            prop_assert!(told.extents().windows(2).all(|two| two[0].state != two[1].state));
        }
    }

    #[test]
    fn what_is_behind_the_range_or_empty_is_refused_and_memory_has_a_bound() {
        let encoded = |lens: &[u64]| -> Vec<u8> {
            let run = |(at, &len): (usize, &u64)| Run { len, flags: at as u64 % 2 }.encode(Headers::Extended);
            lens.iter().enumerate().flat_map(run).collect()
        };
        let mut runs = Runs::default();
        let mut take = |lens: &[u64], len| {
            runs.begin(lens.len(), len);
            runs.take(Headers::Extended, &encoded(lens)).map(|_| runs.extents().to_vec())
        };
        assert!(take(&[512, 512], 512).is_err() && take(&[512, 0], 1024).is_err());
        assert_eq!(take(&[512, u64::MAX], 1024).unwrap()[1].len, 512);
        let many = take(&vec![1; 1 << 20], u64::MAX).unwrap();
        assert_eq!(many.len(), MOST_EXTENTS);
        assert!(many.iter().all(|extent| extent.len == 1), "what follows the last is not told of");
    }
}
