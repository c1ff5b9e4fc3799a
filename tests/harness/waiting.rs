//! For what must come soon.

use std::time::{Duration, Instant};

/// Waits until it `holds`.
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_at_most(20, what, holds);
}

/// The same for so many seconds, where they matter.
pub fn wait_at_most(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
