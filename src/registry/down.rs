//! Taking away everything that an `up` serves, with an answer in bounded time.

use std::path::Path;

use super::control::Request;
use super::detach::{ANSWER, Detached, take_away};
use super::{Entry, Registry};
use crate::error::{Error, Kind, Result};
use crate::holders::{self, Holder};
use crate::port::clock::Deadline;
use crate::port::process::Other;
use crate::port::thread;

/// The devices that were made from this file, or with `None` from any.
pub fn devices_of(registry: &Registry, config: Option<&Path>) -> Vec<Entry> {
    let entries = registry.ids().into_values().filter_map(|(_, entry)| entry);
    let is_wanted = |entry: &Entry| match (&entry.config, config) {
        (Some(found), Some(wanted)) => found == wanted,
        (found, None) => found.is_some(),
        (None, Some(_)) => false,
    };
    entries.filter(is_wanted).collect()
}

/// Takes these devices away, which belong to processes of `up`, and returns when they and the
/// processes are gone. Nothing is begun while one of them is mounted or held, unless by force.
pub fn down(registry: &Registry, entries: Vec<Entry>, force: bool) -> Result<Vec<Result<Detached>>> {
    let deadline = Deadline::after(ANSWER);
    if !force {
        entries.iter().filter(|entry| entry.is_alive()).try_for_each(is_free)?;
    }
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
    let lost = || Error::new(Kind::Failed, "cannot detach", "a thread could not be made or ended by itself");
    let mut results: Vec<Result<Detached>> = running
        .into_iter()
        .map(|thread| thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| Err(lost())))
        .collect();
    if results.iter().all(Result::is_ok)
        && let Some((pid, _)) = processes.iter().find(|(_, process)| !process.gone_by(deadline))
    {
        let why = "its devices are gone, and it still runs".to_owned();
        results.push(Err(Error::new(Kind::Deadline, format!("process {pid} has not ended"), why)
            .cure(format!("it may be starting another device; try again, or `kill -9 {pid}`"))));
    }
    Ok(results)
}

/// Refuses a device that is part of something. What only has it open may pass by, and is left to
/// the server, which can wait for it.
fn is_free(entry: &Entry) -> Result<()> {
    let users = holders::passive(&entry.device, &[entry.pid]);
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

    #[test]
    fn the_devices_of_a_file_are_told_from_others() {
        let folder = std::env::temp_dir().join(format!("blockhaus-down-{}", std::process::id()));
        let registry = Registry::at(folder.clone());
        registry.create().unwrap();
        for (id, config) in [(3, Some("/a.toml")), (4, Some("/b.toml")), (5, Some("/a.toml")), (6, None)] {
            let entry = Entry { config: config.map(Into::into), ..Entry::new(id, "ram:1M") };
            registry.write(&entry).unwrap();
        }
        let ids = |config: Option<&str>| -> Vec<u32> {
            devices_of(&registry, config.map(Path::new)).iter().map(|entry| entry.id).collect()
        };
        assert_eq!(ids(Some("/a.toml")), [3, 5]);
        assert!(ids(Some("/c.toml")).is_empty());
        assert_eq!(ids(None), [3, 4, 5]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_a_dead_up_left_is_cleaned_up() {
        let folder = std::env::temp_dir().join(format!("blockhaus-down-dead-{}", std::process::id()));
        let registry = Registry::at(folder.clone());
        registry.create().unwrap();
        for id in [999_990, 999_991] {
            let entry = Entry { boot: "another".into(), ..Entry::new(id, "ram:1M") };
            registry.write(&Entry { config: Some("/a.toml".into()), ..entry }).unwrap();
        }
        let results = down(&registry, devices_of(&registry, None), false).unwrap();
        let how: Vec<_> =
            results.into_iter().map(|result| result.unwrap()).map(|done| (done.id, done.how)).collect();
        assert_eq!(how, [(999_990, "cleaned-up"), (999_991, "cleaned-up")]);
        assert!(registry.ids().is_empty());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
