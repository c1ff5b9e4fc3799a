//! Local sockets and pipes with bounds in size and time: nothing here waits for ever.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

use super::clock::{Deadline, Duration};

/// Waits until one of `fds` can be read (or written, where the second half says so), at most for
/// `timeout`. Tells for each whether it can; one that was closed or failed can.
pub fn poll(fds: &[(BorrowedFd<'_>, bool)], timeout: Duration) -> io::Result<Vec<bool>> {
    let interest =
        |write: bool| if write { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|&(fd, write)| PollFd::new(fd, interest(write))).collect();
    // Rounded up: a wait that ends early would make its caller spin through the last millisecond.
    let millis = timeout.as_micros().div_ceil(1000).min(60_000);
    let timeout = PollTimeout::from(millis as u16);
    match nix::poll::poll(&mut polled, timeout) {
        Ok(_) => Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        Err(Errno::EINTR) => Ok(vec![false; fds.len()]),
        Err(error) => Err(error.into()),
    }
}

/// What is waited for at a descriptor, and what of it there is. With neither, only the end of the
/// connection is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Bytes to be read, or the end of them.
    pub read: bool,
    /// Room for bytes to be written.
    pub write: bool,
    /// Nobody is there on the other side (POLLHUP), or the connection has failed.
    pub gone: bool,
}

/// Waits until something that is wanted of `fds` is there, at most for `timeout`; a descriptor without an interest is not
/// looked at. Yields what there is of each.
pub fn poll_for<const N: usize>(
    fds: [(BorrowedFd<'_>, Option<Interest>); N],
    timeout: Duration,
) -> io::Result<[Interest; N]> {
    let mut polled = fds.map(|(fd, interest)| {
        let events = interest.map_or(0, |interest| {
            (if interest.read { libc::POLLIN } else { 0 }) | (if interest.write { libc::POLLOUT } else { 0 })
        });
        // The kernel passes over negative ones.
        let fd = if interest.is_some() { fd.as_raw_fd() } else { -1 };
        libc::pollfd { fd, events, revents: 0 }
    });
    let millis = timeout.as_micros().div_ceil(1000).min(60_000) as libc::c_int;
    // SAFETY: the kernel reads and writes N entries, which live until the call returns; the descriptors are
    // borrowed, and so are open.
    if unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, millis) } < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok([Interest::default(); N]),
            _ => Err(error),
        };
    }
    Ok(polled.map(|fd| {
        let gone = fd.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0;
        let is = |event| fd.revents & event != 0 || (gone && fd.events & event != 0);
        Interest { read: is(libc::POLLIN), write: is(libc::POLLOUT), gone }
    }))
}

/// Waits until `fd` can be read. False when the deadline came first.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Deadline) -> io::Result<bool> {
    loop {
        if poll(&[(fd, false)], deadline.left())?[0] {
            return Ok(true);
        }
        if deadline.passed() {
            return Ok(false);
        }
    }
}

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Names that are tried for a new socket; dead processes may have left some.
const NAMES_TRIED: u32 = 1000;

/// The mode of a socket that only its owner can connect to.
pub const OWNER_ONLY: u32 = 0o600;

/// A listening socket at `path`, for its owner only, that never blocks. Replaces what is there.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    listen_for(path, OWNER_ONLY)
}

/// As [`listen`], with the socket's mode.
pub fn listen_for(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let (listener, temporary) = listen_beside(path, mode)?;
    std::fs::rename(&temporary, path).inspect_err(|_| drop(std::fs::remove_file(&temporary)))?;
    Ok(listener)
}

/// A listening socket as [`listen_for`] makes it, under another name in the folder of `path`: nobody finds it before its
/// mode is right.
pub(super) fn listen_beside(path: &Path, mode: u32) -> io::Result<(UnixListener, PathBuf)> {
    let (listener, temporary) = beside(path, |temporary| UnixListener::bind(temporary))?;
    let ready = || {
        socket::listen(&listener, Backlog::new(BACKLOG)?)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)
    };
    ready().inspect_err(|_| drop(std::fs::remove_file(&temporary)))?;
    Ok((listener, temporary))
}

/// Makes a file with a name in the folder of `path` that no file has; `make` takes no name that one has. A short one: a
/// socket's path has little room.
pub(super) fn beside<T>(path: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(T, PathBuf)> {
    let pid = std::process::id();
    let is_taken = |kind| matches!(kind, io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists);
    let mut number = 0;
    loop {
        let temporary = path.with_file_name(format!(".{pid:x}.{number:x}"));
        match make(&temporary) {
            Ok(made) => return Ok((made, temporary)),
            Err(error) if is_taken(error.kind()) && number < NAMES_TRIED => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Connects to the socket at `path`. Does not wait: a listener that has let too many queue up is an error
/// (WouldBlock).
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// Removes a file; one that is not there is fine.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A connection that sends and receives lines, each up to a number of bytes.
#[derive(Debug)]
pub struct Lines<S> {
    stream: S,
    limit: usize,
    received: Vec<u8>,
    /// So many of these have no end of a line among them.
    searched: usize,
    to_send: Vec<u8>,
    ended: bool,
}

impl Lines<UnixStream> {
    /// As `connect`.
    pub fn connect(path: &Path, limit: usize) -> io::Result<Lines<UnixStream>> {
        Ok(Lines::new(connect(path)?, limit))
    }
}

impl<S: AsFd> Lines<S> {
    /// Over a stream that does not block. Lines longer than `limit` are an error.
    pub fn new(stream: S, limit: usize) -> Lines<S> {
        Lines { stream, limit, received: Vec::new(), searched: 0, to_send: Vec::new(), ended: false }
    }

    /// Whether there is something that still has to be sent.
    pub fn wants_to_send(&self) -> bool {
        !self.to_send.is_empty()
    }

    /// Whether the other side has closed, and everything it sent has been taken.
    pub fn ended(&self) -> bool {
        self.ended && !self.received.contains(&b'\n')
    }
}

impl<S: AsFd> AsFd for Lines<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<S: AsFd + Read> Lines<S> {
    /// Reads what has come and returns the next whole line, if there is one.
    pub fn receive(&mut self) -> io::Result<Option<String>> {
        loop {
            let unsearched = &self.received[self.searched..];
            if let Some(end) = unsearched.iter().position(|&byte| byte == b'\n') {
                let rest = self.received.split_off(self.searched + end + 1);
                self.searched = 0;
                let mut line = std::mem::replace(&mut self.received, rest);
                line.pop();
                return String::from_utf8(line).map(Some).map_err(io::Error::other);
            }
            self.searched = self.received.len();
            if self.received.len() > self.limit {
                return Err(io::Error::other(format!("a line is longer than {} bytes", self.limit)));
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next line; TimedOut at the deadline, UnexpectedEof when the other side has closed.
    pub fn receive_by(&mut self, deadline: Deadline) -> io::Result<String> {
        loop {
            if let Some(line) = self.receive()? {
                return Ok(line);
            }
            if self.ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !wait_readable(self.stream.as_fd(), deadline)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl<S: AsFd + Write> Lines<S> {
    /// Takes a line to be sent, and sends as much as the other side takes now.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        self.to_send.extend_from_slice(line.as_bytes());
        self.to_send.push(b'\n');
        self.flush()
    }

    /// Goes on sending.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.to_send.is_empty() {
            match self.stream.write(&self.to_send) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.to_send.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A pipe to wake somebody who polls: what is written on one side makes the other readable.
pub fn wake_pipe() -> io::Result<(std::fs::File, std::fs::File)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
    Ok((reader.into(), writer.into()))
}

/// Makes reads of an open pipe return at once where nothing has come.
pub fn set_nonblocking<F: Into<OwnedFd>>(pipe: F) -> io::Result<std::fs::File> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let fd: OwnedFd = pipe.into();
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(limit: usize) -> (Lines<UnixStream>, Lines<UnixStream>) {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        b.set_nonblocking(true).unwrap();
        (Lines::new(a, limit), Lines::new(b, limit))
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let (mut a, mut b) = pair(100);
        a.send("one").unwrap();
        a.send("two").unwrap();
        let soon = Deadline::after(Duration::from_secs(5));
        assert_eq!(b.receive_by(soon).unwrap(), "one");
        assert_eq!(b.receive_by(soon).unwrap(), "two");
        let short = Deadline::after(Duration::from_millis(10));
        assert_eq!(b.receive_by(short).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(a);
        assert_eq!(b.receive_by(soon).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// As long as the longest reply there may be, and the next one right behind it.
    #[test]
    fn a_long_line_takes_no_longer_for_each_of_its_bytes() {
        const LEN: usize = 4 << 20;
        let (mut a, mut b) = pair(LEN);
        let sender = std::thread::spawn(move || {
            a.send(&"x".repeat(LEN)).unwrap();
            a.send("next").unwrap();
            while a.wants_to_send() {
                poll(&[(a.as_fd(), true)], Duration::from_millis(100)).unwrap();
                a.flush().unwrap();
            }
        });
        let deadline = Deadline::after(Duration::from_secs(4));
        assert_eq!(b.receive_by(deadline).unwrap().len(), LEN);
        assert!(!deadline.passed(), "a reply of {LEN} bytes takes longer than anybody waits");
        assert_eq!(b.receive_by(Deadline::after(Duration::from_secs(5))).unwrap(), "next");
        sender.join().unwrap();
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut a, mut b) = pair(1000);
        a.send(&"x".repeat(10_000)).unwrap();
        assert!(b.receive().is_err());
    }

    #[test]
    fn nobody_waits_for_a_listener_that_does_not_accept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let _listener = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut open = Vec::new();
        let refused = (0..10_000).find_map(|_| match Lines::connect(&path, 10) {
            Ok(lines) => {
                open.push(lines);
                None
            }
            Err(error) => Some(error.kind()),
        });
        assert_eq!(refused, Some(io::ErrorKind::WouldBlock));
        // Nor does whoever would listen there himself: somebody does.
        let second = crate::port::stream::Listener::unix(&path).map_err(|error| error.kind());
        assert_eq!(second.unwrap_err(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_new_socket_takes_no_other_files_name() {
        let folder = tempfile::tempdir().unwrap();
        let taken = format!(".{:x}.0", std::process::id());
        let others = ["a.sock.new", &taken].map(|name| folder.path().join(name));
        others.iter().for_each(|other| std::fs::write(other, "precious").unwrap());
        let _listeners = ["a.sock", "a.nbd"].map(|name| listen(&folder.path().join(name)).unwrap());
        for other in &others {
            assert_eq!(std::fs::read_to_string(other).unwrap(), "precious");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4, "nothing is left behind");
    }
}
