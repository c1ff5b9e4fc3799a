//! What this machine is: asked for, never assumed.

use std::path::PathBuf;
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

/// The variable that names another folder than [`run_folder`] would.
pub const RUN_FOLDER_VARIABLE: &str = "BLOCKHAUS_RUN_DIR";

/// Where the folder for what lives as long as the machine runs is, unless somebody says otherwise.
pub const DEFAULT_RUN_FOLDER: &str = "/run/blockhaus";

/// The folder for what lives as long as the machine runs: the one that the variable names; an ordinary user's own, if
/// there is one; /run/blockhaus.
pub fn run_folder() -> PathBuf {
    let named = std::env::var_os(RUN_FOLDER_VARIABLE).filter(|folder| !folder.is_empty());
    let own = || own_run_folder().filter(|folder| folder.is_dir());
    let folder = named.map(PathBuf::from).or_else(own).unwrap_or_else(|| DEFAULT_RUN_FOLDER.into());
    // A server leaves the folder it was started in.
    std::path::absolute(&folder).unwrap_or(folder)
}

/// Makes an ordinary user's own folder, which is the [`run_folder`] from then on, where there is a place for it
/// (XDG_RUNTIME_DIR) and no other was named. For who is about to serve a disk.
pub fn make_run_folder() {
    if std::env::var_os(RUN_FOLDER_VARIABLE).is_none_or(|folder| folder.is_empty())
        && let Some(folder) = own_run_folder()
    {
        use std::os::unix::fs::DirBuilderExt;
        // Where it cannot be made, what is to lie in it says so.
        let _ = std::fs::DirBuilder::new().mode(0o700).create(folder);
    }
}

fn own_run_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty())?;
    (!nix::unistd::geteuid().is_root()).then(|| PathBuf::from(folder).join("blockhaus"))
}
