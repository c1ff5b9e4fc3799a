//! What was done for the disks of this host, as their servers count it; asked in bounded time.

use serde::Serialize;

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
        if self.has_ended() {
            let why = "its server is gone";
            let error = Error::new(Kind::NotFound, format!("no statistics of {about}"), why);
            return Answer { about, pid, disks: Err(error.cure("`blockhaus gc` cleans up what is left")) };
        }
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

    /// Whether it has ended otherwise than in order, and nobody has taken its place.
    fn has_crashed(&self, registry: &Registry) -> bool {
        self.has_ended()
            && match self {
                Asked::Device(entry) => devices::exists(entry.id) && entry.owns_device(),
                Asked::Server(server) => {
                    let is_left = registry.servers().iter().any(|left| left.pid == server.pid);
                    is_left && registry.server_of(&server.config).is_none()
                }
            }
    }
}

/// Asks all servers at once, each for a bounded time. Of one that has crashed there is an answer too, as long as something
/// of it is left.
pub fn all(registry: &Registry) -> Vec<Answer> {
    let deadline = Deadline::after(PATIENCE);
    let entries = registry.ids().into_values().filter_map(|(_, entry)| entry);
    let devices = entries.map(Box::new).map(Asked::Device);
    let asked: Vec<_> = devices
        .chain(registry.servers().into_iter().map(Asked::Server))
        .filter(|asked| !asked.has_ended() || asked.has_crashed(registry))
        .map(|asked| {
            let registry = registry.clone();
            thread::spawn("ask-stats".into(), move || {
                let answer = asked.answer(&registry, deadline);
                // Who has ended in order meanwhile has nothing to say.
                let has_ended = asked.has_ended() && !asked.has_crashed(&registry);
                (answer.disks.is_ok() || !has_ended).then_some(answer)
            })
        })
        .collect();
    asked.into_iter().flatten().filter_map(|thread| thread.join().ok().flatten()).collect()
}

/// What was done for the disk that a person means by `name`: a device's id or path, or the name of an
/// export.
pub fn of(registry: &Registry, name: &str) -> Result<Vec<Told>> {
    let what = || format!("no statistics of {name}");
    if let Ok(id) = devices::parse_id(name)
        && let Some((_, Some(entry))) = registry.ids().remove(&id)
    {
        if !entry.is_alive() {
            return Err(Error::new(Kind::NotFound, what(), "its server is gone")
                .cure("`blockhaus gc` cleans up what is left"));
        }
        let disks = Asked::Device(Box::new(entry)).answer(registry, Deadline::after(PATIENCE)).told()?;
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
