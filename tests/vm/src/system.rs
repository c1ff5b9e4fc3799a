//! What is on this host: everything a test could leave behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{blockhaus, home, procfs};

/// A picture of the host, to compare with a later one. Names, so that a difference explains itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Snapshot {
    pub fn take() -> Self {
        let mut things = BTreeMap::new();
        things.insert("device", devices());
        things.insert("process", processes());
        things.insert("file", state_files());
        things.insert("loop device", loops());
        things.insert("mount", mounts());
        things.insert("lock", locks());
        let (descriptors, mappings) = users();
        things.insert("descriptor", descriptors);
        things.insert("mapping", mappings);
        Self { things }
    }

    /// What is there now and was not before, one line each.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        self.things
            .iter()
            .flat_map(|(kind, now)| {
                let before = before.things.get(kind).unwrap_or(&none);
                now.difference(before).map(move |thing| format!("{kind} {thing}"))
            })
            .collect()
    }

    /// Files of blockhaus that were not there before.
    pub fn new_files(&self, before: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let files = |snapshot: &Self| snapshot.things.get("file").unwrap_or(&none).clone();
        files(self).difference(&files(before)).cloned().collect()
    }

    /// No device of ublk at all: whatever appears later is ours.
    pub fn has_no_devices(&self) -> bool {
        self.things.get("device").is_none_or(BTreeSet::is_empty)
    }
}

/// What is more than `before`, after waiting a little for it to go.
pub fn leftovers(before: &Snapshot, grace: Duration) -> Vec<String> {
    let deadline = Instant::now() + grace;
    loop {
        let more = Snapshot::take().since(before);
        if more.is_empty() || Instant::now() >= deadline {
            return more;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn listing(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.path().display().to_string()).collect()
}

/// Files of blockhaus. Its lock file may stay, empty: removing one races with who opens it; that
/// nobody holds it any more shows among the locks.
fn state_files() -> BTreeSet<String> {
    let lock = blockhaus::run_dir().join("lock");
    let idle = fs::metadata(&lock).is_ok_and(|meta| meta.len() == 0);
    let lock = lock.display().to_string();
    listing(&blockhaus::run_dir()).into_iter().filter(|path| !(idle && *path == lock)).collect()
}

fn devices() -> BTreeSet<String> {
    let nodes = listing(Path::new("/dev")).into_iter().filter(|path| {
        let digits = path.strip_prefix("/dev/ublkb").or_else(|| path.strip_prefix("/dev/ublkc"));
        digits.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    let disks = listing(Path::new("/sys/class/block")).into_iter().filter(|path| path.contains("/ublkb"));
    // The NBD driver has its nodes whether or not anybody serves one.
    let connected = (0..64).map(|id| format!("/sys/block/nbd{id}/pid")).filter(|pid| Path::new(pid).exists());
    nodes.chain(disks).chain(listing(Path::new("/sys/class/ublk-char"))).chain(connected).collect()
}

/// Processes of blockhaus and of the examples.
pub fn servers() -> Vec<u32> {
    let ours = blockhaus::binary();
    let examples = Path::new("/payload/examples");
    procfs::pids()
        .into_iter()
        .filter(|&pid| procfs::exe(pid).is_some_and(|exe| exe == ours || exe.starts_with(examples)))
        .collect()
}

fn processes() -> BTreeSet<String> {
    servers()
        .into_iter()
        .map(|pid| {
            let stat = procfs::stat(&format!("/proc/{pid}/stat"));
            let (comm, state) = stat.map_or_else(|| ("?".into(), '?'), |stat| (stat.comm, stat.state));
            format!("{pid} ({comm}, state {state})")
        })
        .collect()
}

/// Loop devices in use, with what is behind them.
pub fn loops() -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return BTreeSet::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let behind = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            Some(format!("/dev/{} {}", entry.file_name().to_str()?, behind.trim()))
        })
        .collect()
}

fn mounts() -> BTreeSet<String> {
    let ours = |mount: &procfs::Mount| {
        mount.target.starts_with(home::scratch())
            || ["/ublkb", "/dev/nbd"].iter().any(|ours| mount.source.contains(ours))
    };
    procfs::mounts()
        .iter()
        .filter(|mount| ours(mount))
        .map(|mount| mount.target.display().to_string())
        .collect()
}

/// Locks on files, by device and inode: lines of /proc/locks without number and owner.
fn locks() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/locks").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "->").collect();
            Some(format!("{} {} {}", words.get(1)?, words.get(3)?, words.get(5)?))
        })
        .collect()
}

/// Descriptors and mappings, system-wide, of rings and of ublk's devices.
fn users() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut descriptors, mut mappings) = (BTreeSet::new(), BTreeSet::new());
    let telling = |text: &str| ["/dev/ublk", "/dev/nbd", "[io_uring]"].iter().any(|ours| text.contains(ours));
    for pid in procfs::pids() {
        if let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) {
            for entry in entries.flatten() {
                let Ok(target) = fs::read_link(entry.path()) else { continue };
                let target = target.to_string_lossy().into_owned();
                if telling(&target) {
                    descriptors.insert(format!(
                        "{} of process {pid}: {target}",
                        entry.file_name().to_string_lossy()
                    ));
                }
            }
        }
        if let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/maps")) {
            for line in maps.lines().filter(|line| telling(line)) {
                mappings.insert(format!("in process {pid}: {line}"));
            }
        }
    }
    (descriptors, mappings)
}

/// The first of many, and how many more there are.
pub fn shortened(mut lines: Vec<String>) -> Vec<String> {
    const SHOWN: usize = 12;
    if lines.len() > SHOWN + 1 {
        let more = lines.len() - SHOWN;
        lines.truncate(SHOWN);
        lines.push(format!("and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_told_and_what_went_is_not() {
        let one = |name: &str| BTreeSet::from([name.to_string()]);
        let before =
            Snapshot { things: BTreeMap::from([("device", one("/dev/ublkb0")), ("file", BTreeSet::new())]) };
        let after =
            Snapshot { things: BTreeMap::from([("device", one("/dev/ublkb1")), ("file", one("0.json"))]) };
        assert_eq!(after.since(&before), ["device /dev/ublkb1", "file 0.json"]);
        assert_eq!(after.new_files(&before), ["0.json"]);
        assert!(before.since(&before).is_empty());
    }

    #[test]
    fn a_descriptor_of_a_ring_or_a_lock_shows_in_a_snapshot() {
        let before = Snapshot::take();
        let file = tempfile::tempfile().unwrap();
        file.lock().unwrap();
        let more = Snapshot::take().since(&before);
        assert!(more.iter().any(|thing| thing.starts_with("lock FLOCK WRITE")), "{more:?}");
    }
}
