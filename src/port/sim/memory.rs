//! Memory of the server that the kernel's side of the world reads and writes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::current;
use super::file::{Object, object_of};

/// Stores `bytes` at an address of the server's.
///
/// # Safety
/// The address came from the server, in an entry or a command that is in flight: whoever sent it
/// keeps the memory, and its hands off it, until the completion.
pub(super) unsafe fn store(address: u64, bytes: &[u8]) {
    // SAFETY: the caller's promise; the source is the world's own memory, elsewhere.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}

/// Loads `len` bytes from an address of the server's.
///
/// # Safety
/// As [`store`], and the memory is initialised.
pub(super) unsafe fn load(address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: the caller's promise; the target was made above.
    unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), len) };
    bytes
}

/// Where in its file a mapping begins: in a world the driver decides that for its descriptors.
pub fn mapping_offset(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    let Some(handle) = current() else { return Ok(offset) };
    let mut state = handle.state();
    match object_of(&state.files, file.as_raw_fd()) {
        Some(Object::Device(id)) => state.descriptors_offset(id, offset, len),
        _ => Ok(offset),
    }
}
