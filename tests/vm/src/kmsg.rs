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
