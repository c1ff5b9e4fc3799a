//! Sockets that whoever started this process has passed on: those of a service manager
//! (sd_listen_fds(3)), and a client at standard input and output.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::fstat;

use super::process::{Standard, null_device, own_pid, redirect};
use super::stream::{Listener, Socket, family};
use crate::port::thread::{self, JoinHandle};

/// The first descriptor of a service manager (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;

/// Descriptors that are taken at most; a number from the environment bounds nothing.
const MOST: i32 = 64;

/// What a socket is called that has no name (sd_listen_fds_with_names(3)).
pub const UNNAMED: &str = "unknown";

/// A socket that was passed on.
#[derive(Debug)]
pub struct Inherited {
    /// What the service manager calls it: FileDescriptorName= of its socket unit.
    pub name: String,
    /// What it is.
    pub socket: Passed,
}

/// What a socket is that was passed on.
#[derive(Debug)]
pub enum Passed {
    /// Clients come to it.
    Listener(Listener),
    /// A client is there already.
    Connection(Socket),
}

/// Whether a service manager has passed sockets to this process.
pub fn is_activated() -> bool {
    count().is_some()
}

/// How many, where it is to this process.
fn count() -> Option<i32> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    // A process that was started by the one that they were for has inherited the variables alone.
    (number("LISTEN_PID")? == own_pid()).then_some(())?;
    number("LISTEN_FDS").filter(|count| *count > 0)
}

/// Takes the sockets that a service manager has passed on: none the second time. To be called before this
/// process opens anything.
pub fn take() -> io::Result<Vec<Inherited>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let Some(count) = count() else { return Ok(Vec::new()) };
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Vec::new());
    }
    if count > MOST {
        return Err(io::Error::other(format!("LISTEN_FDS is {count}, and at most {MOST} are taken")));
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(|name| if name.is_empty() { UNNAMED } else { name });
    let mut taken = Vec::new();
    for fd in FIRST..FIRST + count {
        let name = names.next().unwrap_or(UNNAMED).to_owned();
        // SAFETY: the descriptor was passed to this process for it to use, before it had opened any; it is
        // taken once. One that is not open is an error of the call.
        let flags = fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFD)
            .map_err(|error| wrong(fd, &name, io::Error::from(error)))?;
        // SAFETY: as above: it is open, and nobody else in this process has it.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        let flags = FdFlag::from_bits_retain(flags) | FdFlag::FD_CLOEXEC;
        fcntl(&owned, FcntlArg::F_SETFD(flags))?;
        let socket = passed(owned).map_err(|error| wrong(fd, &name, error))?;
        taken.push(Inherited { name, socket });
    }
    Ok(taken)
}

fn wrong(fd: RawFd, name: &str, error: io::Error) -> io::Error {
    let why = match error.raw_os_error() {
        Some(libc::EBADF) => "it is not open".to_owned(),
        Some(libc::ENOTSOCK) => "it is no socket".to_owned(),
        _ if error.kind() == ErrorKind::Unsupported => {
            "it is not a stream socket of TCP, Unix or vsock".to_owned()
        }
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("descriptor {fd} ({name}): {why}"))
}

fn passed(fd: OwnedFd) -> io::Result<Passed> {
    if getsockopt(&fd, sockopt::SockType)? != SockType::Stream {
        return Err(ErrorKind::Unsupported.into());
    }
    Ok(match getsockopt(&fd, sockopt::AcceptConn)? {
        true => Passed::Listener(Listener::of(fd)?),
        false => Passed::Connection(Socket::of(fd)?),
    })
}

/// A client at standard input and output.
#[derive(Debug)]
pub struct AtStandard {
    /// What it sends and gets.
    pub socket: Socket,
    /// Moves bytes to standard output, where that is no socket.
    mover: Option<JoinHandle<()>>,
}

impl AtStandard {
    /// Takes standard input and output away from this process, which then has the null device there. InvalidInput where
    /// a person types at it.
    pub fn take() -> io::Result<AtStandard> {
        let (input, output) =
            (io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?);
        if nix::unistd::isatty(&input).unwrap_or(false) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "standard input is a terminal"));
        }
        let null = null_device()?;
        redirect(Standard::Input, &null)?;
        redirect(Standard::Output, &null)?;
        if is_one_connection(&input, &output) {
            return Ok(AtStandard { socket: Socket::of(input)?, mover: None });
        }
        let (ours, theirs) = UnixStream::pair()?;
        let incoming = theirs.try_clone()?;
        // Threads of their own wait for these, and so they may block.
        let (input, output) = (blocking(input)?, blocking(output)?);
        // Not waited for: it may read from somebody who neither sends nor ends.
        thread::spawn("stdin".into(), move || {
            move_bytes(&mut File::from(input), &mut &incoming);
            let _ = incoming.shutdown(std::net::Shutdown::Write);
        })?;
        let mover = thread::spawn("stdout".into(), move || {
            move_bytes(&mut &theirs, &mut File::from(output));
            let _ = theirs.shutdown(std::net::Shutdown::Both);
        })?;
        Ok(AtStandard { socket: Socket::of(ours.into())?, mover: Some(mover) })
    }

    /// The client's connection, and a question to ask when that is over: whether everything has been passed on.
    pub fn split(self) -> (Socket, impl Fn() -> bool) {
        let mover = self.mover;
        (self.socket, move || mover.as_ref().is_none_or(JoinHandle::is_finished))
    }
}

/// Whether both are one connected stream socket, as inetd and libnbd have it.
fn is_one_connection(input: &OwnedFd, output: &OwnedFd) -> bool {
    let is_stream = getsockopt(input, sockopt::SockType) == Ok(SockType::Stream) && family(input).is_ok();
    let same = match (fstat(input), fstat(output)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    };
    is_stream && same
}

fn blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// Until one side ends, or the other takes no more.
fn move_bytes(from: &mut dyn Read, to: &mut dyn Write) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) if to.write_all(&bytes[..count]).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_passed_on_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let connected = UnixStream::connect(&path).unwrap();
        assert!(matches!(passed(connected.into()), Ok(Passed::Connection(Socket::Unix(_)))));
        let Ok(Passed::Listener(listener)) = passed(listener.into()) else { panic!("no listener") };
        assert_eq!(listener.place().unwrap(), crate::port::stream::Place::Unix(Some(path.clone())));
        drop(listener);
        assert!(path.exists(), "its name is somebody else's");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(passed(tcp.into()), Ok(Passed::Listener(Listener::Tcp(_)))));
        for other in [
            OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()),
            std::os::unix::net::UnixDatagram::unbound().unwrap().into(),
        ] {
            assert_eq!(passed(other).unwrap_err().kind(), ErrorKind::Unsupported);
        }
        let file = OwnedFd::from(null_device().unwrap());
        let error = wrong(3, "x", passed(file).unwrap_err());
        assert!(error.to_string().contains("descriptor 3 (x): it is no socket"), "{error}");
    }

    #[test]
    fn nobody_has_activated_a_test() {
        assert!(!is_activated() && take().unwrap().is_empty());
    }

    #[test]
    fn one_socket_at_both_ends_is_a_connection_and_two_pipes_are_not() {
        let (one, other) = UnixStream::pair().unwrap();
        let again = OwnedFd::from(one.try_clone().unwrap());
        assert!(is_one_connection(&one.into(), &again));
        assert!(!is_one_connection(&again, &other.into()));
        let (reads, writes) = std::io::pipe().unwrap();
        assert!(!is_one_connection(&reads.into(), &writes.into()));
    }
}
