//! Device nodes of the ublk driver.

use std::fs::File;
use std::io;
use std::path::Path;

use super::current;
use crate::port::linux::node as linux;

/// As `linux::exists`.
pub fn exists(path: &Path) -> bool {
    match current() {
        Some(handle) => handle.state().files.get(path).is_some(),
        None => linux::exists(path),
    }
}

/// As `linux::open`.
pub fn open(path: &Path) -> io::Result<File> {
    match current() {
        Some(handle) => handle.state().open_node(path),
        None => linux::open(path),
    }
}

/// As `linux::open_character_device`: every node of a world is one.
pub fn open_character_device(path: &Path) -> io::Result<File> {
    match current() {
        Some(_) => open(path),
        None => linux::open_character_device(path),
    }
}

/// As `linux::open_exclusive`: nobody in a world mounts anything.
pub fn open_exclusive(path: &Path) -> io::Result<File> {
    match current() {
        Some(_) => open(path),
        None => linux::open_exclusive(path),
    }
}

/// As `linux::try_open`.
pub fn try_open(path: &Path) -> io::Result<()> {
    match current() {
        Some(handle) => handle.state().try_open_disk(path),
        None => linux::try_open(path),
    }
}
