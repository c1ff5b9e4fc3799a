//! Signals as events to be read, never as interruptions.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// A wish that somebody outside expresses with a signal: they all mean "end in order".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT, Ctrl-C at a terminal.
    Interrupt,
    /// SIGHUP, the terminal was closed.
    Hangup,
}

impl Signal {
    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Terminate => "SIGTERM",
            Signal::Interrupt => "SIGINT",
            Signal::Hangup => "SIGHUP",
        }
    }

    /// The exit status by which a shell tells that this signal ended a program.
    pub fn exit_status(self) -> u8 {
        128 + match self {
            Signal::Terminate => Number::SIGTERM,
            Signal::Interrupt => Number::SIGINT,
            Signal::Hangup => Number::SIGHUP,
        } as u8
    }
}

/// The signals of [`Signal`], blocked and readable.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks the signals in this thread and in all that it starts from now on: to be called
    /// before any other thread is made. Children started through `std::process` do not inherit it.
    pub fn block() -> io::Result<Signals> {
        // What nohup ignores stays ignored: a blocked signal would be readable nevertheless.
        Signals::block_these(!is_ignored(Number::SIGHUP))
    }

    /// As [`block`](Self::block), for a process to which SIGHUP is a command and says nothing about a
    /// terminal: it comes also where it was ignored at the start.
    pub fn block_with_hangup() -> io::Result<Signals> {
        Signals::block_these(true)
    }

    fn block_these(hangup: bool) -> io::Result<Signals> {
        let mut set = SigSet::empty();
        set.add(Number::SIGTERM);
        set.add(Number::SIGINT);
        if hangup {
            set.add(Number::SIGHUP);
        }
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Signals { fd })
    }

    /// The next signal that came, or `None` where none is waiting.
    pub fn take(&mut self) -> Option<Signal> {
        loop {
            match self.fd.read_signal() {
                Ok(Some(info)) => match Number::try_from(info.ssi_signo as i32) {
                    Ok(Number::SIGTERM) => return Some(Signal::Terminate),
                    Ok(Number::SIGINT) => return Some(Signal::Interrupt),
                    Ok(Number::SIGHUP) => return Some(Signal::Hangup),
                    _ => {}
                },
                Err(Errno::EINTR) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether this process was started with the signal ignored.
fn is_ignored(signal: Number) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal as u32 - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_and_ends_nothing() {
        // Thread-directed, so that no other test's thread can get it.
        let mut signals = Signals::block().unwrap();
        assert_eq!(signals.take(), None);
        nix::sys::signal::raise(Number::SIGTERM).unwrap();
        assert_eq!(signals.take(), Some(Signal::Terminate));
        assert_eq!(signals.take(), None);
        assert_eq!(Signal::Interrupt.exit_status(), 130);
    }
}
