//! Whether this kernel has ublk, and where not, why not.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, Kind};
use crate::port::{node, system};

/// The device that control commands go to.
pub(super) const CONTROL_PATH: &str = "/dev/ublk-control";

/// Loads the driver where it is a module that is not loaded; true when the control device is there
/// afterwards.
pub(super) fn load_driver() -> bool {
    if !node::exists(Path::new(CONTROL_PATH)) {
        // Fails without permission or without the module; the file's absence tells as much.
        let _ = Command::new("modprobe")
            .args(["-q", "ublk_drv"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    node::exists(Path::new(CONTROL_PATH))
}

/// Why there is no control device on this machine, and what to do, as far as it can be told.
pub fn why_missing() -> (String, String) {
    let release = system::kernel_release();
    let config = std::fs::read_to_string(format!("/boot/config-{release}")).unwrap_or_default();
    let off = config.contains("# CONFIG_BLK_DEV_UBLK is not set")
        || (!config.is_empty() && !config.contains("CONFIG_BLK_DEV_UBLK="));
    let modules = format!("/lib/modules/{release}");
    let listed = ["modules.dep", "modules.builtin"].iter().any(|list| {
        std::fs::read_to_string(format!("{modules}/{list}")).is_ok_and(|text| text.contains("ublk_drv"))
    });
    let newer = "boot a kernel from 6.12 on that has it (Debian 13's has)".to_string();
    if listed {
        ("its module ublk_drv is not loaded".into(), "run `modprobe ublk_drv` as root".into())
    } else if off {
        ("it was built without it (CONFIG_BLK_DEV_UBLK is off)".into(), newer)
    } else if Path::new(&modules).exists() {
        ("there is no module ublk_drv for it".into(), newer)
    } else {
        ("it is not built in, and this machine has no modules for it".into(), newer)
    }
}

/// The one clear sentence.
pub(super) fn missing() -> Error {
    let (why, cure) = why_missing();
    Error::new(Kind::Unsupported, format!("this kernel ({}) has no ublk", system::kernel_release()), why)
        .cure(cure)
}
