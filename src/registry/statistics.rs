//! What was done for the disks of this host, as their servers count it; asked in bounded time.

use std::sync::Arc;

use serde::Serialize;

use super::control::{Client, DiskStats, Request};
use super::servers::Server;
use super::survey::PATIENCE;
use super::{Entry, Registry, devices};
use crate::error::{Error, Kind, Result};
use crate::port::clock::Deadline;
use crate::port::thread::{self, JoinHandle};

/// One server socket's answer.
#[derive(Debug)]
pub struct Answer {
    /// The device, or the file of an `up`, that was asked about.
    pub about: String,
    /// The process that was asked.
    pub pid: i32,
    /// What it says.
    pub disks: Result<Vec<DiskStats>>,
}

/// What was done for one disk by one engine, and who says so: what is about the same disk and from the same process
/// is one thing, and a name can be that of several.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// The device, or the file of an `up`, that was asked about.
    pub about: String,
    /// The process that was asked.
    pub pid: i32,
    /// What it says.
    #[serde(flatten)]
    pub disk: DiskStats,
}

impl Answer {
    /// Each disk of it.
    fn told(self) -> Result<Vec<Told>> {
        let Answer { about, pid, disks } = self;
        Ok(disks?.into_iter().map(|disk| Told { about: about.clone(), pid, disk }).collect())
    }
}

/// Who can be asked.
enum Asked {
    Device(Box<Entry>),
    Server(Server),
}

impl Asked {
    fn disks(&self, registry: &Registry, deadline: Deadline) -> Result<Vec<DiskStats>> {
        let client = match self {
            Asked::Device(entry) => Client::send(registry, entry, Request::Stats),
            Asked::Server(server) => Client::send_to_server(registry, server, Request::Stats),
        };
        client.and_then(|mut client| client.receive_stats(deadline))
    }

    fn with(&self, disks: Result<Vec<DiskStats>>) -> Answer {
        let (about, pid) = match self {
            Asked::Device(entry) => (entry.device.display().to_string(), entry.pid),
            Asked::Server(server) => (server.config.display().to_string(), server.pid),
        };
        Answer { about, pid, disks }
    }

    /// Whether it is gone: a process of `up` can live on without a device that it served.
    fn has_ended(&self, registry: &Registry) -> bool {
        match self {
            Asked::Device(entry) => {
                !entry.is_alive() || registry.read(entry.name).is_none_or(|now| !now.is_same_device(entry))
            }
            Asked::Server(server) => !server.is_alive(),
        }
    }

    /// Whether it has ended otherwise than in order, and nobody has taken its place.
    fn has_crashed(&self, registry: &Registry) -> bool {
        match self {
            Asked::Device(entry) => !entry.is_alive() && devices::exists(entry.name) && entry.owns_device(),
            Asked::Server(server) => {
                let is_left = registry.servers().iter().any(|left| left.pid == server.pid);
                !server.is_alive() && is_left && registry.server_of(&server.config).is_none()
            }
        }
    }

    /// Who has ended in order has nothing to say, not even that it does not answer.
    fn has_something_to_say(&self, registry: &Registry) -> bool {
        !self.has_ended(registry) || self.has_crashed(registry)
    }
}

fn gone(what: impl Into<String>) -> Error {
    Error::new(Kind::NotFound, what, "its server is gone").cure("`blockhaus gc` cleans up what is left")
}

/// A thread that asks a server; it yields nothing where there is nobody to ask any more. Where there can be no thread,
/// the answer is why.
fn ask(registry: &Registry, asked: Asked, deadline: Deadline) -> Result<JoinHandle<Option<Answer>>, Answer> {
    let asked = Arc::new(asked);
    let (registry, asks) = (registry.clone(), asked.clone());
    let body = move || {
        let disks = match asks.has_crashed(&registry) {
            true => Err(gone("no statistics")),
            false => asks.disks(&registry, deadline),
        };
        (disks.is_ok() || asks.has_something_to_say(&registry)).then(|| asks.with(disks))
    };
    thread::spawn("ask-stats".into(), body)
        .map_err(|error| asked.with(Err(Error::system("cannot make a thread to ask a server", error))))
}

/// Asks all servers at once, each for a bounded time. Of one that has crashed there is an answer too, as long as something
/// of it is left.
pub fn all(registry: &Registry) -> Vec<Answer> {
    let deadline = Deadline::after(PATIENCE);
    let entries = registry.names().into_values().filter_map(|(_, entry)| entry);
    let devices = entries.map(Box::new).map(Asked::Device);
    let asked: Vec<_> = devices
        .chain(registry.servers().into_iter().map(Asked::Server))
        .filter(|asked| asked.has_something_to_say(registry))
        .map(|asked| ask(registry, asked, deadline))
        .collect();
    let answer = |asked: Result<JoinHandle<Option<Answer>>, Answer>| match asked {
        Ok(thread) => thread.join().ok().flatten(),
        Err(answer) => Some(answer),
    };
    asked.into_iter().filter_map(answer).collect()
}

/// What was done for the disk that a person means by `name`: a device's id or path, or the name of an
/// export.
pub fn of(registry: &Registry, name: &str) -> Result<Vec<Told>> {
    let what = || format!("no statistics of {name}");
    if let Ok(device) = devices::meant(registry, name)
        && let Some((_, Some(entry))) = registry.names().remove(&device)
    {
        if !entry.is_alive() {
            return Err(gone(what()));
        }
        let asked = Asked::Device(Box::new(entry));
        let disks = match asked.disks(registry, Deadline::after(PATIENCE)) {
            Err(_) if asked.has_ended(registry) => {
                return Err(Error::new(Kind::NotFound, what(), "it was taken away at this moment"));
            }
            answer => asked.with(answer).told()?,
        };
        if disks.is_empty() {
            let why = "it is being made or taken away at this moment";
            return Err(Error::new(Kind::Busy, what(), why).cure("try again in a moment"));
        }
        return Ok(disks);
    }
    let (mut found, mut silent) = (Vec::new(), None);
    for answer in all(registry) {
        match answer.told() {
            Ok(told) => found.extend(told),
            Err(error) => silent = silent.or(Some(error)),
        }
    }
    found.retain(|told| told.disk.engine == "nbd" && told.disk.name == name);
    match silent {
        _ if !found.is_empty() => Ok(found),
        Some(error) => {
            let why =
                format!("no server that answers has an export of this name, and one says nothing: {error}");
            Err(Error::new(error.kind(), what(), why))
        }
        None => {
            let why =
                "there is no device of ours with this id or path, and no export of an `up` with this name";
            Err(Error::new(Kind::NotFound, what(), why).cure("`blockhaus list` shows what there is"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::engine::DeviceName;
    use crate::port::socket::{self, Lines};
    use crate::registry::control::{MAX_REPLY, MAX_REQUEST, Reply};

    const NAME: DeviceName = DeviceName::ublk(7);

    /// A server that says this to whoever asks first.
    fn server(registry: &Registry, replies: Vec<Reply>) -> std::thread::JoinHandle<()> {
        let listener = socket::listen(&registry.socket(NAME)).unwrap();
        listener.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = Lines::new(stream, MAX_REQUEST);
            let request = lines.receive_by(Deadline::after(PATIENCE)).unwrap();
            assert_eq!(request, r#"{"request":"stats"}"#);
            // It may have hung up.
            let _ = replies.iter().try_for_each(|reply| lines.send(&serde_json::to_string(reply).unwrap()));
        })
    }

    fn disk(spec: String) -> DiskStats {
        let stats = crate::metrics::Stats::default();
        DiskStats { engine: "nbd".into(), name: "a".into(), spec, data_path: None, stats }
    }

    /// An `up` has more to say than fits one reply.
    #[test]
    fn disks_come_one_by_one_and_together_may_be_longer_than_a_reply() {
        let (_folder, registry) = Registry::temporary();
        let entry = Entry::new(NAME, PathBuf::new(), "ram:1G");
        registry.write(&entry).unwrap();
        let disks: Vec<DiskStats> = (0..3).map(|_| disk("x".repeat(MAX_REPLY / 2))).collect();
        let server = server(&registry, Reply::stats(disks));
        let answers = all(&registry);
        server.join().unwrap();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].disks.as_ref().unwrap().len(), 3);
    }

    #[test]
    fn a_server_that_never_comes_to_an_end_is_not_listened_to_for_ever() {
        let (_folder, registry) = Registry::temporary();
        let entry = Entry::new(NAME, PathBuf::new(), "ram:1G");
        registry.write(&entry).unwrap();
        let listener = socket::listen(&registry.socket(NAME)).unwrap();
        listener.set_nonblocking(false).unwrap();
        let server = std::thread::spawn(move || {
            let mut lines = Lines::new(listener.accept().unwrap().0, MAX_REQUEST);
            let more = Reply::Stats { disks: vec![disk(String::new())], more: true };
            while lines.send(&serde_json::to_string(&more).unwrap()).is_ok() {}
        });
        let asked = Asked::Device(Box::new(entry));
        let error = asked.disks(&registry, Deadline::after(PATIENCE / 8)).unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline, "{error}");
        server.join().unwrap();
    }

    /// Its server lives on, as an `up` does.
    #[test]
    fn a_device_that_goes_while_it_is_asked_about_is_nobody_who_does_not_answer() {
        let (_folder, registry) = Registry::temporary();
        let entry = Entry { identity: Some(1), ..Entry::new(NAME, PathBuf::new(), "ram:1G") };
        let asked = Asked::Device(Box::new(entry.clone()));
        let deadline = Deadline::after(PATIENCE);
        registry.write(&entry).unwrap();
        assert!(asked.disks(&registry, deadline).is_err() && !asked.has_ended(&registry));
        // Known and silent is to be heard of.
        assert_eq!(all(&registry).len(), 1);
        registry.write(&Entry { identity: Some(2), ..entry.clone() }).unwrap();
        assert!(asked.has_ended(&registry), "another device has its id");
        registry.remove(&Entry { identity: Some(2), ..entry }, false).unwrap();
        assert!(asked.has_ended(&registry));
        let asked = ask(&registry, asked, deadline).unwrap_or_else(|_| panic!("no thread"));
        assert!(asked.join().unwrap().is_none());
    }
}
