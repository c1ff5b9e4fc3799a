//! How NBD clients come in, as `serve` takes it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::config::entrance::{self, UNIX_MODE, Vsock};
use crate::engine::nbd::Encryption;
use crate::error::{Error, Result};
use crate::nbd::handshake::TlsPolicy;
use crate::nbd::uri::DEFAULT_PORT;
use crate::port::inherited::{self, AtStandard, Inherited};
use crate::server::entrance::{Address, Entrance, refused, resolve};
use crate::tls::ServerConfig;

/// Whether what clients say and hear is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tls {
    /// It is not.
    Off,
    /// It is for clients that ask for it.
    On,
    /// It is, and nobody is served without.
    #[value(alias = "require")]
    Required,
}

#[derive(Debug, Args)]
// Its name would be that of the verb's own arguments.
#[group(skip)]
pub(super) struct Arguments {
    /// Where clients come to: unix:PATH, tcp:HOST:PORT, vsock:PORT, vsock:CONTEXT:PORT, or fd:NAME, a socket that a
    /// service manager has passed on under this name. May be given several times. Without it every socket that was
    /// passed on is taken (LISTEN_FDS), and nothing is printed.
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,

    /// Serve one client, at standard input and output, and end with it.
    #[arg(long, conflicts_with_all = ["listen", "json"])]
    stdio: bool,

    /// Who may connect to a Unix socket: its mode, in octal. Whoever may write to it may.
    #[arg(long, value_name = "MODE", default_value = UNIX_MODE)]
    unix_mode: String,

    /// Connections at once, to all exports together; one more is closed at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_connections: u16,

    /// Whether connections are encrypted: off, on (where the client asks for it) or required (nobody is served without).
    #[arg(long, value_enum, value_name = "WHEN", hide_possible_values = true, default_value = "off")]
    tls: Tls,

    /// The folder of the certificates: server-cert.pem, server-key.pem, and for --tls-verify-peer ca-cert.pem and
    /// ca-crl.pem (which need not be there).
    #[arg(long, value_name = "FOLDER")]
    tls_certificates: Option<PathBuf>,

    /// Serve only clients with a certificate that is signed by a CA in ca-cert.pem and not revoked by ca-crl.pem. Needs
    /// --tls required: who does not use TLS shows none.
    #[arg(long, requires = "tls_certificates")]
    tls_verify_peer: bool,

    /// Listen on addresses that other machines can reach, although nothing need be encrypted and nobody is asked for
    /// a password.
    #[arg(long)]
    insecure_listen: bool,
}

/// Takes what a service manager has passed on to this process. To be called before it opens anything.
pub(super) fn inherited() -> Result<Vec<Inherited>> {
    inherited::take().map_err(|error| {
        Error::system("cannot use the sockets of the service manager", error)
            .cure("it must pass on stream sockets of TCP, Unix or vsock")
    })
}

impl Arguments {
    /// Whether whoever started this process knows where clients come to.
    pub(super) fn is_known(&self) -> bool {
        self.stdio || self.listen.is_empty()
    }

    /// What the server is to do. Reads certificates.
    pub(super) fn entrance(&self, inherited: Vec<Inherited>) -> Result<Entrance> {
        let encryption = self.encryption()?;
        let mut addresses = self.listen.iter().map(|text| address(text)).collect::<Result<Vec<_>>>()?;
        let at_standard = self.stdio.then(AtStandard::take).transpose().map_err(|error| {
            Error::system("cannot serve a client at standard input and output", error)
                .cure("have a client start it, for example `nbdsh -c 'h.connect_command([\"blockhaus\", \"serve\", \"--stdio\", \"ram:1G\"])'`")
        })?;
        if self.is_known() && !self.stdio {
            for Inherited { name, .. } in &inherited {
                let address = Address::Inherited(name.clone());
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                return Err(Error::invalid("cannot serve", "there is nowhere to listen")
                    .cure("give --listen unix:/run/disk.sock or --listen tcp:127.0.0.1:10809"));
            }
        }
        if !self.insecure_listen && encryption.policy() != TlsPolicy::Required {
            addresses.iter().try_for_each(safe)?;
        }
        Ok(Entrance {
            addresses,
            insecure: self.insecure_listen,
            unix_mode: entrance::unix_mode(&self.unix_mode).map_err(|why| {
                Error::invalid(format!("cannot use --unix-mode {}", self.unix_mode), why)
                    .cure("give --unix-mode 0660")
            })?,
            inherited,
            at_standard,
            encryption,
            max_connections: self.max_connections,
        })
    }

    fn encryption(&self) -> Result<Encryption> {
        let read = |folder: &Path| ServerConfig::read(folder, self.tls_verify_peer);
        match (self.tls, &self.tls_certificates) {
            (Tls::Off, None) => Ok(Encryption::Off),
            (Tls::On, Some(_)) if self.tls_verify_peer => {
                let why = "clients are to have a certificate, and who does not ask for TLS shows none";
                Err(Error::invalid("cannot serve", why).cure("give --tls required"))
            }
            (Tls::On, Some(folder)) => read(folder).map(Encryption::Offered),
            (Tls::Required, Some(folder)) => read(folder).map(Encryption::Required),
            (Tls::Off, Some(_)) => {
                Err(Error::invalid("cannot serve", "there are certificates, and TLS is off")
                    .cure("give --tls required, or --tls on to serve who does not ask for TLS, too"))
            }
            (_, None) => Err(Error::invalid("cannot serve", "TLS needs certificates")
                .cure("give --tls-certificates FOLDER, with server-cert.pem and server-key.pem in it")),
        }
    }
}

fn address(text: &str) -> Result<Address> {
    let what = || format!("cannot listen on {text:?}");
    let cure = "write unix:/run/disk.sock, tcp:127.0.0.1:10809, vsock:10809 or fd:NAME";
    let wrong = |why: &str| Error::invalid(what(), why).cure(cure);
    match text.split_once(':') {
        Some(("unix", path)) if !path.is_empty() => {
            // Absolute, since that is what the URI needs.
            let path = std::path::absolute(PathBuf::from(path));
            path.map(Address::Unix).map_err(|error| Error::system(what(), error))
        }
        Some(("tcp", host)) if !host.is_empty() => {
            tcp(host).map(Address::Tcp).map_err(|error| Error::system(what(), error).cure(cure))
        }
        Some(("vsock", numbers)) => {
            let Vsock { context, port } = entrance::vsock(numbers).map_err(wrong)?;
            Ok(Address::Vsock { context, port })
        }
        Some(("fd", name)) if !name.is_empty() => Ok(Address::Inherited(name.to_owned())),
        _ => Err(wrong("it is none of unix:PATH, tcp:HOST:PORT, vsock:PORT and fd:NAME")),
    }
}

/// The first address of `HOST:PORT`, or of `HOST` with the port that clients expect.
fn tcp(host: &str) -> std::io::Result<SocketAddr> {
    match host.to_socket_addrs().ok().and_then(|mut found| found.next()) {
        Some(found) => Ok(found),
        None => resolve(host.trim_matches(['[', ']']), DEFAULT_PORT),
    }
}

/// Refuses what other machines can reach.
fn safe(address: &Address) -> Result<()> {
    match address.is_reachable() {
        true => {
            Err(refused(address, "require TLS (--tls required), or say --insecure-listen if you mean it"))
        }
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_listened_to_unless_somebody_insists() {
        for (text, is_safe) in [
            ("tcp:127.0.0.1:0", true),
            ("tcp:[::1]:10809", true),
            ("tcp:127.0.0.1", true),
            ("unix:x", true),
            ("vsock:1:10809", true),
            ("fd:nbd", true),
            ("vsock:10809", false),
            ("vsock:2:10809", false),
            ("tcp:0.0.0.0:10809", false),
            ("tcp:[::]:10809", false),
            ("tcp:192.0.2.1:1", false),
        ] {
            assert_eq!(safe(&address(text).unwrap()).is_ok(), is_safe, "{text}");
        }
        for text in
            ["", "unix:", "tcp:", "/run/x", "udp:127.0.0.1:1", "fd:", "vsock:", "vsock:x", "vsock:1:2:3"]
        {
            assert!(address(text).unwrap_err().to_string().contains("unix:"), "{text}");
        }
        assert_eq!(address("tcp:127.0.0.1").unwrap().to_string(), "tcp:127.0.0.1:10809");
        assert_eq!(address("vsock:99").unwrap().to_string(), "vsock:99");
        assert_eq!(address("vsock:3:99").unwrap().to_string(), "vsock:3:99");
    }
}
