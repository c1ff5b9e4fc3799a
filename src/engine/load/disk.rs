//! What a disk is, as far as a load on it goes.

use serde::Serialize;

use crate::io::Capabilities;
use crate::queue::Stack;

/// A disk's shape and what else bears on the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Bytes of the disk.
    pub size: u64,
    /// Smallest unit in bytes that can be addressed.
    pub logical_block_size: u32,
    /// Longest request in bytes that it wants in one piece.
    pub max_io_size: u32,
    /// It takes no writes, or was opened so.
    pub read_only: bool,
    /// What it acknowledges can be lost until it is flushed.
    pub has_volatile_cache: bool,
    /// Seeks cost time.
    pub is_rotational: bool,
    /// Bytes that its contents take in memory, where they are in this process's.
    pub memory_used: Option<u64>,
}

impl Disk {
    /// That of a stack, at this moment.
    pub fn of(stack: &dyn Stack) -> Disk {
        let (geometry, capabilities) = (stack.geometry(), stack.capabilities());
        Disk {
            size: geometry.size,
            logical_block_size: geometry.logical_block_size,
            max_io_size: geometry.max_io_size,
            read_only: !capabilities.contains(Capabilities::WRITE),
            has_volatile_cache: capabilities.contains(Capabilities::VOLATILE_CACHE),
            is_rotational: capabilities.contains(Capabilities::ROTATIONAL),
            memory_used: stack.memory_used(),
        }
    }

    /// Bytes of the longest request, a whole number of blocks and at least one.
    pub fn longest(&self) -> u32 {
        let unit = self.logical_block_size.max(1);
        let size = u32::try_from(self.size).unwrap_or(u32::MAX);
        let longest = self.max_io_size.min(size);
        (longest - longest % unit).max(unit)
    }

    /// The length of a request that is nearest to `wanted` bytes, and not longer where that can be.
    pub fn nearest(&self, wanted: u32) -> u32 {
        let unit = self.logical_block_size.max(1);
        (wanted - wanted % unit).clamp(unit, self.longest())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_nearest_length_is_one_that_the_disk_takes(
            blocks in 1u64..5000, shift in 9u32..13, max_io_size in 0u32..3_000_000, wanted: u32
        ) {
            let disk = Disk {
                size: blocks << shift,
                logical_block_size: 1 << shift,
                max_io_size,
                read_only: false,
                has_volatile_cache: false,
                is_rotational: false,
                memory_used: None,
            };
            let nearest = disk.nearest(wanted);
            prop_assert!(nearest != 0 && nearest.is_multiple_of(1 << shift));
            prop_assert!(u64::from(nearest) <= disk.size);
            prop_assert!(nearest <= max_io_size.max(1 << shift));
            prop_assert!(nearest <= wanted.max(1 << shift));
        }
    }
}
