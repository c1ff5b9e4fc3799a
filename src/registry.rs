//! What runs on this host: one file a device in /run/blockhaus, and the socket of its server.
//!
//! | file | what it is |
//! |---|---|
//! | `NAME.json` | [`Entry`]: which process serves which device, from the moment the device exists |
//! | `NAME.sock` | the server's control socket, see [`control`] |
//! | `NAME.log` | what a server in the background has to say |
//! | `NAME.keeper` | which process starts its server again, see [`keeper`] |
//! | `up-PID.json`, `up-PID.sock` | the same two of a process of `up`, see [`servers`] |
//! | `lock` | held while files of a device are made or removed |

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::{DeviceName, Report};
use crate::error::{Error, Kind, Result};
use crate::port::clock::{self, Deadline, Duration};
use crate::port::file::try_lock;
use crate::port::socket::remove_if_there;
use crate::port::{process, system};

pub mod collect;
pub mod control;
pub mod detach;
pub mod devices;
pub mod down;
pub mod isolated;
pub mod keeper;
pub mod servers;
pub mod statistics;
pub mod survey;

/// The variable that names another folder than [`DEFAULT_FOLDER`].
pub const FOLDER_VARIABLE: &str = system::RUN_FOLDER_VARIABLE;

/// Where the state is.
pub const DEFAULT_FOLDER: &str = system::DEFAULT_RUN_FOLDER;

/// How long the lock may be held by others, who each hold it for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// For the owner alone.
const LOCK_MODE: u32 = 0o600;

/// Between two tries. Short and even, so that of many who want it nobody goes without.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// What a device and its server are known by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: DeviceName,
    /// The disk's path.
    pub device: PathBuf,
    /// The spec it was attached with.
    pub spec: String,
    /// The folder that relative paths in the spec begin at.
    pub directory: PathBuf,
    /// The server's command line.
    pub argv: Vec<String>,
    /// The server's process.
    pub pid: i32,
    /// When that process started, in clock ticks since boot: a number is used again, this is not.
    pub pid_start: u64,
    /// Which run of the machine that was.
    pub boot: String,
    /// When the device was made, in seconds since 1970.
    pub started: u64,
    /// The same, in seconds since the machine was started.
    pub started_since_boot: u64,
    /// What another device of the same name has not: see [`devices::identity`].
    pub identity: Option<u64>,
    /// What the server said when it was ready.
    pub report: Option<Report>,
    /// The file that names the device, where its server is one of `up`.
    pub config: Option<PathBuf>,
    /// The server has ended in order, though not everything went as it should, and something of the device is left.
    #[serde(default)]
    pub ended: bool,
}

impl Entry {
    /// An entry of this process for a device that was just made.
    pub fn new(name: DeviceName, device: PathBuf, spec: &str) -> Entry {
        let pid = process::own_pid();
        Entry {
            name,
            device,
            spec: spec.to_owned(),
            directory: std::env::current_dir().unwrap_or_default(),
            argv: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            pid,
            pid_start: process::stat(pid).map_or(0, |stat| stat.start),
            boot: boot_id(),
            started: clock::unix_seconds(),
            started_since_boot: clock::seconds_since_boot(),
            identity: devices::identity(name),
            report: None,
            config: None,
            ended: false,
        }
    }

    /// Whether the server still runs.
    pub fn is_alive(&self) -> bool {
        self.boot == boot_id() && process::is_alive(self.pid, self.pid_start)
    }

    /// Whether the kernel's device of this name is the one that the entry is about.
    pub fn owns_device(&self) -> bool {
        self.boot == boot_id() && (self.identity.is_none() || self.identity == devices::identity(self.name))
    }

    /// Seconds since the device was made.
    pub fn uptime(&self) -> u64 {
        clock::seconds_since_boot().saturating_sub(self.started_since_boot)
    }

    /// Whether one process serves this device and that of the other entry.
    fn is_same(&self, other: &Entry) -> bool {
        (self.pid, self.pid_start, &self.boot) == (other.pid, other.pid_start, &other.boot)
    }

    /// Whether both entries are about one device: a process of `up` can give a name to one disk after
    /// another.
    fn is_same_device(&self, other: &Entry) -> bool {
        self.is_same(other) && self.identity == other.identity
    }
}

/// Tells one run of the machine from the next.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The folder with everything that blockhaus knows between two commands.
#[derive(Clone, Debug)]
pub struct Registry {
    folder: PathBuf,
}

/// Held while files of a device are made or removed; released when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Registry {
    /// This host's.
    pub fn of_host() -> Registry {
        Registry::at(system::run_folder())
    }

    /// One in another folder.
    pub fn at(folder: PathBuf) -> Registry {
        // The server leaves the folder it was started in.
        Registry { folder: std::path::absolute(&folder).unwrap_or(folder) }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder where it is missing.
    pub fn create(&self) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.folder);
        made.map_err(|error| {
            Error::system(format!("cannot make {}", self.folder.display()), error)
                .cure(format!("run as root, or set {FOLDER_VARIABLE} to a folder of yours"))
        })
    }

    /// Keeps others from making and removing files.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.folder.join("lock");
        let what = || format!("cannot lock {}", path.display());
        // flock(2) takes a descriptor for reading: who can open it can keep everybody out.
        let file = File::options().create(true).truncate(false).write(true).mode(LOCK_MODE).open(&path);
        let file = file.map_err(|error| Error::system(what(), error))?;
        if file.metadata().is_ok_and(|metadata| metadata.mode() & 0o7777 != LOCK_MODE) {
            // One that an earlier version made. Who may write to it and does not own it cannot, and need not.
            let _ = file.set_permissions(Permissions::from_mode(LOCK_MODE));
        }
        let deadline = Deadline::after(LOCK_PATIENCE);
        let result = loop {
            match try_lock(&file, true) {
                Ok(false) if !deadline.passed() => clock::sleep(LOCK_PAUSE),
                result => break result,
            }
        };
        match result {
            Ok(true) => Ok(Lock { _file: file }),
            Ok(false) => Err(Error::new(Kind::Deadline, what(), "another blockhaus process holds it")),
            Err(error) => Err(Error::system(what(), error)),
        }
    }

    /// The control socket of a device's server.
    pub fn socket(&self, name: DeviceName) -> PathBuf {
        self.folder.join(format!("{name}.sock"))
    }

    /// The log of a device's server.
    pub fn log(&self, name: DeviceName) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    fn entry(&self, name: DeviceName) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// Writes an entry, whole or not at all.
    pub fn write(&self, entry: &Entry) -> Result<()> {
        Registry::write_whole(&self.entry(entry.name), entry)
    }

    fn write_whole(path: &Path, entry: &impl Serialize) -> Result<()> {
        let temporary = path.with_extension(format!("json.{}", process::own_pid()));
        let write = || {
            let mut text = serde_json::to_string(entry)?;
            text.push('\n');
            fs::write(&temporary, text)?;
            fs::rename(&temporary, path)
        };
        write().map_err(|error: io::Error| {
            let _ = remove_if_there(&temporary);
            Error::system(format!("cannot write {}", path.display()), error)
        })
    }

    /// The entry of a device, if there is one that can be read.
    pub fn read(&self, name: DeviceName) -> Option<Entry> {
        let entry: Entry = serde_json::from_str(&fs::read_to_string(self.entry(name)).ok()?).ok()?;
        (entry.name == name).then_some(entry)
    }

    /// Every device that has files here, with the paths of these files and the entry, where there is
    /// one that can be read.
    pub fn names(&self) -> BTreeMap<DeviceName, (Vec<PathBuf>, Option<Entry>)> {
        let mut found: BTreeMap<DeviceName, (Vec<PathBuf>, Option<Entry>)> = BTreeMap::new();
        for file in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let file_name = file.file_name();
            let Some((name, _)) = file_name.to_str().and_then(|name| name.split_once('.')) else { continue };
            let Ok(name) = name.parse() else { continue };
            found.entry(name).or_default().0.push(file.path());
        }
        for (name, (files, entry)) in &mut found {
            files.sort();
            *entry = self.read(*name);
        }
        found
    }

    /// Removes the files of the device in `entry`, unless they are those of another device by now:
    /// another server has taken the name since, or the same one for another of its disks. Returns what
    /// was removed. With `keep_log` the log stays, for somebody to read.
    pub fn remove(&self, entry: &Entry, keep_log: bool) -> Result<Vec<PathBuf>> {
        let _lock = self.lock()?;
        if self.read(entry.name).is_some_and(|now| !now.is_same_device(entry)) {
            return Ok(Vec::new());
        }
        let log = (!keep_log).then(|| self.log(entry.name));
        self.remove_files([self.entry(entry.name), self.socket(entry.name)].into_iter().chain(log))
    }

    /// Removes what the device has left here although no entry of it can be read.
    pub fn remove_debris(&self, name: DeviceName) -> Result<Vec<PathBuf>> {
        let _lock = self.lock()?;
        match self.names().remove(&name) {
            Some((files, None)) if !devices::exists(name) => self.remove_files(files),
            _ => Ok(Vec::new()),
        }
    }

    fn remove_files(&self, files: impl IntoIterator<Item = PathBuf>) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for file in files {
            match fs::remove_file(&file) {
                Ok(()) => removed.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::system(format!("cannot remove {}", file.display()), error)),
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Registry {
        /// One in a folder of its own, which goes with what is yielded beside it.
        pub(crate) fn temporary() -> (tempfile::TempDir, Registry) {
            let folder = tempfile::tempdir().unwrap();
            let registry = Registry::at(folder.path().join("run"));
            registry.create().unwrap();
            (folder, registry)
        }
    }

    const SEVEN: DeviceName = DeviceName::ublk(7);

    fn entry(name: DeviceName) -> Entry {
        Entry::new(name, name.path(), "ram:1G")
    }

    #[test]
    fn an_entry_comes_back_as_it_was_written() {
        let (_folder, registry) = Registry::temporary();
        let entry = entry(SEVEN);
        assert!(entry.is_alive());
        registry.write(&entry).unwrap();
        let back = registry.read(SEVEN).unwrap();
        assert_eq!((back.name, back.spec.as_str(), back.pid), (SEVEN, "ram:1G", process::own_pid()));
        assert!(back.is_alive() && back.is_same(&entry));
        assert!(registry.read(DeviceName::nbd(7)).is_none());
        assert_eq!(registry.remove(&entry, false).unwrap(), [registry.entry(SEVEN)]);
        assert!(registry.names().is_empty());
    }

    #[test]
    fn files_of_a_later_server_with_the_same_id_stay() {
        let (_folder, registry) = Registry::temporary();
        let mine = entry(SEVEN);
        let later = Entry { pid_start: mine.pid_start + 1, ..mine.clone() };
        registry.write(&later).unwrap();
        assert!(registry.remove(&mine, false).unwrap().is_empty());
        assert!(registry.read(SEVEN).is_some() && !later.is_alive());
        assert!(registry.remove_debris(SEVEN).unwrap().is_empty());
    }

    #[test]
    fn files_of_a_later_device_of_the_same_server_stay() {
        let (_folder, registry) = Registry::temporary();
        let old = Entry { identity: Some(1), ..entry(SEVEN) };
        let new = Entry { identity: Some(2), ..old.clone() };
        fs::write(registry.socket(SEVEN), "").unwrap();
        registry.write(&new).unwrap();
        assert!(registry.remove(&old, false).unwrap().is_empty());
        assert_eq!(registry.read(SEVEN).unwrap().identity, Some(2));
        assert_eq!(registry.remove(&new, false).unwrap(), [registry.entry(SEVEN), registry.socket(SEVEN)]);
    }

    #[test]
    fn broken_entries_are_debris_and_foreign_names_are_nothing() {
        let (_folder, registry) = Registry::temporary();
        for name in ["nbd3.json", "nbd3.log", "nbd03.json", "3.json", "x.json", "lock"] {
            fs::write(registry.folder().join(name), "{").unwrap();
        }
        let (names, broken) = (registry.names(), DeviceName::nbd(3));
        assert_eq!(names.keys().collect::<Vec<_>>(), [&broken]);
        assert!(names[&broken].1.is_none());
        assert_eq!(registry.remove_debris(broken).unwrap().len(), 2);
        assert!(registry.names().is_empty());
    }

    #[test]
    fn the_lock_keeps_others_out() {
        let (_folder, registry) = Registry::temporary();
        let lock = registry.lock().unwrap();
        assert_eq!(registry.lock().unwrap_err().kind(), Kind::Deadline);
        drop(lock);
        let mode = || fs::metadata(registry.folder().join("lock")).unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        // As an earlier version made it.
        fs::set_permissions(registry.folder().join("lock"), Permissions::from_mode(0o644)).unwrap();
        registry.lock().unwrap();
        assert_eq!(mode(), 0o600);
    }
}
