//! What a service manager is told: one datagram a message to the socket in NOTIFY_SOCKET, as
//! sd_notify(3) describes it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::time::{ClockId, clock_gettime};

/// The variable that names the socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Who is to be told, if anybody is.
#[derive(Debug, Default)]
pub struct Notifier {
    address: Option<SocketAddr>,
}

impl Notifier {
    /// The service manager that started this process, if one did. An address that cannot be used is
    /// as good as none: there is nobody to complain to.
    pub fn of_environment() -> Notifier {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
        Notifier { address: name.and_then(|name| address(&name).ok()) }
    }

    /// Everything is up, and what there is to know about it.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    /// The configuration is being read again; [`ready`](Self::ready) ends that.
    pub fn reloading(&self) {
        // With the time at which it began, so that an older READY is not taken for its end.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(0, |time| i128::from(time.tv_sec()) * 1_000_000 + i128::from(time.tv_nsec()) / 1000);
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// There is no going back.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    fn say(&self, text: &str) {
        let Some(address) = &self.address else { return };
        // Never waits: a manager that does not read must not hold up a disk.
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to_addr(text.as_bytes(), address)
        });
        // Nobody to complain to here either.
        drop(sent);
    }
}

/// A path, or an abstract name behind an `@`.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    let name: OsString = name.into();
    match name.as_bytes().split_first() {
        Some((b'@', rest)) if !rest.is_empty() => SocketAddr::from_abstract_name(rest),
        Some((b'/', _)) => SocketAddr::from_pathname(&name),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let mut bytes = [0; 200];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_hears_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("@blockhaus-notify-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let listeners = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (OsString::from(&name), UnixDatagram::bind_addr(&by_name).unwrap()),
        ];
        for (name, socket) in &listeners {
            let notifier = Notifier { address: Some(address(name).unwrap()) };
            notifier.ready("serving 2 devices");
            assert_eq!(heard(socket), "READY=1\nSTATUS=serving 2 devices");
            notifier.reloading();
            let text = heard(socket);
            let time: u64 = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
            assert!(time > 0);
            notifier.stopping();
            assert_eq!(heard(socket), "STOPPING=1");
        }
    }

    #[test]
    fn without_a_manager_nothing_is_said_and_nothing_fails() {
        Notifier::default().ready("x");
        for name in ["", "@", "relative", "vsock:2:1234"] {
            assert!(address(OsStr::new(name)).is_err(), "{name}");
        }
    }
}
