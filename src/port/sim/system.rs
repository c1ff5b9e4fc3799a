//! What the machine is.

pub use crate::port::linux::system::{kernel_release, page_size};

/// As [`crate::port::linux::system::cpu_count`].
pub fn cpu_count() -> u16 {
    match super::current() {
        Some(handle) => handle.state().config.cpus,
        None => crate::port::linux::system::cpu_count(),
    }
}
