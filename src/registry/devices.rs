//! The kernel's view: which devices there are, whoever made them, and how a person may name one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Registry;
use crate::engine::fuse::place;
use crate::engine::{DeviceName, Engine, nbd};
use crate::error::{Error, Result};
use crate::holders::{self, Holder};
use crate::port::clock::{self, Deadline, Duration};

/// The path of a ublk device's server's side.
pub fn server_side(id: u32) -> PathBuf {
    format!("/dev/ublkc{id}").into()
}

/// What differs from one device to the next of the same name: the inode of /dev/ublkcN, what the NBD
/// driver was told about who serves /dev/nbdN, or the inode of the folder fuseN.
pub fn identity(name: DeviceName) -> Option<u64> {
    match name.engine {
        Engine::Ublk => Some(fs::symlink_metadata(server_side(name.id)).ok()?.ino()),
        Engine::Nbd => nbd::kernel::identity(name.id),
        Engine::Fuse => place::all(&place::root()).get(&name.id).copied(),
    }
}

/// How long a ublk device has been there.
pub fn age(id: u32) -> Option<Duration> {
    let made = fs::symlink_metadata(server_side(id)).ok()?.ctime();
    Some(Duration::from_secs(clock::unix_seconds().saturating_sub(u64::try_from(made).ok()?)))
}

/// All devices of the host that are of a kind of ours, whoever made them.
pub fn all() -> BTreeSet<DeviceName> {
    let mut found = BTreeSet::new();
    for folder in ["/sys/class/ublk-char", "/dev"] {
        let ids = numbers(folder, "ublkc");
        found.extend(ids.into_iter().map(DeviceName::ublk));
    }
    let nbd = numbers("/sys/block", "nbd").into_iter().map(DeviceName::nbd);
    found.extend(nbd.filter(|name| exists(*name)));
    found.extend(place::all(&place::root()).into_keys().map(DeviceName::fuse));
    found
}

/// The numbers behind a prefix among the names in a folder.
fn numbers(folder: &str, prefix: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix(prefix)?.parse().ok();
    entries.filter_map(|entry| number(&entry.file_name())).collect()
}

/// Whether anything of the device is there. The NBD driver has nodes that nobody serves: they are none.
pub fn exists(name: DeviceName) -> bool {
    match name.engine {
        Engine::Ublk => {
            let id = name.id;
            let names = [format!("/sys/class/ublk-char/ublkc{id}"), format!("/sys/class/block/{name}")];
            names.iter().any(|name| Path::new(name).exists())
                || server_side(id).exists()
                || name.path().exists()
        }
        Engine::Nbd => nbd::kernel::is_connected(name.id),
        Engine::Fuse => identity(name).is_some(),
    }
}

/// Whether what was taken away can still be seen as long as somebody has it open: the NBD driver's devices can,
/// and need no further care.
pub fn stays_with_its_users(name: DeviceName) -> bool {
    match name.engine {
        Engine::Ublk | Engine::Fuse => false,
        Engine::Nbd => true,
    }
}

/// Whether the device is gone by the deadline, its nodes in /dev too where these come and go with it.
pub fn gone_by(name: DeviceName, deadline: Deadline) -> bool {
    deadline.wait_until(|| !exists(name))
}

/// Who uses the disk whose path is `device`, without the processes in `except`. Touches nothing whose server may hang.
pub fn users(name: DeviceName, device: &Path, except: &[i32]) -> Vec<Holder> {
    match name.engine {
        Engine::Ublk | Engine::Nbd => holders::passive(device, except),
        Engine::Fuse => holders::of_file(&name.path(), device, except),
    }
}

/// Bytes of the disk, where there is one.
pub fn size(name: DeviceName) -> Option<u64> {
    // In sectors of 512 bytes, whatever the block size.
    let sectors: u64 =
        fs::read_to_string(format!("/sys/class/block/{name}/size")).ok()?.trim().parse().ok()?;
    sectors.checked_mul(512)
}

/// The device that a text names by itself: `nbd0`, `/dev/ublkb0`, `/dev/ublkc0`, or a link to one.
pub fn named(text: &str) -> Option<DeviceName> {
    let path = Path::new(text);
    // Before it is followed, which may ask a server that does not answer.
    if let Some(id) = place::id_of(&place::root(), path) {
        return Some(DeviceName::fuse(id));
    }
    let target = fs::canonicalize(path).ok().filter(|_| path.is_absolute());
    let name = target.as_deref().unwrap_or(path).file_name()?.to_str()?;
    let server_side = name.strip_prefix("ublkc").map(|number| format!("ublkb{number}"));
    server_side.as_deref().unwrap_or(name).parse().ok()
}

/// The device that a person means: by its name, by a path, or by its number alone where one has that.
pub fn meant(registry: &Registry, text: &str) -> Result<DeviceName> {
    if let Some(name) = named(text) {
        return Ok(name);
    }
    let what = || format!("no such device {text:?}");
    let known = registry.names();
    if let Some(name) = by_path(
        Path::new(text),
        known.iter().filter_map(|(name, (_, entry))| Some((*name, entry.as_ref()?.device.as_path()))),
    ) {
        return Ok(name);
    }
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(id) = text.parse::<u32>().ok().filter(|_| digits) else {
        return Err(Error::invalid(what(), "it is neither an id nor the name or path of a disk")
            .cure("write, for example, 0, nbd0 or /dev/ublkb0; `blockhaus list` shows what there is"));
    };
    let of_id = |names: &mut dyn Iterator<Item = DeviceName>| -> Vec<DeviceName> {
        names.filter(|name| name.id == id).collect()
    };
    let mut found = of_id(&mut known.keys().copied());
    if found.is_empty() {
        found = of_id(&mut all().into_iter());
    }
    match found[..] {
        [] => Ok(DeviceName::ublk(id)),
        [name] => Ok(name),
        _ => {
            let names: Vec<String> = found.iter().map(DeviceName::to_string).collect();
            let why = format!("there are {}", names.join(" and "));
            Err(Error::invalid(format!("cannot tell which disk {text} is"), why).cure("write which of them"))
        }
    }
}

/// The one of these devices that has this path, which may be a link.
fn by_path<'a>(path: &Path, mut devices: impl Iterator<Item = (DeviceName, &'a Path)>) -> Option<DeviceName> {
    let target = fs::canonicalize(path).ok();
    devices.find(|(_, device)| *device == path || target.as_deref() == Some(*device)).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::super::Entry;
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let (folder, registry) = Registry::temporary();
        (folder, registry)
    }

    #[test]
    fn devices_as_people_write_them() {
        let (_folder, registry) = registry();
        for (text, name) in [
            ("999999", DeviceName::ublk(999_999)),
            ("ublkb3", DeviceName::ublk(3)),
            ("/dev/ublkb3", DeviceName::ublk(3)),
            ("/dev/ublkc4", DeviceName::ublk(4)),
            ("nbd3", DeviceName::nbd(3)),
            ("/dev/nbd3", DeviceName::nbd(3)),
        ] {
            assert_eq!(meant(&registry, text).unwrap(), name, "{text}");
        }
        for text in ["", "-1", "+1", "x", "/dev/null", "/dev/3", "ublkb", "ublkb0p1", "99999999999", "/"] {
            assert!(meant(&registry, text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_is_the_device_of_ours_that_has_it() {
        let (_folder, registry) = registry();
        let id = 999_997;
        registry.write(&Entry::new(DeviceName::nbd(id), "/nowhere/disk".into(), "ram:1M")).unwrap();
        assert_eq!(meant(&registry, "999997").unwrap(), DeviceName::nbd(id));
        assert_eq!(meant(&registry, "/nowhere/disk").unwrap(), DeviceName::nbd(id));
        let ublk = DeviceName::ublk(id);
        registry.write(&Entry::new(ublk, ublk.path(), "ram:1M")).unwrap();
        let error = meant(&registry, "999997").unwrap_err().to_string();
        assert!(error.contains("ublkb999997 and nbd999997"), "{error}");
    }
}
