//! Every ublk device of this host and how it is, in bounded time.

use super::control::{Client, Reply, Request, State};
use super::isolated::{self, DeviceInfo};
use super::{Entry, Registry, devices};
use crate::engine::ublk::Report;
use crate::error::{Error, Kind};
use crate::port::clock::{Deadline, Duration};
use crate::port::thread;

/// How long a server may take for an answer before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A device, or what is left of one.
#[derive(Clone, Debug)]
pub struct Seen {
    /// N of /dev/ublkbN.
    pub id: u32,
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
        self.report.as_ref().map(|report| report.size).or_else(|| devices::size(self.id))
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

/// Looks at all devices, or at the one with the id `only`. Servers are asked all at once, each
/// for at most [`PATIENCE`].
pub fn survey(registry: &Registry, only: Option<u32>) -> Vec<Seen> {
    let deadline = Deadline::after(PATIENCE);
    let wanted = |id: &u32| only.is_none_or(|only| only == *id);
    let in_kernel = devices::ids();
    let known = registry.ids();
    let mut seen = Vec::new();
    let mut asked = Vec::new();
    let mut foreign: Vec<u32> = Vec::new();
    for (&id, (_, entry)) in known.iter().filter(|(id, _)| wanted(id)) {
        let is_in_kernel = in_kernel.contains(&id);
        match entry {
            Some(entry) if entry.is_alive() => {
                let (registry, entry) = (registry.clone(), entry.clone());
                asked.push(thread::spawn(format!("ask-{id}"), move || ask(&registry, entry, deadline)));
            }
            Some(entry) => {
                seen.push(dead(id, Some(entry.clone()), "its server is gone"));
                foreign.extend((is_in_kernel && !entry.owns_device()).then_some(id));
            }
            None if is_in_kernel => foreign.push(id),
            None => seen.push(dead(id, None, "only files are left of it")),
        }
    }
    foreign.extend(in_kernel.into_iter().filter(|id| wanted(id) && !known.contains_key(id)));
    let infos = isolated::infos(&foreign, deadline);
    seen.extend(foreign.into_iter().map(|id| {
        let driver = infos.get(&id).copied();
        let why = match driver {
            Some(info) if info.is_served() => None,
            Some(_) => Some("no process serves it".to_owned()),
            None => Some("the driver does not say whose it is".to_owned()),
        };
        Seen { id, state: State::Foreign, entry: None, report: None, driver, why }
    }));
    // A thread that could not be made or panicked has nothing to say.
    seen.extend(asked.into_iter().flatten().filter_map(|thread| thread.join().ok()));
    seen.sort_by_key(|seen| seen.id);
    seen
}

fn dead(id: u32, entry: Option<Entry>, why: &str) -> Seen {
    let report = entry.as_ref().and_then(|entry| entry.report.clone());
    Seen {
        id,
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
    let id = entry.id;
    let (state, report, why) = match reply {
        Ok(Reply::Status { state, report }) => (state, report.map(|report| *report), None),
        Ok(Reply::Failed { text, .. }) => (State::Hung, None, Some(text)),
        Ok(_) => (State::Hung, None, Some("its server answered something else".to_owned())),
        // The server may have ended while it was asked.
        Err(_) if !entry.is_alive() => return dead(id, Some(entry), "its server is gone"),
        Err(error) => guess(&entry, &error),
    };
    let report = report.or_else(|| entry.report.clone());
    Seen { id, state, report, entry: Some(entry), driver: None, why }
}

/// The state of a device whose server runs and could not be asked.
fn guess(entry: &Entry, error: &Error) -> (State, Option<Report>, Option<String>) {
    match error.kind() {
        Kind::Permission => (State::Live, None, Some("its server may be asked by its owner only".to_owned())),
        Kind::NotFound if entry.report.is_none() => (State::Starting, None, None),
        _ => (State::Hung, None, Some(error.to_string())),
    }
}
