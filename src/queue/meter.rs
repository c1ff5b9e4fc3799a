//! What the loop of a queue notes about its requests as they go by.
//!
//! The clock is read twice a turn at most: before anything is done for the first request of the turn, and when
//! results have been gathered that are about to be sent off. What each request costs are a few additions.

use crate::io::{Io, IoResult, OPS, Op};
use crate::metrics::QueueMetrics;
use crate::port::clock::monotonic_nanoseconds;

/// Runs that can be gathered before the clock is read for them.
const GATHERED: usize = 64;

/// Of so many requests of one kind that could go as one chain with their completion, whose end nobody sees, one does not, so
/// that its latency is known. That costs a turn of the loop more.
const MEASURED_OF_CHAINS: u32 = 32;

/// When a request came, in nanoseconds, and how many requests its latency stands for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Came {
    ns: u64,
    weight: u32,
}

impl Came {
    /// The request went as a chain, and was counted then.
    pub(super) const CHAINED: Came = Came { ns: 0, weight: 0 };

    /// Whether it is [`CHAINED`](Self::CHAINED).
    #[inline]
    pub(super) fn was_chained(self) -> bool {
        self.weight == 0
    }
}

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
    /// Requests of each kind that could be a chain.
    chains: [u64; OPS.len()],
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

    /// Something is going to be done for requests of this turn, from when on they take their time; yields when
    /// that is, in nanoseconds.
    #[inline]
    pub(super) fn look(&mut self) -> u64 {
        if self.turn_ns == 0 {
            self.turn_ns = monotonic_nanoseconds();
        }
        self.turn_ns
    }

    /// A request has come of which something is still missing.
    #[inline]
    pub(super) fn coming(&mut self) -> Came {
        Came { ns: self.look(), weight: 1 }
    }

    /// A request is there. It came in this turn, unless it was [`coming`](Self::coming).
    #[inline]
    pub(super) fn arrived(&mut self, since: Option<Came>) -> Came {
        self.metrics.take();
        since.unwrap_or_else(|| self.coming())
    }

    /// Its result is there.
    #[inline]
    pub(super) fn completed(&mut self, io: &Io, result: IoResult, came: Came) {
        self.metrics.complete(io.op, io.len, result.is_err());
        if self.last.op == io.op && self.last.arrived_ns == came.ns {
            self.last.count += u64::from(came.weight);
        } else {
            self.begin_run(io.op, came);
        }
    }

    /// Here is a result of another kind than the last one, or of a request of another turn.
    #[inline(never)]
    fn begin_run(&mut self, op: Op, came: Came) {
        if self.gathered.len() == GATHERED {
            self.end_turn();
        }
        let run = Run { op, arrived_ns: came.ns, count: came.weight.into() };
        let before = std::mem::replace(&mut self.last, run);
        if before.count != 0 {
            self.gathered.push(before);
        }
    }

    /// Whether a request that can go as a chain should not, so as to be measured, for itself and for those that went as
    /// chains since the last one: where other requests are measured one by one, these would else count for little.
    /// What it stands for has been counted as served by then.
    #[inline]
    pub(super) fn sample(&mut self, io: &Io) -> Option<Came> {
        // Each kind for itself: kinds that take turns would else be measured one or the other.
        let chains = &mut self.chains[io.op as usize];
        let before = std::mem::replace(chains, chains.wrapping_add(1));
        if !before.is_multiple_of(MEASURED_OF_CHAINS.into()) {
            return None;
        }
        let weight = if before == 0 { 1 } else { MEASURED_OF_CHAINS };
        Some(Came { weight, ..self.arrived(None) })
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

    fn io(op: Op) -> Io {
        Io { op, offset: 0, len: 512, slot: 0, flags: Flags::empty() }
    }

    fn measured(metrics: &Arc<QueueMetrics>, op: Op) -> (u64, Option<u64>) {
        let stats = Stats::of(std::slice::from_ref(metrics));
        let op = &stats.ops[op as usize];
        (op.requests, op.latency.map(|latency| latency.measured))
    }

    /// More runs than are gathered, in one turn, and results of two turns mixed.
    #[test]
    fn every_result_is_measured_once_however_kinds_and_turns_are_mixed() {
        let metrics = Arc::new(QueueMetrics::new());
        let mut meter = Meter::new(&metrics);
        meter.begin_turn();
        let earlier = meter.arrived(None);
        for number in 0..1000u32 {
            let op = if number % 3 == 0 { Op::Write } else { Op::Read };
            let came = if number % 2 == 0 { earlier } else { Came { ns: earlier.ns + 1, ..earlier } };
            meter.completed(&io(op), Ok(()), came);
        }
        meter.end_turn();
        meter.end_turn();
        for (op, count) in [(Op::Read, 666), (Op::Write, 334)] {
            assert_eq!(measured(&metrics, op), (count, Some(count)));
        }
    }

    /// 2000 reads that could be chains beside 100 that could not: as many are measured as were made, but for the
    /// chains since the last one that was none, and never more.
    #[test]
    fn requests_that_go_as_chains_count_for_as_many_as_they_are() {
        let metrics = Arc::new(QueueMetrics::new());
        let mut meter = Meter::new(&metrics);
        for number in 0..2000 {
            meter.begin_turn();
            match meter.sample(&io(Op::Read)) {
                Some(came) => meter.completed(&io(Op::Read), Ok(()), came),
                None => meter.chained(&io(Op::Read)),
            }
            if number % 20 == 0 {
                let came = meter.arrived(None);
                meter.completed(&io(Op::Read), Ok(()), came);
            }
            meter.end_turn();
            let (requests, measured) = measured(&metrics, Op::Read);
            let missing = requests - measured.unwrap();
            assert!(missing < u64::from(MEASURED_OF_CHAINS), "{missing} of {requests}, request {number}");
        }
    }
}
