//! Taking away everything that an `up` serves, with an answer in bounded time.

use std::path::Path;

use super::control::{Client, Reply, Request};
use super::detach::{ANSWER, DEATH, Detached, FIRST_ANSWER, refused, take_away};
use super::servers::Server;
use super::{Entry, Registry, devices};
use crate::error::{Error, Kind, Result};
use crate::holders::{self, Holder};
use crate::port::clock::Deadline;
use crate::port::process::Other;
use crate::port::thread;

/// The devices that were made from this file, or with `None` from any.
pub fn devices_of(registry: &Registry, config: Option<&Path>) -> Vec<Entry> {
    let entries = registry.names().into_values().filter_map(|(_, entry)| entry);
    let is_wanted = |entry: &Entry| match (&entry.config, config) {
        (Some(found), Some(wanted)) => found == wanted,
        (found, None) => found.is_some(),
        (None, Some(_)) => false,
    };
    entries.filter(is_wanted).collect()
}

/// What was done.
#[derive(Debug, Default)]
pub struct Downed {
    /// Each device.
    pub devices: Vec<Result<Detached>>,
    /// Each process that had no device, and what it took: "stopped", "killed", "cleaned-up".
    pub servers: Vec<Result<(Server, &'static str)>>,
}

/// The processes of `up` that were given this file, or with `None` any; dead ones too.
pub fn servers_of(registry: &Registry, config: Option<&Path>) -> Vec<Server> {
    let is_wanted = |server: &Server| config.is_none_or(|config| server.config == config);
    registry.servers().into_iter().filter(is_wanted).collect()
}

/// Takes down these processes of `up` and all these devices, which belong to such, and returns when
/// all of it is gone. Nothing is begun while one of the devices is mounted or held, unless by force.
pub fn down(registry: &Registry, entries: Vec<Entry>, servers: Vec<Server>, force: bool) -> Result<Downed> {
    let deadline = Deadline::after(ANSWER);
    // Who has devices hears of it by these.
    let has_devices = |server: &Server| entries.iter().any(|entry| entry.pid == server.pid);
    let was_dead: Vec<i32> = servers
        .iter()
        .filter(|server| !server.is_alive() && !has_devices(server))
        .map(|server| server.pid)
        .collect();
    let alone: Vec<Server> =
        servers.iter().filter(|server| server.is_alive() && !has_devices(server)).cloned().collect();
    if !force {
        entries.iter().filter(|entry| entry.is_alive()).try_for_each(is_free)?;
    }
    let running: Vec<_> = alone
        .into_iter()
        .map(|server| {
            let registry = registry.clone();
            thread::spawn("down".into(), move || end(&registry, server, force, deadline))
        })
        .collect();
    let devices = take_devices(registry, entries, force, deadline);
    let servers_ended = running
        .into_iter()
        .map(|thread| thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| Err(lost())));
    let mut servers_ended: Vec<_> = servers_ended.collect();
    // A process removes its own files, unless it was killed.
    for server in servers.into_iter().filter(|server| !server.is_alive()) {
        let removed = registry.remove_server(&server)?;
        if !removed.is_empty() && was_dead.contains(&server.pid) {
            servers_ended.push(Ok((server, "cleaned-up")));
        }
    }
    Ok(Downed { devices, servers: servers_ended })
}

fn lost() -> Error {
    Error::new(Kind::Failed, "cannot detach", "a thread could not be made or ended by itself")
}

fn take_devices(
    registry: &Registry,
    entries: Vec<Entry>,
    force: bool,
    deadline: Deadline,
) -> Vec<Result<Detached>> {
    // Opened before they are told, so that their numbers cannot be anybody else's.
    let processes: Vec<(i32, Other)> = entries
        .iter()
        .filter(|entry| entry.is_alive())
        .filter_map(|entry| Some((entry.pid, Other::open(entry.pid, entry.pid_start)?)))
        .collect();
    let running: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let registry = registry.clone();
            let body = move || take_away(&registry, entry, Request::End { force }, deadline);
            thread::spawn("down".into(), body)
        })
        .collect();
    let mut results: Vec<Result<Detached>> = running
        .into_iter()
        .map(|thread| thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| Err(lost())))
        .collect();
    if results.iter().all(Result::is_ok)
        && let Some((pid, _)) = processes.iter().find(|(_, process)| !process.gone_by(deadline))
    {
        results.push(Err(still_runs(*pid, "its devices are gone, and it still runs")));
    }
    results
}

fn still_runs(pid: i32, why: &str) -> Error {
    Error::new(Kind::Deadline, format!("process {pid} has not ended"), why)
        .cure(format!("it may be starting or ending something; try again, or `kill -9 {pid}`"))
}

/// Ends a process that has no device, by its own control socket.
fn end(
    registry: &Registry,
    server: Server,
    force: bool,
    deadline: Deadline,
) -> Result<(Server, &'static str)> {
    let (pid, what) = (server.pid, format!("cannot take down {}", server.config.display()));
    // Before it is told, so that its number cannot be anybody else's.
    let Some(process) = server.process() else { return Ok((server, "stopped")) };
    let first = Client::send_to_server(registry, &server, Request::End { force })
        .and_then(|mut client| Ok((client.receive(deadline.at_most(FIRST_ANSWER))?, client)));
    let answer = match first {
        Ok((Reply::Accepted, mut client)) => client.receive(deadline),
        Ok((reply, _)) => return Err(refused(what, reply)),
        Err(_) if !server.is_alive() => return Ok((server, "stopped")),
        Err(error) if force && error.kind() != Kind::Permission => {
            process.kill().map_err(|error| Error::system(what.as_str(), error))?;
            return match process.gone_by(deadline.at_most(DEATH)) {
                true => Ok((server, "killed")),
                false => Err(still_runs(pid, "it was killed and has not ended")),
            };
        }
        Err(error) => {
            let cure = format!("`blockhaus down --force {}` kills it", server.config.display());
            return Err(Error::new(error.kind(), what, error.to_string()).cure(cure));
        }
    };
    match answer {
        Ok(Reply::Stopped) => {}
        Ok(reply) => return Err(refused(what, reply)),
        Err(_) if !server.is_alive() => {}
        Err(error) if error.kind() == Kind::Deadline => {
            return Err(still_runs(pid, "it was told to end and takes long"));
        }
        Err(error) => return Err(error),
    }
    match process.gone_by(deadline) {
        true => Ok((server, "stopped")),
        false => Err(still_runs(pid, "its exports are gone, and it still runs")),
    }
}

/// Refuses a device that is part of something. What only has it open may pass by, and is left to
/// the server, which can wait for it.
fn is_free(entry: &Entry) -> Result<()> {
    let users = devices::users(entry.name, &entry.device, &[entry.pid]);
    let lasting: Vec<Holder> = users.into_iter().filter(Holder::is_lasting).collect();
    if lasting.is_empty() {
        return Ok(());
    }
    let what = format!("cannot take down {}", entry.device.display());
    let why = format!("it is in use: {}", holders::describe(&lasting));
    Err(Error::new(Kind::Busy, what, why).cure("end that first, or force it with `blockhaus down --force`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::DeviceName;

    fn entry(id: u32) -> Entry {
        let name = DeviceName::ublk(id);
        Entry::new(name, name.path(), "ram:1M")
    }

    #[test]
    fn the_devices_of_a_file_are_told_from_others() {
        let (_folder, registry) = Registry::temporary();
        for (id, config) in [(3, Some("/a.toml")), (4, Some("/b.toml")), (5, Some("/a.toml")), (6, None)] {
            let entry = Entry { config: config.map(Into::into), ..entry(id) };
            registry.write(&entry).unwrap();
        }
        let ids = |config: Option<&str>| -> Vec<u32> {
            devices_of(&registry, config.map(Path::new)).iter().map(|entry| entry.name.id).collect()
        };
        assert_eq!(ids(Some("/a.toml")), [3, 5]);
        assert!(ids(Some("/c.toml")).is_empty());
        assert_eq!(ids(None), [3, 4, 5]);
    }

    #[test]
    fn what_a_dead_up_left_is_cleaned_up() {
        let (_folder, registry) = Registry::temporary();
        for id in [999_990, 999_991] {
            let entry = Entry { boot: "another".into(), ..entry(id) };
            registry.write(&Entry { config: Some("/a.toml".into()), ..entry }).unwrap();
        }
        let results = down(&registry, devices_of(&registry, None), Vec::new(), false).unwrap().devices;
        let how: Vec<_> =
            results.into_iter().map(|result| result.unwrap()).map(|done| (done.id, done.how)).collect();
        assert_eq!(how, [(999_990, "cleaned-up"), (999_991, "cleaned-up")]);
        assert!(registry.names().is_empty());
    }
}
