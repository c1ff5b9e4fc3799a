//! The first file system of a machine: busybox, a few modules, and what this
//! run wants. Small enough to write anew for each run.

use std::fs;

use anyhow::{Context, Result};

use super::cpio::Writer;
use super::kernel::Kernel;
use super::rootfs;
use crate::paths;

/// What one run tells its guest.
pub struct Order<'a> {
    /// The shell script to run; a shell on the terminal when there is none.
    pub script: Option<&'a str>,
    /// `NAME=value` lines for the guest's init, which it reads as shell.
    pub settings: String,
}

/// The archive for the kernel to unpack.
pub fn build(kernel: &Kernel, order: &Order<'_>) -> Result<Vec<u8>> {
    let mut archive = Writer::default();
    for folder in ["bin", "dev", "proc", "sys", "modules", "newroot", "order"] {
        archive.directory(folder);
    }
    archive.device("dev/console", 5, 1);
    let busybox = rootfs::busybox()?;
    let contents = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.file("bin/busybox", 0o755, &contents);
    archive.link("bin/sh", "busybox");
    for module in kernel.boot_modules()? {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let contents = fs::read(&module)?;
        archive.file(&format!("modules/{name}"), 0o644, &contents);
    }
    let recipes = paths::recipes();
    let scripts = [("init", "initrd-init.sh"), ("order/init", "guest-init.sh")];
    for (name, script) in scripts {
        archive.file(name, 0o755, paths::read(&recipes.join(script))?.as_bytes());
    }
    archive.file("order/settings", 0o644, order.settings.as_bytes());
    if let Some(script) = order.script {
        archive.file("order/command", 0o755, script.as_bytes());
    }
    Ok(archive.finish())
}
