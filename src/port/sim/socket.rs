//! Waiting for sockets and pipes, in the world's time. They are real ones: whoever writes to one is a
//! thread of the world, so that what is in it is as repeatable as the rest.

use std::io;
use std::os::fd::BorrowedFd;

pub use crate::port::linux::socket::{
    Interest, Lines, OWNER_ONLY, listen, remove_if_there, set_nonblocking, wait_readable, wake_pipe,
};

use super::current;
use crate::port::clock::{Deadline, Duration, sleep};
use crate::port::linux::socket as linux;

/// How often a thread of a world looks again.
const LOOK_EVERY: Duration = Duration::from_micros(300);

/// As `linux::poll`.
pub fn poll(fds: &[(BorrowedFd<'_>, bool)], timeout: Duration) -> io::Result<Vec<bool>> {
    if current().is_none() {
        return linux::poll(fds, timeout);
    }
    let until = Deadline::after(timeout);
    loop {
        let ready = linux::poll(fds, Duration::ZERO)?;
        if until.passed() || ready.contains(&true) {
            return Ok(ready);
        }
        sleep(LOOK_EVERY.min(until.left()));
    }
}

/// As `linux::poll_for`.
pub fn poll_for<const N: usize>(
    fds: [(BorrowedFd<'_>, Option<Interest>); N],
    timeout: Duration,
) -> io::Result<[Interest; N]> {
    if current().is_none() {
        return linux::poll_for(fds, timeout);
    }
    let until = Deadline::after(timeout);
    loop {
        let ready = linux::poll_for(fds, Duration::ZERO)?;
        if until.passed() || ready.iter().any(|ready| *ready != Interest::default()) {
            return Ok(ready);
        }
        sleep(LOOK_EVERY.min(until.left()));
    }
}
