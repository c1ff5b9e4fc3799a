//! Time: the world's own where a thread is in one. It passes only while everybody waits.

use std::cell::Cell;
use std::ops::{Add, AddAssign, Sub};
use std::sync::OnceLock;
use std::time::Duration;

use super::current;

thread_local! {
    /// How long a thread of a dead process has slept on its way out: the world's time stands still
    /// for it, and a loop until a deadline must end all the same.
    static AFTER_DEATH: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// A moment, as [`std::time::Instant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(std::time::Instant);

/// What virtual time counts from.
fn beginning() -> std::time::Instant {
    static BEGINNING: OnceLock<std::time::Instant> = OnceLock::new();
    *BEGINNING.get_or_init(std::time::Instant::now)
}

impl Instant {
    /// This moment.
    pub fn now() -> Instant {
        match current() {
            None => Instant(std::time::Instant::now()),
            Some(handle) => {
                let now = Duration::from_nanos(handle.state().schedule.now_ns);
                Instant(beginning() + now + AFTER_DEATH.get())
            }
        }
    }

    /// Time from `earlier` to this moment, zero where it is later.
    pub fn saturating_duration_since(self, earlier: Instant) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// The same.
    pub fn duration_since(self, earlier: Instant) -> Duration {
        self.saturating_duration_since(earlier)
    }

    /// Time since this moment.
    pub fn elapsed(self) -> Duration {
        Instant::now().saturating_duration_since(self)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant(self.0 + duration)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, duration: Duration) -> Instant {
        Instant(self.0 - duration)
    }
}

/// The world's time; `None` where the thread is in none.
pub(in crate::port) fn monotonic_nanoseconds() -> Option<u64> {
    let now_ns = current()?.state().schedule.now_ns;
    Some(now_ns + AFTER_DEATH.get().as_nanos() as u64)
}

/// Sleeps in the world's time; false where the thread is in none.
pub(in crate::port) fn sleep(duration: Duration) -> bool {
    let Some(handle) = current() else { return false };
    let until = |now: u64| now.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    let mut state = handle.state();
    let until = until(state.schedule.now_ns);
    loop {
        match handle.block(state, "time to pass", Some(until)) {
            Some(next) if next.schedule.now_ns >= until => return true,
            Some(next) => state = next,
            None => {
                AFTER_DEATH.set(AFTER_DEATH.get() + duration.max(Duration::from_millis(1)));
                return true;
            }
        }
    }
}
