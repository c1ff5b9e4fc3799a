//! The kernel's own log: what it said since a test began.

use std::fs::OpenOptions;
use std::io::Write;

use crate::run::Cmd;

/// A kernel that says one of these is broken by what we did, whatever the test thinks.
const ALARMS: [&str; 8] = [
    "BUG:",
    "WARNING: ",
    "Oops",
    "general protection fault",
    "refcount_t:",
    "KASAN",
    "hung_task",
    "blocked for more than",
];

/// Writes a line into the log that `since` finds again.
pub fn mark(name: &str) -> String {
    let line = format!("vmtest-begin {} {name}", std::process::id());
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // Without the mark, `since` takes the whole log: more to read, nothing lost.
        drop(writeln!(kmsg, "<6>{line}"));
    }
    line
}

/// What the kernel has logged after the mark.
pub fn since(mark: &str) -> String {
    let Ok(log) = Cmd::new("dmesg").timeout(10).ok() else { return String::new() };
    match log.rfind(mark) {
        Some(at) => log[at + mark.len()..].trim_start().to_string(),
        None => log,
    }
}

/// The first line that means a broken kernel.
pub fn alarm(log: &str) -> Option<&str> {
    log.lines().find(|line| ALARMS.iter().any(|alarm| line.contains(alarm)))
}

/// Whether the kernel has had an oops since it booted.
pub fn kernel_died() -> bool {
    const TAINT_DIE: u64 = 1 << 7;
    let tainted = std::fs::read_to_string("/proc/sys/kernel/tainted").unwrap_or_default();
    tainted.trim().parse::<u64>().is_ok_and(|bits| bits & TAINT_DIE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_heard_and_everyday_lines_are_not() {
        let quiet = "[ 1.0] EXT4-fs (ublkb0): mounted\n[ 2.0] critical space allocation error, dev ublkb0\n";
        assert_eq!(alarm(quiet), None);
        let loud = format!("{quiet}[ 3.0] WARNING: CPU: 0 PID: 1 at drivers/block/ublk_drv.c:1\n");
        assert!(alarm(&loud).unwrap().contains("ublk_drv"));
    }
}
