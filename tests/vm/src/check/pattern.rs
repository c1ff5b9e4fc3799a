//! Numbers from a seed, and contents that say what and where they are.

/// The sector of the block layer.
pub const SECTOR: usize = 512;

/// SplitMix64: small, fast, good enough to be unlike anything else on the disk.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The contents of one sector: its number, its generation, then words that depend on both.
pub fn sector(seed: u64, number: u64, generation: u32, out: &mut [u8]) {
    let mut word = mix(seed ^ mix(number ^ (u64::from(generation) << 40)));
    for (i, chunk) in out.chunks_exact_mut(8).enumerate() {
        let value = match i {
            0 => number,
            1 => u64::from(generation) | (seed << 32),
            _ => {
                word = word.wrapping_mul(0xda94_2042_e4dd_58b5).wrapping_add(0x9e37_79b9_7f4a_7c15);
                word
            }
        };
        chunk.copy_from_slice(&value.to_le_bytes());
    }
}

/// Fills whole sectors from `first` on.
pub fn sectors(seed: u64, first: u64, generation: u32, out: &mut [u8]) {
    for (i, chunk) in out.chunks_exact_mut(SECTOR).enumerate() {
        sector(seed, first + i as u64, generation, chunk);
    }
}

/// What a sector holds, for a person.
pub fn describe(seed: u64, found: &[u8]) -> String {
    if found.iter().all(|&byte| byte == 0) {
        return "zeros".into();
    }
    let word =
        |i: usize| found.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (number, generation) = (word(0), word(1) as u32);
    let mut whole = [0u8; SECTOR];
    sector(seed, number, generation, &mut whole);
    if whole == found {
        format!("sector {number} as written by generation {generation}")
    } else {
        let first: Vec<String> = found.iter().take(24).map(|byte| format!("{byte:02x}")).collect();
        format!("no sector of ours ({}…)", first.join(" "))
    }
}

/// Contents of a file at any offset that is a multiple of 8.
pub fn stream(seed: u64, offset: u64, out: &mut [u8]) {
    let start = mix(seed);
    for (i, chunk) in out.chunks_mut(8).enumerate() {
        let word = (start ^ (offset / 8 + i as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let word = word ^ (word >> 29);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}
