//! Sockets that carry a stream, and those that wait for them: Unix and TCP.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};

use super::socket;

/// Connections that may wait to be accepted over the network; those of this machine are
/// [`socket::listen`]'s.
const BACKLOG: i32 = 128;

/// Bytes that the kernel is asked to hold of what the other side has not yet taken.
const SEND_BUFFER: usize = 1 << 20;

/// One end of a connection. Does not block.
#[derive(Debug)]
pub enum Socket {
    /// Over the network.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
}

impl Socket {
    pub(in crate::port) fn shut_down(&self, how: Shutdown) {
        // Fails where the other side was faster.
        let _ = match self {
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Unix(stream) => stream.shutdown(how),
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
                stream.set_nonblocking(true)
            }
            Socket::Unix(stream) => stream.set_nonblocking(true),
        }
    }
}

impl AsRawFd for Socket {
    #[inline]
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Socket::Tcp(stream) => stream.as_raw_fd(),
            Socket::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).read(into),
            Socket::Unix(stream) => (&mut &*stream).read(into),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).write(bytes),
            Socket::Unix(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that waits for connections. Does not block. That of a path is removed with it.
#[derive(Debug)]
pub enum Listener {
    /// Over the network.
    Tcp(TcpListener),
    /// On this machine.
    Unix(UnixSocketFile),
}

/// A listening socket with a name in the file system.
#[derive(Debug)]
pub struct UnixSocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, since somebody may have put another file there meanwhile.
    file: (u64, u64),
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
        let listener = socket::listen(path)?;
        let metadata = path.symlink_metadata()?;
        let file = (metadata.dev(), metadata.ino());
        Ok(Listener::Unix(UnixSocketFile { listener, path: path.to_path_buf(), file }))
    }

    /// The next connection; WouldBlock where none waits.
    pub fn accept(&self) -> io::Result<Socket> {
        let socket = match self {
            Listener::Tcp(listener) => Socket::Tcp(listener.accept()?.0),
            Listener::Unix(file) => Socket::Unix(file.listener.accept()?.0),
        };
        socket.tune()?;
        Ok(socket)
    }

    /// The address that it listens on, where it has one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(file) => file.listener.as_fd(),
        }
    }
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        let still_ours =
            self.path.symlink_metadata().is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if still_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(error) => error.fmt(f),
            },
            Listener::Unix(file) => file.path.display().fmt(f),
        }
    }
}
