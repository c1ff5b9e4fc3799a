//! What a queue counts while its requests go by, and what is made of that off the path.
//!
//! Each queue thread writes to counters of its own, which others may read at any moment: no lock, no
//! atomic read-modify-write, and no line of memory that two threads write. Who asks
//! ([`Stats::of`]) adds the queues up and makes percentiles.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::io::{OPS, Op};

mod histogram;
mod stats;

pub use histogram::{BUCKETS, LONGEST_NS, bucket, lowest_ns};
pub use stats::{Latency, OpStats, QueueStats, Stats, percentiles};

/// The counters of one queue; written by its thread alone.
#[derive(Debug)]
pub struct QueueMetrics {
    /// Requests that were taken to be served.
    taken: AtomicU64,
    ops: [OpMetrics; OPS.len()],
}

#[derive(Debug)]
struct OpMetrics {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    latency_sum_ns: AtomicU64,
    latencies: Box<[AtomicU64; BUCKETS]>,
}

impl Default for QueueMetrics {
    fn default() -> QueueMetrics {
        QueueMetrics::new()
    }
}

/// One writer, so that a load and a store are as good as an atomic addition, and cheaper.
#[inline(always)]
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

impl QueueMetrics {
    /// Counters at zero; 46 KiB.
    pub fn new() -> QueueMetrics {
        let zeros = || Box::new([const { AtomicU64::new(0) }; BUCKETS]);
        let op = |_| OpMetrics {
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency_sum_ns: AtomicU64::new(0),
            latencies: zeros(),
        };
        QueueMetrics { taken: AtomicU64::new(0), ops: OPS.map(op) }
    }

    /// A request is going to be served. For the queue's thread alone, as all that counts.
    #[inline]
    pub(crate) fn take(&self) {
        add(&self.taken, 1);
    }

    /// A request that was taken has been served, or has failed.
    #[inline]
    pub(crate) fn complete(&self, op: Op, len: u64, is_error: bool) {
        let op = &self.ops[op as usize];
        add(&op.requests, 1);
        add(&op.bytes, len);
        if is_error {
            add(&op.errors, 1);
        }
    }

    /// A request was refused, and nobody else has it in hand.
    #[cold]
    pub(crate) fn refuse(&self, op: Op, len: u64) {
        self.take();
        self.complete(op, len, true);
    }

    /// A request that was counted as served has failed after all.
    #[cold]
    pub(crate) fn fail(&self, op: Op) {
        add(&self.ops[op as usize].errors, 1);
    }

    /// How long `count` requests took, each of them.
    #[inline]
    pub(crate) fn record(&self, op: Op, latency_ns: u64, count: u64) {
        let op = &self.ops[op as usize];
        add(&op.latency_sum_ns, latency_ns.wrapping_mul(count));
        add(&op.latencies[bucket(latency_ns)], count);
    }
}
