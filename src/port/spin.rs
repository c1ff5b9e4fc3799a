//! Whether a thread that has nothing to do looks for work for a while before it sleeps.
//!
//! A sleep costs two switches of the processor and a wake-up by whoever has work; looking costs a processor that
//! does nothing else. It pays where work comes sooner than the time that is looked for. So the time follows
//! what comes: it grows while sleeps turn out to be shorter than the longest time that is allowed, and
//! falls to nothing with the first that is longer; a queue that is idle does not look at all. (The kernel's KVM has the same
//! rule for processors of guests, `Documentation/virt/kvm/halt-polling.rst`.)

use std::cell::Cell;

use super::clock::{Duration, monotonic_nanoseconds};

/// What the first look lasts, as a part of the longest.
const FIRST: u64 = 8;

/// The rule for one thread.
#[derive(Debug, Default)]
pub(super) struct Spin {
    /// The longest that is looked for; 0 where the thread always sleeps at once.
    longest_ns: u64,
    /// How long it is looked for next time.
    next_ns: Cell<u64>,
}

impl Spin {
    pub(super) fn at_most(longest: Duration) -> Spin {
        let longest_ns = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        Spin { longest_ns, next_ns: Cell::new(0) }
    }

    /// Whether it is ever looked for anything.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        self.longest_ns != 0
    }

    /// Looks until there is work, which `found` says, or the time is over; and if there is none, does what
    /// `sleep` does.
    pub(super) fn wait<R>(
        &self,
        mut found: impl FnMut() -> bool,
        go_on: impl FnOnce() -> R,
        sleep: impl FnOnce() -> R,
    ) -> R {
        let began_ns = monotonic_nanoseconds();
        let until_ns = began_ns + self.next_ns.get();
        loop {
            // The clock is read now and then: looking is cheaper.
            for _ in 0..16 {
                if found() {
                    return go_on();
                }
                std::hint::spin_loop();
            }
            if monotonic_nanoseconds() >= until_ns {
                break;
            }
        }
        let result = sleep();
        self.slept(monotonic_nanoseconds().saturating_sub(began_ns));
        result
    }

    /// There was nothing for so long.
    fn slept(&self, idle_ns: u64) {
        let next_ns = self.next_ns.get();
        self.next_ns.set(match idle_ns <= self.longest_ns {
            true => (next_ns * 2).clamp(self.longest_ns / FIRST, self.longest_ns),
            false => 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_follows_what_comes() {
        let spin = Spin::at_most(Duration::from_nanos(8000));
        for (idle_ns, next_ns) in
            [(100, 1000), (7000, 2000), (8000, 4000), (500, 8000), (500, 8000), (8001, 0), (1 << 40, 0)]
        {
            spin.slept(idle_ns);
            assert_eq!(spin.next_ns.get(), next_ns, "after {idle_ns} ns");
        }
    }

    #[test]
    fn work_that_is_there_is_found_and_else_it_sleeps() {
        let spin = Spin::at_most(Duration::from_millis(1));
        assert_eq!(spin.wait(|| true, || "found", || "slept"), "found");
        assert_eq!(spin.wait(|| false, || "found", || "slept"), "slept");
        spin.next_ns.set(u64::MAX / 2);
        let mut looks = 0;
        let found = || {
            looks += 1;
            looks == 1000
        };
        assert_eq!(spin.wait(found, || "found", || "slept"), "found");
    }
}
