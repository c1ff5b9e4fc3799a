//! The tools that the host must have, installed when they are missing.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{run, say};

/// Debian's public keys: all that comes from the archive is checked with them.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Something on the host: a program or a file, and the package that has it.
pub struct Need {
    what: &'static str,
    package: &'static str,
}

impl Need {
    /// A program's name or a file's path, and the package to install for it.
    pub const fn new(what: &'static str, package: &'static str) -> Self {
        Self { what, package }
    }

    fn is_there(&self) -> bool {
        if self.what.starts_with('/') {
            Path::new(self.what).exists()
        } else {
            run::find_program(self.what).is_some()
        }
    }
}

/// Needed to start a machine.
pub const TO_RUN: &[Need] =
    &[Need::new("qemu-system-x86_64", "qemu-system-x86"), Need::new("mke2fs", "e2fsprogs")];

/// Needed as well to fetch kernels and to make a root file system.
pub const TO_BUILD: &[Need] = &[
    Need::new("debootstrap", "debootstrap"),
    Need::new(KEYRING, "debian-archive-keyring"),
    Need::new("gpgv", "gpgv"),
    Need::new("depmod", "kmod"),
    Need::new("xz", "xz-utils"),
    Need::new("mke2fs", "e2fsprogs"),
    Need::new("dpkg-deb", "dpkg"),
];

/// Needed to link programs, statically too, and to compile a C program in a test.
pub const TO_COMPILE: &[Need] = &[Need::new("cc", "gcc"), Need::new("/usr/include/stdio.h", "libc6-dev")];

/// The NBD clients, and the reader of metrics, that the interop tests use.
pub const TO_INTEROPERATE: &[Need] = &[
    Need::new("nbdinfo", "libnbd-bin"),
    Need::new("nbdcopy", "libnbd-bin"),
    Need::new("qemu-io", "qemu-utils"),
    Need::new("fio", "fio"),
    Need::new("/usr/lib/python3/dist-packages/nbd.py", "python3-libnbd"),
    Need::new("/usr/lib/python3/dist-packages/prometheus_client/__init__.py", "python3-prometheus-client"),
];

/// What the tests of the FUSE engine put on its disks, and what mounts for an ordinary user.
pub const TO_MOUNT: &[Need] = &[
    Need::new("fusermount3", "fuse3"),
    Need::new("fio", "fio"),
    Need::new("mkfs.ext4", "e2fsprogs"),
    Need::new("mkfs.xfs", "xfsprogs"),
    Need::new("mkfs.btrfs", "btrfs-progs"),
    Need::new("blkdiscard", "util-linux"),
];

/// The packages of `needs` that are missing, each once.
fn missing(needs: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        needs.iter().filter(|need| !need.is_there()).map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Install what is missing of `needs`, after saying so.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if run::find_program("apt-get").is_none() {
        bail!(
            "missing: {list}. This machine has no apt-get, which also fetches the kernels; \
             use a Debian or Ubuntu machine (a container with root will do)"
        );
    }
    if !run::is_root() && run::find_program("sudo").is_none() {
        bail!("missing: {list}. Install them as root: apt-get install {list}");
    }
    say::step(format!("installing {} (missing on this machine)", packages.join(", ")));
    if install(&packages).is_err() {
        say::step("that failed; refreshing this machine's package lists and trying once more");
        run::quiet(run::as_root("apt-get").arg("update").stdin(Stdio::null()))
            .context("could not refresh this machine's package lists; is its mirror reachable?")?;
        install(&packages)
            .with_context(|| format!("could not install {list}; try `apt-get install {list}`"))?;
    }
    match missing(needs).as_slice() {
        [] => Ok(()),
        still => bail!("installed, and yet still missing: {}", still.join(" ")),
    }
}

fn install(packages: &[&str]) -> Result<()> {
    run::quiet(
        run::as_root("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
}
