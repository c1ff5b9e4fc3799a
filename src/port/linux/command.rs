//! Control commands: URING_CMD with 80 bytes, one at a time, each with a deadline.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// A ring for commands that are rare and may take long.
pub struct CommandRing {
    uring: IoUring<squeue::Entry128, cqueue::Entry>,
    waiting: bool,
}

impl std::fmt::Debug for CommandRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandRing").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

/// How often a waiting command looks whether it should give up.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl CommandRing {
    /// A new ring.
    pub fn new() -> io::Result<CommandRing> {
        Ok(CommandRing { uring: IoUring::builder().dontfork().build(4)?, waiting: false })
    }

    /// Sends `command` to `file` and waits until it is answered, `deadline` has passed (TimedOut),
    /// or `give_up` says so (Interrupted). Only the answer has a deadline: a command that was
    /// given up goes on in the kernel, and the ring cannot be used again.
    ///
    /// # Safety
    /// What the command points at stays valid until it is answered, or for ever when it is not.
    pub unsafe fn run(
        &mut self,
        file: &impl AsRawFd,
        opcode: u32,
        command: [u8; 80],
        deadline: Duration,
        give_up: &mut dyn FnMut() -> bool,
    ) -> io::Result<i32> {
        if self.waiting {
            return Err(io::Error::other("an earlier command was never answered"));
        }
        let entry = opcode::UringCmd80::new(types::Fd(file.as_raw_fd()), opcode).cmd(command).build();
        // SAFETY: the command holds its own bytes; what they point at is the caller's promise.
        unsafe { self.uring.submission().push(&entry) }.map_err(io::Error::other)?;
        self.waiting = true;
        let until = Instant::now() + deadline;
        loop {
            let pause = LOOK_EVERY.min(until.saturating_duration_since(Instant::now()));
            let timespec = types::Timespec::from(pause);
            let wait = types::SubmitArgs::new().timespec(&timespec);
            match self.uring.submitter().submit_with_args(1, &wait) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
                Err(error) => return Err(error),
            }
            if let Some(answer) = self.uring.completion().next() {
                self.waiting = false;
                return Ok(answer.result());
            }
            if give_up() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
