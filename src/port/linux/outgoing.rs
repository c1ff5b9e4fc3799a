//! Connections that we make, and what goes over them without a ring: several pieces of memory in one call.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, getsockopt, sockopt,
};

use super::clock::{Deadline, Duration};
use super::stream::Socket;
use crate::port::socket::poll;

/// How often a connection that is being made is looked at, and whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a listener that has let too many queue up is left alone.
const PAUSE: Duration = Duration::from_millis(20);

/// The addresses of a host. May take as long as the system's resolver does.
pub fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

/// Connects to a socket of this machine; a path that begins with a NUL byte is an abstract name. Interrupted where
/// `wanted` says no.
pub fn connect_unix(path: &Path, deadline: Deadline, wanted: &dyn Fn() -> bool) -> io::Result<Socket> {
    let bytes = path.as_os_str().as_bytes();
    let address = match bytes.split_first() {
        Some((0, name)) => UnixAddr::new_abstract(name)?,
        _ => UnixAddr::new(OsStr::from_bytes(bytes))?,
    };
    loop {
        let fd = stream_socket(AddressFamily::Unix)?;
        match socket::connect(fd.as_raw_fd(), &address) {
            Ok(()) => {
                let socket = Socket::Unix(UnixStream::from(fd));
                socket.tune()?;
                return Ok(socket);
            }
            // Too many wait there already.
            Err(Errno::EAGAIN) if !deadline.passed() => {}
            Err(error) => return Err(error.into()),
        }
        if !wanted() {
            return Err(ErrorKind::Interrupted.into());
        }
        super::clock::sleep(PAUSE.min(deadline.left()));
    }
}

/// Connects over the network. Interrupted where `wanted` says no.
pub fn connect_tcp(address: SocketAddr, deadline: Deadline, wanted: &dyn Fn() -> bool) -> io::Result<Socket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let stream = TcpStream::from(stream_socket(family)?);
    let begun = match address {
        SocketAddr::V4(address) => socket::connect(stream.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => socket::connect(stream.as_raw_fd(), &SockaddrIn6::from(address)),
    };
    match begun {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = Socket::Tcp(stream);
    while !is_there(&socket, deadline.left().min(LOOK_EVERY))? {
        if deadline.passed() {
            return Err(ErrorKind::TimedOut.into());
        }
        if !wanted() {
            return Err(ErrorKind::Interrupted.into());
        }
    }
    match getsockopt(&socket, sockopt::SocketError)? {
        0 => {
            socket.tune()?;
            Ok(socket)
        }
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Whether a socket that connects has come to an end of that, good or bad.
fn is_there(socket: &Socket, timeout: Duration) -> io::Result<bool> {
    use std::os::fd::AsFd;
    Ok(poll(&[(socket.as_fd(), true)], timeout)?[0])
}

fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket::socket(family, SockType::Stream, flags, None)?)
}

impl Socket {
    /// Sends what is in `pieces`, one behind the other, as much as goes now; yields how many bytes that were.
    pub fn send_pieces(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(socket::sendmsg::<()>(self.as_raw_fd(), pieces, &[], flags, None)?)
    }

    /// Receives what is there into `pieces`, one behind the other; yields how many bytes that were, none at the end
    /// of the stream.
    pub fn receive_pieces(&self, pieces: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(nix::sys::uio::readv(self, pieces)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::port::stream::Listener;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn connections_are_made_to_what_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::unix(&path).unwrap();
        let ours = connect_unix(&path, soon(), &|| true).unwrap();
        let theirs = listener.accept().unwrap();
        let pieces = [IoSlice::new(b"one"), IoSlice::new(b""), IoSlice::new(b"two")];
        assert_eq!(ours.send_pieces(&pieces).unwrap(), 6);
        let (mut first, mut second) = ([0; 4], [0; 4]);
        let mut into = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        assert_eq!(theirs.receive_pieces(&mut into).unwrap(), 6);
        assert_eq!((&first, &second), (b"onet", b"wo\0\0"));
        assert_eq!(
            theirs.receive_pieces(&mut [IoSliceMut::new(&mut first)]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        drop((ours, listener));
        assert_eq!(connect_unix(&path, soon(), &|| true).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_host_that_does_not_listen_is_an_error_and_one_that_does_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(resolve("127.0.0.1", address.port()).unwrap(), [address]);
        let ours = connect_tcp(address, soon(), &|| true).unwrap();
        let mut theirs = listener.accept().unwrap().0;
        (&ours).write_all(b"x").unwrap();
        theirs.read_exact(&mut [0]).unwrap();
        drop((ours, theirs, listener));
        assert_eq!(connect_tcp(address, soon(), &|| true).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // No packet comes back from there: given up when nobody wants it any more.
        let nowhere = "192.0.2.1:10809".parse().unwrap();
        assert!(connect_tcp(nowhere, soon(), &|| false).is_err());
    }

    #[test]
    fn whoever_lets_too_many_queue_up_is_waited_for_until_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = Listener::unix(&path).unwrap();
        let short = || Deadline::after(Duration::from_millis(50));
        let mut open = Vec::new();
        let refused = (0..10_000).find_map(|_| match connect_unix(&path, short(), &|| true) {
            Ok(socket) => {
                open.push(socket);
                None
            }
            Err(error) => Some(error.kind()),
        });
        assert_eq!(refused, Some(ErrorKind::WouldBlock));
    }
}
