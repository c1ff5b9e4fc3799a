//! Disks by FUSE with a loop device on them: where there is ublk, too, since nothing of theirs has to do with it.

use std::path::Path;
use std::time::Duration;

use super::{Entry, Where, attributes, entry};
use crate::blockhaus::{Attached, Blockhaus, run_dir};
use crate::outcome::{Context, Outcome};
use crate::run::{Cmd, Ran, signal, wait_until};
use crate::{ensure, home, procfs};

pub(super) const TESTS: &[Entry] = &[
    entry("fuse/ram-t1-d1", 300, Where::Everywhere, || cell("ram:512M", "1", 1)),
    entry("fuse/file-t4-d64", 300, Where::Everywhere, || {
        cell(&format!("file:{},size=512M", home::path("fuse.img")), "4", 64)
    }),
    entry("fuse/killed", 120, Where::Everywhere, killed),
];

/// A disk, taken away by force when a test fails.
struct Disk {
    info: Attached,
    gone: bool,
}

impl Disk {
    fn attach(args: &[&str]) -> Outcome<Disk> {
        let all = [&["attach", "--engine", "fuse", "--json"], args].concat();
        let ran = succeeds(&all)?;
        let info: Attached = serde_json::from_str(&ran.stdout).context("what attach prints")?;
        let disk = Disk { info, gone: false };
        ensure!(disk.info.engine == "fuse", "attach took the engine {:?}", disk.info.engine);
        ensure!(disk.info.device.starts_with("/dev/loop"), "the disk is {}", disk.info.device);
        Ok(disk)
    }

    /// Whether its loop device has its file.
    fn is_there(&self) -> bool {
        let name = self.info.device.trim_start_matches("/dev/");
        let backing = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
        backing.is_ok_and(|file| Path::new(file.trim()).starts_with(run_dir()))
    }

    fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.contains(&run_dir().join("fuse").display().to_string())
    }

    fn detach(mut self) -> Outcome {
        succeeds(&["detach", &self.info.device])?;
        self.gone = true;
        ensure!(!self.is_there() && !self.is_mounted(), "something is left after detach returned");
        ensure!(!procfs::alive(self.info.pid), "the server still runs after detach returned");
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.gone {
            drop(Blockhaus::new().command(&["detach", "--force", &self.info.device]).timeout(15).run());
        }
    }
}

fn succeeds(args: &[&str]) -> Outcome<Ran> {
    Blockhaus::new().command(args).run()?.done()
}

fn cell(spec: &str, threads: &str, depth: u16) -> Outcome {
    let disk =
        Disk::attach(&[spec, "--connections", threads, "--depth", &depth.to_string(), "--queues", "1"])?;
    flushers(&disk)?;
    super::on_device(&disk.info.device, depth, false)?;
    Cmd::new("blkdiscard").args(["-f", &disk.info.device]).timeout(60).ok()?;
    disk.detach()
}

/// Every thread that has a part in a write never waits for one: the queue's, and those that take requests.
fn flushers(disk: &Disk) -> Outcome {
    let wanted = attributes::io_flusher_flags()?;
    let (pid, mut takers) = (disk.info.pid, 0);
    for tid in procfs::threads(pid) {
        let Some(stat) = procfs::stat(&format!("/proc/{pid}/task/{tid}/stat")) else { continue };
        if stat.comm.starts_with("fuse") {
            takers += usize::from(stat.comm.starts_with("fuser-"));
            ensure!(stat.flags & wanted == wanted, "{} has flags {:#x}", stat.comm, stat.flags);
        }
    }
    ensure!(takers > 0, "no thread takes requests");
    Ok(())
}

/// A server that is killed leaves a disk that fails, and `gc` removes it.
fn killed() -> Outcome {
    let mut disk = Disk::attach(&["ram:64M"])?;
    let load = Cmd::new("fio")
        .args(["--name=load", "--rw=randwrite", "--direct=1", "--ioengine=libaio", "--iodepth=16"])
        .args(["--time_based", "--runtime=60", "--filename", &disk.info.device])
        .timeout(100)
        .spawn()?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(signal(disk.info.pid as i32, 9), "the server cannot be killed");
    let ended = wait_until(Duration::from_secs(20), || !procfs::alive(disk.info.pid));
    ensure!(ended, "the killed server does not end: it waits for itself");
    let load = load.wait(Duration::from_secs(30))?;
    ensure!(!load.status.success(), "fio did not see that its disk was gone");
    succeeds(&["gc"])?;
    disk.gone = true;
    ensure!(!disk.is_there() && !disk.is_mounted(), "something is left after gc");
    Ok(())
}
