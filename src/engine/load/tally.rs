//! What a job counts.

use super::failures::Failures;
use super::latencies::Latencies;
use super::measured::CpuTime;
use crate::error::Result;
use crate::io::IoResult;
use crate::port::clock::Duration;

/// The counts of one job, or of several together.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Requests that were served inside the window.
    pub served: u64,
    /// How long those took that were served inside the window or were in flight at its end.
    pub latencies: Latencies,
    /// Those of the same that failed.
    pub failures: Failures,
    /// Requests before the window that failed.
    pub warm_up_failures: Failures,
    /// Requests before the window whose bytes were looked at.
    pub looked_at: u64,
    /// Those of them that had read nothing but zeros.
    pub zeros: u64,
    /// Processor time of the process between two moments that are as far apart as here in nanoseconds: the
    /// begin and the end of the window, as the thread of a job saw them.
    pub cpu: Option<(u64, CpuTime)>,
    /// How long the jobs could have run and did not get a processor.
    pub waited: Duration,
    /// How long the jobs were there, all together.
    pub worked: Duration,
}

impl Tally {
    pub fn new() -> Result<Tally> {
        Ok(Tally {
            served: 0,
            latencies: Latencies::new()?,
            failures: Failures::default(),
            warm_up_failures: Failures::default(),
            looked_at: 0,
            zeros: 0,
            cpu: None,
            waited: Duration::ZERO,
            worked: Duration::ZERO,
        })
    }

    /// A request ended after the window had begun.
    #[inline]
    pub fn ended(&mut self, latency_ns: u64, inside: bool, result: IoResult) {
        match result {
            Ok(()) => {
                self.served += u64::from(inside);
                self.latencies.record(latency_ns);
            }
            Err(errno) => self.failures.add(errno, 1),
        }
    }

    /// What a request read before the window was looked at.
    pub fn looked(&mut self, only_zeros: bool) {
        self.looked_at += 1;
        self.zeros += u64::from(only_zeros);
    }

    pub fn merge(&mut self, other: &Tally) -> Result<()> {
        self.served += other.served;
        self.failures.merge(&other.failures);
        self.warm_up_failures.merge(&other.warm_up_failures);
        self.looked_at += other.looked_at;
        self.zeros += other.zeros;
        self.waited += other.waited;
        self.worked += other.worked;
        // All jobs have asked for the same; who saw most of the window knows best.
        self.cpu = self.cpu.into_iter().chain(other.cpu).max_by_key(|(span_ns, _)| *span_ns);
        self.latencies.merge(&other.latencies)
    }
}
