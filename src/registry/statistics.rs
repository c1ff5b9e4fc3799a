//! What was done for the disks of this host, as their servers count it; asked in bounded time.

use super::control::{Client, DiskStats, Reply, Request, received_error};
use super::servers::Server;
use super::survey::PATIENCE;
use super::{Entry, Registry, devices};
use crate::error::{Error, Kind, Result};
use crate::port::clock::Deadline;
use crate::port::thread;

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
    fn answer(&self, registry: &Registry, deadline: Deadline) -> Answer {
        let (about, pid, client) = match self {
            Asked::Device(entry) => {
                (entry.device.display().to_string(), entry.pid, Client::send(registry, entry, Request::Stats))
            }
            Asked::Server(server) => {
                let client = Client::send_to_server(registry, server, Request::Stats);
                (server.config.display().to_string(), server.pid, client)
            }
        };
        let disks = client.and_then(|mut client| client.receive(deadline)).and_then(|reply| match reply {
            Reply::Stats { disks } => Ok(disks),
            Reply::Failed { kind, text } => Err(received_error(&kind, &text)),
            _ => {
                let why = "it answered something else: it may be of another version";
                Err(Error::new(Kind::Failed, format!("cannot ask process {pid} what it has done"), why))
            }
        });
        Answer { about, pid, disks }
    }

    fn has_ended(&self) -> bool {
        match self {
            Asked::Device(entry) => !entry.is_alive(),
            Asked::Server(server) => !server.is_alive(),
        }
    }
}

/// Asks all servers at once, each for a bounded time.
pub fn all(registry: &Registry) -> Vec<Answer> {
    let deadline = Deadline::after(PATIENCE);
    let entries = registry.names().into_values().filter_map(|(_, entry)| entry);
    let devices = entries.filter(Entry::is_alive).map(Box::new).map(Asked::Device);
    let servers = registry.servers().into_iter().filter(Server::is_alive).map(Asked::Server);
    let asked: Vec<_> = devices
        .chain(servers)
        .map(|asked| {
            let registry = registry.clone();
            thread::spawn("ask-stats".into(), move || {
                let answer = asked.answer(&registry, deadline);
                // Who has ended meanwhile has nothing to say.
                (answer.disks.is_ok() || !asked.has_ended()).then_some(answer)
            })
        })
        .collect();
    asked.into_iter().flatten().filter_map(|thread| thread.join().ok().flatten()).collect()
}

/// What was done for the disk that a person means by `name`: a device's id or path, or the name of an
/// export.
pub fn of(registry: &Registry, name: &str) -> Result<Vec<DiskStats>> {
    let what = || format!("no statistics of {name}");
    if let Ok(device) = devices::meant(registry, name)
        && let Some((_, Some(entry))) = registry.names().remove(&device)
    {
        if !entry.is_alive() {
            return Err(Error::new(Kind::NotFound, what(), "its server is gone")
                .cure("`blockhaus gc` cleans up what is left"));
        }
        let disks = Asked::Device(Box::new(entry)).answer(registry, Deadline::after(PATIENCE)).disks?;
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
