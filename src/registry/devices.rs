//! The kernel's view: which ublk devices there are, and how a person may name one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::port::clock::{self, Deadline, Duration};

/// The path of the disk.
pub fn disk(id: u32) -> PathBuf {
    format!("/dev/ublkb{id}").into()
}

/// The path of its server's side.
pub fn server_side(id: u32) -> PathBuf {
    format!("/dev/ublkc{id}").into()
}

/// The inode of /dev/ublkcN, which differs from one device to the next of the same id.
pub fn node(id: u32) -> Option<u64> {
    Some(fs::symlink_metadata(server_side(id)).ok()?.ino())
}

/// How long the device has been there.
pub fn age(id: u32) -> Option<Duration> {
    let made = fs::symlink_metadata(server_side(id)).ok()?.ctime();
    Some(Duration::from_secs(clock::unix_seconds().saturating_sub(u64::try_from(made).ok()?)))
}

/// Ids of all ublk devices of the host, whoever made them.
pub fn ids() -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for folder in ["/sys/class/ublk-char", "/dev"] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("ublkc"));
            found.extend(number.and_then(|number| number.parse::<u32>().ok()));
        }
    }
    found
}

/// Whether anything of the device is there.
pub fn exists(id: u32) -> bool {
    let names = [format!("/sys/class/ublk-char/ublkc{id}"), format!("/sys/class/block/ublkb{id}")];
    names.iter().any(|name| Path::new(name).exists()) || server_side(id).exists() || disk(id).exists()
}

/// Whether the device is gone by the deadline, its nodes in /dev too.
pub fn gone_by(id: u32, deadline: Deadline) -> bool {
    deadline.wait_until(|| !exists(id))
}

/// Bytes of the disk, where there is one.
pub fn size(id: u32) -> Option<u64> {
    // In sectors of 512 bytes, whatever the block size.
    let sectors: u64 =
        fs::read_to_string(format!("/sys/class/block/ublkb{id}/size")).ok()?.trim().parse().ok()?;
    sectors.checked_mul(512)
}

/// The id of what a person calls a device: `0`, `/dev/ublkb0`, `ublkb0`, or a link to one.
pub fn parse_id(text: &str) -> Result<u32> {
    let path = Path::new(text);
    let target = fs::canonicalize(path).ok().filter(|_| path.is_absolute());
    let name = target.as_deref().unwrap_or(path).file_name().and_then(|name| name.to_str()).unwrap_or(text);
    let number = ["ublkb", "ublkc"].iter().find_map(|prefix| name.strip_prefix(prefix));
    let number = number.or((!text.contains('/')).then_some(text)).unwrap_or("");
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| digits).ok_or_else(|| {
        Error::invalid(format!("no such device {text:?}"), "it is neither an id nor the path of a ublk disk")
            .cure("write, for example, 0 or /dev/ublkb0; `blockhaus list` shows what there is")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_as_people_write_them() {
        for (text, id) in [("0", 0), ("17", 17), ("ublkb3", 3), ("/dev/ublkb3", 3), ("/dev/ublkc4", 4)] {
            assert_eq!(parse_id(text).unwrap(), id, "{text}");
        }
        for text in ["", "-1", "+1", "x", "/dev/null", "/dev/3", "ublkb", "ublkb0p1", "99999999999", "/"] {
            assert!(parse_id(text).is_err(), "{text}");
        }
    }
}
