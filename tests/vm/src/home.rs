//! Where tests keep files: a scratch folder for mount points, and a file system that takes
//! O_DIRECT for backing files (ext4 on a RAM disk; tmpfs would fall back to buffered I/O).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::outcome::{Context, Outcome};
use crate::procfs;
use crate::run::Cmd;

const RAM_DISK_KIB: u64 = 900 * 1024;

/// Everything a test mounts or writes lies below.
pub fn scratch() -> PathBuf {
    PathBuf::from("/tmp/vmtest/scratch")
}

/// The folder for backing files. `VMTEST_HOME` names another.
pub fn home() -> PathBuf {
    std::env::var_os("VMTEST_HOME").map_or_else(|| PathBuf::from("/tmp/vmtest/home"), PathBuf::from)
}

/// Makes both, once a run.
pub fn prepare() -> Outcome {
    fs::create_dir_all(scratch()).context("cannot make the scratch folder")?;
    let home = home();
    fs::create_dir_all(&home).context("cannot make the folder for backing files")?;
    let mounted = procfs::mounts().iter().any(|mount| mount.target == home);
    if mounted || std::env::var_os("VMTEST_HOME").is_some() {
        return Ok(());
    }
    Cmd::new("modprobe").args(["brd", "rd_nr=1"]).arg(format!("rd_size={RAM_DISK_KIB}")).ok()?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal", "/dev/ram0"]).timeout(60).ok()?;
    Cmd::new("mount").arg("/dev/ram0").arg(&home).ok()?;
    Ok(())
}

/// A path for a backing file, with nothing there.
pub fn path(name: &str) -> String {
    let path = home().join(name);
    // Absent is what we want; a folder in the way would show in the test itself.
    drop(fs::remove_file(&path));
    path.display().to_string()
}

/// A sparse backing file of that size.
pub fn file(name: &str, size: u64) -> Outcome<String> {
    let path = path(name);
    let file = File::create(&path).context(format!("cannot create {path}"))?;
    file.set_len(size).context(format!("cannot size {path}"))?;
    Ok(path)
}

/// A file system mounted below the scratch folder; unmounted when dropped.
pub struct Mounted {
    pub at: PathBuf,
    mounted: bool,
}

impl Mounted {
    pub fn new(device: &str, name: &str) -> Outcome<Self> {
        Self::with(device, name, &[])
    }

    pub fn with(device: &str, name: &str, options: &[&str]) -> Outcome<Self> {
        let at = scratch().join(name);
        fs::create_dir_all(&at).context("cannot make a mount point")?;
        Cmd::new("mount").args(options).arg(device).arg(&at).timeout(60).ok()?;
        Ok(Self { at, mounted: true })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    pub fn unmount(mut self) -> Outcome {
        Cmd::new("umount").arg(&self.at).timeout(60).ok()?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            // A failed test's best effort; the runner looks again.
            drop(Cmd::new("umount").arg("-l").arg(&self.at).run());
        }
    }
}

/// A loop device over a file; let go when dropped.
pub struct Loop {
    pub device: String,
}

impl Loop {
    pub fn new(path: &str) -> Outcome<Self> {
        let device = Cmd::new("losetup").args(["--find", "--show", path]).ok()?.trim().to_string();
        Ok(Self { device })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The runner's check for loop devices tells when this did not work.
        drop(Cmd::new("losetup").args(["-d", &self.device]).run());
    }
}
