//! What is written: every sector says which write it came from and where it belongs.

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// What a sector turns out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Zeros,
    /// The data of this write, at its place.
    Write(u32),
    /// Data of several writes in one block, or none that was ever written there.
    Foreign,
}

fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 31)).wrapping_mul(0x9fb2_1c65_1e98_df25);
    word ^ (word >> 28)
}

/// Fills `bytes`, whose first byte lies at `offset` of the disk, with the data of `write`.
pub fn fill(write: u32, offset: u64, bytes: &mut [u8]) {
    for (number, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        let place = offset / SECTOR as u64 + number as u64;
        let seed = u64::from(write) << 32 | place;
        sector[..8].copy_from_slice(&seed.to_le_bytes());
        sector[8..16].copy_from_slice(&mixed(seed).to_le_bytes());
        // The same sixteen bytes over and over, so that a piece of any sector gives it away; by
        // doubling, which is fast in a build for debugging as well.
        let mut filled = 16;
        while filled < sector.len() {
            let (from, to) = sector.split_at_mut(filled);
            let count = filled.min(to.len());
            to[..count].copy_from_slice(&from[..count]);
            filled += count;
        }
    }
}

/// What a block at `offset` holds.
pub fn read(offset: u64, block: &[u8]) -> Found {
    // A block is zeros when it begins with one and each byte is like the one before it.
    if block[0] == 0 && block[1..] == block[..block.len() - 1] {
        return Found::Zeros;
    }
    let first: [u8; 8] = block[..8].try_into().expect("a block is longer");
    let write = (u64::from_le_bytes(first) >> 32) as u32;
    let mut good = vec![0; block.len()];
    fill(write, offset, &mut good);
    if write != 0 && good == block { Found::Write(write) } else { Found::Foreign }
}
