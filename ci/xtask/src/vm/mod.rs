//! Virtual machines with Debian's kernels: `cargo xtask vm`, and [`Machine`]
//! for other verbs and for tests.
//!
//! recipe + archive → kernel, rootfs → initrd, payload → qemu → machine → cli

pub mod cli;
pub mod kernel;
pub mod recipe;
pub mod rootfs;

pub(crate) mod archive;
mod cpio;
mod image;
mod initrd;
mod kvm;
mod machine;
mod modules;
mod payload;
mod qemu;
mod sources;
mod version;
mod watch;

pub use machine::{DEFAULT_TIMEOUT, ExitStatusCode, Machine};
pub use payload::Payload;
