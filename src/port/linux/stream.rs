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
        let _ = setsockopt(&theirs, sockopt::SndBuf, &SEND_BUFFER);
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
        // More than the system allows is cut down by it.
        let _ = setsockopt(self, sockopt::SndBuf, &SEND_BUFFER);
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
        match path.symlink_metadata() {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ErrorKind::AlreadyExists.into());
            }
            Ok(_) => match socket::connect(path) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // Somebody listens who has not accepted for long.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(ErrorKind::AddrInUse.into());
                }
                // A socket for datagrams, whoever's.
                Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
                    return Err(ErrorKind::AlreadyExists.into());
                }
                Err(error) => return Err(error),
                Ok(_) => return Err(ErrorKind::AddrInUse.into()),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = socket::listen_for(path, mode)?;
        let metadata = path.symlink_metadata()?;
        let file = Some((metadata.dev(), metadata.ino()));
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
