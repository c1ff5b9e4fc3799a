//! The main thread of a process that serves exports: it listens, waits for a signal, and ends it all
//! in order.

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde::Serialize;

use super::{abandon, log};
use crate::engine::nbd::{Catalogue, Exported, Offer, Options, Report, Server};
use crate::error::{Error, Kind, Result};
use crate::nbd::uri;
use crate::port::clock::{Deadline, Duration};
use crate::port::signal::Signals;
use crate::port::stream::Listener;
use crate::port::{process, socket, thread};

/// How often the main thread looks whether a queue has failed or has ended.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long clients have to take the replies to what they asked before the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Where clients come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// An address of this machine; port 0 lets the kernel choose.
    Tcp(SocketAddr),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl Address {
    /// Whether other machines can connect there, too.
    pub fn is_reachable(&self) -> bool {
        matches!(self, Address::Tcp(socket) if !socket.ip().is_loopback())
    }
}

/// The first address of a host's name, or of its number.
pub fn resolve(host: &str, port: u16) -> std::io::Result<SocketAddr> {
    let mut found = (host, port).to_socket_addrs()?;
    found.next().ok_or_else(|| std::io::Error::other("the name has no address"))
}

/// The error for an address that other machines can reach; `insist` is how one says that this is
/// meant.
pub fn refused(address: &Address, insist: &str) -> Error {
    let why = "other machines can reach it, and nothing is encrypted";
    Error::invalid(format!("refusing to listen on {address}"), why)
        .cure(format!("listen on 127.0.0.1 or a Unix socket, or {insist}"))
}

/// What is to be served, and where.
#[derive(Debug)]
pub struct Plan {
    /// The exports, the default one first.
    pub offers: Vec<Offer>,
    /// The addresses, at least one.
    pub addresses: Vec<Address>,
    /// What the engine is asked for, for each export.
    pub options: Options,
    /// Connections at once, to all exports together.
    pub max_connections: u16,
}

/// What is said when clients can connect.
#[derive(Clone, Debug, Serialize)]
pub struct Ready {
    /// The process that serves.
    pub pid: i32,
    /// Every export.
    pub exports: Vec<Report>,
}

/// Serves until a signal ends it. `signals` were blocked before any thread was made; `ready` is called
/// once, when clients can connect, and ends it all again when it fails.
pub fn run(plan: Plan, mut signals: Signals, ready: &mut dyn FnMut(&Ready) -> Result<()>) -> Result<()> {
    let _guard = thread::AbortOnPanic;
    let (listeners, addresses) = listen(&plan.addresses)?;
    let catalogue = Catalogue::new(plan.max_connections);
    let start = |offer| Exported::start(&catalogue, offer, &plan.options);
    let exports = plan.offers.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut server = Server::open(&catalogue, listeners)?;
    exports.iter().for_each(Exported::started);
    let reports = exports.iter().map(|export| export.report(uris(&addresses, &export.export().name)));
    ready(&Ready { pid: process::own_pid(), exports: reports.collect() })?;
    let failure = loop {
        socket::poll(&[(signals.as_fd(), false)], LOOK_EVERY)
            .map_err(|error| Error::system("cannot wait for signals", error))?;
        if let Some(signal) = signals.take() {
            log(&format!("{}: ending with {} connections", signal.name(), catalogue.connections()));
            break None;
        }
        if let Some(failure) = exports.iter().find_map(Exported::failure) {
            log(&format!("a queue has failed: {failure}"));
            break Some(Error::new(Kind::Failed, "a queue has failed", failure));
        }
    };
    server.close();
    drain(&exports, &mut signals);
    let mut result = Ok(());
    for export in exports {
        result = result.and(export.finish());
    }
    failure.map_or(result, Err)
}

/// Lets clients have the replies to what they asked, for a while.
fn drain(exports: &[Exported], signals: &mut Signals) {
    exports.iter().for_each(|export| export.close(false));
    let deadline = Deadline::after(DRAIN);
    let all_ended = || exports.iter().all(Exported::has_ended);
    while !deadline.at_most(LOOK_EVERY).wait_until(all_ended) {
        if let Some(signal) = signals.take() {
            abandon(signal);
        }
        if deadline.passed() {
            log("some clients do not take their replies: cutting them off");
            return;
        }
    }
}

/// What clients are given to connect to an export, one for each address.
pub(super) fn uris(addresses: &[Address], name: &str) -> Vec<String> {
    let uri = |address: &Address| match address {
        Address::Unix(path) => uri::unix(path, name),
        Address::Tcp(address) => uri::tcp(*address, name),
    };
    addresses.iter().map(uri).collect()
}

/// Listens at all of them, and says where that is, with the ports that the kernel chose.
pub(super) fn listen(addresses: &[Address]) -> Result<(Vec<Listener>, Vec<Address>)> {
    let listeners = addresses.iter().map(listen_at).collect::<Result<Vec<_>>>()?;
    let with_port = |(listener, address): (&Listener, &Address)| {
        listener.address().map_or_else(|| address.clone(), Address::Tcp)
    };
    let addresses = listeners.iter().zip(addresses).map(with_port).collect();
    Ok((listeners, addresses))
}

fn listen_at(address: &Address) -> Result<Listener> {
    use std::io::ErrorKind;
    let what = || format!("cannot listen on {address}");
    let listener = match address {
        Address::Unix(path) => Listener::unix(path),
        Address::Tcp(address) => Listener::tcp(*address),
    };
    listener.map_err(|error| match (error.kind(), address) {
        (ErrorKind::AddrInUse, _) => {
            Error::new(Kind::Busy, what(), "somebody else listens there").cure("choose another address")
        }
        (ErrorKind::AlreadyExists, _) => {
            let why = "there is a file of another kind, which is not replaced";
            Error::new(Kind::Busy, what(), why).cure("choose another path")
        }
        (_, Address::Unix(_)) => Error::system(what(), error)
            .cure("the folder must be there, and the path is at most 100 bytes long"),
        (_, Address::Tcp(_)) => {
            Error::system(what(), error).cure("the address must be one of this machine's")
        }
    })
}
