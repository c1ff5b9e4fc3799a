//! Enforced cleanup after each test, whatever state it ended in.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::run::{Cmd, signal};
use crate::system::{self, Snapshot};
use crate::{blockhaus, home, procfs};

/// Kills what the test started, then takes away devices, mounts, loops and files. Returns what is
/// still there after all of it.
pub fn enforce(session: Option<u32>, baseline: &Snapshot) -> Vec<String> {
    if let Some(session) = session {
        kill_session(session);
    }
    unmount_all();
    let more = || !Snapshot::take().since(baseline).is_empty();
    if blockhaus::binary().exists() && more() {
        blockhaus(&["detach", "--all", "--force"]);
        blockhaus(&["gc"]);
        if more() {
            kill_servers();
            blockhaus(&["gc"]);
        }
        if more() && baseline.has_no_devices() {
            blockhaus(&["gc", "--foreign"]);
        }
    }
    for behind in system::loops() {
        if let Some((device, path)) = behind.split_once(' ')
            && (path.starts_with("/tmp/vmtest/") || Path::new(path).starts_with(home::home()))
        {
            ignore(Cmd::new("losetup").args(["-d", device]));
        }
    }
    empty(&home::home());
    empty(&home::scratch());
    let left = system::leftovers(baseline, Duration::from_secs(3));
    // A stale file would fail every test that follows; it has been reported.
    if system::servers().is_empty() {
        for file in Snapshot::take().new_files(baseline) {
            drop(fs::remove_file(file));
        }
    }
    left
}

fn blockhaus(args: &[&str]) {
    ignore(Cmd::new(blockhaus::binary()).args(args).timeout(25));
}

/// Failing is no news here: what counts is what is left at the end.
fn ignore(command: Cmd) {
    drop(command.run());
}

fn kill_session(session: u32) {
    for _ in 0..3 {
        let members: Vec<u32> = procfs::pids()
            .into_iter()
            .filter(|&pid| {
                procfs::stat(&format!("/proc/{pid}/stat"))
                    .is_some_and(|stat| stat.session == session as i32 && !matches!(stat.state, 'Z' | 'X'))
            })
            .collect();
        if members.is_empty() {
            return;
        }
        for pid in members {
            signal(pid as i32, libc::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn kill_servers() {
    for pid in system::servers() {
        signal(pid as i32, libc::SIGCONT);
        signal(pid as i32, libc::SIGKILL);
    }
    std::thread::sleep(Duration::from_millis(500));
}

fn unmount_all() {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for device in swaps
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|d| d.contains("ublkb") || d.contains("/nbd"))
    {
        ignore(Cmd::new("swapoff").arg(device).timeout(20));
    }
    let mut targets: Vec<_> = procfs::mounts()
        .into_iter()
        .filter(|mount| {
            let on_ours = ["/ublkb", "/dev/nbd"].iter().any(|ours| mount.source.contains(ours));
            mount.target.starts_with(home::scratch()) || on_ours
        })
        .map(|mount| mount.target)
        .collect();
    targets.reverse();
    for target in targets {
        if !Cmd::new("umount").arg(&target).timeout(15).run().is_ok_and(|ran| ran.status.success()) {
            ignore(Cmd::new("umount").arg("-l").arg(&target).timeout(15));
        }
    }
}

/// Removes what lies in a folder, not the folder.
fn empty(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.ends_with("lost+found") {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            drop(fs::remove_dir_all(&path));
        } else if fs::remove_file(&path).is_err() {
            ignore(Cmd::new("chattr").arg("-i").arg(&path));
            drop(fs::remove_file(&path));
        }
    }
}
