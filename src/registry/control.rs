//! What is said on a server's control socket: one JSON object a line, requests one way, replies
//! the other. Both sides are bounded in size and time.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::servers::Server;
use super::{Entry, Registry};
use crate::engine::nbd;
use crate::engine::ublk::Report;
use crate::error::{Error, Kind, Result};
use crate::metrics::Stats;
use crate::port::clock::Deadline;
use crate::port::process;
use crate::port::socket::Lines;

/// Longest line that a server reads.
pub const MAX_REQUEST: usize = 4 << 10;

/// Longest line that a client reads. A report grows with the queues, of which there are at most
/// 4096, and so do the statistics of a disk.
pub const MAX_REPLY: usize = 4 << 20;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// [`Reply::Status`].
    Status,
    /// [`Reply::Exports`], from a process of `up`.
    Exports,
    /// [`Reply::Stats`].
    Stats,
    /// [`Reply::Accepted`] at once, and [`Reply::Stopped`] when the device is gone.
    Stop {
        /// Also while it is in use.
        force: bool,
    },
    /// As [`Request::Stop`], for everything that the process serves. Who asks hears of the one
    /// device whose socket it is, and on the socket of the process of all.
    End {
        /// Also what is in use.
        force: bool,
    },
}

/// What the server answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// How it is.
    Status {
        /// Starting, live or stopping.
        state: State,
        /// What the engine says; nothing before it is ready.
        report: Option<Box<Report>>,
    },
    /// What is offered to NBD clients.
    Exports {
        /// All of them.
        exports: Vec<ExportStatus>,
    },
    /// What was done for a device and, where it is offered to NBD clients as well, for these; or, from a process of
    /// `up`, for its exports that are no devices.
    Stats {
        /// One for each engine that serves it; none where it is not live.
        disks: Vec<DiskStats>,
        /// Another reply with more of them follows.
        #[serde(default)]
        more: bool,
    },
    /// The stop was understood and has begun.
    Accepted,
    /// The device is gone.
    Stopped,
    /// It did not work.
    Failed {
        /// Which kind of failure.
        kind: String,
        /// The whole text for a person.
        text: String,
    },
}

impl Reply {
    /// What was done for these disks: a reply a disk, since all of them together may be longer than [`MAX_REPLY`].
    pub fn stats(disks: Vec<DiskStats>) -> Vec<Reply> {
        let last = disks.len().saturating_sub(1);
        if disks.is_empty() {
            return vec![Reply::Stats { disks, more: false }];
        }
        let reply = |(number, disk)| Reply::Stats { disks: vec![disk], more: number < last };
        disks.into_iter().enumerate().map(reply).collect()
    }

    /// The reply that carries an error.
    pub fn failed(error: &Error) -> Reply {
        Reply::Failed { kind: format!("{:?}", error.kind()), text: error.to_string() }
    }
}

/// An export, and how it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExportStatus {
    /// Starting, live or stopping.
    pub state: State,
    /// The disk of this machine that it shows, where it shows one.
    pub device: Option<String>,
    /// What the engine says.
    pub report: nbd::Report,
}

/// What was done for one disk by one engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskStats {
    /// `ublk` or `nbd`.
    pub engine: String,
    /// The device's path, or the name of the export.
    pub name: String,
    /// What it is made of.
    pub spec: String,
    /// How a request's bytes travel, where there are several ways.
    pub data_path: Option<String>,
    /// What was counted.
    #[serde(flatten)]
    pub stats: Stats,
}

/// An error from another process, as it was there.
pub fn received_error(kind: &str, text: &str) -> Error {
    let kinds = [
        Kind::Invalid,
        Kind::NotFound,
        Kind::Busy,
        Kind::Permission,
        Kind::Unsupported,
        Kind::Deadline,
        Kind::Failed,
    ];
    let kind = kinds.into_iter().find(|known| format!("{known:?}") == kind).unwrap_or(Kind::Failed);
    match text.split_once(": ") {
        Some((what, why)) => Error::new(kind, what, why),
        None => Error::new(kind, "the server failed", text),
    }
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is being made.
    Starting,
    /// It is served.
    Live,
    /// It is being taken away, and still served.
    Stopping,
    /// Its server runs and does not answer.
    Hung,
    /// Its server is gone.
    Dead,
    /// It belongs to another program.
    Foreign,
}

impl State {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Live => "live",
            State::Stopping => "stopping",
            State::Hung => "hung",
            State::Dead => "dead",
            State::Foreign => "foreign",
        }
    }
}

/// A conversation with a server.
#[derive(Debug)]
pub struct Client {
    lines: Lines<UnixStream>,
    what: String,
    pid: i32,
}

impl Client {
    /// Connects to the server of `entry` and sends a request. [`Kind::Deadline`] where nobody
    /// accepts connections.
    pub fn send(registry: &Registry, entry: &Entry, request: Request) -> Result<Client> {
        let what = format!("cannot ask the server of {} (process {})", entry.device.display(), entry.pid);
        Client::connect(&registry.socket(entry.id), what, entry.pid, request)
    }

    /// As [`send`](Self::send), to a process of `up`.
    pub fn send_to_server(registry: &Registry, server: &Server, request: Request) -> Result<Client> {
        let what = format!("cannot ask the `up` of {} (process {})", server.config.display(), server.pid);
        Client::connect(&registry.server_socket(server.pid), what, server.pid, request)
    }

    fn connect(socket: &Path, what: String, pid: i32, request: Request) -> Result<Client> {
        let lines = Lines::connect(socket, MAX_REPLY).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => no_answer(&what, pid),
            _ => Error::system(what.as_str(), error),
        })?;
        let mut client = Client { lines, what, pid };
        let text = serde_json::to_string(&request).map_err(|error| client.failed(error.into()))?;
        client.lines.send(&text).map_err(|error| client.failed(error))?;
        Ok(client)
    }

    /// The next reply.
    pub fn receive(&mut self, deadline: Deadline) -> Result<Reply> {
        let line = self.lines.receive_by(deadline).map_err(|error| self.failed(error))?;
        serde_json::from_str(&line).map_err(|error| self.failed(error.into()))
    }

    /// The replies to [`Request::Stats`].
    pub fn receive_stats(&mut self, deadline: Deadline) -> Result<Vec<DiskStats>> {
        let mut all = Vec::new();
        loop {
            match self.receive(deadline)? {
                Reply::Stats { disks, more } => {
                    all.extend(disks);
                    if !more {
                        return Ok(all);
                    }
                }
                Reply::Failed { kind, text } => return Err(received_error(&kind, &text)),
                _ => {
                    let why = "it answered something else: it may be of another version";
                    return Err(Error::new(Kind::Failed, self.what.as_str(), why));
                }
            }
            // There is always something of a server that goes on and on.
            if deadline.passed() {
                return Err(no_answer(&self.what, self.pid));
            }
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        match error.kind() {
            ErrorKind::TimedOut => no_answer(&self.what, self.pid),
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe => {
                Error::new(Kind::Failed, self.what.as_str(), "it closed the connection without an answer")
            }
            _ => Error::system(self.what.as_str(), error),
        }
    }
}

/// The error for a server that does not answer, with what the kernel knows about it.
fn no_answer(what: &str, pid: i32) -> Error {
    Error::new(Kind::Deadline, what, format!("it does not answer{}", why_silent(pid)))
}

/// What the kernel knows about a process that says nothing, as the end of a sentence.
pub fn why_silent(pid: i32) -> &'static str {
    match process::stat(pid).map(|stat| stat.state) {
        Some('T') => ", it was stopped by a signal",
        Some('t') => ", a debugger holds it",
        Some('D') => ", it waits in the kernel and cannot be interrupted",
        Some('Z') | None => ", it has just ended",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_travel_whole() {
        let error =
            Error::new(Kind::Busy, "cannot detach /dev/ublkb0", "mounted at /mnt").cure("umount /mnt");
        let Reply::Failed { kind, text } = Reply::failed(&error) else { panic!() };
        let received = received_error(&kind, &text);
        assert_eq!(received.to_string(), error.to_string());
        assert_eq!(received.kind(), Kind::Busy);
        assert_eq!(received_error("Strange", "text").kind(), Kind::Failed);
    }

    #[test]
    fn a_request_is_a_short_line() {
        let text = serde_json::to_string(&Request::Stop { force: true }).unwrap();
        assert_eq!(text, r#"{"request":"stop","force":true}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), Request::Stop { force: true });
        assert!(serde_json::from_str::<Request>(r#"{"request":"explode"}"#).is_err());
    }
}
