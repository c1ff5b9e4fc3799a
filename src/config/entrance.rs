//! The `[nbd]` of the file of `up`: where NBD clients come in, and how.

use std::path::PathBuf;

use super::file::At;
use super::keys::{NBD, names};
use super::nearest::suggestion;
use super::section::{Document, Placed, Section};
use crate::error::Result;

/// Most connections that may be allowed.
const MAX_CONNECTIONS: u16 = 1024;

/// Longest path of a Unix socket, its final NUL included.
const MAX_SOCKET_PATH: usize = 108;

/// The mode of a Unix socket that only its owner can connect to.
pub const UNIX_MODE: &str = "0600";

/// What clients are told of TLS.
const WHEN_TLS: &[&str] = &["off", "on", "required"];

/// The `[nbd]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nbd {
    /// Where clients connect.
    pub listen: Vec<At<Listen>>,
    /// Also where other machines can.
    pub insecure_listen: bool,
    /// The mode of sockets in the file system.
    pub unix_mode: u32,
    /// Connections at once, to all exports together.
    pub max_connections: u16,
    /// Whether connections are encrypted.
    pub tls: Tls,
    /// The folder of certificates and keys, and where it stands in the file.
    pub tls_certificates: Option<At<PathBuf>>,
    /// Clients need a certificate.
    pub tls_verify_peer: bool,
}

/// Whether connections are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// They are not.
    #[default]
    Off,
    /// They are where the client asks for it.
    On,
    /// They are, and nobody is served without.
    Required,
}

impl Default for Nbd {
    fn default() -> Nbd {
        Nbd {
            listen: Vec::new(),
            insecure_listen: false,
            unix_mode: 0o600,
            max_connections: 64,
            tls: Tls::Off,
            tls_certificates: None,
            tls_verify_peer: false,
        }
    }
}

/// Where NBD clients connect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listen {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port.
    Tcp {
        /// A name or an address.
        host: String,
        /// Its number.
        port: u16,
    },
    /// A port for virtual machines, or for the host of this one.
    Vsock(Vsock),
    /// A socket that a service manager has passed on, by its name.
    Inherited(String),
}

/// A port of vsock(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vsock {
    /// The context, u32::MAX where it may be any of this machine's.
    pub context: u32,
    /// Its number.
    pub port: u32,
}

/// `PORT`, or `CONTEXT:PORT`.
pub fn vsock(text: &str) -> std::result::Result<Vsock, &'static str> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number != u32::MAX);
    let (context, port) = match text.split_once(':') {
        None => (Some(u32::MAX), number(text)),
        Some((context, port)) => (number(context), number(port)),
    };
    match (context, port) {
        (Some(context), Some(port)) => Ok(Vsock { context, port }),
        (None, _) => Err("the context of a virtual machine is a number"),
        (_, None) => Err("a port of vsock is a number"),
    }
}

/// A mode in octal, such as `0660`. The owner can always connect.
pub fn unix_mode(text: &str) -> std::result::Result<u32, &'static str> {
    let mode = u32::from_str_radix(text, 8).map_err(|_| "a mode is an octal number")?;
    match mode {
        mode if mode & !0o777 != 0 => Err("a mode has three octal digits"),
        mode if mode & 0o600 != 0o600 => Err("the owner of a socket must be able to read and write"),
        mode => Ok(mode),
    }
}

/// Reads the table.
pub(super) fn read(nbd: &Section<'_>) -> Result<Nbd> {
    let document = nbd.document;
    nbd.only(&names(NBD))?;
    let mut read = Nbd::default();
    for text in nbd.texts("listen", "[\"unix:/run/blockhaus/nbd.sock\"]")? {
        read.listen.push(At { line: document.line(text.at), part: listen(document, text)? });
    }
    read.insecure_listen = nbd.flag("insecure-listen")?.unwrap_or(false);
    if let Some(text) = nbd.text("unix-mode", "\"0660\"")? {
        read.unix_mode = unix_mode(text.value).map_err(|why| {
            document.error(text.at, format!("unix-mode: {why}")).cure("write unix-mode = \"0660\"")
        })?;
    }
    if let Some(number) = nbd.number("max-connections", "64")? {
        let allowed = u16::try_from(number.value).ok().filter(|n| (1..=MAX_CONNECTIONS).contains(n));
        read.max_connections = allowed.ok_or_else(|| {
            let why = format!("max-connections is {}, and 1 to {MAX_CONNECTIONS} can be", number.value);
            document.error(number.at, why).cure("write max-connections = 64")
        })?;
    }
    if let Some(folder) = nbd.text("tls-certificates", "\"/etc/blockhaus/tls\"")? {
        let line = document.line(folder.at);
        read.tls_certificates = Some(At { line, part: folder.value.into() });
    }
    read.tls_verify_peer = nbd.flag("tls-verify-peer")?.unwrap_or(false);
    let when = nbd.text("tls", "\"required\"")?;
    if let Some(when) = &when {
        read.tls = match when.value {
            "off" => Tls::Off,
            "on" => Tls::On,
            "required" | "require" => Tls::Required,
            other => {
                let why = format!("tls cannot be {other:?}");
                let cure = suggestion("it is one of", other, WHEN_TLS);
                return Err(document.error(when.at, why).cure(cure));
            }
        };
    }
    match (read.tls, &read.tls_certificates, read.tls_verify_peer) {
        (Tls::Off, Some(folder), _) => {
            let at = nbd.get("tls-certificates").map_or(nbd.at, |value| value.span().start);
            let why = format!("there are certificates in {}, and TLS is off", folder.part.display());
            Err(document
                .error(at, why)
                .cure("write tls = \"required\", or tls = \"on\" to serve who does not ask for it, too"))
        }
        (Tls::Off, None, true) => {
            let at = nbd.get("tls-verify-peer").map_or(nbd.at, |value| value.span().start);
            Err(document
                .error(at, "clients are to have a certificate, and TLS is off")
                .cure("write tls = \"required\""))
        }
        (Tls::On, Some(_), true) => {
            let at = nbd.get("tls-verify-peer").map_or(nbd.at, |value| value.span().start);
            let why = "clients are to have a certificate, and who does not ask for TLS shows none";
            Err(document.error(at, why).cure("write tls = \"required\""))
        }
        (Tls::On | Tls::Required, None, _) => {
            let at = when.map_or(nbd.at, |when| when.at);
            Err(document
                .error(at, "TLS needs certificates")
                .cure("add tls-certificates = \"FOLDER\", with server-cert.pem and server-key.pem in it"))
        }
        _ => Ok(read),
    }
}

fn listen(document: Document<'_>, text: Placed<&str>) -> Result<Listen> {
    let wrong = |why: &str| {
        document.error(text.at, format!("cannot listen at {:?}: {why}", text.value)).cure(
            "write unix:PATH, tcp:HOST:PORT, vsock:PORT or fd:NAME, for example unix:/run/blockhaus/nbd.sock or \
             tcp:[::1]:10809",
        )
    };
    match text.value.split_once(':') {
        Some(("unix", "")) => Err(wrong("there is no path")),
        Some(("unix", path)) if path.len() >= MAX_SOCKET_PATH => {
            Err(wrong(&format!("the path of a socket has at most {} bytes", MAX_SOCKET_PATH - 1)))
        }
        Some(("unix", path)) if path.contains('\0') => Err(wrong("the path contains a NUL byte")),
        Some(("unix", path)) => Ok(Listen::Unix(path.into())),
        Some(("tcp", address)) => {
            let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("there is no port"))?;
            let port = port.parse().ok().filter(|port| *port != 0);
            let port = port.ok_or_else(|| wrong("a port is a number from 1 to 65535"))?;
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            match host.is_empty() || host.chars().any(|c| c.is_control() || c.is_whitespace()) {
                true => Err(wrong("there is no name or address of a host")),
                false => Ok(Listen::Tcp { host: host.to_owned(), port }),
            }
        }
        Some(("vsock", numbers)) => vsock(numbers).map(Listen::Vsock).map_err(wrong),
        Some(("fd", "")) => Err(wrong("there is no name of a socket")),
        Some(("fd", name)) => Ok(Listen::Inherited(name.to_owned())),
        _ => Err(wrong("it is neither a Unix socket nor a port nor a socket that was passed on")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::{Config, parse};
    use super::super::limits::Limits;
    use super::*;

    const EXPORT: &str = "[[export]]\nname = \"a\"\nspec = \"ram:1M\"\n[nbd]\nlisten = [\"unix:/a\"]\n";

    fn read(more: &str) -> Result<Config> {
        parse("x.toml", &format!("{EXPORT}{more}\n"), &Limits { cpus: 4, page_size: 4096 })
    }

    #[test]
    fn every_key_of_tls_has_its_place() {
        let nbd = read("tls = \"required\"\ntls-certificates = \"/etc/tls\"\ntls-verify-peer = true\nunix-mode = \"660\"").unwrap().nbd;
        assert_eq!((nbd.tls, nbd.tls_verify_peer, nbd.unix_mode), (Tls::Required, true, 0o660));
        assert_eq!(nbd.tls_certificates, Some(At { line: 7, part: "/etc/tls".into() }));
        let plain = read("").unwrap().nbd;
        assert_eq!((plain.tls, plain.unix_mode), (Tls::Off, 0o600));
    }

    #[test]
    fn what_does_not_go_together_is_said_with_its_line() {
        for (more, said) in [
            ("tls = \"on\"", &["line 6", "tls-certificates"][..]),
            ("tls = \"requierd\"\ntls-certificates = \"x\"", &["line 6", "did you mean required?"]),
            ("tls-certificates = \"x\"", &["line 6", "TLS is off", "tls = \"required\""]),
            ("tls-verify-peer = true", &["line 6", "TLS is off"]),
            (
                "tls = \"on\"\ntls-certificates = \"x\"\ntls-verify-peer = true",
                &["line 8", "shows none", "tls = \"required\""],
            ),
            ("tls = true", &["line 6", "text in quotes"]),
            ("unix-mode = \"0066\"", &["line 6", "the owner"]),
            ("unix-mode = \"1777\"", &["line 6", "three octal digits"]),
            ("unix-mode = \"rw\"", &["line 6", "octal"]),
            ("unix-mode = 660", &["line 6", "text in quotes"]),
        ] {
            let error = read(more).unwrap_err().to_string();
            assert!(said.iter().all(|part| error.contains(part)), "{more}: {error}");
        }
    }

    #[test]
    fn ports_of_virtual_machines() {
        assert_eq!(vsock("10809"), Ok(Vsock { context: u32::MAX, port: 10809 }));
        assert_eq!(vsock("3:1"), Ok(Vsock { context: 3, port: 1 }));
        for wrong in ["", ":", "a", "1:", ":1", "1:2:3", "-1", "4294967295", "4294967296:1"] {
            assert!(vsock(wrong).is_err(), "{wrong}");
        }
    }
}
