//! The main thread of a process that serves exports: it listens, waits for a signal, and ends it all
//! in order.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde::Serialize;

use super::{abandon, log};
use crate::engine::nbd::{Offer, Options, Server};
use crate::error::{Error, Kind, Result};
use crate::nbd::{Export, ExportFlags, uri};
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

/// What is to be served, and where.
#[derive(Debug)]
pub struct Plan {
    /// The exports, the default one first.
    pub offers: Vec<Offer>,
    /// The addresses, at least one.
    pub addresses: Vec<Address>,
    /// What the engine is asked for.
    pub options: Options,
}

/// What is said when clients can connect.
#[derive(Clone, Debug, Serialize)]
pub struct Ready {
    /// The process that serves.
    pub pid: i32,
    /// Every export.
    pub exports: Vec<Offered>,
}

/// An export, as said.
#[derive(Clone, Debug, Serialize)]
pub struct Offered {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Smallest unit in bytes.
    pub block_size: u32,
    /// Nothing can be written.
    pub read_only: bool,
    /// What a client is given to connect to it, one for each address.
    pub uris: Vec<String>,
    /// What was chosen when it was opened, and why.
    pub notes: Vec<String>,
}

/// Serves until a signal ends it. `signals` were blocked before any thread was made; `ready` is called
/// once, when clients can connect, and ends it all again when it fails.
pub fn run(plan: Plan, mut signals: Signals, ready: &mut dyn FnMut(&Ready) -> Result<()>) -> Result<()> {
    let _guard = thread::AbortOnPanic;
    let listeners = plan.addresses.iter().map(listen).collect::<Result<Vec<_>>>()?;
    // With the ports that the kernel chose.
    let addresses: Vec<Address> = listeners
        .iter()
        .zip(plan.addresses)
        .map(|(listener, address)| listener.address().map_or(address, Address::Tcp))
        .collect();
    let notes: Vec<Vec<String>> = plan.offers.iter().map(|offer| offer.stack.notes()).collect();
    let mut server = Server::start(plan.offers, listeners, &plan.options)?;
    let exports = server.exports().iter().zip(notes);
    let exports = exports.map(|(export, notes)| offered(export, &addresses, notes)).collect();
    if let Err(error) = ready(&Ready { pid: process::own_pid(), exports }) {
        // Its error is the first.
        let _ = server.finish();
        return Err(error);
    }
    let failure = loop {
        socket::poll(&[(signals.as_fd(), false)], LOOK_EVERY)
            .map_err(|error| Error::system("cannot wait for signals", error))?;
        if let Some(signal) = signals.take() {
            log(&format!("{}: ending with {} connections", signal.name(), server.connections()));
            break None;
        }
        if let Some(failure) = server.failure() {
            log(&format!("a queue has failed: {failure}"));
            break Some(Error::new(Kind::Failed, "a queue has failed", failure));
        }
    };
    drain(&mut server, &mut signals);
    let result = server.finish();
    failure.map_or(result, Err)
}

/// Lets clients have the replies to what they asked, for a while.
fn drain(server: &mut Server, signals: &mut Signals) {
    server.close(false);
    let deadline = Deadline::after(DRAIN);
    while !deadline.at_most(LOOK_EVERY).wait_until(|| server.has_ended()) {
        if let Some(signal) = signals.take() {
            abandon(signal);
        }
        if deadline.passed() {
            log("some clients do not take their replies: cutting them off");
            return;
        }
    }
}

fn offered(export: &Export, addresses: &[Address], notes: Vec<String>) -> Offered {
    let uri = |address: &Address| match address {
        Address::Unix(path) => uri::unix(path, &export.name),
        Address::Tcp(address) => uri::tcp(*address, &export.name),
    };
    Offered {
        name: export.name.clone(),
        size: export.size,
        block_size: export.block.minimum,
        read_only: export.flags.contains(ExportFlags::READ_ONLY),
        uris: addresses.iter().map(uri).collect(),
        notes,
    }
}

fn listen(address: &Address) -> Result<Listener> {
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
