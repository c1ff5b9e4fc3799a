//! When it is that requests count: the same for all jobs of a load.

use std::sync::atomic::{AtomicU64, Ordering};

/// From when on, until when. Nanoseconds of the monotonic clock.
#[derive(Debug)]
pub(super) struct Window {
    begin_ns: AtomicU64,
    end_ns: AtomicU64,
}

impl Window {
    /// Not known yet: nothing counts.
    pub fn unknown() -> Window {
        Window { begin_ns: AtomicU64::new(u64::MAX), end_ns: AtomicU64::new(u64::MAX) }
    }

    /// Known now. For before the jobs begin.
    pub fn set(&self, begin_ns: u64, end_ns: u64) {
        self.begin_ns.store(begin_ns, Ordering::Relaxed);
        self.end_ns.store(end_ns, Ordering::Relaxed);
    }

    /// Ends now, if it does not end earlier. Jobs hear of it with their next request.
    pub fn close(&self, now_ns: u64) {
        self.end_ns.fetch_min(now_ns, Ordering::Relaxed);
    }

    #[inline]
    pub fn begin_ns(&self) -> u64 {
        self.begin_ns.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn end_ns(&self) -> u64 {
        self.end_ns.load(Ordering::Relaxed)
    }
}
