//! What the loop of a queue notes about its requests as they go by.
//!
//! The clock is read twice a turn at most: when the first request of the turn arrives, and when results
//! have been gathered that are about to be sent off. What each request costs are a few additions.

use crate::io::{Io, IoResult, OPS, Op};
use crate::metrics::QueueMetrics;
use crate::port::clock::monotonic_nanoseconds;

/// Results that can be gathered before the clock is read for them.
const GATHERED: usize = 256;

/// Of so many requests of one kind that could go as one chain with their completion, whose end nobody sees, one does not, so
/// that its latency is known. That costs a turn of the loop more.
const MEASURED_OF_CHAINS: u32 = 32;

/// One queue's, while its loop runs.
pub(super) struct Meter<'a> {
    metrics: &'a QueueMetrics,
    /// When this turn began, in nanoseconds; 0 where it was not asked for.
    turn_ns: u64,
    /// Results of this turn: of which kind, and when the request had arrived.
    gathered: Vec<(Op, u64)>,
    /// Requests of each kind that could be one.
    chains: [u32; OPS.len()],
}

impl<'a> Meter<'a> {
    pub(super) fn new(metrics: &'a QueueMetrics) -> Meter<'a> {
        Meter { metrics, turn_ns: 0, gathered: Vec::with_capacity(GATHERED), chains: [0; OPS.len()] }
    }

    /// A new turn of the loop.
    #[inline]
    pub(super) fn begin_turn(&mut self) {
        self.turn_ns = 0;
    }

    /// A request is there; yields when, in nanoseconds.
    #[inline]
    pub(super) fn arrived(&mut self) -> u64 {
        self.metrics.take();
        if self.turn_ns == 0 {
            self.turn_ns = monotonic_nanoseconds();
        }
        self.turn_ns
    }

    /// Its result is there.
    #[inline]
    pub(super) fn completed(&mut self, io: &Io, result: IoResult, arrived_ns: u64) {
        self.metrics.complete(io.op, io.len, result.is_err());
        self.gathered.push((io.op, arrived_ns));
        if self.gathered.len() == GATHERED {
            self.end_turn();
        }
    }

    /// Whether a request that can go as a chain should not, so as to be measured.
    #[inline]
    pub(super) fn wants_no_chain(&mut self, io: &Io) -> bool {
        // Each kind for itself: kinds that take turns would else be measured one or the other.
        let chains = &mut self.chains[io.op as usize];
        *chains = chains.wrapping_add(1);
        *chains % MEASURED_OF_CHAINS == 1
    }

    /// A request goes as a chain with its completion: it counts as served.
    #[inline]
    pub(super) fn chained(&mut self, io: &Io) {
        self.metrics.take();
        self.metrics.complete(io.op, io.len, false);
    }

    /// A request that went as a chain came back, to be served, with this result in the end.
    #[cold]
    pub(super) fn unchained(&mut self, io: &Io, result: IoResult) {
        if result.is_err() {
            self.metrics.fail(io.op);
        }
    }

    /// What was gathered is about to be sent off.
    #[inline]
    pub(super) fn end_turn(&mut self) {
        if !self.gathered.is_empty() {
            let now_ns = monotonic_nanoseconds();
            for (op, arrived_ns) in self.gathered.drain(..) {
                self.metrics.record(op, now_ns.saturating_sub(arrived_ns));
            }
        }
    }
}
