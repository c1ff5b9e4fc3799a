//! The kernel's drivers that engines need: loaded where they are modules, and why one is missing.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::port::system;

/// Has the kernel load a module. Fails without permission or without the module; what the driver makes is
/// there afterwards or it is not.
pub(super) fn load(module: &str) {
    let _ = Command::new("modprobe")
        .args(["-q", module])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Why this machine has no such driver, and what to do, as far as it can be told. `option` is its name in the
/// kernel's configuration, `newer` what to do where this kernel never had it.
pub(super) fn why_missing(module: &str, option: &str, newer: &str) -> (String, String) {
    let release = system::kernel_release();
    let config = std::fs::read_to_string(format!("/boot/config-{release}")).unwrap_or_default();
    let off = config.contains(&format!("# {option} is not set"))
        || (!config.is_empty() && !config.contains(&format!("{option}=")));
    let modules = format!("/lib/modules/{release}");
    let file = format!("/{module}.ko");
    let listed = ["modules.dep", "modules.builtin"].iter().any(|list| {
        std::fs::read_to_string(format!("{modules}/{list}")).is_ok_and(|text| text.contains(&file))
    });
    if listed {
        (format!("its module {module} is not loaded"), format!("run `modprobe {module}` as root"))
    } else if off {
        (format!("it was built without it ({option} is off)"), newer.into())
    } else if Path::new(&modules).exists() {
        (format!("there is no module {module} for it"), newer.into())
    } else {
        ("it is not built in, and this machine has no modules for it".into(), newer.into())
    }
}
