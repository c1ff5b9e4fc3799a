//! What every scenario leaves to chance, in ranges of its own.

use blockhaus::port::sim::{DiskShape, Faults, PowerLoss, Random};

use crate::stacks::{Filters, Layers};
use crate::workload::Habits;

/// How a server's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Stopped when it has nothing to do.
    Idle,
    /// Stopped while it is busy.
    Busy,
    /// SIGKILL.
    Killed,
    /// The power goes.
    PowerLost(PowerLoss),
}

/// What the disk does to operations; only where it is `hard` may they fail.
pub fn faults(random: &mut Random, hard: bool, slow: &[u32]) -> Faults {
    Faults {
        short: *random.pick(&[0, 50, 300]),
        interrupted: *random.pick(&[0, 20, 200]),
        failed: if hard { 15 } else { 0 },
        full: if hard { 10 } else { 0 },
        slow: *random.pick(slow),
    }
}

/// A disk that is large enough for these filters.
pub fn disk(random: &mut Random, filters: Filters) -> DiskShape {
    let sector = *random.pick(&[512, 512, 4096]);
    DiskShape {
        size: u64::from(sector) * random.between(filters.least_sectors(), 120),
        sector,
        punches: random.chance(700),
        zeroes: random.chance(700),
        direct: random.chance(700),
    }
}

/// What clients ask of a stack.
pub fn habits(random: &mut Random, layers: &Layers, crowded: &[u64], hard: bool) -> Habits {
    Habits {
        in_flight: random.between(1, 24) as usize,
        crowded: *random.pick(crowded),
        longest: *random.pick(&[2, 8, 30]),
        flushes: *random.pick(&[20, 80]),
        discard_zeroes: layers.discard_zeroes(),
        shape: (layers.size(), layers.block()),
        hard_faults: hard,
    }
}
