//! As much of HTTP as a scrape needs: one GET a connection, bounded in size and time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::format::Format;
use super::text::text;
use crate::error::{Error, Kind, Result};
use crate::port::clock::{Deadline, Duration, sleep};
use crate::port::thread;
use crate::registry::{Registry, statistics};

/// Longest head of a request.
const MAX_HEAD: usize = 8 << 10;

/// Most header lines of a request.
const MAX_HEADERS: usize = 64;

/// How long a client may take to ask, and then again to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections at once; one more is closed.
const MAX_CONNECTIONS: usize = 16;

/// Pause after an accept that failed, so that a lack of descriptors does not make us spin.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Answers scrapes.
#[derive(Debug)]
pub struct Exporter {
    listener: TcpListener,
    registry: Registry,
}

impl Exporter {
    /// Listens at `address`; port 0 lets the kernel choose.
    pub fn listen(address: SocketAddr, registry: Registry) -> Result<Exporter> {
        let listener = TcpListener::bind(address).map_err(|error| {
            let what = format!("cannot listen on {address}");
            match error.kind() {
                ErrorKind::AddrInUse => {
                    Error::new(Kind::Busy, what, "somebody else listens there").cure("choose another address")
                }
                _ => Error::system(what, error).cure("the address must be one of this machine's"),
            }
        })?;
        Ok(Exporter { listener, registry })
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|error| Error::system("cannot tell where we listen", error))
    }

    /// Answers until the process ends.
    pub fn run(&self) -> ! {
        let open = Arc::new(AtomicUsize::new(0));
        loop {
            let Ok((stream, _)) = self.listener.accept() else {
                sleep(AFTER_FAILURE);
                continue;
            };
            if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (registry, left) = (self.registry.clone(), open.clone());
            let body = move || {
                // Who has gone needs no answer.
                let _ = converse(stream, &registry);
                left.fetch_sub(1, Ordering::Relaxed);
            };
            if thread::spawn("scrape".into(), body).is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

fn converse(mut stream: TcpStream, registry: &Registry) -> std::io::Result<()> {
    let (status, kind, body) = match head(&mut stream)? {
        Asked::Metrics(format) => match text(statistics::all(registry), format) {
            Ok(text) => ("200 OK", format.content_type(), text),
            Err(error) => ("500 Internal Server Error", PLAIN, format!("{error}\n")),
        },
        Asked::Else(status, why) => (status, PLAIN, format!("{why}\n")),
    };
    let allow = if status.starts_with("405") { "Allow: GET\r\n" } else { "" };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n{body}",
        body.len()
    );
    let deadline = Deadline::after(PATIENCE);
    let mut rest = answer.as_bytes();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        let count = stream.write(rest)?;
        rest = &rest[count..];
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // A socket that is closed with bytes unread takes its last answer along.
    let mut rest = [0; 1024];
    for _ in 0..MAX_HEAD / rest.len() {
        stream.set_read_timeout(Some(left(deadline)?))?;
        if stream.read(&mut rest)? == 0 {
            break;
        }
    }
    Ok(())
}

const PLAIN: &str = "text/plain; charset=utf-8";

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics(Format),
    Else(&'static str, &'static str),
}

fn left(deadline: Deadline) -> std::io::Result<Duration> {
    let left = deadline.left();
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Reads what is asked for.
fn head(stream: &mut TcpStream) -> std::io::Result<Asked> {
    let deadline = Deadline::after(PATIENCE);
    let mut read = Vec::new();
    let mut piece = [0; 1024];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&piece[..count]);
        if let Some(asked) = asked(&read) {
            return Ok(asked);
        }
        if read.len() > MAX_HEAD {
            return Ok(Asked::Else("431 Request Header Fields Too Large", "too long a request"));
        }
    }
}

/// What these bytes ask for; nothing where more have to come.
fn asked(bytes: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return Some(Asked::Else("400 Bad Request", "this is not HTTP/1.1")),
    }
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
    Some(match (request.method, path) {
        (Some("GET"), "/metrics") => {
            let accepts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
            let accepts: Vec<_> = accepts.map(|header| String::from_utf8_lossy(header.value)).collect();
            Asked::Metrics(Format::accepted(&accepts.join(",")))
        }
        (Some("GET"), _) => Asked::Else("404 Not Found", "the metrics are at /metrics"),
        _ => Asked::Else("405 Method Not Allowed", "only GET is answered"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        let status = |bytes: &str| match asked(bytes.as_bytes()) {
            Some(Asked::Metrics(_)) => "200".to_owned(),
            Some(Asked::Else(status, _)) => status[..3].to_owned(),
            None => String::new(),
        };
        for (bytes, code) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "200"),
            ("GET /metrics?a=b HTTP/1.0\r\n\r\n", "200"),
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics HTTP/1.1\r\nHost:", ""),
            ("", ""),
            ("\0\u{1}\r\n\r\n", "400"),
        ] {
            assert_eq!(status(bytes), code, "{bytes:?}");
        }
        let accepting = |more: &str| asked(format!("GET /metrics HTTP/1.1\r\n{more}\r\n").as_bytes());
        let open_metrics = "Accept: text/html\r\naccept: application/openmetrics-text\r\n";
        assert_eq!(accepting(open_metrics), Some(Asked::Metrics(Format::OpenMetrics)));
        assert_eq!(accepting("Accept: \u{ff}, text/*\r\n"), Some(Asked::Metrics(Format::Classic)));
        let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
        assert_eq!(status(&format!("GET /metrics HTTP/1.1\r\n{many}\r\n")), "400");
    }
}
