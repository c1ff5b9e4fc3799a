//! What was done for the disks of this host, as their servers count it; asked in bounded time.

use std::sync::Arc;

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
                !entry.is_alive() || registry.read(entry.id).is_none_or(|now| !now.is_same_device(entry))
            }
            Asked::Server(server) => !server.is_alive(),
        }
    }
}

/// A thread that asks a server; it yields nothing where there is nobody to ask any more. Where there can be no thread,
/// the answer is why.
fn ask(registry: &Registry, asked: Asked, deadline: Deadline) -> Result<JoinHandle<Option<Answer>>, Answer> {
    let asked = Arc::new(asked);
    let (registry, asks) = (registry.clone(), asked.clone());
    let body = move || {
        let disks = asks.disks(&registry, deadline);
        // Who has ended meanwhile has nothing to say.
        (disks.is_ok() || !asks.has_ended(&registry)).then(|| asks.with(disks))
    };
    thread::spawn("ask-stats".into(), body)
        .map_err(|error| asked.with(Err(Error::system("cannot make a thread to ask a server", error))))
}

/// Asks all servers at once, each for a bounded time.
pub fn all(registry: &Registry) -> Vec<Answer> {
    let deadline = Deadline::after(PATIENCE);
    let entries = registry.ids().into_values().filter_map(|(_, entry)| entry);
    let devices = entries.filter(Entry::is_alive).map(Box::new).map(Asked::Device);
    let servers = registry.servers().into_iter().filter(Server::is_alive).map(Asked::Server);
    let asked: Vec<_> = devices.chain(servers).map(|asked| ask(registry, asked, deadline)).collect();
    let answer = |asked: Result<JoinHandle<Option<Answer>>, Answer>| match asked {
        Ok(thread) => thread.join().ok().flatten(),
        Err(answer) => Some(answer),
    };
    asked.into_iter().filter_map(answer).collect()
}

/// What was done for the disk that a person means by `name`: a device's id or path, or the name of an
/// export.
pub fn of(registry: &Registry, name: &str) -> Result<Vec<DiskStats>> {
    let what = || format!("no statistics of {name}");
    if let Ok(id) = devices::parse_id(name)
        && let Some((_, Some(entry))) = registry.ids().remove(&id)
    {
        if !entry.is_alive() {
            return Err(Error::new(Kind::NotFound, what(), "its server is gone")
                .cure("`blockhaus gc` cleans up what is left"));
        }
        let asked = Asked::Device(Box::new(entry));
        let disks = match asked.disks(registry, Deadline::after(PATIENCE)) {
            Err(_) if asked.has_ended(registry) => {
                return Err(Error::new(Kind::NotFound, what(), "it was taken away at this moment"));
            }
            answer => answer?,
        };
        if disks.is_empty() {
            let why = "it is being made or taken away at this moment";
            return Err(Error::new(Kind::Busy, what(), why).cure("try again in a moment"));
        }
        return Ok(disks);
    }
    let answers = all(registry);
    let named = |disk: &DiskStats| disk.engine == "nbd" && disk.name == name;
    let found: Vec<DiskStats> = answers
        .iter()
        .flat_map(|answer| answer.disks.iter().flatten())
        .filter(|disk| named(disk))
        .cloned()
        .collect();
    if found.is_empty() {
        let why = "there is no device of ours with this id or path, and no export of an `up` with this name";
        return Err(Error::new(Kind::NotFound, what(), why).cure("`blockhaus list` shows what there is"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::process;
    use crate::port::socket::{self, Lines};
    use crate::registry::control::{MAX_REPLY, MAX_REQUEST, Reply};

    fn registry(name: &str) -> Registry {
        let folder = std::env::temp_dir().join(format!("blockhaus-stats-{name}-{}", process::own_pid()));
        let _ = std::fs::remove_dir_all(&folder);
        let registry = Registry::at(folder);
        registry.create().unwrap();
        registry
    }

    /// A server that says this to whoever asks first.
    fn server(registry: &Registry, replies: Vec<Reply>) -> std::thread::JoinHandle<()> {
        let listener = socket::listen(&registry.socket(7)).unwrap();
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
        let registry = registry("many");
        let entry = Entry::new(7, "ram:1G");
        registry.write(&entry).unwrap();
        let disks: Vec<DiskStats> = (0..3).map(|_| disk("x".repeat(MAX_REPLY / 2))).collect();
        let server = server(&registry, Reply::stats(disks));
        let answers = all(&registry);
        server.join().unwrap();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].disks.as_ref().unwrap().len(), 3);
        std::fs::remove_dir_all(registry.folder()).unwrap();
    }

    #[test]
    fn a_server_that_never_comes_to_an_end_is_not_listened_to_for_ever() {
        let registry = registry("endless");
        let entry = Entry::new(7, "ram:1G");
        registry.write(&entry).unwrap();
        let listener = socket::listen(&registry.socket(7)).unwrap();
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
        std::fs::remove_dir_all(registry.folder()).unwrap();
    }

    /// Its server lives on, as an `up` does.
    #[test]
    fn a_device_that_goes_while_it_is_asked_about_is_nobody_who_does_not_answer() {
        let registry = registry("going");
        let entry = Entry { node: Some(1), ..Entry::new(7, "ram:1G") };
        let asked = Asked::Device(Box::new(entry.clone()));
        let deadline = Deadline::after(PATIENCE);
        registry.write(&entry).unwrap();
        assert!(asked.disks(&registry, deadline).is_err() && !asked.has_ended(&registry));
        // Known and silent is to be heard of.
        assert_eq!(all(&registry).len(), 1);
        registry.write(&Entry { node: Some(2), ..entry.clone() }).unwrap();
        assert!(asked.has_ended(&registry), "another device has its id");
        registry.remove(&Entry { node: Some(2), ..entry }, false).unwrap();
        assert!(asked.has_ended(&registry));
        let asked = ask(&registry, asked, deadline).unwrap_or_else(|_| panic!("no thread"));
        assert!(asked.join().unwrap().is_none());
        std::fs::remove_dir_all(registry.folder()).unwrap();
    }
}
