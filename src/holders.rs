//! Who uses a block device: mounts, other devices on top of it, swap, and processes.
//!
//! The kernel has no one answer, so this asks everywhere. What it finds is true at the moment it
//! looks; only `TRY_STOP_DEV` (Linux 7.0) closes the race.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::port::file::{self, FileKind, How};
use crate::port::process;

mod proc;

/// Somebody who uses a block device or one of its partitions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A file system is mounted.
    Mount {
        /// Where.
        at: String,
        /// From which device, where it is a partition.
        partition: Option<String>,
    },
    /// Another device lies on top of it.
    Device {
        /// Its name in /sys/block.
        name: String,
    },
    /// It is swap space.
    Swap {
        /// The device's path.
        path: String,
    },
    /// A process has it open.
    Process {
        /// Its number.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// The kernel says that somebody has claimed it, and nothing says who: a mount in another
    /// mount namespace, a file system of many devices.
    Claimed,
}

impl Holder {
    /// Whether the device is part of something, rather than only open: this does not pass by
    /// itself in a moment.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Holder::Process { .. } | Holder::Claimed)
    }

    /// Whether it is udev looking at a disk that has changed. It always lets go again, however long
    /// a busy machine makes it take.
    pub fn is_udev(&self) -> bool {
        matches!(self, Holder::Process { name, .. } if name.contains("udev"))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Mount { at, partition: None } => write!(f, "mounted at {at}"),
            Holder::Mount { at, partition: Some(name) } => write!(f, "{name} mounted at {at}"),
            Holder::Device { name } => write!(f, "held by {name}"),
            Holder::Swap { path } => write!(f, "{path} is swap space"),
            Holder::Process { pid, name } => write!(f, "open in process {pid} ({name})"),
            Holder::Claimed => f.write_str("claimed by a mount in another namespace or by another driver"),
        }
    }
}

/// Holders in one line: "mounted at /mnt, open in process 12 (fio)".
pub fn describe(holders: &[Holder]) -> String {
    let lines: Vec<String> = holders.iter().map(Holder::to_string).collect();
    lines.join(", ")
}

/// Everybody who uses the block device at `path`, except this process. Empty where `path` is no
/// block device. Opens the device for a moment, so not for a device whose server may hang.
pub fn holders(path: &Path) -> Vec<Holder> {
    let mut found = passive(path, &[]);
    if found.is_empty() && is_claimed(path) {
        found.push(Holder::Claimed);
    }
    found
}

/// As [`holders`], without touching the device itself, and without the processes in `except`.
pub fn passive(path: &Path, except: &[i32]) -> Vec<Holder> {
    let Some(device) = BlockDevice::at(path) else { return Vec::new() };
    let mut found = BTreeSet::new();
    if let Ok(text) = fs::read_to_string("/proc/self/mountinfo") {
        found.extend(proc::mounts(&text, &device));
    }
    if let Ok(text) = fs::read_to_string("/proc/swaps") {
        found.extend(proc::swaps(&text, &device));
    }
    for (name, _) in &device.parts {
        let entries = fs::read_dir(format!("/sys/class/block/{name}/holders"));
        for entry in entries.into_iter().flatten().flatten() {
            found.insert(Holder::Device { name: entry.file_name().to_string_lossy().into_owned() });
        }
    }
    found.extend(proc::loops(&device));
    found.extend(proc::openers(&device, |pid| pid == process::own_pid() || except.contains(&pid)));
    found.into_iter().collect()
}

/// Processes other than this one that have the node at `path` open, whatever kind of node it is.
pub fn openers(path: &Path) -> Vec<Holder> {
    let node = BlockDevice { parts: Vec::new(), paths: vec![path.to_owned()] };
    proc::openers(&node, |pid| pid == process::own_pid())
}

/// Everybody who uses a disk that a server shows as `file`, or by `device`, a loop device on it, where that is another
/// path; without the processes in `except`. Touches neither.
pub fn of_file(file: &Path, device: &Path, except: &[i32]) -> Vec<Holder> {
    let node = BlockDevice { parts: Vec::new(), paths: vec![file.to_owned()] };
    let mut found: BTreeSet<Holder> =
        proc::openers(&node, |pid| pid == process::own_pid() || except.contains(&pid)).into_iter().collect();
    if file != device {
        found.extend(passive(device, except));
    }
    let own = device.file_name().map(|name| name.to_string_lossy().into_owned());
    let is_own = |holder: &Holder| matches!(holder, Holder::Device { name } if Some(name) == own.as_ref());
    found.extend(proc::loops(&node).into_iter().filter(|holder| !is_own(holder)));
    found.into_iter().collect()
}

/// A disk with its partitions, or one partition.
#[derive(Debug)]
struct BlockDevice {
    /// Name in /sys/class/block and `major:minor`; the first is the device itself.
    parts: Vec<(String, String)>,
    /// Paths it is known by.
    paths: Vec<PathBuf>,
}

impl BlockDevice {
    /// The block device at `path`, if it is one.
    fn at(path: &Path) -> Option<BlockDevice> {
        let metadata = fs::metadata(path).ok()?;
        if file::kind(&metadata) != FileKind::BlockDevice {
            return None;
        }
        let number = device_number(metadata.rdev());
        let folder = fs::canonicalize(format!("/sys/dev/block/{number}")).ok();
        let file_name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let own_name = folder.as_deref().and_then(file_name).or_else(|| file_name(path))?;
        let mut parts = vec![(own_name, number)];
        for entry in folder.iter().flat_map(fs::read_dir).flatten().flatten() {
            let entry = entry.path();
            if !entry.join("partition").exists() {
                continue;
            }
            if let (Some(name), Ok(number)) = (file_name(&entry), fs::read_to_string(entry.join("dev"))) {
                parts.push((name, number.trim().to_owned()));
            }
        }
        let mut paths: Vec<PathBuf> = parts.iter().map(|(name, _)| Path::new("/dev").join(name)).collect();
        paths.extend(fs::canonicalize(path));
        Some(BlockDevice { parts, paths })
    }

    /// Whether `path` is this device or one of its partitions.
    fn has_path(&self, path: &Path) -> bool {
        self.paths.iter().any(|known| known == path)
    }

    /// Whether `path`, which may be a link such as /dev/disk/by-uuid/…, leads here. Only paths
    /// under /dev are followed: others may lead to a file system that does not answer.
    fn is_at(&self, path: &Path) -> bool {
        self.has_path(path)
            || path.starts_with("/dev") && fs::canonicalize(path).is_ok_and(|path| self.has_path(&path))
    }
}

/// `major:minor` as /sys/dev/block has it. The encoding is that of makedev(3) on Linux.
fn device_number(rdev: u64) -> String {
    let major = (rdev >> 8 & 0xfff) | (rdev >> 32 & 0xffff_f000);
    let minor = (rdev & 0xff) | (rdev >> 12 & 0xffff_ff00);
    format!("{major}:{minor}")
}

/// Whether somebody holds the device exclusively, as mounts and other drivers do.
fn is_claimed(path: &Path) -> bool {
    if BlockDevice::at(path).is_none() {
        return false;
    }
    let opened = file::open(path, How { exclusive: true, ..How::default() });
    opened.is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_sysfs() {
        assert_eq!(device_number(0x0103), "1:3");
        assert_eq!(device_number(259 << 8 | 0x7f), "259:127");
        assert_eq!(device_number(8 << 8 | 0xff | 0x123 << 20), "8:74751");
    }

    #[test]
    fn what_is_no_block_device_has_no_holders() {
        assert_eq!(holders(Path::new("/dev/null")), []);
        assert_eq!(holders(Path::new("/nowhere")), []);
    }

    #[test]
    fn holders_read_like_a_sentence() {
        let mount = Holder::Mount { at: "/mnt".into(), partition: Some("ublkb0p1".into()) };
        let process = Holder::Process { pid: 12, name: "fio".into() };
        assert!(mount.is_lasting() && !process.is_lasting());
        assert_eq!(describe(&[mount, process]), "ublkb0p1 mounted at /mnt, open in process 12 (fio)");
    }
}
