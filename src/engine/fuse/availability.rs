//! Whether this machine has FUSE for this process, and where not, why not.

use std::path::Path;

use crate::engine::driver;
use crate::error::{Error, Kind, Result};
use crate::port::{fuse, loop_device, node, process, system};

/// Whether a disk can be a block device, by a loop device. Loads its driver where that is a module.
pub fn has_loop_devices() -> bool {
    if !process::is_root() {
        return false;
    }
    if !loop_device::is_available() {
        driver::load("loop");
    }
    loop_device::is_available()
}

fn why_missing() -> Option<(String, String)> {
    let device = Path::new(fuse::DEVICE);
    if !node::exists(device) {
        driver::load("fuse");
    }
    if !node::exists(device) {
        return Some(driver::why_missing(
            "fuse",
            "CONFIG_FUSE_FS",
            "boot a kernel that has it, as Debian's do",
        ));
    }
    if let Err(error) = node::open(device) {
        let why = format!("{} cannot be opened: {error}", fuse::DEVICE);
        return Some((why, format!("run as root, or have root run `chmod 666 {}`", fuse::DEVICE)));
    }
    if !process::is_root() && !fuse::has_helper() {
        let why = "who is not root mounts by fusermount3, and that is not there";
        return Some((why.into(), "install fuse3, or run as root".into()));
    }
    None
}

/// Whether there is FUSE; where not, the one clear sentence.
pub fn check() -> Result<()> {
    let Some((why, cure)) = why_missing() else { return Ok(()) };
    let what = format!("this machine (Linux {}) has no FUSE to be used", system::kernel_release());
    Err(Error::new(Kind::Unsupported, what, why).cure(cure))
}
