//! What the loop of a queue notes about its requests as they go by.
//!
//! The clock is read twice a turn at most: when the first request of the turn arrives, and when results
//! have been gathered that are about to be sent off. What each request costs are a few additions.

use crate::io::{Io, IoResult, OPS, Op};
use crate::metrics::QueueMetrics;
use crate::port::clock::monotonic_nanoseconds;

/// Runs that can be gathered before the clock is read for them.
const GATHERED: usize = 64;

/// Of so many requests of one kind that could go as one chain with their completion, whose end nobody sees, one does not, so
/// that its latency is known. That costs a turn of the loop more.
const MEASURED_OF_CHAINS: u32 = 32;

/// Results one after the other that are alike: requests of one kind that had arrived in one turn.
#[derive(Clone, Copy)]
struct Run {
    op: Op,
    arrived_ns: u64,
    count: u64,
}

impl Default for Run {
    /// None.
    fn default() -> Run {
        Run { op: Op::Read, arrived_ns: 0, count: 0 }
    }
}

/// One queue's, while its loop runs.
pub(super) struct Meter<'a> {
    metrics: &'a QueueMetrics,
    /// When this turn began, in nanoseconds; 0 where it was not asked for.
    turn_ns: u64,
    /// Results of this turn, but for the last run of them.
    gathered: Vec<Run>,
    /// The last run. Most turns have no other.
    last: Run,
    /// Requests of each kind that could be one.
    chains: [u32; OPS.len()],
}

impl<'a> Meter<'a> {
    pub(super) fn new(metrics: &'a QueueMetrics) -> Meter<'a> {
        Meter {
            metrics,
            turn_ns: 0,
            gathered: Vec::with_capacity(GATHERED),
            last: Run::default(),
            chains: [0; OPS.len()],
        }
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
        if self.last.op == io.op && self.last.arrived_ns == arrived_ns {
            self.last.count += 1;
        } else {
            self.begin_run(io.op, arrived_ns);
        }
    }

    /// Here is a result of another kind than the last one, or of a request of another turn.
    #[inline(never)]
    fn begin_run(&mut self, op: Op, arrived_ns: u64) {
        if self.gathered.len() == GATHERED {
            self.end_turn();
        }
        let before = std::mem::replace(&mut self.last, Run { op, arrived_ns, count: 1 });
        if before.count != 0 {
            self.gathered.push(before);
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
        if self.last.count != 0 {
            let now_ns = monotonic_nanoseconds();
            for Run { op, arrived_ns, count } in
                self.gathered.drain(..).chain([std::mem::take(&mut self.last)])
            {
                self.metrics.record(op, now_ns.saturating_sub(arrived_ns), count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::io::Flags;
    use crate::metrics::Stats;

    /// More runs than are gathered, in one turn, and results of two turns mixed.
    #[test]
    fn every_result_is_measured_once_however_kinds_and_turns_are_mixed() {
        let metrics = Arc::new(QueueMetrics::new());
        let mut meter = Meter::new(&metrics);
        let io = |op| Io { op, offset: 0, len: 512, slot: 0, flags: Flags::empty() };
        meter.begin_turn();
        let earlier = meter.arrived();
        for number in 0..1000u32 {
            let op = if number % 3 == 0 { Op::Write } else { Op::Read };
            let arrived_ns = if number % 2 == 0 { earlier } else { earlier + 1 };
            meter.completed(&io(op), Ok(()), arrived_ns);
        }
        meter.end_turn();
        meter.end_turn();
        let stats = Stats::of(std::slice::from_ref(&metrics));
        for (op, count) in [(Op::Read, 666), (Op::Write, 334)] {
            let op = &stats.ops[op as usize];
            assert_eq!((op.requests, op.latency.map(|latency| latency.measured)), (count, Some(count)));
        }
    }
}
