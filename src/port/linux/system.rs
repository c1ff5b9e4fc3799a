//! What this machine is: asked for, never assumed.

use std::sync::OnceLock;

use nix::unistd::{SysconfVar, sysconf};

/// Bytes in a page.
pub fn page_size() -> usize {
    static PAGE_SIZE: OnceLock<usize> = OnceLock::new();
    *PAGE_SIZE.get_or_init(|| {
        let asked = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        asked.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4096)
    })
}

/// Processors that are there at all: the most queues the kernel gives a device.
pub fn cpu_count() -> u16 {
    let asked = sysconf(SysconfVar::_NPROCESSORS_CONF).ok().flatten();
    asked.and_then(|count| u16::try_from(count).ok()).unwrap_or(1).max(1)
}

/// The kernel's release, as `uname -r` prints it.
pub fn kernel_release() -> String {
    match nix::sys::utsname::uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(_) => "unknown".into(),
    }
}
