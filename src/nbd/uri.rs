//! Addresses of exports as clients write them, by the NBD URI specification.

use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The port that a client takes where none is named.
pub const DEFAULT_PORT: u16 = 10809;

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
    use super::*;

    #[test]
    fn read_as_the_specification_has_them() {
        assert_eq!(unix(Path::new("/run/a b.sock"), "d&é"), "nbd+unix:///d%26%C3%A9?socket=/run/a%20b.sock");
        assert_eq!(tcp("127.0.0.1:10809".parse().unwrap(), "disk"), "nbd://127.0.0.1/disk");
        assert_eq!(tcp("[::1]:99".parse().unwrap(), ""), "nbd://[::1]:99/");
    }
}
