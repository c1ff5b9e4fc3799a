//! How threads wake one that sleeps in [`poll`](crate::port::socket::poll): by a pipe, which is written to only when
//! it sleeps.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::socket::wake_pipe;

/// One thread's bell. Anybody rings it.
#[derive(Debug)]
pub struct Bell {
    asleep: AtomicBool,
    reader: File,
    writer: File,
}

impl Bell {
    /// A bell that nobody has rung.
    pub fn new() -> io::Result<Bell> {
        let (reader, writer) = wake_pipe()?;
        Ok(Bell { asleep: AtomicBool::new(false), reader, writer })
    }

    /// Wakes the thread, if it sleeps. What it is to see must be there before.
    pub fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // A pipe that is full has woken it.
            let _ = (&self.writer).write(&[1]);
        }
    }

    /// The thread will sleep. It looks once more for what there is to do, and if there is nothing waits until this
    /// can be read; in either case [`awake`](Self::awake) follows.
    pub fn will_sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
    }

    /// The thread is awake; `was_rung` says that it can be read.
    pub fn awake(&self, was_rung: bool) {
        self.asleep.store(false, Ordering::SeqCst);
        if was_rung {
            // A byte for each time that it was to sleep and somebody rang, perhaps a little later.
            let _ = (&self.reader).read(&mut [0; 64]);
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::clock::Duration;
    use crate::port::socket::poll;

    fn is_rung(bell: &Bell) -> bool {
        poll(&[(bell.as_fd(), false)], Duration::ZERO).unwrap()[0]
    }

    #[test]
    fn only_who_sleeps_is_woken_and_once() {
        let bell = Bell::new().unwrap();
        bell.ring();
        assert!(!is_rung(&bell));
        bell.will_sleep();
        bell.ring();
        bell.ring();
        assert!(is_rung(&bell));
        bell.awake(true);
        assert!(!is_rung(&bell));
        bell.will_sleep();
        bell.awake(false);
        bell.ring();
        assert!(!is_rung(&bell));
    }
}
