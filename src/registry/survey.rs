//! Every device of this host and how it is, in bounded time.

use std::path::PathBuf;

use super::control::{Client, Reply, Request, State};
use super::isolated::{self, DeviceInfo};
use super::{Entry, Registry, devices};
use crate::engine::nbd::kernel;
use crate::engine::{DeviceName, Engine, Report};
use crate::error::{Error, Kind};
use crate::port::clock::{Deadline, Duration};
use crate::port::thread;

/// How long a server may take for an answer before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A device, or what is left of one.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name.
    pub name: DeviceName,
    /// How it is.
    pub state: State,
    /// What the registry has, where it is ours.
    pub entry: Option<Entry>,
    /// What its server says now, or said when it was ready.
    pub report: Option<Report>,
    /// What the driver says of a device that is not ours.
    pub driver: Option<DeviceInfo>,
    /// Why the state is not `live`, or why so little is known.
    pub why: Option<String>,
}

impl Seen {
    /// The disk's path.
    pub fn path(&self) -> PathBuf {
        self.entry.as_ref().map_or_else(|| self.name.path(), |entry| entry.device.clone())
    }

    /// The process that serves the device, or did.
    pub fn pid(&self) -> Option<i32> {
        match (&self.entry, self.driver) {
            (Some(entry), _) => Some(entry.pid),
            (None, Some(info)) => (info.pid > 0).then_some(info.pid),
            (None, None) => None,
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> Option<u64> {
        self.report.as_ref().map(|report| report.size).or_else(|| devices::size(self.name))
    }

    /// Number of queues.
    pub fn queues(&self) -> Option<u16> {
        self.report.as_ref().map(|report| report.queues).or(self.driver.map(|info| info.queues))
    }

    /// Requests that a queue takes at once.
    pub fn depth(&self) -> Option<u16> {
        self.report.as_ref().map(|report| report.depth).or(self.driver.map(|info| info.depth))
    }
}

/// Looks at all devices, or at the one with the name `only`. Servers are asked all at once, each
/// for at most [`PATIENCE`].
pub fn survey(registry: &Registry, only: Option<DeviceName>) -> Vec<Seen> {
    let deadline = Deadline::after(PATIENCE);
    let wanted = |name: &DeviceName| only.is_none_or(|only| only == *name);
    let in_kernel = devices::all();
    let known = registry.names();
    let mut seen = Vec::new();
    let mut asked = Vec::new();
    let mut foreign: Vec<DeviceName> = Vec::new();
    for (&name, (_, entry)) in known.iter().filter(|(name, _)| wanted(name)) {
        let is_in_kernel = in_kernel.contains(&name);
        match entry {
            Some(entry) if entry.is_alive() => {
                let (registry, entry) = (registry.clone(), entry.clone());
                asked.push(thread::spawn(format!("ask-{name}"), move || ask(&registry, entry, deadline)));
            }
            Some(entry) => {
                seen.push(unserved(registry, entry.clone()));
                foreign.extend((is_in_kernel && !entry.owns_device()).then_some(name));
            }
            None if is_in_kernel => foreign.push(name),
            None => seen.push(dead(name, None, "only files are left of it")),
        }
    }
    foreign.extend(in_kernel.into_iter().filter(|name| wanted(name) && !known.contains_key(name)));
    let infos = isolated::infos(&foreign, deadline);
    seen.extend(foreign.into_iter().map(|name| {
        if let (Engine::Nbd, Some(_)) =
            (name.engine, devices::identity(name).filter(|one| kernel::is_ours(*one)))
        {
            let why = "it was taken away, and is there until the last who has it open closes it".to_owned();
            return Seen {
                name,
                state: State::Dead,
                entry: None,
                report: None,
                driver: None,
                why: Some(why),
            };
        }
        let driver = infos.get(&name).copied();
        let why = match driver {
            Some(info) if info.is_served() => None,
            // Its driver does without a process, wherever the other end of its connections is.
            Some(_) if name.engine == Engine::Nbd => None,
            Some(_) => Some("no process serves it".to_owned()),
            None => Some("the driver does not say whose it is".to_owned()),
        };
        Seen { name, state: State::Foreign, entry: None, report: None, driver, why }
    }));
    // A thread that could not be made or panicked has nothing to say.
    seen.extend(asked.into_iter().flatten().filter_map(|thread| thread.join().ok()));
    seen.sort_by_key(|seen| seen.name);
    seen
}

/// A device whose server is gone.
fn unserved(registry: &Registry, entry: Entry) -> Seen {
    let name = entry.name;
    match registry.keeper(name) {
        Some(keeper) if devices::exists(name) && entry.owns_device() => {
            let why = format!("its server was killed, and process {} is starting another one", keeper.pid);
            Seen {
                name,
                state: State::Recovering,
                report: entry.report.clone(),
                entry: Some(entry),
                driver: None,
                why: Some(why),
            }
        }
        _ => dead(name, Some(entry), "its server is gone"),
    }
}

fn dead(name: DeviceName, entry: Option<Entry>, why: &str) -> Seen {
    let report = entry.as_ref().and_then(|entry| entry.report.clone());
    Seen {
        name,
        state: State::Dead,
        entry,
        report,
        driver: None,
        why: Some(format!("{why}; `blockhaus gc` cleans up")),
    }
}

fn ask(registry: &Registry, entry: Entry, deadline: Deadline) -> Seen {
    let client = Client::send(registry, &entry, Request::Status);
    let reply = client.and_then(|mut client| client.receive(deadline));
    let name = entry.name;
    let (state, report, why) = match reply {
        Ok(Reply::Status { state, report }) => (state, report.map(|report| *report), None),
        Ok(Reply::Failed { text, .. }) => (State::Hung, None, Some(text)),
        Ok(_) => (State::Hung, None, Some("its server answered something else".to_owned())),
        // The server may have ended while it was asked.
        Err(_) if !entry.is_alive() => return unserved(registry, entry),
        Err(error) => guess(&entry, &error),
    };
    let report = report.or_else(|| entry.report.clone());
    Seen { name, state, report, entry: Some(entry), driver: None, why }
}

/// The state of a device whose server runs and could not be asked.
fn guess(entry: &Entry, error: &Error) -> (State, Option<Report>, Option<String>) {
    match error.kind() {
        Kind::Permission => (State::Live, None, Some("its server may be asked by its owner only".to_owned())),
        Kind::NotFound if entry.report.is_none() => (State::Starting, None, None),
        _ => (State::Hung, None, Some(error.to_string())),
    }
}
