//! The parts behind `cargo xtask`, for its verbs and for tests that need a
//! machine with another kernel.
//!
//! - [`vm::Machine`] boots a Debian kernel in QEMU and runs a command in it;
//! - [`guest_build`] builds binaries that run in any such machine;
//! - [`headers`] are the newest kernel's, for uapi's test;
//! - [`host`] sees to the tools that this needs on the host.

pub mod bench;
pub mod demo;
pub mod guest_build;
pub mod headers;
pub mod host;
pub mod paths;
pub mod run;
pub mod say;
pub mod test;
pub mod vm;
