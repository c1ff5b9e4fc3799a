//! What the machine is.

pub use crate::port::linux::system::{
    DEFAULT_RUN_FOLDER, RUN_FOLDER_VARIABLE, kernel_release, make_run_folder, page_size, run_folder,
};

/// As `linux::system::cpu_count`.
pub fn cpu_count() -> u16 {
    match super::current() {
        Some(handle) => handle.state().config.cpus,
        None => crate::port::linux::system::cpu_count(),
    }
}
