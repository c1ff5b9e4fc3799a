//! What came of a load.

use super::seat::Ring;
use super::{Failures, Latencies, Load};
use crate::port::clock::Duration;
use crate::port::process;

/// Processor time of this process: all of its threads, and what the kernel did for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// In the program.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
}

impl CpuTime {
    /// Since the process began.
    pub(super) fn now() -> CpuTime {
        let (user, system) = process::cpu_time();
        CpuTime { user, system }
    }

    pub(super) fn since(self, earlier: CpuTime) -> CpuTime {
        let (user, system) =
            (self.user.saturating_sub(earlier.user), self.system.saturating_sub(earlier.system));
        CpuTime { user, system }
    }

    /// So many times as much.
    pub(super) fn times(self, factor: f64) -> CpuTime {
        CpuTime { user: self.user.mul_f64(factor), system: self.system.mul_f64(factor) }
    }
}

/// The figures of one load.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Which.
    pub load: Load,
    /// How long requests counted; zero where it was interrupted before.
    pub window: Duration,
    /// Requests that were served in that time.
    pub served: u64,
    /// How long they took, and those that were in flight at its end.
    pub latencies: Latencies,
    /// Requests that failed, of the same.
    pub failures: Failures,
    /// Requests of the warm-up that failed.
    pub warm_up_failures: Failures,
    /// Processor time in the window; none where no job got to look at it at both of its ends.
    pub cpu_time: Option<CpuTime>,
    /// The share of their time that the jobs waited for a processor, from 0 to 1: others had it, other jobs among
    /// them.
    pub starved: f64,
    /// Requests of the warm-up whose bytes were looked at, and those of them that were nothing but zeros.
    pub looked_at: u64,
    /// See `looked_at`.
    pub zeros: u64,
    /// How the first job's ring was made; those of the others are alike.
    pub ring: Ring,
    /// Somebody ended it early.
    pub interrupted: bool,
}

impl Measured {
    /// Whether any request failed, at whatever time.
    pub fn has_failures(&self) -> bool {
        self.failures.count() != 0 || self.warm_up_failures.count() != 0
    }

    /// Requests a second.
    pub fn iops(&self) -> f64 {
        match self.window.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.served as f64 / seconds,
        }
    }

    /// Bytes a second.
    pub fn bandwidth(&self) -> f64 {
        self.iops() * f64::from(self.load.block_size)
    }

    /// Processor time of this process a request, where any was served and it is known.
    pub fn cpu_time_per_request(&self) -> Option<CpuTime> {
        let served = self.served as f64;
        self.cpu_time.filter(|_| self.served != 0).map(|time| time.times(1.0 / served))
    }
}
