//! `throttle`: so many requests and so many bytes a second, and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Backend, Queue, QueueContext, pass_on};
use crate::error::{Error, Result};
use crate::filter::notes;
use crate::io::{Capabilities, Geometry, Io, IoResult, Op};
use crate::payload::Payload;
use crate::port::ring::Ring;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// Least bytes a second: a request of 1 MiB then takes four minutes.
const LEAST_BANDWIDTH: u64 = 4096;

/// Longest burst in milliseconds.
const LONGEST_BURST_MS: u64 = 60_000;

/// What is allowed, over all queues together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second; flushes are not counted.
    pub iops: Option<u64>,
    /// Bytes a second that are read or written, at least 4096.
    pub bandwidth: Option<u64>,
    /// For so many milliseconds what was not used is saved up, and may be used at once later.
    pub burst_ms: u64,
}

/// Makes requests wait where they come faster than allowed.
#[derive(Debug)]
pub struct Throttle<B> {
    below: B,
    limits: Limits,
    state: Arc<State>,
}

/// The buckets, shared by all queues.
#[derive(Debug)]
struct State {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl<B: Backend> Throttle<B> {
    /// With these limits, of which there is one at least.
    pub fn new(below: B, limits: Limits) -> Result<Throttle<B>> {
        let bad = |why: &str, cure: &str| Err(Error::invalid("cannot throttle the disk", why).cure(cure));
        if limits.iops.is_none() && limits.bandwidth.is_none() {
            return bad("neither iops nor bandwidth is given", "give iops=1000 or bandwidth=100M");
        }
        if limits.iops.is_some_and(|iops| iops == 0 || iops > SECOND) {
            return bad("iops is 0 or above 1000000000", "give iops=1000, say");
        }
        if limits.bandwidth.is_some_and(|bytes| bytes < LEAST_BANDWIDTH) {
            return bad("bandwidth is below 4096 bytes a second", "give bandwidth=100M, say");
        }
        if limits.burst_ms > LONGEST_BURST_MS {
            return bad("the burst is longer than a minute", "give burst_ms=100, say");
        }
        let bucket = |a_second: Option<u64>| a_second.map(|rate| Bucket::new(rate, limits.burst_ms));
        let state = State { requests: bucket(limits.iops), bytes: bucket(limits.bandwidth) };
        Ok(Throttle { below, limits, state: Arc::new(state) })
    }
}

impl<B: Backend> Backend for Throttle<B> {
    type Queue = ThrottleQueue<B::Queue>;

    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn capabilities(&self) -> Capabilities {
        self.below.capabilities()
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<ThrottleQueue<B::Queue>> {
        let below = self.below.open_queue(context)?;
        Ok(ThrottleQueue { below, ring: context.ring.clone(), state: self.state.clone() })
    }

    fn notes(&self) -> Vec<String> {
        let iops = self.limits.iops.map(|iops| format!("{iops} requests"));
        let bytes = self.limits.bandwidth.map(|bytes| format!("{bytes} bytes"));
        let both: Vec<String> = iops.into_iter().chain(bytes).collect();
        let own = format!("throttle: {} a second, bursts of {} ms", both.join(" and "), self.limits.burst_ms);
        notes(own, self.below.notes())
    }

    pass_on!(below);
}

/// A bucket that runs over at a steady rate, told by one number: the moment at which all that was
/// let through so far is paid for. Each request books its departure when it comes, so that they
/// leave in the order they came, whatever queue they are on.
#[derive(Debug)]
struct Bucket {
    /// Nanoseconds on the ring's clock.
    paid: AtomicU64,
    a_second: u64,
    burst_ns: u64,
}

impl Bucket {
    fn new(a_second: u64, burst_ms: u64) -> Bucket {
        Bucket { paid: AtomicU64::new(0), a_second, burst_ns: burst_ms * (SECOND / 1000) }
    }

    /// When so much may go.
    #[inline]
    fn departure(&self, now: u64) -> u64 {
        now.max(self.paid.load(Ordering::Relaxed).saturating_sub(self.burst_ns))
    }

    /// Takes so much, and says when it may go.
    #[inline]
    fn book(&self, now: u64, amount: u64) -> u64 {
        // Above 16 GiB at once a request costs as much as 16 GiB do.
        let price = amount.saturating_mul(SECOND) / self.a_second;
        let mut paid = self.paid.load(Ordering::Relaxed);
        loop {
            let from = paid.max(now);
            // Nothing else is published with this number, so that no order is needed.
            match self.paid.compare_exchange_weak(
                paid,
                from.saturating_add(price),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return now.max(from.saturating_sub(self.burst_ns)),
                Err(newer) => paid = newer,
            }
        }
    }
}

impl State {
    /// Each bucket, with what the request takes out of it.
    #[inline]
    fn takes<'a>(&'a self, io: &Io) -> impl Iterator<Item = (&'a Bucket, u64)> + use<'a> {
        let (requests, bytes) = match io.op {
            Op::Read | Op::Write => (1, io.len),
            Op::Discard | Op::WriteZeroes | Op::Extents => (1, 0),
            Op::Flush => (0, 0),
        };
        let requests = self.requests.as_ref().map(|bucket| (bucket, requests));
        let bytes = self.bytes.as_ref().map(|bucket| (bucket, bytes));
        requests.into_iter().chain(bytes).filter(|(_, amount)| *amount != 0)
    }

    #[inline]
    fn departure(&self, now: u64, io: &Io) -> u64 {
        self.takes(io).fold(now, |latest, (bucket, _)| latest.max(bucket.departure(now)))
    }

    #[inline]
    fn book(&self, now: u64, io: &Io) -> u64 {
        self.takes(io).fold(now, |latest, (bucket, amount)| latest.max(bucket.book(now, amount)))
    }
}

/// One queue's handle.
#[derive(Debug)]
pub struct ThrottleQueue<Q> {
    below: Q,
    ring: Ring,
    state: Arc<State>,
}

impl<Q: Queue> Queue for ThrottleQueue<Q> {
    /// Books only what was served here: what is declined comes again.
    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        let now = self.ring.now();
        if self.state.departure(now, io) > now {
            return None;
        }
        let result = self.below.serve_now(io, payload)?;
        self.state.book(now, io);
        Some(result)
    }

    #[inline]
    async fn serve(&self, io: Io, payload: Payload<'_>) -> IoResult {
        let now = self.ring.now();
        let departure = self.state.book(now, &io);
        if departure > now {
            self.ring.sleep_until(&payload, departure).await?;
        }
        self.below.serve(io, payload).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_at_the_rate_and_in_their_order() {
        let bucket = Bucket::new(1000, 0);
        let departures: Vec<u64> = (0..4).map(|_| bucket.book(5_000_000, 1)).collect();
        assert_eq!(departures, [5_000_000, 6_000_000, 7_000_000, 8_000_000]);
        assert_eq!(bucket.departure(5_000_000), 9_000_000);
        assert_eq!(bucket.book(20_000_000, 1), 20_000_000, "nothing is saved up without a burst");
        assert_eq!(bucket.book(20_000_000, 1), 21_000_000);
    }

    #[test]
    fn a_burst_is_what_was_saved_up_and_no_more() {
        let bucket = Bucket::new(1000, 10);
        let start = 1_000_000_000;
        let at_once = (0..100).take_while(|_| bucket.book(start, 1) == start).count();
        assert_eq!(at_once, 11);
    }

    #[test]
    fn a_large_request_is_paid_for_by_those_after_it() {
        let bucket = Bucket::new(4096, 0);
        assert_eq!(bucket.book(0, 1 << 20), 0);
        assert_eq!(bucket.book(0, 4096), 256 * SECOND);
        assert!((0..9).all(|_| bucket.book(0, u64::MAX) > 0));
        assert!(bucket.departure(0) > 256 * SECOND);
    }
}
