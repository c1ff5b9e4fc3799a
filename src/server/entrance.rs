//! Where NBD clients come in: addresses, sockets that were passed on, standard input and output, and whether what goes
//! through them is encrypted.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use super::log;
use crate::engine::nbd::Encryption;
use crate::error::{Error, Kind, Result};
use crate::nbd::handshake::TlsPolicy;
use crate::nbd::uri;
use crate::port::clock::{Deadline, Duration};
use crate::port::inherited::{AtStandard, Inherited, Passed};
use crate::port::stream::{Listener, Place, Socket};
use crate::tls::ServerConfig;

/// The context of vsock(7) that reaches nobody but this machine (VMADDR_CID_LOCAL).
const OWN_CONTEXT: u32 = 1;

/// Any context, or any port (VMADDR_CID_ANY).
pub const ANY: u32 = u32::MAX;

/// Where clients come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// An address of this machine; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// A port for virtual machines, or for the host of this one; either number may be [`ANY`].
    Vsock {
        /// Of the machine that listens.
        context: u32,
        /// Its number.
        port: u32,
    },
    /// The sockets of this name that a service manager has passed on.
    Inherited(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp:{address}"),
            Address::Vsock { context: ANY, port } => write!(f, "vsock:{port}"),
            Address::Vsock { context, port } => write!(f, "vsock:{context}:{port}"),
            Address::Inherited(name) => write!(f, "fd:{name}"),
        }
    }
}

impl Address {
    /// Whether other machines can connect there, too, virtual ones among them. Of what is passed on nobody knows before
    /// it is there.
    pub fn is_reachable(&self) -> bool {
        match self {
            // IPv4 by a socket of IPv6, too.
            Address::Tcp(socket) => !socket.ip().to_canonical().is_loopback(),
            Address::Vsock { context, .. } => *context != OWN_CONTEXT,
            Address::Unix(_) | Address::Inherited(_) => false,
        }
    }
}

/// How clients come in.
#[derive(Debug)]
pub struct Entrance {
    /// Where they connect.
    pub addresses: Vec<Address>,
    /// Also where other machines can, although nothing need be encrypted.
    pub insecure: bool,
    /// Who may connect to sockets in the file system: their mode.
    pub unix_mode: u32,
    /// What a service manager has passed on.
    pub inherited: Vec<Inherited>,
    /// The one client that is there already.
    pub at_standard: Option<AtStandard>,
    /// Whether they can or must use TLS.
    pub encryption: Encryption,
    /// Connections at once, to all exports together.
    pub max_connections: u16,
}

/// What came of it.
pub(super) struct Entered {
    pub(super) listeners: Vec<Listener>,
    /// Clients that are there already.
    pub(super) connections: Vec<Socket>,
    /// Where that is, with the ports that the kernel chose.
    pub(super) addresses: Vec<Address>,
    /// Whether what was said to the client at standard output has been passed on.
    pub(super) all_said: Box<dyn Fn() -> bool + Send>,
}

/// How often the log says that TLS has ended connections, at most: strangers can make it do so at any rate.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Says in the log why clients do not come in.
#[derive(Default)]
pub(super) struct Refusals {
    said: u64,
    again: Option<Deadline>,
}

impl Refusals {
    /// Looks whether there are more of them.
    pub(super) fn look(&mut self, encryption: &Encryption) {
        let Some(failures) = encryption.config().map(ServerConfig::failures) else { return };
        let count = failures.count();
        if count == self.said || self.again.is_some_and(|again| !again.passed()) {
            return;
        }
        let more = count - self.said;
        (self.said, self.again) = (count, Some(Deadline::after(SAY_EVERY)));
        if let Some(last) = failures.last() {
            log(&match more {
                1 => format!("a client did not come in: {last}"),
                more => format!("{more} clients did not come in, the last one: {last}"),
            });
        }
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
    refused_at(format!("refusing to listen on {address}"))
        .cure(format!("listen on 127.0.0.1 or a Unix socket, or {insist}"))
}

fn refused_at(what: String) -> Error {
    Error::invalid(what, "other machines can reach it, and nothing is encrypted")
}

/// Refuses a client that is there already and may have come from another machine, where nothing need be encrypted.
fn safe(client: &Socket) -> Result<()> {
    let place = client.place().map_err(|error| Error::system("cannot tell where a client came in", error))?;
    match of_place(place).filter(Address::is_reachable) {
        Some(address) => Err(refused_at(format!("refusing to serve the client that has come to {address}"))
            .cure("require TLS, or say --insecure-listen (in a file insecure-listen = true) if you mean it")),
        None => Ok(()),
    }
}

/// Listens everywhere.
pub(super) fn enter(entrance: Entrance) -> Result<Entered> {
    let Entrance { addresses, insecure, unix_mode, mut inherited, at_standard, encryption, .. } = entrance;
    let insecure = insecure || encryption.policy() == TlsPolicy::Required;
    let (mut listeners, mut connections, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for address in addresses {
        let Address::Inherited(name) = &address else {
            let listener = listen_at(&address, unix_mode)?;
            places.extend(place(&listener, &address)?);
            listeners.push(listener);
            continue;
        };
        let ours: Vec<Inherited> = inherited.extract_if(.., |passed| passed.name == *name).collect();
        if ours.is_empty() {
            return Err(not_passed(name, &inherited));
        }
        for Inherited { socket, .. } in ours {
            match socket {
                Passed::Connection(socket) => connections.push(socket),
                Passed::Listener(listener) => {
                    let place = place(&listener, &address)?;
                    if let Some(place) = place.as_ref().filter(|place| !insecure && place.is_reachable()) {
                        let insist = "require TLS, or insist as you would for an address of your own";
                        return Err(refused(place, insist));
                    }
                    places.extend(place);
                    listeners.push(listener);
                }
            }
        }
    }
    let mut all_said: Box<dyn Fn() -> bool + Send> = Box::new(|| true);
    if let Some(at_standard) = at_standard {
        let (socket, said) = at_standard.split();
        connections.push(socket);
        all_said = Box::new(said);
    }
    if !insecure {
        connections.iter().try_for_each(safe)?;
    }
    Ok(Entered { listeners, connections, addresses: places, all_said })
}

fn not_passed(name: &str, others: &[Inherited]) -> Error {
    let others: Vec<&str> = others.iter().map(|other| other.name.as_str()).collect();
    let why = match others.is_empty() {
        true => "no socket was passed to this process (LISTEN_FDS)".to_owned(),
        false => format!("the sockets that are left of those passed on are called {}", others.join(", ")),
    };
    Error::new(Kind::NotFound, format!("cannot listen on fd:{name}"), why)
        .cure("name a socket of the service manager (FileDescriptorName= of a systemd socket unit)")
}

/// Where a listener really is.
fn place(listener: &Listener, address: &Address) -> Result<Option<Address>> {
    let place =
        listener.place().map_err(|error| Error::system(format!("cannot listen on {address}"), error))?;
    Ok(of_place(place))
}

/// None where it has no name.
fn of_place(place: Place) -> Option<Address> {
    match place {
        Place::Unix(path) => path.map(Address::Unix),
        Place::Tcp(address) => Some(Address::Tcp(address)),
        Place::Vsock(context, port) => Some(Address::Vsock { context, port }),
    }
}

/// What clients are given to connect to an export, one for each address.
pub(super) fn uris(addresses: &[Address], policy: TlsPolicy, name: &str) -> Vec<String> {
    let uri = |address: &Address| match address {
        Address::Unix(path) => Some(uri::unix(path, name)),
        Address::Tcp(address) => Some(uri::tcp(*address, name)),
        // One's own machine is the one that every client can be on.
        Address::Vsock { context: ANY, port } => Some(uri::vsock(OWN_CONTEXT, *port, name)),
        Address::Vsock { context, port } => Some(uri::vsock(*context, *port, name)),
        Address::Inherited(_) => None,
    };
    let secure = |uri: String| match policy {
        TlsPolicy::Required => uri::with_tls(&uri),
        TlsPolicy::Off | TlsPolicy::Offered => uri,
    };
    addresses.iter().filter_map(uri).map(secure).collect()
}

fn listen_at(address: &Address, unix_mode: u32) -> Result<Listener> {
    use std::io::ErrorKind;
    let what = || format!("cannot listen on {address}");
    let listener = match address {
        Address::Unix(path) => Listener::unix_for(path, unix_mode),
        Address::Tcp(address) => Listener::tcp(*address),
        Address::Vsock { context, port } => Listener::vsock(*context, *port),
        Address::Inherited(_) => Err(ErrorKind::Unsupported.into()),
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
        (_, Address::Vsock { .. }) => Error::system(what(), error)
            .cure("the kernel must have vsock (modprobe vsock_loopback, or a virtual machine's), and the context be this machine's"),
        (_, _) => Error::system(what(), error).cure("the address must be one of this machine's"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_must_use_tls_is_told_so_by_the_address() {
        let addresses = [
            Address::Unix("/run/a.sock".into()),
            Address::Tcp("127.0.0.1:10809".parse().unwrap()),
            Address::Vsock { context: ANY, port: 10809 },
            Address::Vsock { context: 3, port: 99 },
        ];
        let clear = [
            "nbd+unix:///d?socket=/run/a.sock",
            "nbd://127.0.0.1/d",
            "nbd+vsock://1/d",
            "nbd+vsock://3:99/d",
        ];
        assert_eq!(uris(&addresses, TlsPolicy::Off, "d"), clear);
        assert_eq!(uris(&addresses, TlsPolicy::Offered, "d"), clear);
        let secure = clear.map(|uri| uri.replacen("nbd", "nbds", 1));
        assert_eq!(uris(&addresses, TlsPolicy::Required, "d"), secure);
    }

    /// The side of a connection that is served says where its client came in, whoever accepted it.
    #[test]
    fn a_client_that_is_there_already_is_asked_where_it_came_in() {
        let listener =
            std::net::TcpListener::bind("[::]:0").or_else(|_| std::net::TcpListener::bind("0.0.0.0:0"));
        let listener = listener.unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(safe(&Socket::Tcp(listener.accept().unwrap().0)).is_ok());
        assert!(safe(&Socket::pair().unwrap().0).is_ok());
        for (address, is_reachable) in [
            ("127.0.0.1:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("[::ffff:192.0.2.1]:1", true),
            ("192.0.2.1:1", true),
            ("[2001:db8::1]:1", true),
        ] {
            let address = of_place(Place::Tcp(address.parse().unwrap())).unwrap();
            assert_eq!(address.is_reachable(), is_reachable, "{address}");
        }
        for (context, is_reachable) in [(OWN_CONTEXT, false), (2, true), (3, true)] {
            assert_eq!(of_place(Place::Vsock(context, 1)).unwrap().is_reachable(), is_reachable);
        }
    }

    #[test]
    fn what_was_passed_on_and_can_be_reached_needs_somebody_to_insist() {
        let passed = |address: &str| Inherited {
            name: "nbd".into(),
            socket: Passed::Listener(Listener::tcp(address.parse().unwrap()).unwrap()),
        };
        let entrance = |inherited, name: &str, insecure| Entrance {
            addresses: vec![Address::Inherited(name.into())],
            insecure,
            unix_mode: 0o600,
            inherited,
            at_standard: None,
            encryption: Encryption::Off,
            max_connections: 1,
        };
        let entered = |entrance| enter(entrance).map(|entered| entered.addresses);
        let error = entered(entrance(vec![passed("0.0.0.0:0")], "nbd", false)).unwrap_err().to_string();
        assert!(error.contains("refusing") && error.contains("require TLS"), "{error}");
        assert_eq!(entered(entrance(vec![passed("0.0.0.0:0")], "nbd", true)).unwrap().len(), 1);
        let two = vec![passed("127.0.0.1:0"), passed("127.0.0.1:0")];
        assert_eq!(entered(entrance(two, "nbd", false)).unwrap().len(), 2);
        let error = entered(entrance(vec![passed("127.0.0.1:0")], "other", false)).unwrap_err().to_string();
        assert!(error.contains("called nbd"), "{error}");
        let error = entered(entrance(vec![], "other", false)).unwrap_err().to_string();
        assert!(error.contains("LISTEN_FDS"), "{error}");
    }
}
