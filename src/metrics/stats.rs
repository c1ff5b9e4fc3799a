//! What the counters of a disk's queues say at one moment, as it is told to others.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{BUCKETS, LONGEST_NS, OpMetrics, QueueMetrics, lowest_ns};
use crate::io::OPS;

/// What was done for a disk by one engine, since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// All queues together: one for each kind of request, in the order of [`OPS`].
    pub ops: Vec<OpStats>,
    /// Each queue.
    pub queues: Vec<QueueStats>,
}

/// What one queue did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Its number.
    pub queue: u16,
    /// Requests that it has and has not completed. Those that go as one chain with their completion are not seen.
    pub in_flight: u64,
    /// For each kind of request, without the latencies themselves.
    pub ops: Vec<OpStats>,
}

/// What was done for requests of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpStats {
    /// `read`, `write`, `flush`, `discard` or `write-zeroes`.
    pub op: String,
    /// Requests completed, those that failed among them.
    pub requests: u64,
    /// Bytes that these were about.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// How long they took; nothing where none was measured.
    pub latency: Option<Latency>,
    /// Latencies: numbers of buckets that are not empty, and how many are in them ([`super::bucket`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<(u16, u64)>,
    /// The sum of what is in the buckets, in nanoseconds.
    #[serde(default)]
    pub latency_sum_ns: u64,
}

/// How long requests took, in nanoseconds: from the turn of the queue's loop that saw one to the end of
/// the turn in which its result was sent off. Right to 3.2 %, but for the mean, which is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub measured: u64,
    /// Their mean.
    pub mean_ns: u64,
    /// As long as half of them took at most.
    pub p50_ns: u64,
    /// As 90 % of them did.
    pub p90_ns: u64,
    /// As 99 % of them did.
    pub p99_ns: u64,
    /// As 99.9 % of them did.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Stats {
    /// What these queues' counters say. The queues go on meanwhile, so that numbers of one moment
    /// may be a request apart.
    pub fn of(queues: &[Arc<QueueMetrics>]) -> Stats {
        let each: Vec<QueueStats> =
            queues.iter().zip(0..).map(|(metrics, queue)| metrics.stats(queue)).collect();
        let mut ops: Vec<OpStats> = OPS.iter().map(|op| OpStats::none(op.name())).collect();
        for queue in &each {
            ops.iter_mut().zip(&queue.ops).for_each(|(sum, op)| sum.add(op));
        }
        ops.iter_mut().for_each(OpStats::measure);
        let without_buckets = |queue: QueueStats| {
            let strip = |op| OpStats { buckets: Vec::new(), ..op };
            QueueStats { ops: queue.ops.into_iter().map(strip).collect(), ..queue }
        };
        Stats { ops, queues: each.into_iter().map(without_buckets).collect() }
    }

    /// What has come since `earlier`, for all queues together. Where there was more then than now, they have begun anew
    /// since, and all that they say has come since.
    pub fn since(&self, earlier: &Stats) -> Vec<OpStats> {
        let before = |op: &OpStats| earlier.ops.iter().find(|before| before.op == op.op);
        if self.ops.iter().any(|op| before(op).is_some_and(|before| before.requests > op.requests)) {
            return self.ops.clone();
        }
        self.ops.iter().map(|op| before(op).map_or_else(|| op.clone(), |before| op.since(before))).collect()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u64 {
        self.queues.iter().map(|queue| queue.in_flight).sum()
    }
}

impl QueueMetrics {
    fn stats(&self, queue: u16) -> QueueStats {
        // Completions first: then none is seen of a request that was not taken.
        let ops: Vec<OpStats> =
            OPS.iter().zip(&self.ops).map(|(op, counted)| counted.stats(op.name())).collect();
        let completed: u64 = ops.iter().map(|op| op.requests).sum();
        let in_flight = self.taken.load(Ordering::Relaxed).saturating_sub(completed);
        QueueStats { queue, in_flight, ops }
    }
}

impl OpMetrics {
    fn stats(&self, name: &str) -> OpStats {
        let buckets = (0..).zip(self.latencies.iter());
        let buckets = buckets.map(|(bucket, count)| (bucket, count.load(Ordering::Relaxed)));
        let mut stats = OpStats {
            op: name.to_owned(),
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            latency: None,
            buckets: buckets.filter(|(_, count)| *count != 0).collect(),
            latency_sum_ns: self.latency_sum_ns.load(Ordering::Relaxed),
        };
        stats.measure();
        stats
    }
}

impl OpStats {
    fn none(op: &str) -> OpStats {
        let (requests, bytes, errors, latency_sum_ns) = (0, 0, 0, 0);
        OpStats {
            op: op.to_owned(),
            requests,
            bytes,
            errors,
            latency: None,
            buckets: Vec::new(),
            latency_sum_ns,
        }
    }

    fn add(&mut self, other: &OpStats) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.latency_sum_ns = self.latency_sum_ns.wrapping_add(other.latency_sum_ns);
        self.buckets = merge(&self.buckets, &other.buckets, u64::wrapping_add);
    }

    /// What has come since `earlier`.
    fn since(&self, earlier: &OpStats) -> OpStats {
        let mut since = OpStats {
            op: self.op.clone(),
            requests: self.requests.saturating_sub(earlier.requests),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            errors: self.errors.saturating_sub(earlier.errors),
            latency: None,
            buckets: merge(&self.buckets, &earlier.buckets, u64::saturating_sub),
            latency_sum_ns: self.latency_sum_ns.saturating_sub(earlier.latency_sum_ns),
        };
        since.measure();
        since
    }

    fn measure(&mut self) {
        self.latency = percentiles(&self.buckets, self.latency_sum_ns);
    }
}

/// Both lists of buckets as one, counts of the same bucket by `join`; what comes to nothing is left out.
fn merge(a: &[(u16, u64)], b: &[(u16, u64)], join: impl Fn(u64, u64) -> u64) -> Vec<(u16, u64)> {
    let (mut a, mut b) = (a.iter().copied().peekable(), b.iter().copied().peekable());
    let mut merged = Vec::new();
    loop {
        let bucket = match (a.peek(), b.peek()) {
            (Some(a), Some(b)) => a.0.min(b.0),
            (Some((bucket, _)), None) | (None, Some((bucket, _))) => *bucket,
            (None, None) => return merged,
        };
        let count = |next: Option<(u16, u64)>| next.map_or(0, |(_, count)| count);
        let of_a = count(a.next_if(|next| next.0 <= bucket));
        let of_b = count(b.next_if(|next| next.0 <= bucket));
        let joined = join(of_a, of_b);
        if joined != 0 {
            merged.push((bucket, joined));
        }
    }
}

/// Which part of `count` sorted values, from 0 to 1, ends in the middle of the one that `percent` of them do not exceed. To
/// multiply by `percent / 100` could land a hair above a whole number, and a histogram rounds that up: 99.9 % of 1000
/// would be the last and not the one before it.
pub fn quantile(percent: f64, count: u64) -> f64 {
    let count = count as f64;
    let rank = (count * percent / 100.0 - 1e-6).ceil().max(1.0);
    (rank - 0.5) / count.max(1.0)
}

/// What the buckets say; nothing where they are empty.
pub fn percentiles(buckets: &[(u16, u64)], sum_ns: u64) -> Option<Latency> {
    // Three digits, finer than the buckets are, so that nothing is lost twice.
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3).ok()?;
    for &(bucket, count) in buckets.iter().filter(|(bucket, _)| usize::from(*bucket) < BUCKETS) {
        let (lowest, next) = (lowest_ns(bucket.into()), lowest_ns(usize::from(bucket) + 1));
        let middle = lowest + (next - lowest) / 2;
        histogram.record_n(middle.max(1), count).ok()?;
    }
    let measured = histogram.len();
    let at = |percent| histogram.value_at_quantile(quantile(percent, measured));
    (measured != 0).then(|| Latency {
        measured,
        mean_ns: sum_ns / measured,
        p50_ns: at(50.0),
        p90_ns: at(90.0),
        p99_ns: at(99.0),
        p999_ns: at(99.9),
        max_ns: histogram.max(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Op;
    use crate::metrics::bucket;

    fn served(op: Op, requests: usize) -> Stats {
        let queue = Arc::new(QueueMetrics::new());
        for _ in 0..requests {
            queue.take();
            queue.complete(op, 4096, false);
            queue.record(op, 1000, 1);
        }
        Stats::of(&[queue])
    }

    fn requests(ops: &[OpStats]) -> Vec<u64> {
        ops.iter().map(|op| op.requests).collect()
    }

    #[test]
    fn what_has_come_since_a_look() {
        let since = served(Op::Read, 70).since(&served(Op::Read, 50));
        assert_eq!(requests(&since), [20, 0, 0, 0, 0]);
        assert_eq!((since[0].bytes, since[0].latency.unwrap().measured), (20 * 4096, 20));
    }

    /// A server that was started again has done less than the one before it.
    #[test]
    fn counters_that_began_anew_are_taken_as_they_are() {
        let since = served(Op::Read, 7).since(&served(Op::Read, 50));
        assert_eq!(requests(&since), [7, 0, 0, 0, 0]);
        assert_eq!(since[0].latency.unwrap().measured, 7);
        // Whichever kind of request shows it.
        let since = served(Op::Write, 9).since(&served(Op::Read, 1));
        assert_eq!(requests(&since), [0, 9, 0, 0, 0]);
    }

    #[test]
    fn one_of_a_thousand_is_beyond_what_999_do_not_exceed() {
        let bucket_of = |ns| u16::try_from(bucket(ns)).unwrap();
        let buckets = [(bucket_of(1000), 999), (bucket_of(1_000_000), 1)];
        let latency = percentiles(&buckets, 0).unwrap();
        assert!(latency.p999_ns < 1100 && latency.max_ns > 900_000, "{latency:?}");
    }
}
