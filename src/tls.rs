//! TLS around a connection, by rustls: 1.2 and 1.3, with X.509 certificates.
//!
//! A connection under TLS is carried by a thread of its own: it encrypts and decrypts between the peer's
//! socket and one end of a pair of sockets, whose other end whoever serves or uses the connection gets. To
//! them it is a connection like any other, and no queue's thread ever waits for a cipher. What the thread
//! holds is bounded, whatever the peer sends: [`CARRIER_MEMORY`].
//!
//! Files are named as qemu, nbdkit and libnbd name them, in one folder: `ca-cert.pem`, `ca-crl.pem`,
//! `server-cert.pem`, `server-key.pem`, `client-cert.pem`, `client-key.pem`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::pki_types::ServerName;

use crate::error::{Error, Kind, Result};
use crate::port::clock::Deadline;
use crate::port::stream::Socket;
use crate::port::thread;

mod carrier;
mod credentials;
mod failure;

pub use carrier::CARRIER_MEMORY;

use carrier::Carrier;
use failure::Failure;

/// How a server of this process proves who it is, and whether its clients have to.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Replaced, and never changed.
    config: Arc<Mutex<Arc<rustls::ServerConfig>>>,
    folder: PathBuf,
    verifies_peer: bool,
    failures: Failures,
}

impl ServerConfig {
    /// Reads `server-cert.pem` and `server-key.pem` in `folder`. With `verify_peer` a client must have a certificate that
    /// is signed by one of `ca-cert.pem` and not revoked by `ca-crl.pem`, where that is there.
    pub fn read(folder: &Path, verify_peer: bool) -> Result<ServerConfig> {
        let config = Arc::new(credentials::server(folder, verify_peer)?);
        Ok(ServerConfig {
            config: Arc::new(Mutex::new(config)),
            folder: folder.to_owned(),
            verifies_peer: verify_peer,
            failures: Failures::default(),
        })
    }

    /// Reads the same files again, for connections that come from now on, also those of clones. Where they cannot be
    /// used, all stays as it was.
    pub fn read_again(&self) -> Result<()> {
        let config = Arc::new(credentials::server(&self.folder, self.verifies_peer)?);
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn current(&self) -> Arc<rustls::ServerConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether clients need a certificate.
    pub fn verifies_peer(&self) -> bool {
        self.verifies_peer
    }

    /// The connections that TLS ended so far, and why the last one.
    pub fn failures(&self) -> Failures {
        self.failures.clone()
    }
}

/// What this process takes for a server, and how it proves to one who it is.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    config: Arc<rustls::ClientConfig>,
    failures: Failures,
}

impl ClientConfig {
    /// Reads `ca-cert.pem` in `folder`, by which servers must be signed, and `client-cert.pem` and `client-key.pem`,
    /// where they are there. Without a folder, or without `ca-cert.pem`, servers must be signed by a CA that this
    /// machine trusts.
    pub fn read(folder: Option<&Path>) -> Result<ClientConfig> {
        let config = Arc::new(credentials::client(folder)?);
        Ok(ClientConfig { config, failures: Failures::default() })
    }

    /// The connections that TLS ended so far, and why the last one. A server says only behind the handshake of TLS 1.3
    /// that it does not want this client's certificate.
    pub fn failures(&self) -> Failures {
        self.failures.clone()
    }
}

/// Connections that TLS ended.
#[derive(Clone, Debug, Default)]
pub struct Failures(Arc<Mutex<(u64, Option<String>)>>);

impl Failures {
    /// How many.
    pub fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Why the last one.
    pub fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    fn note(&self, failure: &Failure) {
        let Some(why) = failure.is_of_interest().then(|| failure.why()) else { return };
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *noted = (noted.0 + 1, Some(why));
    }
}

/// Begins TLS as the server on a connection whose client waits for it, and yields the connection without TLS. The
/// handshake goes on meanwhile; until `deadline` it must be over, or there is the end of the stream. So there is
/// when the peer ends, in order or not, and the peer hears of the end when whoever has the connection ends it.
/// Who ends it before the handshake is over has said nothing to anybody.
/// `held` is dropped when all of it is over, which may be ten seconds after that, since the peer is to get what was said
/// to it; whoever cannot wait so long has the [`Leash`].
pub fn server(
    socket: Socket,
    config: &ServerConfig,
    deadline: Deadline,
    held: impl Send + 'static,
) -> io::Result<(Socket, Leash)> {
    let (inner, theirs) = Socket::pair()?;
    let tls = rustls::ServerConnection::new(config.current()).map_err(io::Error::other)?;
    let failures = config.failures.clone();
    let socket = Arc::new(socket);
    let leash = Leash(Arc::downgrade(&socket));
    spawn(held, failures, move || {
        let mut carrier = Carrier::new(tls.into(), socket, inner);
        carrier.shake_hands(deadline)?;
        carrier.carry()
    })?;
    Ok((theirs, leash))
}

/// By which what carries a connection can be ended.
#[derive(Clone, Debug)]
pub struct Leash(Weak<Socket>);

impl Leash {
    /// Ends the connection to the peer, whatever it has not got yet. To be called when nobody has the other one any more:
    /// then what carries it ends at once.
    pub fn cut(&self) {
        if let Some(peer) = self.0.upgrade() {
            peer.end();
        }
    }

    /// Whether it has ended, or is about to drop what it held.
    pub fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Begins TLS as the client on a connection to a server that has acknowledged STARTTLS, and yields the connection
/// without TLS when the server has proved that it is `name`: a host's name or address. Waits until the deadline at most.
pub fn client(socket: Socket, config: &ClientConfig, name: &str, deadline: Deadline) -> Result<Socket> {
    let what = || format!("cannot use TLS with {name}");
    let server = ServerName::try_from(name.to_owned()).map_err(|_| {
        Error::invalid(what(), "it is neither the name nor the address of a host")
            .cure("give tls-hostname=NAME, a name that the server's certificate has")
    })?;
    let tls = rustls::ClientConnection::new(config.config.clone(), server)
        .map_err(|error| Failure::Tls(error).error(what()))?;
    let (inner, ours) = Socket::pair().map_err(|error| Error::system(what(), error))?;
    let mut carrier = Carrier::new(tls.into(), Arc::new(socket), inner);
    carrier.shake_hands(deadline).map_err(|failure| failure.error(what()))?;
    spawn((), config.failures.clone(), move || carrier.carry())
        .map_err(|error| Error::system(what(), error))?;
    Ok(ours)
}

fn spawn(
    held: impl Send + 'static,
    failures: Failures,
    body: impl FnOnce() -> std::result::Result<(), Failure> + Send + 'static,
) -> io::Result<()> {
    thread::spawn("tls".into(), move || {
        // What is carried may be a disk's, which this machine writes to in order to find memory.
        let _ = thread::become_io_flusher();
        if let Err(failure) = body() {
            failures.note(&failure);
        }
        drop(held);
    })
    .map(drop)
}

/// The error for credentials that cannot be used.
fn unusable(what: String, why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, what, why)
}

#[cfg(test)]
mod tests;
