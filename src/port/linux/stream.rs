//! Sockets that carry a stream, and those that wait for them: Unix, TCP and vsock.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    self as sys, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, VsockAddr,
    listen, setsockopt, sockopt,
};

use super::socket::{self, OWNER_ONLY};

/// Connections that may wait to be accepted over the network; those of this machine are
/// [`socket::listen`]'s.
const BACKLOG: i32 = 128;

/// Bytes that the kernel is asked to hold of what the other side has not yet taken.
const SEND_BUFFER: usize = 1 << 20;

/// After how many seconds of silence the kernel asks a peer of the network whether it is still there, how
/// many seconds it waits for an answer, and how often it asks: one whose machine has gone is noticed
/// after two minutes, and its place is free again.
const KEEPALIVE_IDLE_S: u32 = 60;
const KEEPALIVE_INTERVAL_S: u32 = 10;
const KEEPALIVE_PROBES: u32 = 6;

/// One end of a connection. Does not block.
#[derive(Debug)]
pub enum Socket {
    /// Over the network.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
    /// Between a machine and its virtual machines (vsock(7)). What is asked of a stream socket is the same
    /// whatever family it is of.
    Vsock(UnixStream),
}

impl Socket {
    /// Two that are connected with each other.
    pub fn pair() -> io::Result<(Socket, Socket)> {
        let (one, other) = UnixStream::pair()?;
        let (one, other) = (Socket::Unix(one), Socket::Unix(other));
        one.tune()?;
        other.tune()?;
        Ok((one, other))
    }

    /// A connection that somebody else has made.
    pub(in crate::port) fn of(fd: OwnedFd) -> io::Result<Socket> {
        let socket = match family(&fd)? {
            AddressFamily::Unix => Socket::Unix(fd.into()),
            AddressFamily::Inet | AddressFamily::Inet6 => Socket::Tcp(fd.into()),
            AddressFamily::Vsock => Socket::Vsock(fd.into()),
            _ => return Err(ErrorKind::Unsupported.into()),
        };
        socket.tune()?;
        Ok(socket)
    }

    /// A connection within this machine: the end that is served, and one that the kernel gets, which blocks.
    pub fn pair_with_kernel() -> io::Result<(Socket, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        enlarge(&theirs);
        let ours = Socket::Unix(ours);
        ours.tune()?;
        Ok((ours, theirs.into()))
    }

    /// Where this side of it is.
    pub fn place(&self) -> io::Result<Place> {
        Ok(match self {
            Socket::Tcp(stream) => Place::Tcp(stream.local_addr()?),
            Socket::Unix(stream) => Place::Unix(stream.local_addr()?.as_pathname().map(Path::to_path_buf)),
            Socket::Vsock(stream) => {
                let address: VsockAddr = sys::getsockname(stream.as_raw_fd())?;
                Place::Vsock(address.cid(), address.port())
            }
        })
    }

    /// Whether a receive can be told to wait until all of its bytes have come (MSG_WAITALL). vsock fails with ENOMEM
    /// where they are as many as its buffer holds, 256 KiB if nobody says otherwise (net/vmw_vsock/af_vsock.c).
    pub(in crate::port) fn can_wait_for_all(&self) -> bool {
        !matches!(self, Socket::Vsock(_))
    }

    pub(in crate::port) fn shut_down(&self, how: Shutdown) {
        // Fails where the other side was faster.
        let _ = match self {
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Unix(stream) | Socket::Vsock(stream) => stream.shutdown(how),
        };
    }

    /// Makes it ready for much at once: no small packet waits for a larger one, and the kernel takes
    /// a good deal before the other side has.
    pub(super) fn tune(&self) -> io::Result<()> {
        enlarge(self);
        match self {
            Socket::Tcp(stream) => {
                stream.set_nodelay(true)?;
                setsockopt(self, sockopt::KeepAlive, &true)?;
                setsockopt(self, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
                setsockopt(self, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
                setsockopt(self, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
                stream.set_nonblocking(true)
            }
            Socket::Unix(stream) | Socket::Vsock(stream) => stream.set_nonblocking(true),
        }
    }
}

/// Has the kernel take more at once to be sent; with CAP_NET_ADMIN all of [`SEND_BUFFER`], else what the system allows everybody
/// (net.core.wmem_max).
fn enlarge(socket: &impl AsFd) {
    if setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &SEND_BUFFER);
    }
}

impl AsRawFd for Socket {
    #[inline]
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Socket::Tcp(stream) => stream.as_raw_fd(),
            Socket::Unix(stream) | Socket::Vsock(stream) => stream.as_raw_fd(),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) | Socket::Vsock(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).read(into),
            Socket::Unix(stream) | Socket::Vsock(stream) => (&mut &*stream).read(into),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).write(bytes),
            Socket::Unix(stream) | Socket::Vsock(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).write_vectored(pieces),
            Socket::Unix(stream) | Socket::Vsock(stream) => (&mut &*stream).write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that waits for connections. Does not block. One that was made here with a name in the file
/// system takes that name along.
#[derive(Debug)]
pub enum Listener {
    /// Over the network.
    Tcp(TcpListener),
    /// On this machine.
    Unix(UnixSocketFile),
    /// Between a machine and its virtual machines.
    Vsock(OwnedFd),
}

/// A listening Unix socket.
#[derive(Debug)]
pub struct UnixSocketFile {
    listener: UnixListener,
    /// Its name in the file system, where it has one.
    path: Option<PathBuf>,
    /// Device and inode, where it is to be removed: somebody may have put another file there meanwhile.
    file: Option<(u64, u64)>,
}

/// Where a listener can be reached, or one side of a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A name in the file system; none where the socket has an abstract one.
    Unix(Option<PathBuf>),
    /// Over the network.
    Tcp(SocketAddr),
    /// Context and port, of which u32::MAX is any.
    Vsock(u32, u32),
}

impl Listener {
    /// Listens on an address of this machine; port 0 lets the kernel choose one.
    pub fn tcp(address: SocketAddr) -> io::Result<Listener> {
        let listener = TcpListener::bind(address)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Tcp(listener))
    }

    /// Listens on a path, for the owner only. A socket that a dead server left there is replaced, one
    /// that somebody listens on is AddrInUse, and a file of any other kind AlreadyExists.
    pub fn unix(path: &Path) -> io::Result<Listener> {
        Listener::unix_for(path, OWNER_ONLY)
    }

    /// As [`unix`](Self::unix), with the socket's mode: whoever may write to it may connect (unix(7)).
    pub fn unix_for(path: &Path, mode: u32) -> io::Result<Listener> {
        look(path)?;
        let (listener, temporary) = socket::listen_beside(path, mode)?;
        let file = temporary.symlink_metadata().map(|metadata| Some((metadata.dev(), metadata.ino())));
        let named = file.and_then(|file| name(&temporary, path).map(|()| file));
        let _ = std::fs::remove_file(&temporary);
        let file = named?;
        Ok(Listener::Unix(UnixSocketFile { listener, path: Some(path.to_path_buf()), file }))
    }

    /// Listens on a port for virtual machines, or for the host of this one (vsock(7)). A context or a
    /// port of u32::MAX is any.
    pub fn vsock(context: u32, port: u32) -> io::Result<Listener> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = sys::socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        sys::bind(fd.as_raw_fd(), &VsockAddr::new(context, port))?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(Listener::Vsock(fd))
    }

    /// One that somebody else has made, and whose name stays when it is dropped.
    pub(in crate::port) fn of(fd: OwnedFd) -> io::Result<Listener> {
        let listener = match family(&fd)? {
            AddressFamily::Unix => {
                let listener = UnixListener::from(fd);
                listener.set_nonblocking(true)?;
                let path = listener.local_addr()?.as_pathname().map(Path::to_path_buf);
                Listener::Unix(UnixSocketFile { listener, path, file: None })
            }
            AddressFamily::Inet | AddressFamily::Inet6 => {
                let listener = TcpListener::from(fd);
                listener.set_nonblocking(true)?;
                Listener::Tcp(listener)
            }
            AddressFamily::Vsock => Listener::Vsock(socket::set_nonblocking(fd)?.into()),
            _ => return Err(ErrorKind::Unsupported.into()),
        };
        Ok(listener)
    }

    /// The next connection; WouldBlock where none waits.
    pub fn accept(&self) -> io::Result<Socket> {
        let socket = match self {
            Listener::Tcp(listener) => Socket::Tcp(listener.accept()?.0),
            Listener::Unix(file) => Socket::Unix(file.listener.accept()?.0),
            Listener::Vsock(listener) => {
                let fd = sys::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
                // SAFETY: a descriptor that was just made and that nobody else has.
                Socket::Vsock(unsafe { OwnedFd::from_raw_fd(fd) }.into())
            }
        };
        socket.tune()?;
        Ok(socket)
    }

    /// Where it can be reached, with the port that the kernel chose.
    pub fn place(&self) -> io::Result<Place> {
        Ok(match self {
            Listener::Tcp(listener) => Place::Tcp(listener.local_addr()?),
            Listener::Unix(file) => Place::Unix(file.path.clone()),
            Listener::Vsock(listener) => {
                let address: VsockAddr = sys::getsockname(listener.as_raw_fd())?;
                Place::Vsock(address.cid(), address.port())
            }
        })
    }
}

/// How often a name is tried for that others take and leave at the same time.
const NAMING_TRIES: u32 = 100;

/// Whether a dead server's socket has this name, or nothing. AddrInUse where somebody listens, AlreadyExists for a file of
/// another kind.
fn look(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ErrorKind::AlreadyExists.into()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    match socket::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        // Somebody listens who has not accepted for long.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::AddrInUse.into()),
        // A socket for datagrams, whoever's.
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Err(ErrorKind::AlreadyExists.into()),
        Err(error) => Err(error),
        Ok(_) => Err(ErrorKind::AddrInUse.into()),
    }
}

/// Gives the socket at `temporary` the name `path` as well, which nobody else has or a dead server's socket: of two that
/// try at the same time one gets AddrInUse.
fn name(temporary: &Path, path: &Path) -> io::Result<()> {
    for _ in 0..NAMING_TRIES {
        // Unlike a new name, a second one takes nobody's place.
        match std::fs::hard_link(temporary, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            // A file system without them.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)) =>
            {
                look(path)?;
                return std::fs::rename(temporary, path);
            }
            named => return named,
        }
        if look(path)? {
            take_away(temporary, path)?;
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// Removes a dead server's socket. It is looked at once more when nobody else can find it: by now the name may be that of
/// one who was faster, and that one gets it back.
fn take_away(temporary: &Path, path: &Path) -> io::Result<()> {
    // A name of ours, so that nothing else is replaced.
    let ((), aside) = socket::beside(path, |aside| std::fs::hard_link(temporary, aside))?;
    match std::fs::rename(path, &aside) {
        Ok(()) if !matches!(look(&aside), Ok(true)) => std::fs::rename(&aside, path),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let _ = std::fs::remove_file(&aside);
            Err(error)
        }
        _ => std::fs::remove_file(&aside),
    }
}

/// The family that a socket is of (address_families(7)).
pub(in crate::port) fn family(fd: &OwnedFd) -> io::Result<AddressFamily> {
    let address: SockaddrStorage = sys::getsockname(fd.as_raw_fd())?;
    address.family().ok_or_else(|| ErrorKind::Unsupported.into())
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(file) => file.listener.as_fd(),
            Listener::Vsock(listener) => listener.as_fd(),
        }
    }
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        let (Some(path), Some(file)) = (&self.path, self.file) else { return };
        if path.symlink_metadata().is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == file) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place() {
            Ok(Place::Tcp(address)) => address.fmt(f),
            Ok(Place::Unix(Some(path))) => path.display().fmt(f),
            Ok(Place::Unix(None)) => f.write_str("a Unix socket without a path"),
            Ok(Place::Vsock(context, port)) => write!(f, "{context}:{port}"),
            Err(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is there before: nothing, or the socket of a server that has died.
    #[test]
    fn of_two_that_want_the_same_path_one_has_it_and_the_other_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        for round in 0..300 {
            if round % 2 == 1 {
                drop(UnixListener::bind(&path).unwrap());
            }
            let start = std::sync::Barrier::new(2);
            let listens = || {
                start.wait();
                Listener::unix(&path)
            };
            let both = std::thread::scope(|scope| {
                let other = scope.spawn(listens);
                [listens(), other.join().unwrap()]
            });
            let [mut ours, refused]: [Vec<_>; 2] =
                both.into_iter().partition::<Vec<_>, _>(Result::is_ok).into();
            assert_eq!((ours.len(), refused.len()), (1, 1), "round {round}");
            assert_eq!(refused[0].as_ref().unwrap_err().kind(), ErrorKind::AddrInUse, "round {round}");
            let _client = UnixStream::connect(&path).unwrap();
            let listener = ours.pop().unwrap().unwrap();
            // Who only looked was there before.
            assert!(std::iter::from_fn(|| listener.accept().ok()).count() >= 1);
            drop(listener);
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing is left behind");
        }
    }

    #[test]
    fn a_file_of_another_kind_is_left_alone_even_if_it_comes_late() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_listener, temporary) = socket::listen_beside(&path, OWNER_ONLY).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(name(&temporary, &path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        take_away(&temporary, &path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&temporary).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }
}
