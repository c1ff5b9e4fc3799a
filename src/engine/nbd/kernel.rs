//! This machine's kernel as the client: its NBD driver shows the disk as /dev/nbdN, and its requests come over
//! sockets within this process to the same queues that serve clients from elsewhere. No door and no handshake are
//! needed: the driver is told what it gets (`Documentation/admin-guide/blockdev/nbd.rst`,
//! `drivers/block/nbd.c`).
//!
//! Told over netlink, the driver keeps the disk while its server is gone, and takes new sockets for dead
//! ones: so a killed server comes back. Told by ioctls, which is how it was before Linux 4.12, the disk ends
//! with the process that made it.

mod attached;
mod by_ioctl;
mod by_netlink;
mod mending;
mod sysfs;

pub use attached::{Attached, BY_NETLINK, Options};
pub use sysfs::{identity, is_connected, is_ours, seen};

use std::path::Path;

use crate::engine::driver;
use crate::error::{Error, Kind, Result};
use crate::port::{node, process, system};

/// Requests that the driver has in flight on each connection.
pub const DEPTH: u16 = 128;

/// What there is as soon as the driver is loaded, whether or not it has any device.
const LOADED: &str = "/sys/module/nbd";

/// A device that the driver has from the start, whether or not anybody has connected it, unless it was told to have none.
const FIRST_DEVICE: &str = "/sys/block/nbd0";

/// Its node.
const FIRST_NODE: &str = "/dev/nbd0";

/// Loads the driver where it is a module that is not loaded. The error says why there is none, that permission is
/// missing, or that there is no way to the driver.
pub fn available() -> Result<()> {
    let is_there = || node::exists(Path::new(LOADED)) || node::exists(Path::new(FIRST_NODE));
    if !is_there() {
        driver::load("nbd");
    }
    if !is_there() {
        let newer = "boot a kernel with it (Debian's have)";
        let (why, cure) = driver::why_missing("nbd", "CONFIG_BLK_DEV_NBD", newer);
        let what = format!("this kernel ({}) has no NBD driver", system::kernel_release());
        return Err(Error::new(Kind::Unsupported, what, why).cure(cure));
    }
    if !process::is_root() {
        let why = "the kernel's NBD driver takes disks from root only";
        return Err(Error::new(Kind::Permission, "cannot make an nbd device", why).cure("run as root"));
    }
    // /sys shows the driver in containers, too, which may have no way to it.
    let exists = |path| node::exists(Path::new(path));
    let (why, is_reached) = match by_netlink::Driver::open() {
        Ok(_) => (String::new(), exists(FIRST_NODE) || !exists(FIRST_DEVICE)),
        Err(error) => (format!("netlink is not to be had here ({error}), and "), by_ioctl::has_node()),
    };
    if !is_reached {
        let why = format!("{why}its nodes /dev/nbdN are not here to be opened");
        return Err(Error::new(Kind::Unsupported, "cannot reach this kernel's NBD driver", why)
            .cure("in a container: give it the machine's /dev"));
    }
    Ok(())
}

/// Ends a device whose server is gone, unless its number is another one's by now. It may take as long as the driver
/// takes.
pub fn disconnect(id: u32, identity: u64) -> Result<()> {
    let what = format!("cannot disconnect /dev/nbd{id}");
    let failed = |error| Error::system(what.as_str(), error).cure("run as root; dmesg may say more");
    match by_netlink::Driver::open() {
        Ok(mut driver) => driver.disconnect(id, identity).map_err(failed),
        Err(_) => by_ioctl::disconnect(id, identity).map_err(failed),
    }
}
