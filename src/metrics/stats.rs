//! What the counters of a disk's queues say at one moment, as it is told to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Requests that it has taken and not completed. Those that go as one chain with their completion are not seen.
    pub in_flight: u64,
    /// For each kind of request, without the latencies themselves.
    pub ops: Vec<OpStats>,
}

/// What was done for requests of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpStats {
    /// `read`, `write`, `flush`, `discard`, `write-zeroes` or `extents`.
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
/// the turn in which its result was sent off. Right to 3.2 %, but for the mean, which is exact for what was measured:
/// one request stands for those that went as chains since the last such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured, or are stood for by one that was.
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

/// How often the numbers of requests are looked at for a moment in which none changes.
const LOOKS: u32 = 64;

impl QueueMetrics {
    fn stats(&self, queue: u16) -> QueueStats {
        // Before the requests, so that no more of them are measured, or have failed, than there are.
        let mut ops: Vec<OpStats> =
            OPS.iter().zip(&self.ops).map(|(op, counted)| counted.stats(op.name())).collect();
        let (requests, in_flight) = self.requests();
        ops.iter_mut().zip(requests).for_each(|(op, requests)| op.requests = requests);
        ops.iter_mut().for_each(OpStats::measure);
        QueueStats { queue, in_flight, ops }
    }

    /// Requests of each kind that were completed, and those in flight at that moment: what is taken between two
    /// looks at the one is not in flight. Where the queue does not let go for a moment, the fewest that were seen.
    fn requests(&self) -> ([u64; OPS.len()], u64) {
        // In the order of the program.
        let load = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let look = || self.ops.each_ref().map(|op| load(&op.requests));
        let (mut before, mut fewest) = (look(), u64::MAX);
        for _ in 0..LOOKS {
            let taken = load(&self.taken);
            fewest = fewest.min(taken.saturating_sub(before.iter().sum()));
            let after = look();
            if after == before {
                return (after, taken.saturating_sub(after.iter().sum()));
            }
            before = after;
        }
        (before, fewest)
    }
}

impl OpMetrics {
    /// All but the number of requests, and what follows from all of it.
    fn stats(&self, name: &str) -> OpStats {
        let buckets = (0..).zip(self.latencies.iter());
        let buckets = buckets.map(|(bucket, count)| (bucket, count.load(Ordering::Relaxed)));
        OpStats {
            op: name.to_owned(),
            requests: 0,
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            latency: None,
            buckets: buckets.filter(|(_, count)| *count != 0).collect(),
            latency_sum_ns: self.latency_sum_ns.load(Ordering::Relaxed),
        }
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
    // A histogram takes a quarter of a MiB, and most kinds of requests are not made of most disks.
    if buckets.is_empty() {
        return None;
    }
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
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::io::Op;
    use crate::metrics::bucket;

    /// What one queue is told.
    #[derive(Clone, Debug)]
    struct Told {
        op: Op,
        len: u64,
        is_error: bool,
        latency_ns: u64,
    }

    fn told() -> impl Strategy<Value = Told> {
        let latency_ns = prop_oneof![0..1000u64, 1000..10_000_000u64, 0..=u64::MAX >> 12];
        (proptest::sample::select(&OPS[..]), 0..1u64 << 20, any::<bool>(), latency_ns)
            .prop_map(|(op, len, is_error, latency_ns)| Told { op, len, is_error, latency_ns })
    }

    fn tell(metrics: &QueueMetrics, told: &[Told]) {
        for Told { op, len, is_error, latency_ns } in told {
            metrics.take();
            metrics.complete(*op, *len, *is_error);
            metrics.record(*op, *latency_ns, 1);
        }
    }

    /// The middle of a latency's bucket, which is what comes out for it.
    fn near(found_ns: u64, latency_ns: u64) -> bool {
        let latency_ns = latency_ns.min(LONGEST_NS);
        found_ns.abs_diff(latency_ns) <= latency_ns / 30 + 1
    }

    /// What is to be said of requests of one kind: by their latencies in order.
    fn check(op: &OpStats, told: &[&Told]) -> Result<(), TestCaseError> {
        let mut latencies: Vec<u64> = told.iter().map(|told| told.latency_ns).collect();
        latencies.sort_unstable();
        prop_assert_eq!(op.requests, told.len() as u64);
        prop_assert_eq!(op.bytes, told.iter().map(|told| told.len).sum::<u64>());
        prop_assert_eq!(op.errors, told.iter().filter(|told| told.is_error).count() as u64);
        prop_assert_eq!(op.latency_sum_ns, latencies.iter().sum::<u64>());
        prop_assert_eq!(op.latency.is_some(), !told.is_empty());
        let Some(latency) = op.latency else { return Ok(()) };
        prop_assert_eq!(latency.measured, latencies.len() as u64);
        prop_assert_eq!(latency.mean_ns, latencies.iter().sum::<u64>() / latency.measured);
        // The least that so many are not above.
        let at = |per_mille: usize| latencies[(latencies.len() * per_mille).div_ceil(1000) - 1];
        for (found, per_mille) in [
            (latency.p50_ns, 500),
            (latency.p90_ns, 900),
            (latency.p99_ns, 990),
            (latency.p999_ns, 999),
            (latency.max_ns, 1000),
        ] {
            prop_assert!(near(found, at(per_mille)), "{} ‰: {}, not {}", per_mille, found, at(per_mille));
        }
        Ok(())
    }

    proptest! {
        /// Two queues, two looks: all since the start, and what has come between.
        #[test]
        fn the_numbers_are_those_of_the_requests(
            first in proptest::collection::vec(told(), 0..80),
            other in proptest::collection::vec(told(), 0..80),
            later in proptest::collection::vec(told(), 0..80),
        ) {
            let queues = [Arc::new(QueueMetrics::new()), Arc::new(QueueMetrics::new())];
            tell(&queues[0], &first);
            tell(&queues[1], &other);
            let before = Stats::of(&queues);
            tell(&queues[1], &later);
            let after = Stats::of(&queues);
            let of = |op: Op, told: &[&[Told]]| -> Vec<Told> {
                told.iter().flat_map(|told| told.iter()).filter(|told| told.op == op).cloned().collect()
            };
            let since = after.since(&before);
            for op in OPS {
                for (stats, told) in [
                    (&before.ops, &[&first[..], &other][..]),
                    (&after.ops, &[&first, &other, &later]),
                    (&since, &[&later]),
                    (&after.queues[0].ops, &[&first]),
                    (&after.queues[1].ops, &[&other, &later]),
                ] {
                    let told = of(op, told);
                    let named: BTreeMap<_, _> = stats.iter().map(|op| (op.op.as_str(), op)).collect();
                    check(named[op.name()], &told.iter().collect::<Vec<_>>())?;
                }
            }
            prop_assert_eq!(after.in_flight(), 0);
        }
    }

    fn served(op: Op, requests: usize) -> Stats {
        let queue = Arc::new(QueueMetrics::new());
        for _ in 0..requests {
            queue.take();
            queue.complete(op, 4096, false);
            queue.record(op, 1000, 1);
        }
        Stats::of(&[queue])
    }

    fn requests(ops: &[OpStats]) -> Vec<(&str, u64)> {
        ops.iter().filter(|op| op.requests > 0).map(|op| (op.op.as_str(), op.requests)).collect()
    }

    #[test]
    fn what_has_come_since_a_look() {
        let since = served(Op::Read, 70).since(&served(Op::Read, 50));
        assert_eq!(requests(&since), [(Op::Read.name(), 20)]);
        assert_eq!((since[0].bytes, since[0].latency.unwrap().measured), (20 * 4096, 20));
    }

    /// A server that was started again has done less than the one before it.
    #[test]
    fn counters_that_began_anew_are_taken_as_they_are() {
        let since = served(Op::Read, 7).since(&served(Op::Read, 50));
        assert_eq!(requests(&since), [(Op::Read.name(), 7)]);
        assert_eq!(since[0].latency.unwrap().measured, 7);
        // Whichever kind of request shows it.
        let since = served(Op::Write, 9).since(&served(Op::Read, 1));
        assert_eq!(requests(&since), [(Op::Write.name(), 9)]);
    }

    #[test]
    fn one_of_a_thousand_is_beyond_what_999_do_not_exceed() {
        let bucket_of = |ns| u16::try_from(bucket(ns)).unwrap();
        let buckets = [(bucket_of(1000), 999), (bucket_of(1_000_000), 1)];
        let latency = percentiles(&buckets, 0).unwrap();
        assert!(latency.p999_ns < 1100 && latency.max_ns > 900_000, "{latency:?}");
    }
}
