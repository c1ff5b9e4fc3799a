//! From an address to connections in transmission.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Kind, Result};
use crate::nbd::ExportFlags;
use crate::nbd::client::Negotiated;
use crate::nbd::client::handshake::{Failed, Handshake, Progress};
use crate::nbd::uri::{Address, Place};
use crate::port::clock::{Deadline, Duration};
use crate::port::outgoing;
use crate::port::socket::poll;
use crate::port::stream::Socket;
use crate::tls::{self, ClientConfig};

/// How long connecting and the handshake may take, in all.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);

/// How often it is looked whether anybody still wants the connection.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Bytes of a handshake that are there at once, at most: the longest reply to an option.
const MOST_RECEIVED: usize = 128 << 10;

/// A connection in transmission.
#[derive(Debug)]
pub(super) struct Connected {
    pub socket: Socket,
    pub told: Negotiated,
}

/// How connections to one export are made.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub address: Address,
    /// As many as this, where a flush on one of them covers what the others wrote.
    pub connections: u16,
    /// Nobody wants any more.
    pub stop: Arc<AtomicBool>,
}

impl Connector {
    /// All connections, at least one: those that the server does not take after the first are done without.
    pub fn connect(&self) -> Result<Vec<Connected>> {
        let first = self.connect_one()?;
        let told = first.told;
        let mut all = vec![first];
        if !told.flags.contains(ExportFlags::CAN_MULTI_CONN) {
            return Ok(all);
        }
        while all.len() < usize::from(self.connections) {
            match self.connect_one() {
                Ok(next) if next.told.is_like(&told) => all.push(next),
                // It is another by now, or there are to be no more.
                Ok(_) | Err(_) => break,
            }
        }
        Ok(all)
    }

    fn connect_one(&self) -> Result<Connected> {
        let deadline = Deadline::after(HANDSHAKE);
        let what = || format!("cannot connect to {}", self.address);
        let wanted = || !self.stop.load(Ordering::SeqCst);
        let mut socket = match &self.address.place {
            Place::Unix(path) => outgoing::connect_unix(path, deadline, &wanted).map_err(|error| {
                let cure = match error.kind() {
                    ErrorKind::NotFound => "socket= names the socket that a server listens on",
                    ErrorKind::ConnectionRefused => "start the server: nobody listens there",
                    ErrorKind::PermissionDenied => "run as the user whose socket it is",
                    _ => "look at what the server says",
                };
                Error::system(what(), error).cure(cure)
            })?,
            Place::Tcp { host, port } => self.connect_tcp(host, *port, deadline, &wanted)?,
        };
        let mut handshake = Handshake::new(&self.address.export, self.address.tls.is_some());
        let mut received = Vec::new();
        loop {
            // The server that breaks off says why in what it sent last, if it does.
            let progress = match step(&mut handshake, &mut received) {
                Ok(progress) => progress,
                Err(failed) => return Err(self.refused(failed)),
            };
            match progress {
                Progress::Answered => {}
                Progress::StartTls if !received.is_empty() => {
                    let failed = Failed::Broken("bytes in the clear come behind the answer to STARTTLS");
                    return Err(self.refused(failed));
                }
                Progress::StartTls => {
                    socket = encrypt(socket, &self.address, deadline)?;
                    handshake.encrypted();
                }
                Progress::Transmission(told) if received.is_empty() => {
                    return Ok(Connected { socket, told });
                }
                Progress::Transmission(_) => {
                    return Err(self.refused(Failed::Broken("it replies before anything was asked")));
                }
                Progress::Incomplete => {
                    exchange(&socket, handshake.to_send(), &mut received, deadline, &wanted)
                        .map_err(|error| self.broke_off(error))?;
                }
            }
        }
    }

    fn connect_tcp(
        &self,
        host: &str,
        port: u16,
        deadline: Deadline,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Socket> {
        let what = || format!("cannot connect to {}", self.address);
        let addresses = outgoing::resolve(host, port)
            .map_err(|error| Error::system(what(), error).cure("name a host that there is, or its number"))?;
        if addresses.is_empty() {
            return Err(Error::new(Kind::NotFound, what(), format!("{host} has no address")));
        }
        connect_to_any(&addresses, deadline, wanted).map_err(|error| {
            let cure = match error.kind() {
                ErrorKind::ConnectionRefused => "start the server: nobody listens there",
                _ => "look whether the host can be reached",
            };
            Error::system(what(), error).cure(cure)
        })
    }

    fn refused(&self, failed: Failed) -> Error {
        let (kind, cure) = match failed {
            Failed::NoSuchExport(_) => (Kind::NotFound, "nbdinfo --list shows the exports that a server has"),
            Failed::TlsRequired(_) => (Kind::Permission, "write nbds instead of nbd"),
            Failed::NoTls(_) => (Kind::Unsupported, "nbd instead of nbds goes without encryption"),
            Failed::Oldstyle => (Kind::Unsupported, "run a server that is newer"),
            Failed::Refused { .. } => (Kind::Permission, "look at what the server says"),
            Failed::Broken(_) => (Kind::Failed, "look whether it is an NBD server that listens there"),
        };
        Error::new(kind, format!("cannot use {}", self.address), failed.to_string()).cure(cure)
    }

    fn broke_off(&self, error: std::io::Error) -> Error {
        let what = format!("cannot use {}", self.address);
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                let why = "the server has closed the connection during the handshake";
                let cure =
                    "an old server does so when it has no export of the name, others when they are full";
                Error::new(Kind::Failed, what, why).cure(cure)
            }
            ErrorKind::TimedOut => {
                let why = format!("the server did not shake hands within {} s", HANDSHAKE.as_secs());
                Error::new(Kind::Deadline, what, why).cure("look whether it hangs")
            }
            _ => Error::system(what, error),
        }
    }
}

/// A connection to the first of these addresses that answers. Each has its share of the time: one that says nothing, of
/// IPv6 where there is no way for that, must not use up the next one's.
fn connect_to_any(
    addresses: &[SocketAddr],
    deadline: Deadline,
    wanted: &dyn Fn() -> bool,
) -> std::io::Result<Socket> {
    let mut last = ErrorKind::NotFound.into();
    for (tried, &address) in addresses.iter().enumerate() {
        let share = deadline.left() / (addresses.len() - tried) as u32;
        match outgoing::connect_tcp(address, deadline.at_most(share), wanted) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Puts TLS on a connection whose server has agreed to it. This is the one place where that happens: what comes back
/// carries the protocol in the clear, and what goes over the wire is encrypted. The certificates are read for each
/// connection, so that a new one is taken when the server is connected to again.
fn encrypt(socket: Socket, address: &Address, deadline: Deadline) -> Result<Socket> {
    let what = || format!("cannot connect to {address}");
    let wishes = address.tls.clone().unwrap_or_default();
    let unsupported = |why: &str, cure: &str| Err(Error::new(Kind::Unsupported, what(), why).cure(cure));
    if wishes.psk_file.is_some() || wishes.kind.as_deref().is_some_and(|kind| kind != "x509") {
        let why = "TLS is by certificates only (X.509), neither with pre-shared keys nor without any";
        return unsupported(
            why,
            "give tls-certificates=FOLDER with the ca-cert.pem of who has signed the server's",
        );
    }
    if wishes.verify_peer == Some(false) {
        let why = "who does not look at the server's certificate may as well talk to anybody";
        return unsupported(
            why,
            "leave out tls-verify-peer, and give tls-certificates=FOLDER with a ca-cert.pem",
        );
    }
    let name = match (&wishes.hostname, &address.place) {
        (Some(name), _) => name,
        (None, Place::Tcp { host, .. }) => host,
        (None, Place::Unix(_)) => {
            return Err(Error::invalid(
                what(),
                "a socket of this machine does not say whom its server claims to be",
            )
            .cure("give tls-hostname=NAME, a name that the server's certificate has"));
        }
    };
    let config = ClientConfig::read(wishes.certificates.as_deref())?;
    tls::client(socket, &config, name, deadline)
}

fn step(handshake: &mut Handshake, received: &mut Vec<u8>) -> Result<Progress, Failed> {
    let (used, progress) = handshake.receive(received)?;
    received.drain(..used);
    Ok(progress)
}

/// Sends what is to be sent, and then waits until something more was received.
fn exchange(
    mut socket: &Socket,
    to_send: &mut Vec<u8>,
    received: &mut Vec<u8>,
    deadline: Deadline,
    wanted: &dyn Fn() -> bool,
) -> std::io::Result<()> {
    let mut chunk = [0; 4096];
    loop {
        let result = match to_send.is_empty() {
            false => socket.write(to_send),
            true => socket.read(&mut chunk),
        };
        match result {
            Ok(count) if !to_send.is_empty() => {
                to_send.drain(..count);
                continue;
            }
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) if received.len() + count <= MOST_RECEIVED => {
                received.extend_from_slice(&chunk[..count]);
                return Ok(());
            }
            Ok(_) => return Err(ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if deadline.passed() {
            return Err(ErrorKind::TimedOut.into());
        }
        if !wanted() {
            return Err(ErrorKind::Interrupted.into());
        }
        poll(&[(socket.as_fd(), !to_send.is_empty())], deadline.left().min(LOOK_EVERY))?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn an_address_that_does_not_answer_leaves_time_for_the_next() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let nowhere = silent.local_addr().unwrap();
        // Nobody accepts, and when enough have queued up the kernel answers no more.
        let fill = |_| TcpStream::connect_timeout(&nowhere, Duration::from_millis(200)).ok();
        let queue: Vec<TcpStream> = (0..10_000).map_while(fill).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let deadline = Deadline::after(Duration::from_secs(2));
        let connected = connect_to_any(&[nowhere, there], deadline, &|| true);
        assert!(connected.is_ok() && !deadline.passed(), "{connected:?}, {} queue up", queue.len());
        let deadline = Deadline::after(Duration::from_millis(300));
        let error = connect_to_any(&[there, nowhere][1..], deadline, &|| true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
