//! A thread that gives the driver new connections for dead ones: one dies when a request on it took longer than
//! its time. It is not replaced before every request that came over it has ended here, since the kernel sends
//! these again, and a write that still lingered could undo a later one.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::sync::Arc;

use super::attached::Shared;
use super::by_netlink::{Driver, Listening};
use super::sysfs;
use crate::error::{Error, Result};
use crate::port::clock::{Deadline, Duration};
use crate::port::socket;
use crate::port::thread::{self, JoinHandle};
use std::os::fd::AsFd;

/// How often it looks although nobody said anything: the driver says nothing of a disk that somebody else has
/// disconnected.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How often while something is missing.
const LOOK_SOON: Duration = Duration::from_millis(500);

/// How long the driver may take for new connections, before the next look.
const MEND: Duration = Duration::from_secs(2);

/// The thread. When this is dropped, it has ended.
pub(super) struct Mender {
    thread: Option<JoinHandle<()>>,
    waker: File,
}

impl Mender {
    /// Mends the connections of a device from now on, until it is being taken away.
    pub fn start(shared: Arc<Shared>) -> Result<Mender> {
        let failed = |error| Error::system("cannot watch the connections of an nbd device", error);
        let (woken, waker) = socket::wake_pipe().map_err(failed)?;
        let listening = Driver::open().and_then(Driver::listen).map_err(failed)?;
        let body = move || mend(&shared, &woken, &listening);
        let thread = thread::spawn("nbd-mend".into(), body).map_err(failed)?;
        Ok(Mender { thread: Some(thread), waker })
    }
}

impl Drop for Mender {
    fn drop(&mut self) {
        // A full pipe wakes as well.
        let _ = self.waker.write(&[1]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn mend(shared: &Shared, woken: &File, listening: &Listening) {
    // It sends netlink messages while the disk waits for it.
    let _ = thread::become_io_flusher();
    let mut pause = LOOK_EVERY;
    loop {
        let heard = socket::poll(&[(woken.as_fd(), false), (listening.as_fd(), false)], pause);
        listening.discard();
        if heard.is_ok_and(|heard| heard[0]) {
            return;
        }
        // Before the look at whether we do that ourselves.
        let is_there = sysfs::identity(shared.id) == Some(shared.wanted.identity);
        if *shared.stopping() {
            // The kernel may refuse, and then it goes on.
            pause = LOOK_SOON;
            continue;
        }
        if !is_there {
            return shared.lose("another program has disconnected it");
        }
        pause = LOOK_EVERY;
        if shared.exported.connections() < shared.connections {
            let mended =
                Driver::open().and_then(|mut driver| shared.reconnect(&mut driver, Deadline::after(MEND)));
            match mended {
                Ok(true) => {}
                // Whoever has it open keeps it visible.
                Err(error) if error.kind() == ErrorKind::InvalidInput && !*shared.stopping() => {
                    return shared.lose("another program has disconnected it, and somebody has it open");
                }
                Ok(false) | Err(_) => pause = LOOK_SOON,
            }
        }
    }
}
