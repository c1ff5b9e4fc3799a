//! Disk images made from folders.

use std::path::Path;

use anyhow::Result;

use crate::run;

/// Make an ext4 image of `dir`, with `free_mib` to write in. The file is sparse.
pub fn ext4(dir: &Path, image: &Path, free_mib: u64) -> Result<()> {
    ext4_with(run::command("mke2fs"), dir, image, free_mib)
}

/// [`ext4`] by root, who can read all of a root file system.
pub fn ext4_as_root(dir: &Path, image: &Path, free_mib: u64) -> Result<()> {
    ext4_with(run::as_root("mke2fs"), dir, image, free_mib)
}

fn ext4_with(mut mke2fs: std::process::Command, dir: &Path, image: &Path, free_mib: u64) -> Result<()> {
    let mut du = run::as_root("du");
    let words = run::output(du.args(["--summarize", "--block-size=1M", "--apparent-size"]).arg(dir))?;
    let used: u64 = words.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(1024);
    let size = used * 5 / 4 + 16 + free_mib;
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
        .args(["-E", "root_owner=0:0,lazy_itable_init=1", "-d"])
        .arg(dir)
        .arg(image)
        .arg(format!("{size}M"));
    run::quiet(&mut mke2fs)
}
