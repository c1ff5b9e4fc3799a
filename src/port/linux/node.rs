//! Device nodes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Whether there is something at this path.
pub fn exists(path: &Path) -> bool {
    path.exists()
}

/// Opens a node for reading and writing.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// The same, and it must be a character device.
pub fn open_character_device(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    if !file.metadata()?.file_type().is_char_device() {
        return Err(io::Error::other("it is no character device"));
    }
    Ok(file)
}

/// Opens a block device's node for reading, as the only one who may have it to himself: ResourceBusy where it is mounted,
/// swapped to, or part of another device, and until the file is closed nobody else gets to do that.
pub fn open_exclusive(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path)
}

/// Opens a node for reading and closes it at once: what matters is that it can be opened.
pub fn try_open(path: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).open(path).map(drop)
}
