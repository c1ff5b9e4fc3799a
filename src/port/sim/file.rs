//! Files: those under `/sim` are a world's own. Each is a memory file of the kernel's that lends its
//! descriptors, its size and its locks; the contents are the world's.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

pub use crate::port::linux::file::{
    DirectAlignment, FileKind, How, Run, block_sizes, kind, queue_limit, size, splits_requests, try_lock,
};

use super::current;
use super::ublk::UserCopy;
use super::world::State;
use crate::port::linux::file as linux;

/// What a descriptor of the world leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// /dev/ublk-control.
    Control,
    /// /dev/ublkcN.
    Device(u32),
    /// A disk.
    Disk(usize),
}

/// The files of a world, by inode.
#[derive(Default)]
pub(super) struct Files {
    objects: BTreeMap<u64, Object>,
    paths: BTreeMap<PathBuf, File>,
}

impl Files {
    /// Makes a file of `size` bytes that stands for `object` under `path`.
    pub fn add(&mut self, path: &Path, object: Object, size: u64) -> io::Result<()> {
        const NAME: &CStr = c"simulated";
        let file = File::from(memfd_create(NAME, MFdFlags::MFD_CLOEXEC)?);
        file.set_len(size)?;
        self.objects.insert(file.metadata()?.ino(), object);
        self.paths.insert(path.to_path_buf(), file);
        Ok(())
    }

    /// Takes a path away; who has it open keeps it.
    pub fn remove(&mut self, path: &Path) {
        self.paths.remove(path);
    }

    pub fn get(&self, path: &Path) -> Option<&File> {
        self.paths.get(path)
    }

    /// A new descriptor for a path, as open(2) gives one.
    pub fn open(&self, path: &Path, write: bool) -> io::Result<File> {
        let file = self.get(path).ok_or(io::ErrorKind::NotFound)?;
        File::options().read(true).write(write).open(own(file.as_raw_fd()))
    }
}

fn own(fd: RawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{fd}"))
}

/// What a descriptor leads to.
pub(super) fn object_of(files: &Files, fd: RawFd) -> Option<Object> {
    let inode = std::fs::metadata(own(fd)).ok()?.ino();
    files.objects.get(&inode).copied()
}

/// Something of the world, where the thread is in one and `path` in it.
fn at<T>(path: &Path, then: impl FnOnce(&State) -> io::Result<T>) -> Option<io::Result<T>> {
    let handle = current().filter(|_| path.starts_with("/sim"))?;
    Some(then(&handle.state()))
}

/// The disk that a file is, and its state.
fn disk<T>(file: &File, then: impl FnOnce(&mut State, usize) -> T) -> Option<T> {
    let handle = current()?;
    let mut state = handle.state();
    match object_of(&state.files, file.as_raw_fd()) {
        Some(Object::Disk(disk)) => Some(then(&mut state, disk)),
        _ => None,
    }
}

/// As `linux::open`.
pub fn open(path: &Path, how: How) -> io::Result<File> {
    at(path, |state| match how.direct && !state.direct(path) {
        true => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        false => state.files.open(path, how.write),
    })
    .unwrap_or_else(|| linux::open(path, how))
}

/// As `linux::metadata`.
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    at(path, |state| state.files.get(path).ok_or(io::ErrorKind::NotFound)?.metadata())
        .unwrap_or_else(|| linux::metadata(path))
}

/// As `linux::direct_alignment`.
pub fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    match disk(file, |state, disk| state.disks[disk].shape().sector) {
        Some(offset) => Ok(Some(DirectAlignment { memory: 4, offset })),
        None => linux::direct_alignment(file),
    }
}

/// As `linux::can_punch_holes`.
pub fn can_punch_holes(file: &File, end: u64) -> bool {
    disk(file, |state, disk| state.disks[disk].shape().punches)
        .unwrap_or_else(|| linux::can_punch_holes(file, end))
}

/// As `linux::run_at`.
pub fn run_at(file: &File, offset: u64) -> io::Result<Run> {
    match disk(file, |_, disk| disk) {
        None => linux::run_at(file, offset),
        Some(disk) => {
            super::clock::sleep(std::time::Duration::from_micros(20));
            let handle = current().ok_or(io::ErrorKind::Interrupted)?;
            let state = handle.alive().ok_or(io::ErrorKind::Interrupted)?;
            Ok(state.disks[disk].run_at(offset))
        }
    }
}

/// As `linux::sync_data`. Everything that was written before is durable afterwards.
pub fn sync_data(file: &File) -> io::Result<()> {
    let Some(disk) = disk(file, |_, disk| disk) else { return linux::sync_data(file) };
    super::clock::sleep(std::time::Duration::from_micros(300));
    let Some(handle) = current() else { return Ok(()) };
    let Some(mut state) = handle.alive() else { return Err(io::ErrorKind::Interrupted.into()) };
    state.sync_whole_disk(disk)
}

/// The device that a file is.
fn device(file: &File) -> Option<u32> {
    match object_of(&current()?.state().files, file.as_raw_fd()) {
        Some(Object::Device(device)) => Some(device),
        _ => None,
    }
}

fn user_copy(device: u32, offset: u64, copy: UserCopy<'_>) -> io::Result<()> {
    let handle = current().ok_or(io::ErrorKind::Interrupted)?;
    let mut state = handle.alive().ok_or(io::ErrorKind::Interrupted)?;
    state.user_copy(device, offset, copy)
}

/// As `linux::read_exact_at`: of a device's node, a copy from a request's pages.
pub fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    match device(file) {
        Some(device) => user_copy(device, offset, UserCopy::FromPages(bytes)),
        None => linux::read_exact_at(file, bytes, offset),
    }
}

/// As `linux::write_all_at`: to a device's node, a copy into a request's pages.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    match device(file) {
        Some(device) => user_copy(device, offset, UserCopy::IntoPages(bytes)),
        None => linux::write_all_at(file, bytes, offset),
    }
}
