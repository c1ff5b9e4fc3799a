//! Whether two disks lie on one file, whatever they call it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::config::Spec;
use crate::config::file::Disk;
use crate::stack::SpecTable;

/// Where a spec's contents are, if they are in a file: two that are equal are the same file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A block device, which may have many nodes.
    Device(u64),
    /// A file that is there.
    File { device: u64, inode: u64 },
    /// One that is not there yet.
    Nothing(PathBuf),
}

impl Place {
    /// The places of a disk: that of its spec, and those of the specs that its filters name.
    pub(super) fn all_of(disk: &Disk, table: &SpecTable) -> BTreeSet<Place> {
        let members = disk.filters.iter().flat_map(|filter| members(filter, table));
        let members: Vec<Spec> = members.collect();
        std::iter::once(&disk.spec).chain(&members).filter_map(|spec| Place::of(spec, table)).collect()
    }

    /// The place of a spec whose argument is a path, as its type says.
    fn of(spec: &Spec, table: &SpecTable) -> Option<Place> {
        let found = table.types().iter().find(|known| known.name == spec.kind())?;
        (found.argument == "PATH" && !spec.arg().is_empty()).then(|| Place::at(Path::new(spec.arg())))
    }

    fn at(path: &Path) -> Place {
        match fs::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => Place::Device(found.rdev()),
            Ok(found) => Place::File { device: found.dev(), inode: found.ino() },
            Err(_) => Place::Nothing(whole(path)),
        }
    }
}

/// The disks that a filter opens besides the one below it: what its keys that take specs name. One that
/// cannot be read is an error later, when it is opened.
fn members(filter: &Spec, table: &SpecTable) -> Vec<Spec> {
    let Some(found) = table.filters().iter().find(|known| known.name == filter.kind()) else {
        return Vec::new();
    };
    let keys = found.keys.iter().filter(|key| key.values == "SPEC;SPEC");
    let specs = keys.filter_map(|key| filter.get(key.name)).flat_map(|specs| specs.split(';'));
    specs.filter_map(|spec| spec.parse().ok()).collect()
}

/// The path without links and detours, as far as there is something.
fn whole(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}
