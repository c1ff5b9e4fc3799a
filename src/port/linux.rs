//! The real world: Linux.

#[cfg(not(feature = "sim"))]
pub mod channel;
pub mod clock;
pub mod command;
pub mod file;
pub mod fuse;
pub mod loop_device;
pub mod memory;
pub mod nbd;
pub mod netlink;
pub mod node;
pub mod notify;
pub mod process;
mod provided;
pub mod remote;
pub mod signal;
pub mod socket;
pub mod stream;
pub mod system;
pub mod thread;
pub(super) mod uring;
