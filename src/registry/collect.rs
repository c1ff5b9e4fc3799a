//! Putting right what a crash left: devices without a server, files without a device.

use serde::Serialize;

use super::control::State;
use super::isolated::{self, DeviceInfo};
use super::survey::{Seen, survey};
use super::{Registry, devices};
use crate::engine::fuse::place;
use crate::engine::{DeviceName, Engine};
use crate::error::{Error, Kind, Result};
use crate::holders;
use crate::port::clock::{Deadline, Duration};

/// How long the kernel may take for one device.
const PATIENCE: Duration = Duration::from_secs(8);

/// How old a device of another program, or a folder without a disk, must be before it can count as left behind.
const FOREIGN_AGE: Duration = Duration::from_secs(5);

/// A thing that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Its path.
    pub path: String,
    /// What it was.
    pub what: &'static str,
}

/// What a collection did, and what it could not do.
#[derive(Debug, Default)]
pub struct Collected {
    /// Everything that was removed.
    pub removed: Vec<Removed>,
    /// What could not be.
    pub failed: Vec<Error>,
}

/// Removes what dead servers of ours left, and with `foreign` also devices that dead servers of
/// other programs left.
pub fn collect(registry: &Registry, foreign: bool) -> Collected {
    let mut collected = Collected::default();
    match registry.remove_dead_servers() {
        Ok(files) => collected.removed.extend(files.iter().map(|path| file(path))),
        Err(error) => collected.failed.push(error),
    }
    for seen in survey(registry, None) {
        let result = match (seen.state, seen.driver) {
            (State::Dead, _) => ours(registry, &seen, &mut collected.removed),
            (State::Foreign, _) if seen.name.engine == Engine::Fuse => {
                stillborn(registry, seen.name, &mut collected.removed)
            }
            (State::Foreign, Some(info)) if foreign => foreigner(seen.name, info, &mut collected.removed),
            (State::Foreign, None) if foreign => Err(Error::new(
                Kind::Failed,
                format!("cannot tell whether {} is in use", seen.path().display()),
                "the driver does not say who serves it",
            )
            .cure("run as root")),
            _ => Ok(()),
        };
        collected.failed.extend(result.err());
    }
    collected
}

fn ours(registry: &Registry, seen: &Seen, removed: &mut Vec<Removed>) -> Result<()> {
    let name = seen.name;
    let Some(entry) = &seen.entry else {
        let files = registry.remove_debris(name)?;
        removed.extend(files.into_iter().map(|path| file(&path)));
        return Ok(());
    };
    registry.dismiss_keeper(name)?;
    if devices::exists(name) && entry.owns_device() {
        isolated::remove(name, entry.identity, Deadline::after(PATIENCE))?;
        removed.push(device(name));
    }
    let files = registry.remove(entry, false)?;
    let others = registry.remove_debris(name)?;
    removed.extend(files.iter().chain(&others).map(|path| file(path)));
    Ok(())
}

/// A folder of ours without an entry: nobody else has any. Its server may be just making it.
fn stillborn(registry: &Registry, name: DeviceName, removed: &mut Vec<Removed>) -> Result<()> {
    let _lock = registry.lock()?;
    if registry.read(name).is_some() {
        return Ok(());
    }
    match place::remove_stillborn(&place::root(), name.id, FOREIGN_AGE) {
        Ok(true) => removed.push(device(name)),
        Ok(false) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::system(format!("cannot remove {}", name.path().display()), error)),
    }
    Ok(())
}

fn foreigner(name: DeviceName, info: DeviceInfo, removed: &mut Vec<Removed>) -> Result<()> {
    // Nothing tells who serves a device of the NBD driver: whoever connected it may well have ended.
    // What FUSE has is ours.
    if matches!(name.engine, Engine::Nbd | Engine::Fuse) {
        return Ok(());
    }
    // A program that is just making a device has not told the driver its process yet, so it must
    // also be old, and nobody may have its side of it open.
    if info.is_served() || !is_old(name.id) || !holders::openers(&devices::server_side(name.id)).is_empty() {
        return Ok(());
    }
    isolated::remove(name, None, Deadline::after(PATIENCE))?;
    removed.push(device(name));
    Ok(())
}

fn is_old(id: u32) -> bool {
    devices::age(id).is_some_and(|age| age >= FOREIGN_AGE)
}

fn device(name: DeviceName) -> Removed {
    Removed { path: name.path().display().to_string(), what: "device" }
}

fn file(path: &std::path::Path) -> Removed {
    let what = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => "entry",
        Some("sock") => "socket",
        Some("log") => "log",
        Some("keeper") => "keeper",
        _ => "file",
    };
    Removed { path: path.display().to_string(), what }
}
