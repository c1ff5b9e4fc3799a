//! Changes of the disk: in which order they are asked for and acknowledged, and how they are done again.

use std::ops::Range;

use super::super::work::{Owner, Work};
use super::Session;
use crate::io::Op;
use crate::port::clock::Instant;

/// Changes that are done again at the same time.
const MOST_REPLAYED: usize = 64;

/// Changes are being done again.
#[derive(Debug)]
pub(super) struct Replay {
    /// Number of the first, and of the next.
    pub(super) first: u64,
    pub(super) next: u64,
    pub(super) under_way: Vec<u64>,
    /// All are done, and the flush behind them is under way.
    pub(super) flushing: bool,
}

impl Session {
    /// Whether a work must not be asked now, and so nothing behind it either.
    pub(super) fn must_wait(&self, work: &Work) -> bool {
        if self.again > 0 && !work.again && work.op != Op::Flush {
            return true;
        }
        let (start, end) = (work.offset, work.offset + work.len);
        let touches = |range: &Range<u64>| range.start < end && start < range.end;
        let is_new_change = work.op.modifies() && work.done == 0;
        is_new_change && self.changing.iter().any(|(_, range)| touches(range))
    }

    /// A change is not under way any more.
    pub(super) fn has_changed(&mut self, work: &Work) {
        if work.op.modifies() && !work.is_replay() {
            self.changing.retain(|(number, _)| *number != work.number);
            self.again -= usize::from(work.again);
        }
    }

    /// Asks for changes that the server may have lost, in an order that leaves what they left.
    pub(super) fn ask_again(&mut self, now: Instant) {
        let (Some(replay), Some(link)) = (&mut self.replay, self.links.first_mut()) else { return };
        // The rest of one that was too long for one request.
        while self.waiting.front().is_some_and(Work::is_replay) && link.has_room() {
            if let Some(work) = self.waiting.pop_front()
                && let Err(work) = link.ask(work, now)
            {
                self.waiting.push_front(work);
                break;
            }
        }
        while replay.under_way.len() < MOST_REPLAYED
            && let Some(change) = self.journal.get(replay.next)
        {
            // The server may do what is asked at the same time in any order.
            let is_on_another = replay.under_way.iter().any(|&number| {
                self.journal.get(number).is_some_and(|other| other.overlaps(change.offset, change.len))
            });
            if is_on_another && !planted!(ReplayAtOnce) {
                break;
            }
            let owner = Owner::Replay(change.data.clone());
            let work = Work::new(owner, change.op, change.flags, change.offset, change.len, replay.next, now);
            if link.ask(work, now).is_err() {
                break;
            }
            replay.under_way.push(replay.next);
            replay.next += 1;
        }
        if replay.under_way.is_empty() && replay.next == self.journal.end() && !replay.flushing {
            let mut work = Work::flush(Owner::Flush, 0, now);
            self.flushes += 1;
            (work.covers, work.flush) = (self.journal.end(), self.flushes);
            replay.flushing = link.ask(work, now).is_ok();
        }
    }

    /// The server has acknowledged a change.
    pub(super) fn changed(&mut self, mut work: Work) {
        self.has_changed(&work);
        work.again = false;
        if work.is_replay() {
            if let Some(replay) = &mut self.replay {
                replay.under_way.retain(|&number| number != work.number);
            }
            return;
        }
        if !self.promise.can_flush() {
            return work.finish(Ok(()));
        }
        self.held.push_back((work, self.flushes));
        self.let_go(0);
    }

    /// Acknowledges changes that are in the journal now, or that the flush of this number has covered.
    pub(super) fn let_go(&mut self, flush: u64) {
        while let Some((work, before)) = self.held.front() {
            let is_flushed = *before < flush;
            let len = work.data().len();
            if !is_flushed && !self.journal.has_room(len) {
                break;
            }
            let Some((work, _)) = self.held.pop_front() else { break };
            if !is_flushed {
                self.journal.add(work.op, work.flags, work.offset, work.len, work.data());
            }
            work.finish(Ok(()));
        }
        if (self.journal.wants_flush() || !self.held.is_empty()) && !self.own_flush {
            self.own_flush = true;
            self.waiting.push_front(Work::flush(Owner::Flush, 0, Instant::now()));
        }
    }
}
