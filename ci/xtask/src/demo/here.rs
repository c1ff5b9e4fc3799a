//! The steps on this machine, ended in order when they are interrupted.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::{self, Need};
use crate::{run, say};

const NEEDS: &[Need] = &[
    Need::new("fio", "fio"),
    Need::new("mkfs.ext4", "e2fsprogs"),
    Need::new("losetup", "mount"),
    Need::new("setsid", "util-linux"),
    Need::new("mountpoint", "util-linux"),
];

/// Where the file lies: on a disk, unlike /tmp at times.
const FOLDER: &str = "/var/tmp";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From here on SIGINT, SIGTERM and SIGHUP are only noted. A child has them as
/// usual, since a handler does not outlive exec.
fn note_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is allowed in one.
        unsafe { libc::signal(signal, interrupted as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Install what is missing, run the steps as root, and pass on their words.
pub fn run(binary: &Path, seconds: u32, on_line: &mut dyn FnMut(&str)) -> Result<u8> {
    host::ensure(NEEDS)?;
    note_signals();
    say::step(format!("the file lies in {FOLDER}; 700 MB are used there until the end"));
    let script = super::script(&binary.to_string_lossy(), FOLDER, seconds);
    run_script(run::as_root("bash").arg("-c").arg(script), on_line)
}

/// Run it to its end, whatever signals come: it gets them too and cleans up.
fn run_script(command: &mut Command, on_line: &mut dyn FnMut(&str)) -> Result<u8> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start bash for the steps")?;
    let lines = lines(&mut child);
    let mut told = false;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => on_line(&line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if INTERRUPTED.load(Ordering::Relaxed) && !told {
            told = true;
            // Ctrl-C reached it as well; a signal to us alone did not.
            let pid = child.id().to_string();
            let _ = run::quiet(run::as_root("kill").args(["-TERM", &pid]));
        }
    }
    let status = child.wait().context("cannot wait for the steps")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(if told { super::INTERRUPTED } else { code.unwrap_or(super::INTERRUPTED) })
}

fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
    }
    receive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_clean_up_when_we_get_a_signal() {
        let script = "trap 'kill $!; echo cleaned; exit 130' TERM; sleep 30 & echo ready; wait";
        let mut seen = Vec::new();
        let code = run_script(run::command("bash").args(["-c", script]), &mut |line| {
            seen.push(line.to_string());
            if line == "ready" {
                // What the handler does; a real signal would reach other tests.
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        })
        .unwrap();
        assert_eq!((code, seen), (130, vec!["ready".to_string(), "cleaned".to_string()]));
    }
}
