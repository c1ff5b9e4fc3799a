//! Whether a thread that is woken takes the processor from whoever runs there, or waits until that one makes room.
//!
//! Where the one that makes requests and the thread that serves them share a processor, a thread that is served at once
//! finds one request each time, and each costs two switches of the processor; one that waits its turn finds all that were
//! made meanwhile. Where each has a processor of its own, or one request is under way at a time, it makes no difference.
//! Nobody can tell from outside which it is, so it is tried: for a few turns the thread gives way, and if those find
//! half as much again it goes on doing so. A try that did not pay is repeated after twice as long.

use std::cell::Cell;

use super::thread;

/// Turns of a try, and of each look at whether it still pays.
const TRY: u32 = 64;

/// Turns before the first try, and before one at most: a thread that tries in vain gives way in one turn of a thousand.
const FIRST_PAUSE: u32 = 256;
const LONGEST_PAUSE: u32 = 64 * 1024;

/// More has to be found in a turn by this ratio.
const PAYS: (u64, u64) = (3, 2);

/// Looks that paid, after which it is looked at what it would be like without.
const LOOKS: u32 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Takes the processor when woken.
    Ordinary,
    /// Gives way; so many looks are left, and a turn without found so much on average.
    GivesWay { looks: u32, without: u64 },
}

/// The rule for one thread.
#[derive(Debug)]
pub(super) struct Patience {
    phase: Cell<Phase>,
    /// Turns left of this phase or look.
    left: Cell<u32>,
    /// Turns that it had at first.
    turns: Cell<u32>,
    found: Cell<u64>,
    pause: Cell<u32>,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            phase: Cell::new(Phase::Ordinary),
            left: Cell::new(FIRST_PAUSE),
            turns: Cell::new(FIRST_PAUSE),
            found: Cell::new(0),
            pause: Cell::new(FIRST_PAUSE),
        }
    }
}

impl Patience {
    /// A turn of this thread found so much to do. In bytes: requests that follow each other become one when they wait.
    #[inline]
    pub(super) fn turn(&self, found: u64) {
        self.found.set(self.found.get().saturating_add(found));
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 {
            self.decide(thread::give_way);
        }
    }

    /// At the end of a phase or a look: what is next. `give_way` says whether the thread gives way as asked.
    #[cold]
    fn decide(&self, give_way: impl Fn(bool) -> bool) {
        let average = self.found.replace(0) / u64::from(self.turns.get());
        let (phase, turns) = match self.phase.get() {
            Phase::Ordinary => match give_way(true) {
                true => (Phase::GivesWay { looks: LOOKS, without: average }, TRY),
                false => (Phase::Ordinary, LONGEST_PAUSE),
            },
            Phase::GivesWay { looks, without } if average * PAYS.1 >= without * PAYS.0 => {
                self.pause.set(FIRST_PAUSE);
                match looks - 1 {
                    0 => (self.ordinary(&give_way), TRY),
                    looks => (Phase::GivesWay { looks, without }, TRY),
                }
            }
            Phase::GivesWay { .. } => {
                let pause = self.pause.get();
                self.pause.set((pause * 2).min(LONGEST_PAUSE));
                (self.ordinary(&give_way), pause)
            }
        };
        self.phase.set(phase);
        self.turns.set(turns);
        self.left.set(turns);
    }

    fn ordinary(&self, give_way: &impl Fn(bool) -> bool) -> Phase {
        give_way(false);
        Phase::Ordinary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the thread does over so many turns, where a turn that gives way finds `with` blocks and another `without`: the
    /// turns that gave way.
    fn run(patience: &Patience, turns: u32, with: u64, without: u64, permitted: bool) -> u32 {
        let gives_way = Cell::new(patience.phase.get() != Phase::Ordinary);
        let mut gave_way = 0;
        for _ in 0..turns {
            let found = if gives_way.get() { with } else { without };
            gave_way += u32::from(gives_way.get());
            patience.found.set(patience.found.get() + 4096 * found);
            patience.left.set(patience.left.get() - 1);
            if patience.left.get() == 0 {
                patience.decide(|wanted| {
                    gives_way.set(wanted && permitted);
                    wanted == gives_way.get()
                });
            }
        }
        gave_way
    }

    #[test]
    fn it_gives_way_where_that_finds_many_more() {
        let patience = Patience::default();
        let gave_way = run(&patience, 100_000, 40, 1, true);
        assert!(gave_way > 98_000, "{gave_way}");
    }

    #[test]
    fn it_seldom_tries_what_does_not_pay() {
        for (with, without) in [(1, 1), (4, 3), (14, 10), (1, 64), (0, 1)] {
            let patience = Patience::default();
            let gave_way = run(&patience, 1_000_000, with, without, true);
            assert!(gave_way > 0 && gave_way < 2_000, "{with} and {without}: {gave_way}");
        }
    }

    #[test]
    fn it_notices_when_the_load_changes() {
        let patience = Patience::default();
        run(&patience, 100_000, 40, 1, true);
        // One request at a time from now on.
        assert!(run(&patience, 1000, 1, 1, true) <= 4 * TRY, "goes on giving way");
        // And many again.
        assert!(run(&patience, 10_000, 40, 1, true) > 8_000, "has forgotten how to give way");
        // Somebody gave the other one a processor of its own: it finds as much without.
        assert!(
            run(&patience, 1_000_000, 40, 40, true) < 40_000,
            "never looks what it would be like without"
        );
    }

    #[test]
    fn it_stays_ordinary_where_it_may_not() {
        assert_eq!(run(&Patience::default(), 100_000, 40, 1, false), 0);
    }
}
