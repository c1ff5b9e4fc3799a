//! The real world: Linux.

#[cfg(not(feature = "sim"))]
pub mod channel;
pub mod clock;
pub mod command;
pub mod file;
pub mod inherited;
pub mod memory;
pub mod node;
pub mod notify;
pub mod pages;
pub mod process;
mod provided;
pub mod remote;
pub mod signal;
pub mod socket;
pub mod stream;
pub mod system;
pub mod thread;
pub(super) mod uring;
