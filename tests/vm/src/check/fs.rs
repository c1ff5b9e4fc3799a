//! File systems: made, filled, checked, trimmed, unmounted, examined.

use std::path::Path;

use super::tree::Tree;
use crate::home::Mounted;
use crate::outcome::{Context, Outcome};
use crate::run::Cmd;

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

pub const KINDS: [Kind; 3] = [Kind::Ext4, Kind::Xfs, Kind::Btrfs];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    fn make(self) -> Cmd {
        match self {
            Self::Ext4 => Cmd::new("mkfs.ext4").args(["-q", "-F"]),
            Self::Xfs => Cmd::new("mkfs.xfs").args(["-q", "-f"]),
            Self::Btrfs => Cmd::new("mkfs.btrfs").args(["-q", "-f"]),
        }
    }

    /// Examines without repairing; any finding is an exit status of its own.
    fn examine(self) -> Cmd {
        match self {
            Self::Ext4 => Cmd::new("e2fsck").args(["-f", "-n"]),
            Self::Xfs => Cmd::new("xfs_repair").arg("-n"),
            Self::Btrfs => Cmd::new("btrfs").args(["check", "--readonly"]),
        }
    }
}

/// The whole life of one file system on a device.
pub fn round(device: &str, kind: Kind, budget: u64, to_the_brim: bool) -> Outcome {
    let name = kind.name();
    let about =
        |fail: crate::outcome::Fail| crate::outcome::Fail { why: format!("{name}: {}", fail.why), ..fail };
    kind.make().arg(device).timeout(90).ok().map_err(about)?;
    let seed = 0xb10c_0000 + budget + kind as u64;
    let mounted = Mounted::new(device, name).map_err(about)?;
    let mut tree = Tree::fill(mounted.path(), seed, budget, to_the_brim).map_err(about)?;
    mounted.unmount().map_err(about)?;
    let mounted = Mounted::new(device, name).map_err(about)?;
    drop_caches()?;
    tree.verify().map_err(about)?;
    tree.thin().map_err(about)?;
    trim(mounted.path()).map_err(about)?;
    drop_caches()?;
    tree.verify().map_err(about)?;
    mounted.unmount().map_err(about)?;
    kind.examine().arg(device).timeout(120).ok().map_err(about)?;
    Ok(())
}

fn trim(at: &Path) -> Outcome {
    Cmd::new("sync").arg("-f").arg(at).timeout(60).ok()?;
    Cmd::new("fstrim").arg(at).timeout(90).ok()?;
    Ok(())
}

pub fn drop_caches() -> Outcome {
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the caches")
}
