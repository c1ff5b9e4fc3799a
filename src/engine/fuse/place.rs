//! Where disks are mounted: a folder each, whose making takes the number.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::port::clock::{self, Duration};
use crate::port::{fuse, loop_device, system};

/// What stands before the number in the name of a folder.
pub const PREFIX: &str = "fuse";

/// Most disks at once.
const MOST: u32 = 4096;

/// The folder of all disks, in which the registry has its files, too; as the kernel calls it in what it says of mounts.
pub fn root() -> PathBuf {
    let folder = system::run_folder();
    fs::canonicalize(&folder).unwrap_or(folder)
}

fn folder(root: &Path, id: u32) -> PathBuf {
    root.join(format!("{PREFIX}{id}"))
}

/// The file of the disk with this number.
pub fn file(root: &Path, id: u32) -> PathBuf {
    fuse::file_in(&folder(root, id))
}

/// The number of the disk that `path` is the file or a loop device of.
pub fn id_of(root: &Path, path: &Path) -> Option<u32> {
    let number = path.to_str().and_then(|text| text.strip_prefix("/dev/loop")?.parse().ok());
    let backing = number.and_then(loop_device::backing_file);
    let wanted = backing.as_deref().unwrap_or(path);
    let name = wanted.strip_prefix(root).ok()?.parent()?.to_str()?;
    number_in(name).filter(|&id| file(root, id) == wanted)
}

/// The number in the name of a folder, only as we write it.
fn number_in(name: &str) -> Option<u32> {
    let number = name.strip_prefix(PREFIX)?;
    number.parse::<u32>().ok().filter(|id| id.to_string() == number)
}

/// The disks that there are, with what another one that comes to have the same number has not: the inodes of their
/// folders, below what is mounted there. Asks nobody who serves one.
pub fn all(root: &Path) -> BTreeMap<u32, u64> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|entry| Some((number_in(entry.file_name().to_str()?)?, entry.ino()))).collect()
}

/// Takes a number: this one, or the lowest that is free.
pub(super) fn take(root: &Path, id: Option<u32>) -> Result<(u32, PathBuf)> {
    let candidates = id.map_or(0..MOST, |id| id..id.saturating_add(1));
    for candidate in candidates {
        let folder = folder(root, candidate);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok((candidate, folder)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::system(format!("cannot make {}", folder.display()), error)),
        }
    }
    let (what, why) = match id {
        Some(id) => (format!("cannot make FUSE disk {id}"), format!("id {id} is in use")),
        None => ("cannot make a FUSE disk".into(), format!("there are {MOST} already")),
    };
    Err(Error::new(Kind::Busy, what, why)
        .cure("see `blockhaus list` for what is taken; `blockhaus gc` removes what dead servers left"))
}

/// Removes what a server that is gone has left of a disk: the loop device, the mount, the folder. Who still has
/// the disk open gets errors. May wait for the kernel, and so is for a process of its own.
pub fn remove(root: &Path, id: u32) -> Result<()> {
    let folder = folder(root, id);
    let what = || format!("cannot remove {}", folder.display());
    cut(root, id);
    let file = fuse::file_in(&folder);
    for number in loop_device::devices_of(&file) {
        loop_device::release(number, &file, false).map_err(|error| {
            Error::system(format!("cannot remove {}", loop_device::path(number).display()), error)
        })?;
    }
    fuse::force_unmount(&folder).map_err(|error| Error::system(what(), error))?;
    match fs::remove_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::system(what(), error)),
        _ => Ok(()),
    }
}

/// Removes the folder of a disk that never came to be: who took the number was killed before there was anything else. It
/// must be older than `age`, since every disk begins like that. Whether it was one.
pub fn remove_stillborn(root: &Path, id: u32, age: Duration) -> io::Result<bool> {
    let folder = folder(root, id);
    // Before anything is asked of what may be mounted there.
    if fuse::is_mounted(&folder) {
        return Ok(false);
    }
    let made = u64::try_from(fs::symlink_metadata(&folder)?.ctime()).unwrap_or(u64::MAX);
    if clock::unix_seconds().saturating_sub(made) < age.as_secs() || fs::read_dir(&folder)?.next().is_some() {
        return Ok(false);
    }
    fs::remove_dir(&folder).map(|()| true)
}

/// Lets everything fail at once that waits for the disk, the process that serves it included, where that waits for
/// itself: one that was killed could not end otherwise.
pub fn cut(root: &Path, id: u32) {
    fuse::cut(&folder(root, id));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_once_and_the_lowest_first() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir(root.join("fuse01")).unwrap();
        fs::write(root.join("fuse2"), "").unwrap();
        assert_eq!(take(root, None).unwrap().0, 0);
        assert_eq!(take(root, Some(1)).unwrap().0, 1);
        // A file is in the way of 2.
        assert_eq!(take(root, None).unwrap().0, 3);
        assert_eq!(take(root, Some(0)).unwrap_err().kind(), Kind::Busy);
        assert_eq!(all(root).into_keys().collect::<Vec<_>>(), [0, 1, 3]);
        assert_eq!(id_of(root, &file(root, 3)), Some(3));
        for other in ["fuse01/disk", "fuse2/x", "fuse2", "disk", ""] {
            assert_eq!(id_of(root, &root.join(other)), None, "{other}");
        }
        assert_eq!(id_of(root, Path::new("/dev/loop-control")), None);
        // What was never mounted is gone with its folder.
        remove(root, 1).unwrap();
        assert_eq!(all(root).into_keys().collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn a_folder_that_is_old_and_empty_is_one_of_no_disk() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let (first, _) = take(root, None).unwrap();
        let (second, folder) = take(root, None).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        let hour = Duration::from_secs(3600);
        assert!(!remove_stillborn(root, first, hour).unwrap());
        assert!(!remove_stillborn(root, second, Duration::ZERO).unwrap());
        assert!(remove_stillborn(root, first, Duration::ZERO).unwrap());
        assert_eq!(all(root).into_keys().collect::<Vec<_>>(), [second]);
        assert!(remove_stillborn(root, first, Duration::ZERO).is_err());
    }
}
