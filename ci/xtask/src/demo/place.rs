//! Where the demo runs, and why there.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, bail};

use crate::vm::{kernel, rootfs};
use crate::{paths, run};

/// One of two places.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Here {
        /// Why.
        why: String,
    },
    /// In a virtual machine.
    Guest {
        /// Why.
        why: String,
    },
}

impl Place {
    /// As was asked, or here when that can be, or else in a guest.
    pub fn choose(host: bool, vm: bool, kernel: &str) -> Result<Self> {
        let guest = |reason: String| Self::Guest {
            why: format!("in a virtual machine with Linux {kernel}, {reason}"),
        };
        if vm {
            return Ok(guest("as you asked".to_string()));
        }
        match obstacle(host) {
            None => Ok(Self::Here { why: "on this machine, whose kernel has ublk".to_string() }),
            Some(Obstacle::NoUblk(why)) if host && (has("/dev/nbd0") || has("/dev/fuse")) => {
                let engine = if has("/dev/nbd0") { "NBD" } else { "FUSE" };
                Ok(Self::Here { why: format!("on this machine, by {engine}: {why}") })
            }
            Some(Obstacle::NoUblk(why) | Obstacle::Other(why)) if host => {
                bail!("this machine cannot run the demo: {why}; without --host it runs in a VM")
            }
            Some(Obstacle::NoUblk(why) | Obstacle::Other(why)) => Ok(guest(format!("since {why}"))),
        }
    }

    /// One line.
    pub fn why(&self) -> &str {
        match self {
            Self::Here { why } | Self::Guest { why } => why,
        }
    }

    /// What the first run has to fetch, when this is one.
    pub fn first_time(&self, name: &str) -> Option<String> {
        let Self::Guest { .. } = self else { return None };
        let (kernel, root) = (kernel::cached(name).is_none(), rootfs::cached().is_none());
        if !kernel && !root {
            return None;
        }
        let mut parts = Vec::new();
        if kernel {
            parts.push("a Debian kernel, 50 MB to load");
        }
        if root {
            parts.push("a small Debian for it, 200 MB");
        }
        parts.push("QEMU and debootstrap, where this machine has none, installed with apt-get");
        Some(format!(
            "The first time takes a few minutes and fetches: {}. All of it is kept in {}; later runs \
             take about a minute and need no network.",
            parts.join("; "),
            paths::vm_cache().strip_prefix(paths::workspace()).unwrap_or(Path::new("target/vm")).display()
        ))
    }

    /// How to go on.
    pub fn what_next(&self) -> String {
        match self {
            Self::Here { .. } => "What next, on this machine:
  cargo build --release
  sudo target/release/blockhaus attach file:disk.img,size=10G   # prints /dev/ublkbN
  sudo target/release/blockhaus list
  sudo target/release/blockhaus detach /dev/ublkbN
  cargo xtask test                                              # everything, on real kernels"
                .to_string(),
            Self::Guest { .. } => "What next:
  cargo xtask vm                      # a shell in the same machine; --help says how to hand it files
  cargo xtask demo --kernel 6.12      # the same on another kernel; `cargo xtask vm --list` has them
  cargo xtask test                    # everything, on real kernels
On a machine whose kernel has ublk (Linux 6.12 or later; `modprobe ublk_drv`):
  cargo build --release
  sudo target/release/blockhaus attach file:disk.img,size=10G   # prints /dev/ublkbN
  sudo target/release/blockhaus detach /dev/ublkbN"
                .to_string(),
        }
    }
}

/// Why the demo does not run here by itself.
enum Obstacle {
    /// The kernel has no ublk: it would be slower, and is done where somebody asks for it.
    NoUblk(String),
    /// It cannot be.
    Other(String),
}

fn has(device: &str) -> bool {
    Path::new(device).exists()
}

/// What keeps the demo from running here. With `ask`, sudo may ask for a password.
fn obstacle(ask: bool) -> Option<Obstacle> {
    if !run::is_root() {
        if run::find_program("sudo").is_none() {
            return Some(Obstacle::Other("you are not root and there is no sudo".to_string()));
        }
        let mut sudo = run::command("sudo");
        if ask {
            sudo.args(["-v", "-p", "sudo's password for the demo: "]).stdin(Stdio::inherit());
        } else {
            sudo.args(["-n", "true"]).stdin(Stdio::null()).stderr(Stdio::null());
        }
        if !sudo.status().is_ok_and(|status| status.success()) {
            let why = "it takes root here, and sudo asks for a password (--host lets it)";
            return Some(Obstacle::Other(why.to_string()));
        }
    }
    let disabled = paths::read(Path::new("/proc/sys/kernel/io_uring_disabled")).unwrap_or_default();
    if disabled.trim() == "2" {
        let why = "io_uring is switched off here (kernel.io_uring_disabled)";
        return Some(Obstacle::Other(why.to_string()));
    }
    for (device, module) in [("/dev/ublk-control", "ublk_drv"), ("/dev/nbd0", "nbd"), ("/dev/fuse", "fuse")] {
        if !has(device) {
            // It fails where the kernel has no such module; the file tells.
            let _ = run::quiet(run::as_root("modprobe").arg("-q").arg(module));
        }
        if has("/dev/ublk-control") {
            return None;
        }
    }
    Some(Obstacle::NoUblk("this machine's kernel has no ublk (no ublk_drv)".to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_was_asked_for_is_taken() {
        let place = Place::choose(false, true, "6.12").unwrap();
        assert_eq!(place.why(), "in a virtual machine with Linux 6.12, as you asked");
        assert!(place.what_next().contains("cargo xtask vm"));
    }
}
