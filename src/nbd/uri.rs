//! Addresses of exports as clients write them, by the NBD URI specification (`doc/uri.md` of the NBD project).

use std::ffi::OsString;
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::MAX_NAME;

/// The port that a client takes where none is named.
pub const DEFAULT_PORT: u16 = 10809;

/// The schemes that are understood.
pub const SCHEMES: [&str; 4] = ["nbd", "nbd+unix", "nbds", "nbds+unix"];

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// On a host, which is a name or a number, without the brackets of IPv6.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// On a socket of this machine. One whose path begins with a NUL byte has an abstract name.
    Unix(PathBuf),
}

/// What an address says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsWishes {
    /// `tls-type`: how the two sides show who they are: `anon`, `x509` or `psk`.
    pub kind: Option<String>,
    /// `tls-hostname`: the name that the server's certificate is to have.
    pub hostname: Option<String>,
    /// `tls-verify-peer`: whether the server is to show who it is. It is, unless this says no.
    pub verify_peer: Option<bool>,
    /// `tls-certificates`: a folder with certificates and keys, as libnbd has it.
    pub certificates: Option<PathBuf>,
    /// `tls-psk-file`: a file with keys that both sides know, as libnbd has it.
    pub psk_file: Option<PathBuf>,
    /// The user in front of the host, or `tls-username`.
    pub username: Option<String>,
}

/// An export, by its URI.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Where the server listens.
    pub place: Place,
    /// Name of the export; the empty one is the server's default.
    pub export: String,
    /// There where the connection must be encrypted (`nbds`, `nbds+unix`).
    pub tls: Option<TlsWishes>,
}

impl Address {
    /// Reads a URI; the error says what is wrong with it.
    pub fn parse(uri: &str) -> Result<Address, String> {
        if let Some(bad) = uri.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("a URI has no {bad:?} in it; write its bytes as %XX"));
        }
        let (scheme, rest) = uri.split_once("://").ok_or("there is no :// behind the scheme")?;
        let scheme = scheme.to_ascii_lowercase();
        if !SCHEMES.contains(&scheme.as_str()) {
            return Err(format!("the schemes are {}, and not {scheme}", SCHEMES.join(", ")));
        }
        if rest.contains('#') {
            return Err("an address of NBD has no fragment; write # as %23".into());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = text("the name of the export", path)?;
        if export.len() > MAX_NAME {
            return Err(format!("a name of an export has at most {MAX_NAME} bytes"));
        }
        if export.contains('\0') {
            return Err("a name of an export has no NUL byte".into());
        }
        let query = Query::parse(query)?;
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(text("the user", user)?), host),
            None => (None, authority),
        };
        let encrypted = scheme.starts_with("nbds");
        if !encrypted && query.tls != TlsWishes::default() {
            return Err("it says how to encrypt; write nbds instead of nbd, so that it must be".into());
        }
        let mut tls = query.tls;
        tls.username = user.or(tls.username);
        let place = match (scheme.ends_with("+unix"), query.socket) {
            (true, Some(socket)) if host.is_empty() => Place::Unix(socket),
            (true, Some(_)) => return Err(format!("a Unix socket has no host, and {host} is one")),
            (true, None) => return Err("it does not name the socket; write ?socket=/path".into()),
            (false, Some(_)) => return Err(format!("socket= is for {scheme}+unix")),
            (false, None) => host_and_port(host)?,
        };
        Ok(Address { place, export, tls: encrypted.then_some(tls) })
    }
}

impl fmt::Display for Address {
    /// As a URI, without what it says about TLS.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.tls.is_some() { "s" } else { "" };
        let export = escaped(self.export.as_bytes());
        match &self.place {
            Place::Unix(path) => {
                write!(f, "nbd{secure}+unix:///{export}?socket={}", escaped(path.as_os_str().as_bytes()))
            }
            Place::Tcp { host, port } => {
                let escaped_host = escaped(host.as_bytes());
                // Only a number of IPv6 has a colon in it. It may name an interface, behind a percent sign (RFC 6874).
                let host = match host.contains(':') {
                    true => format!("[{}]", escaped_host.replace("%3A", ":")),
                    false => escaped_host,
                };
                match *port {
                    DEFAULT_PORT => write!(f, "nbd{secure}://{host}/{export}"),
                    port => write!(f, "nbd{secure}://{host}:{port}/{export}"),
                }
            }
        }
    }
}

/// What may stand behind the question mark.
#[derive(Default)]
struct Query {
    socket: Option<PathBuf>,
    tls: TlsWishes,
}

impl Query {
    fn parse(query: &str) -> Result<Query, String> {
        let mut found = Query::default();
        let mut seen: Vec<&str> = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("{part} is not key=value"))?;
            if seen.contains(&key) {
                return Err(format!("{key}= is there twice"));
            }
            seen.push(key);
            let path = || decoded(value).map(|bytes| PathBuf::from(OsString::from_vec(bytes)));
            match key {
                "socket" if value.is_empty() => return Err("socket= names no socket".into()),
                "socket" => found.socket = Some(path()?),
                "tls-type" => found.tls.kind = Some(text(key, value)?),
                "tls-hostname" => found.tls.hostname = Some(text(key, value)?),
                "tls-verify-peer" => {
                    found.tls.verify_peer = Some(match value {
                        "0" | "false" => false,
                        "1" | "true" => true,
                        _ => return Err("tls-verify-peer= is 0 or 1".into()),
                    });
                }
                "tls-certificates" => found.tls.certificates = Some(path()?),
                "tls-psk-file" => found.tls.psk_file = Some(path()?),
                "tls-username" => found.tls.username = Some(text(key, value)?),
                _ => return Err(format!("there is no parameter {key}")),
            }
        }
        Ok(found)
    }
}

fn host_and_port(authority: &str) -> Result<Place, String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the bracket of an IPv6 address is not closed")?;
            if !host.contains(':') {
                return Err(format!("[{host}] is no IPv6 address"));
            }
            match port.strip_prefix(':') {
                None if !port.is_empty() => return Err(format!("{port} behind the host is no port")),
                port => (host, port),
            }
        }
        None => match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(format!("an IPv6 address stands in brackets: [{authority}]"));
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port.filter(|port| !port.is_empty()) {
        None => DEFAULT_PORT,
        Some(port) => match port.parse() {
            Ok(number) if number != 0 && port.bytes().all(|byte| byte.is_ascii_digit()) => number,
            _ => return Err(format!("{port} is not a port, a number from 1 to 65535")),
        },
    };
    let host = text("the host", host)?;
    if host.contains('\0') {
        return Err("a host has no NUL byte".into());
    }
    let host = if host.is_empty() { "localhost".into() } else { host };
    Ok(Place::Tcp { host, port })
}

/// Percent-decoded, as text.
fn text(what: &str, encoded: &str) -> Result<String, String> {
    String::from_utf8(decoded(encoded)?).map_err(|_| format!("{what} is not UTF-8"))
}

/// Percent-decoded (RFC 3986, 2.1). A plus is a plus.
fn decoded(encoded: &str) -> Result<Vec<u8>, String> {
    let mut bytes = encoded.bytes();
    let mut decoded = Vec::with_capacity(encoded.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        match (digit(), digit()) {
            (Some(high), Some(low)) => decoded.push((high * 16 + low) as u8),
            _ => return Err(format!("in {encoded} a % is not followed by two digits; write it as %25")),
        }
    }
    Ok(decoded)
}

/// `nbd+unix:///NAME?socket=PATH`.
pub fn unix(path: &Path, name: &str) -> String {
    format!("nbd+unix:///{}?socket={}", escaped(name.as_bytes()), escaped(path.as_os_str().as_bytes()))
}

/// `nbd://HOST:PORT/NAME`.
pub fn tcp(address: SocketAddr, name: &str) -> String {
    match address.port() {
        DEFAULT_PORT if address.is_ipv4() => format!("nbd://{}/{}", address.ip(), escaped(name.as_bytes())),
        _ => format!("nbd://{address}/{}", escaped(name.as_bytes())),
    }
}

/// `nbd+vsock://CONTEXT:PORT/NAME`.
pub fn vsock(context: u32, port: u32, name: &str) -> String {
    let name = escaped(name.as_bytes());
    match port {
        port if port == u32::from(DEFAULT_PORT) => format!("nbd+vsock://{context}/{name}"),
        port => format!("nbd+vsock://{context}:{port}/{name}"),
    }
}

/// The same place, for clients that must use TLS: `nbds`.
pub fn with_tls(uri: &str) -> String {
    uri.replacen("nbd", "nbds", 1)
}

/// With everything percent-encoded that could mean something else in a URI or to a shell.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(byte as char)
            }
            _ => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(uri: &str) -> (Place, String) {
        let address = Address::parse(uri).unwrap_or_else(|why| panic!("{uri}: {why}"));
        (address.place, address.export)
    }

    fn tcp_place(host: &str, port: u16) -> Place {
        Place::Tcp { host: host.into(), port }
    }

    #[test]
    fn read_as_the_specification_has_them() {
        assert_eq!(unix(Path::new("/run/a b.sock"), "d&é"), "nbd+unix:///d%26%C3%A9?socket=/run/a%20b.sock");
        assert_eq!(tcp("127.0.0.1:10809".parse().unwrap(), "disk"), "nbd://127.0.0.1/disk");
        assert_eq!(tcp("[::1]:99".parse().unwrap(), ""), "nbd://[::1]:99/");
    }

    /// The specification's own table, and its other examples.
    #[test]
    fn the_examples_of_the_specification() {
        let sock = || Place::Unix("sock".into());
        for (uri, expected) in [
            ("nbd://example.com/disk", (tcp_place("example.com", 10809), "disk")),
            ("nbd+unix:///disk?socket=sock", (sock(), "disk")),
            ("nbd://example.com/", (tcp_place("example.com", 10809), "")),
            ("nbd://example.com", (tcp_place("example.com", 10809), "")),
            ("nbd://example.com//disk", (tcp_place("example.com", 10809), "/disk")),
            ("nbd://example.com/hello%20world", (tcp_place("example.com", 10809), "hello world")),
            ("nbd://example.com:10810/export", (tcp_place("example.com", 10810), "export")),
            ("nbd+unix:///?socket=%00/abstract", (Place::Unix("\0/abstract".into()), "")),
            ("nbd://[::1]", (tcp_place("::1", 10809), "")),
            ("nbd://[fe80::1]:99/a/b", (tcp_place("fe80::1", 99), "a/b")),
            ("nbd://[fe80::1%25eth0]/", (tcp_place("fe80::1%eth0", 10809), "")),
            ("nbd://host:/x", (tcp_place("host", 10809), "x")),
            ("nbd://", (tcp_place("localhost", 10809), "")),
            ("NBD://h/+%2B", (tcp_place("h", 10809), "++")),
            ("nbd+unix://?socket=/run/x", (Place::Unix("/run/x".into()), "")),
        ] {
            let (expected_place, export) = expected;
            assert_eq!(place(uri), (expected_place, export.to_string()), "{uri}");
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (uri, why) in [
            ("nbd:host", "://"),
            ("http://host/", "schemes"),
            ("nbd+ssh://host/", "schemes"),
            ("nbd://host/a b", "%XX"),
            ("nbd://host/%zz", "%25"),
            ("nbd://host/%4", "%25"),
            ("nbd://host/%ff", "UTF-8"),
            ("nbd://host/%00", "NUL"),
            ("nbd://host:0/", "1 to 65535"),
            ("nbd://host:65536/", "1 to 65535"),
            ("nbd://host:+5/", "1 to 65535"),
            ("nbd://::1/", "brackets"),
            ("nbd://[::1/", "not closed"),
            ("nbd://[host]/", "IPv6"),
            ("nbd://[::1]99/", "no port"),
            ("nbd://host/x#y", "%23"),
            ("nbd://host/?socket=/x", "nbd+unix"),
            ("nbd+unix:///x", "?socket="),
            ("nbd+unix:///x?socket=", "names no socket"),
            ("nbd+unix://host/x?socket=/y", "no host"),
            ("nbd+unix:///?socket=/a&socket=/b", "twice"),
            ("nbd+unix:///?socket=/a&colour=red", "colour"),
            ("nbd+unix:///?socket=/a&x", "key=value"),
            ("nbd+unix:///?socket=/a&tls-hostname=h", "nbds"),
            ("nbds://h/?tls-verify-peer=maybe", "0 or 1"),
        ] {
            let said = Address::parse(uri).expect_err(uri);
            assert!(said.contains(why), "{uri}: {said}");
        }
    }

    #[test]
    fn what_is_said_about_tls_is_kept() {
        let uri = "nbds+unix://alice@/x?socket=/s&tls-certificates=/etc/c&tls-hostname=h&tls-verify-peer=0";
        let tls = Address::parse(uri).unwrap().tls.unwrap();
        assert_eq!((tls.username.as_deref(), tls.hostname.as_deref()), (Some("alice"), Some("h")));
        assert_eq!((tls.verify_peer, tls.certificates), (Some(false), Some("/etc/c".into())));
        assert_eq!(Address::parse("nbd://h/").unwrap().tls, None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(uri in ".*", rest in ".*") {
            let _ = Address::parse(&uri);
            let _ = Address::parse(&format!("nbd://{rest}"));
            let _ = Address::parse(&format!("nbd+unix:///{rest}"));
        }

        #[test]
        fn what_we_write_we_read(path in "[^\u{0}]{1,40}", name in "[^\u{0}]{0,40}", port in 1u16..) {
            let expected = (Place::Unix(PathBuf::from(&path)), name.clone());
            prop_assert_eq!(place(&unix(Path::new(&path), &name)), expected);
            for host in ["127.0.0.1", "::1"] {
                let address = SocketAddr::new(host.parse().unwrap(), port);
                prop_assert_eq!(place(&tcp(address, &name)), (tcp_place(host, port), name.clone()));
            }
        }

        #[test]
        fn an_address_reads_back_as_it_is_shown(host in "[a-z0-9.-]{1,20}", port in 1u16.., name in "[^\u{0}]{0,20}") {
            let scoped = format!("fe80::1%{host}");
            for place in
                [tcp_place(&host, port), tcp_place("::1", port), tcp_place(&scoped, port), Place::Unix(host.clone().into())]
            {
                for tls in [None, Some(TlsWishes::default())] {
                    let address = Address { place: place.clone(), export: name.clone(), tls };
                    prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
                }
            }
        }
    }
}
