//! Time: how long something took, how long it may still take, and what time it is.

use nix::time::{ClockId, clock_gettime};

#[cfg(feature = "sim")]
pub use crate::port::sim::Instant;
pub use std::time::Duration;
#[cfg(not(feature = "sim"))]
pub use std::time::Instant;

/// A moment by which an answer is due.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// The moment that lies `duration` ahead.
    pub fn after(duration: Duration) -> Deadline {
        Deadline(Instant::now() + duration)
    }

    /// What is left until then; zero when it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the moment has passed.
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// The earlier of this moment and the one that lies `duration` ahead.
    pub fn at_most(self, duration: Duration) -> Deadline {
        Deadline(self.0.min(Instant::now() + duration))
    }

    /// Asks `condition` again and again until it holds. False when the moment came first.
    pub fn wait_until(self, mut condition: impl FnMut() -> bool) -> bool {
        let mut pause = Duration::from_millis(1);
        while !condition() {
            if self.passed() {
                return false;
            }
            sleep(pause.min(self.left()));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        true
    }
}

/// Does nothing for a while.
pub fn sleep(duration: Duration) {
    #[cfg(feature = "sim")]
    if crate::port::sim::sleep(duration) {
        return;
    }
    std::thread::sleep(duration);
}

/// Nanoseconds of CLOCK_MONOTONIC, by which timers of a ring go.
#[inline]
pub fn monotonic_nanoseconds() -> u64 {
    #[cfg(feature = "sim")]
    if let Some(now) = crate::port::sim::monotonic_nanoseconds() {
        return now;
    }
    // Neither number is negative; they fit for 500 years after the machine was started.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// Seconds since the machine was started, sleep included.
pub fn seconds_since_boot() -> u64 {
    seconds(ClockId::CLOCK_BOOTTIME)
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    seconds(ClockId::CLOCK_REALTIME)
}

/// The date and time in UTC: `2026-11-20T05:47:53Z`.
pub fn utc_now() -> String {
    utc(unix_seconds())
}

fn utc(seconds: u64) -> String {
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that a leap day is the last of its year; an era is the 400
    // years after which the calendar repeats.
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, january) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + january;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

fn seconds(clock: ClockId) -> u64 {
    // Both clocks exist on every kernel that has ublk.
    clock_gettime(clock).ok().and_then(|time| u64::try_from(time.tv_sec()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_153_673, "2026-11-20T05:47:53Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }

    #[test]
    fn a_deadline_passes_and_no_condition_waits_beyond_it() {
        let deadline = Deadline::after(Duration::from_millis(20));
        assert!(!deadline.passed());
        assert!(deadline.wait_until(|| true));
        let start = Instant::now();
        assert!(!deadline.wait_until(|| false));
        assert!(deadline.passed() && start.elapsed() < Duration::from_secs(5));
        assert!(seconds_since_boot() > 0 && unix_seconds() > seconds_since_boot());
    }
}
