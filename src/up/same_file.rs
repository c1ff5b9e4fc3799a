//! Whether two specs name one file, whatever they call it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::config::Spec;
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
    /// The place of a spec whose argument is a path, as its type says.
    pub(super) fn of(spec: &Spec, table: &SpecTable) -> Option<Place> {
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

/// The path without links and detours, as far as there is something.
fn whole(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}
