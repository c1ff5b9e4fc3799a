//! Processes: this one, those it starts, and those it only knows by number.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd;

use super::clock::{Deadline, Duration};
use super::socket::{Lines, set_nonblocking, wait_readable};

/// This process's number.
pub fn own_pid() -> i32 {
    unistd::getpid().as_raw()
}

/// Whether this process has root's identity.
pub fn is_root() -> bool {
    unistd::geteuid().is_root()
}

/// Leaves the session and the terminal it was started from.
pub fn own_session() -> io::Result<()> {
    // A process that leads its group already cannot; then it is no child of ours and stays.
    match unistd::setsid() {
        Ok(_) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives this process a name for `ps`; the kernel keeps 15 bytes.
pub fn set_name(name: &std::ffi::CStr) {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string, which a CStr is.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Closes every descriptor above standard error that whoever started us left open. For the first
/// moments of a process that will live long.
pub fn close_inherited() {
    // SAFETY: called before this process has opened anything, so that no descriptor that is closed
    // here belongs to anybody in it.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// Processor time that this process has used, all of its threads together: in the program and in the kernel
/// (getrusage(2)). Zero where the kernel does not say.
pub fn cpu_time() -> (Duration, Duration) {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return (Duration::ZERO, Duration::ZERO) };
    let duration = |time: TimeVal| {
        let (seconds, microseconds) = (time.tv_sec().max(0) as u64, time.tv_usec().max(0) as u64);
        Duration::from_secs(seconds) + Duration::from_micros(microseconds)
    };
    (duration(usage.user_time()), duration(usage.system_time()))
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// Descriptor 0.
    Input,
    /// Descriptor 1.
    Output,
    /// Descriptor 2.
    Error,
}

/// Lets a standard stream lead to `file`.
pub fn redirect(stream: Standard, file: &impl AsFd) -> io::Result<()> {
    match stream {
        Standard::Input => unistd::dup2_stdin(file)?,
        Standard::Output => unistd::dup2_stdout(file)?,
        Standard::Error => unistd::dup2_stderr(file)?,
    }
    Ok(())
}

/// The null device, for reading and writing.
pub fn null_device() -> io::Result<fs::File> {
    fs::File::options().read(true).write(true).open("/dev/null")
}

/// Another run of this program, which reports in lines on its standard output.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    /// What it says.
    pub lines: Lines<fs::File>,
}

impl Helper {
    /// Starts this program again with other arguments. It finds its own file even when that was
    /// replaced or removed meanwhile. With `quiet` its standard error leads nowhere: somebody who
    /// reads ours to its end must not have to wait for a helper that outlives us.
    pub fn spawn(arguments: &[OsString], limit: usize, quiet: bool) -> io::Result<Helper> {
        let name = std::env::args_os().next().unwrap_or_else(|| "blockhaus".into());
        let mut command = Command::new("/proc/self/exe");
        command.arg0(name).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        if quiet {
            command.stderr(Stdio::null());
        }
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        Ok(Helper { child, lines: Lines::new(set_nonblocking(output)?, limit) })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// How it ended, if it has by the deadline.
    pub fn ended_by(&mut self, deadline: Deadline) -> Option<ExitStatus> {
        let mut status = None;
        deadline.wait_until(|| {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status
    }

    /// Asks it to end in order.
    pub fn terminate(&self) {
        // Our child, not waited for yet: its number cannot belong to anybody else.
        let _ = nix::sys::signal::kill(unistd::Pid::from_raw(self.pid()), nix::sys::signal::Signal::SIGTERM);
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }
}

/// Starts this program again with other arguments, to live on by itself: what it has to say goes to our standard
/// error. Yields its number.
pub fn start_apart(arguments: &[OsString]) -> io::Result<i32> {
    let name = std::env::args_os().next().unwrap_or_else(|| "blockhaus".into());
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    // Nobody waits for it here: it is to outlive us.
    command.spawn().map(|child| child.id() as i32)
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}"),
        (None, Some(signal)) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(name) => format!("it was ended by {name}"),
            Err(_) => format!("it was ended by signal {signal}"),
        },
        (None, None) => "it ended".into(),
    }
}

/// A process that is not a child of ours: safe against its number being used again.
#[derive(Debug)]
pub struct Other {
    fd: OwnedFd,
}

impl Other {
    /// The process with this number, if it is still the one that started at `start`.
    pub fn open(pid: i32, start: u64) -> Option<Other> {
        // SAFETY: the call takes two numbers and returns a descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: a descriptor that was just made and that nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // Looked at after the descriptor was made: from here on it is this process or none.
        is_alive(pid, start).then_some(Other { fd })
    }

    /// Ends it at once (SIGKILL). One that has ended already is fine.
    pub fn kill(&self) -> io::Result<()> {
        let null = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and no siginfo is passed.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), libc::SIGKILL, null, 0)
        };
        match io::Error::last_os_error() {
            error if result != 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether it has ended by the deadline.
    pub fn gone_by(&self, deadline: Deadline) -> bool {
        wait_readable(self.fd.as_fd(), deadline).unwrap_or(false)
    }
}

/// What /proc/PID/stat says that does not change hands with the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// R, S, D, T, Z, …: see proc(5).
    pub state: char,
    /// When it started, in clock ticks since the machine was.
    pub start: u64,
}

/// What the kernel says of a process; `None` where there is none.
pub fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name is in parentheses and may contain anything, parentheses included.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start })
}

/// Whether the process that started at `start` still runs. One that has only not been waited for
/// does not.
pub fn is_alive(pid: i32, start: u64) -> bool {
    stat(pid).is_some_and(|stat| stat.start == start && !matches!(stat.state, 'Z' | 'X'))
}

/// Whether any process has this number.
pub fn exists(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// The name the kernel has for a process.
pub fn name(pid: i32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// Bytes of memory that a process has in use, and how many of them are locked there. Not VmLck,
/// which counts what may be locked once it is touched. For the process's owner and root.
pub fn memory(pid: i32) -> Option<(u64, u64)> {
    let sums = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = sums.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some((kib("Rss:")? << 10, kib("Locked:")? << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let own = stat(own_pid()).unwrap();
        assert!(own.start > 0);
        assert!(is_alive(own_pid(), own.start));
        assert!(!is_alive(own_pid(), own.start + 1));
        assert!(Other::open(own_pid(), own.start + 1).is_none());
        let other = Other::open(own_pid(), own.start).unwrap();
        assert!(!other.gone_by(Deadline::after(Duration::from_millis(1))));
        assert!(stat(i32::MAX).is_none() && !exists(i32::MAX));
        assert!(memory(own_pid()).unwrap().0 > 0);
    }

    #[test]
    fn a_name_may_hold_anything() {
        let stat =
            parse_stat("12 (a) S 1 (b) R 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1").unwrap();
        assert_eq!(stat, Stat { state: 'R', start: 777 });
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_stat("1 (x) S 1"), None);
    }

    #[test]
    fn a_killed_process_is_gone() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let other = Other::open(pid, stat(pid).unwrap().start).unwrap();
        other.kill().unwrap();
        assert!(other.gone_by(Deadline::after(Duration::from_secs(10))));
        assert!(!exists(pid));
        child.wait().unwrap();
    }
}
