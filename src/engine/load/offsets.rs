//! Where the requests of a job go.

use super::{Disk, Load};
use crate::random::Random;

/// The offsets of one job, without end.
#[derive(Clone, Debug)]
pub(super) struct Offsets {
    block_size: u64,
    /// Whole requests that the disk has room for; what is left behind the last is not touched.
    blocks: u64,
    /// None where one follows the other.
    random: Option<Random>,
    next: u64,
}

impl Offsets {
    /// Those of job number `job`. Where one request follows the other, the seed says where the first job starts, the
    /// others start at equal distances from there, and behind the end of the disk they go on at its beginning.
    pub fn new(load: &Load, disk: &Disk, job: u16, seed: u64) -> Offsets {
        let block_size = u64::from(load.block_size);
        let blocks = disk.size / block_size;
        let distance = u128::from(blocks) * u128::from(job) / u128::from(load.jobs.max(1));
        let start = u128::from(Random::of_part(seed, 0).below(blocks)) + distance;
        let next = start.checked_rem(blocks.into()).unwrap_or(0) as u64;
        let random = load.pattern.is_random().then(|| Random::of_part(seed, job));
        Offsets { block_size, blocks, random, next }
    }

    #[inline]
    pub fn next(&mut self) -> u64 {
        let block = match &mut self.random {
            Some(random) => random.below(self.blocks),
            None => {
                let block = self.next;
                self.next = if block + 1 >= self.blocks { 0 } else { block + 1 };
                block
            }
        };
        block * self.block_size
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::load::Pattern;

    fn disk(size: u64) -> Disk {
        Disk {
            size,
            logical_block_size: 512,
            max_io_size: 1 << 20,
            read_only: false,
            has_volatile_cache: false,
            is_rotational: false,
            memory_used: None,
        }
    }

    fn offsets(pattern: Pattern, size: u64, block_size: u32, jobs: u16, job: u16, seed: u64) -> Offsets {
        Offsets::new(&Load { pattern, block_size, depth: 1, jobs }, &disk(size), job, seed)
    }

    proptest! {
        #[test]
        fn every_request_lies_inside_the_disk(
            sectors in 1u64..(1 << 54), len in 1u32..2048, jobs in 1u16..=256, job: u16, seed: u64, sequential: bool
        ) {
            let size = sectors * 512;
            let block_size = disk(size).nearest(len * 512);
            let pattern = if sequential { Pattern::Write } else { Pattern::RandWrite };
            let mut offsets = offsets(pattern, size, block_size, jobs, job % jobs, seed);
            for _ in 0..100 {
                let offset = offsets.next();
                prop_assert!(offset.is_multiple_of(u64::from(block_size)));
                prop_assert!(offset + u64::from(block_size) <= size);
            }
        }
    }

    #[test]
    fn one_behind_the_other_covers_the_disk_and_begins_again() {
        let mut one = offsets(Pattern::Read, 5 * 4096 + 512, 4096, 1, 0, 0);
        let seen: Vec<u64> = (0..6).map(|_| one.next() / 4096).collect();
        let first = seen[0];
        assert_eq!(seen, [0, 1, 2, 3, 4, 5].map(|step| (first + step) % 5));
        let start = |job, seed| offsets(Pattern::Read, 8 * 4096, 4096, 4, job, seed).next() / 4096;
        let first = start(0, 7);
        assert_eq!([0, 1, 2, 3].map(|job| start(job, 7)), [0, 2, 4, 6].map(|step| (first + step) % 8));
    }

    /// What one run has read, the next may find in a cache.
    #[test]
    fn runs_begin_at_different_places() {
        for pattern in [Pattern::Read, Pattern::RandRead] {
            let first = |seed| offsets(pattern, 1 << 40, 4096, 1, 0, seed).next();
            let mut places: Vec<u64> = (0..20).map(first).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 20, "{pattern:?}");
        }
    }

    #[test]
    fn at_random_every_block_is_met_and_jobs_and_seeds_differ() {
        let take = |job, seed| -> Vec<u64> {
            let mut offsets = offsets(Pattern::RandRead, 16 * 4096, 4096, 2, job, seed);
            (0..400).map(|_| offsets.next() / 4096).collect()
        };
        let one = take(0, 7);
        assert!((0..16).all(|block| one.contains(&block)));
        assert_eq!(one, take(0, 7));
        assert_ne!(one, take(1, 7));
        assert_ne!(one, take(0, 8));
    }
}
