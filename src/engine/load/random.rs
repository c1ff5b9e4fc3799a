//! Numbers by chance, for offsets and for what is written.

/// A small generator (splitmix64): fast, and different for each seed; not for secrets.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// A generator for one of many jobs.
    pub fn of_job(seed: u64, job: u16) -> Random {
        // Seeds that lie close together would yield the same numbers a few steps apart.
        Random(Random(seed ^ u64::from(job).wrapping_mul(0xd1b5_4a32_d192_ed03)).number())
    }

    #[inline]
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 for an `end` of 0.
    #[inline]
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.number()) * u128::from(end)) >> 64) as u64
    }

    /// Fills bytes with what no disk can make shorter.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            let number = self.number().to_ne_bytes();
            eight.copy_from_slice(&number[..eight.len()]);
        }
    }
}
