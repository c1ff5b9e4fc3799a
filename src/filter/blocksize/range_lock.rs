//! Who may change which blocks: a lock on ranges of a disk, shared by all its queues.
//!
//! First come, first served: whoever asks waits for those before it that it cannot go with, held or
//! waiting themselves, so that nobody is overtaken for ever and no two wait for each other. Waiting is
//! a pending future. The table is behind a mutex that no thread ever waits for: who finds it taken
//! asks again in the next turn of its loop, and who wants to give back leaves a mark, which whoever
//! has the mutex looks for after having let go of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};

/// How a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Together with others that hold it so.
    Shared,
    /// Alone.
    Exclusive,
}

/// The lock of one disk.
#[derive(Debug, Default)]
pub struct RangeLock {
    table: Mutex<Table>,
    /// Marks that nobody has looked at since they were left.
    marks: AtomicUsize,
}

/// One queue's part in it: an entry for each slot, which has one request at a time.
#[derive(Debug)]
pub struct QueuePart {
    lock: Arc<RangeLock>,
    leaving: Arc<[AtomicBool]>,
    /// Number of its first entry in the table.
    first: usize,
}

#[derive(Debug, Default)]
struct Table {
    entries: Vec<Entry>,
    /// Entries that hold or wait, oldest first.
    order: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    start: u64,
    end: u64,
    mode: Mode,
    held: bool,
    waker: Option<Waker>,
    leaving: Arc<[AtomicBool]>,
    slot: u16,
}

impl Entry {
    fn overlaps(&self, other: &Entry) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn excludes(&self, other: &Entry) -> bool {
        (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive) && self.overlaps(other)
    }
}

impl Table {
    /// Whether the entry at this place can go with all that came before it.
    fn may_hold(&self, place: usize) -> bool {
        let asks = &self.entries[self.order[place] as usize];
        self.order[..place].iter().all(|&before| !self.entries[before as usize].excludes(asks))
    }

    /// Takes out whoever is leaving, and wakes those who waited for them.
    fn sweep(&mut self) {
        let mut place = 0;
        while let Some(&number) = self.order.get(place) {
            let entry = &mut self.entries[number as usize];
            if !entry.leaving[usize::from(entry.slot)].swap(false, Ordering::SeqCst) {
                place += 1;
                continue;
            }
            entry.waker = None;
            self.order.remove(place);
            for later in place..self.order.len() {
                let waits = &self.entries[self.order[later] as usize];
                if waits.held || !waits.overlaps(&self.entries[number as usize]) || !self.may_hold(later) {
                    continue;
                }
                let waits = &mut self.entries[self.order[later] as usize];
                waits.held = true;
                if let Some(waker) = waits.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

impl RangeLock {
    /// The part of a queue with so many slots. Allocates all that the queue will ever need here.
    pub fn part(self: &Arc<RangeLock>, slots: u16) -> QueuePart {
        let leaving: Arc<[AtomicBool]> = (0..slots).map(|_| AtomicBool::new(false)).collect();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let first = table.entries.len();
        table.entries.extend((0..slots).map(|slot| Entry {
            start: 0,
            end: 0,
            mode: Mode::Shared,
            held: false,
            waker: None,
            leaving: leaving.clone(),
            slot,
        }));
        let most = table.entries.len();
        let room = most - table.order.len();
        table.order.reserve(room);
        drop(table);
        self.look_for_marks();
        QueuePart { lock: self.clone(), leaving, first }
    }

    fn try_table(&self) -> Option<MutexGuard<'_, Table>> {
        match self.table.try_lock() {
            Ok(table) => Some(table),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Done by everybody who has let go of the table: a mark that was left meanwhile is theirs.
    #[inline]
    fn look_for_marks(&self) {
        while self.marks.load(Ordering::SeqCst) != 0 {
            let Some(mut table) = self.try_table() else { return };
            self.marks.store(0, Ordering::SeqCst);
            table.sweep();
        }
    }
}

impl QueuePart {
    /// Yields once the blocks from `start` to `end` are held for the request of `slot`.
    pub async fn hold(&self, slot: u16, start: u64, end: u64, mode: Mode) -> Held<'_> {
        // Made before anything is asked for, so that being dropped takes back what was.
        let mut held = Held { part: self, slot, asked: false };
        std::future::poll_fn(|context| held.poll(start, end, mode, context)).await;
        held
    }
}

/// Blocks that are held, or waited for, until this is dropped.
#[derive(Debug)]
#[must_use = "what is not kept is given back"]
pub struct Held<'a> {
    part: &'a QueuePart,
    slot: u16,
    asked: bool,
}

impl Held<'_> {
    fn poll(&mut self, start: u64, end: u64, mode: Mode, context: &mut Context<'_>) -> Poll<()> {
        let lock = &self.part.lock;
        let number = self.part.first + usize::from(self.slot);
        let Some(mut table) = lock.try_table() else {
            context.waker().wake_by_ref();
            return Poll::Pending;
        };
        if !self.asked {
            self.asked = true;
            lock.marks.store(0, Ordering::SeqCst);
            table.sweep();
            let entry = &mut table.entries[number];
            (entry.start, entry.end, entry.mode, entry.held) = (start, end, mode, false);
            table.order.push(number as u32);
            let place = table.order.len() - 1;
            table.entries[number].held = table.may_hold(place);
        }
        let entry = &mut table.entries[number];
        let held = entry.held;
        if !held && !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            entry.waker = Some(context.waker().clone());
        }
        drop(table);
        lock.look_for_marks();
        if held { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.asked {
            self.part.leaving[usize::from(self.slot)].store(true, Ordering::SeqCst);
            self.part.lock.marks.fetch_add(1, Ordering::SeqCst);
            self.part.lock.look_for_marks();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::port::thread;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn nobody_is_overtaken_and_neighbours_do_not_wait() {
        let lock = Arc::new(RangeLock::default());
        let (first, second) = (lock.part(4), lock.part(4));
        let mut reader = pin!(first.hold(0, 0, 8, Mode::Shared));
        let mut writer = pin!(second.hold(0, 4, 12, Mode::Exclusive));
        let mut late_reader = pin!(first.hold(1, 0, 8, Mode::Shared));
        let mut neighbour = pin!(second.hold(1, 12, 16, Mode::Exclusive));
        let Poll::Ready(held) = poll(reader.as_mut()) else { panic!("nobody is there") };
        assert!(poll(writer.as_mut()).is_pending());
        assert!(poll(late_reader.as_mut()).is_pending(), "the writer came first");
        assert!(poll(neighbour.as_mut()).is_ready());
        drop(held);
        let Poll::Ready(held) = poll(writer.as_mut()) else { panic!("its turn") };
        assert!(poll(late_reader.as_mut()).is_pending());
        drop(held);
        assert!(poll(late_reader.as_mut()).is_ready());
    }

    #[test]
    fn who_gives_up_waiting_makes_room() {
        let lock = Arc::new(RangeLock::default());
        let part = lock.part(4);
        let mut reader = pin!(part.hold(0, 0, 8, Mode::Shared));
        let Poll::Ready(_held) = poll(reader.as_mut()) else { panic!("nobody is there") };
        let mut third = pin!(part.hold(2, 0, 8, Mode::Shared));
        {
            let mut writer = pin!(part.hold(1, 0, 8, Mode::Exclusive));
            assert!(poll(writer.as_mut()).is_pending());
            assert!(poll(third.as_mut()).is_pending());
        }
        assert!(poll(third.as_mut()).is_ready());
    }

    /// Threads change a cell that only one of them may change at a time.
    #[test]
    fn one_at_a_time_over_many_threads() {
        const ROUNDS: u64 = 3000;
        let lock = Arc::new(RangeLock::default());
        let cells: Arc<[AtomicU64; 2]> = Arc::default();
        let body = |number: u64| {
            let (part, cells) = (lock.part(2), cells.clone());
            move || {
                for round in 0..ROUNDS {
                    let cell = ((round + number) % 2) as usize;
                    let mut hold =
                        pin!(part.hold(cell as u16, cell as u64, cell as u64 + 1, Mode::Exclusive));
                    let held = loop {
                        match poll(hold.as_mut()) {
                            Poll::Ready(held) => break held,
                            Poll::Pending => std::thread::yield_now(),
                        }
                    };
                    let value = cells[cell].load(Ordering::Relaxed);
                    std::hint::spin_loop();
                    cells[cell].store(value + 1, Ordering::Relaxed);
                    drop(held);
                }
            }
        };
        let threads: Vec<_> =
            (0..4).map(|number| thread::spawn(format!("lock-{number}"), body(number)).unwrap()).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let sum = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).sum::<u64>();
        assert_eq!(sum, 4 * ROUNDS);
        assert!(lock.table.lock().unwrap().order.is_empty());
    }
}
