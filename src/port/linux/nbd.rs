//! The ioctls of /dev/nbdN (`linux/nbd.h`), for a kernel that cannot be asked over netlink.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use blockhaus_uapi::nbd::{ServerFlags, ioctl};

/// Every request here takes a number or nothing.
fn request(node: &File, number: u32, argument: u64) -> io::Result<()> {
    let argument = libc::c_ulong::try_from(argument).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the requests of this module take a number, which the kernel never follows as an address; the
    // descriptor is open.
    let result = unsafe { libc::ioctl(node.as_raw_fd(), number as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Adds a connection. The kernel keeps the socket, whatever becomes of the descriptor.
pub fn add_socket(node: &File, socket: BorrowedFd<'_>) -> io::Result<()> {
    request(node, ioctl::SET_SOCK, socket.as_raw_fd() as u64)
}

/// Sets the shape of the disk.
pub fn set_size(node: &File, block_size: u32, blocks: u64) -> io::Result<()> {
    request(node, ioctl::SET_BLKSIZE, block_size.into())?;
    request(node, ioctl::SET_SIZE_BLOCKS, blocks)
}

/// Says what the server can do.
pub fn set_flags(node: &File, flags: ServerFlags) -> io::Result<()> {
    request(node, ioctl::SET_FLAGS, flags.bits())
}

/// How long a request may take, in seconds.
pub fn set_timeout(node: &File, seconds: u64) -> io::Result<()> {
    request(node, ioctl::SET_TIMEOUT, seconds)
}

/// Is the disk: returns when it has been disconnected, or all connections are dead.
pub fn be_disk(node: &File) -> io::Result<()> {
    request(node, ioctl::DO_IT, 0)
}

/// Ends the disk: whoever is in [`be_disk`] returns.
pub fn disconnect(node: &File) -> io::Result<()> {
    request(node, ioctl::DISCONNECT, 0)
}

/// Forgets the connections.
pub fn forget_sockets(node: &File) -> io::Result<()> {
    request(node, ioctl::CLEAR_SOCK, 0)
}
