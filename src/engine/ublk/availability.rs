//! Whether this kernel has ublk, and where not, why not.

use std::path::Path;

use crate::engine::driver;
use crate::error::{Error, Kind};
use crate::port::{node, system};

/// The device that control commands go to.
pub(super) const CONTROL_PATH: &str = "/dev/ublk-control";

/// Loads the driver where it is a module that is not loaded; true when the control device is there
/// afterwards.
pub(super) fn load_driver() -> bool {
    if !node::exists(Path::new(CONTROL_PATH)) {
        driver::load("ublk_drv");
    }
    node::exists(Path::new(CONTROL_PATH))
}

/// The one clear sentence.
pub(super) fn missing() -> Error {
    let newer = "boot a kernel from 6.12 on that has it (Debian 13's has)";
    let (why, cure) = driver::why_missing("ublk_drv", "CONFIG_BLK_DEV_UBLK", newer);
    Error::new(Kind::Unsupported, format!("this kernel ({}) has no ublk", system::kernel_release()), why)
        .cure(cure)
}
