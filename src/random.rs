//! Numbers that follow from a seed: what a load reads, which requests a rule is about, what a simulated world does.
//! The same seed has to mean the same numbers in every version, which no library promises.

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): small and fast, and not
/// for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

/// What the state grows by with each number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Scatters a number over all 64 bits: a step of the generator from there.
#[inline]
pub const fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(STEP);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Random {
    /// A generator that yields the same numbers for the same seed.
    pub fn new(seed: u64) -> Random {
        Random(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    /// A generator for one of many parts, of which each has numbers of its own.
    pub fn of_part(seed: u64, part: u16) -> Random {
        // Seeds that lie close together would yield the same numbers a few steps apart.
        Random(mix(seed ^ u64::from(part).wrapping_mul(0xd1b5_4a32_d192_ed03)))
    }

    /// Any number.
    #[inline]
    pub fn number(&mut self) -> u64 {
        let number = mix(self.0);
        self.0 = self.0.wrapping_add(STEP);
        number
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As of the paper's reference implementation with the state 0.
    #[test]
    fn it_is_the_known_generator() {
        let mut random = Random::new(0x5851_f42d_4c95_7f2d);
        let numbers = [random.number(), random.number(), random.number()];
        assert_eq!(numbers, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }

    #[test]
    fn what_is_below_is_below_and_parts_differ() {
        let (mut one, mut other) = (Random::of_part(7, 0), Random::of_part(7, 1));
        let same = (0..1000).filter(|_| one.below(1 << 40) == other.below(1 << 40)).count();
        assert_eq!((same, one.below(0)), (0, 0));
        assert!((1..1000).all(|end| one.below(end) < end));
    }
}
