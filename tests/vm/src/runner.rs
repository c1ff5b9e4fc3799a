//! Runs one test in a process of its own, bounded in time, and judges what it leaves.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::outcome::{Context, Fail, Outcome, last_lines};
use crate::system::{self, Snapshot};
use crate::{blockhaus, clean, kmsg, procfs, run, tests};

const RESULT: &str = "/tmp/vmtest/result";
const OUTPUT: &str = "/tmp/vmtest/output";
/// The child's exit statuses.
const FAILED: u8 = 1;

/// Runs the test here; the answer goes into the result file. For the child process.
pub fn child(name: &str) -> Outcome<u8> {
    let outcome = tests::find(name).and_then(|test| (test.run)());
    match outcome {
        Ok(()) => Ok(0),
        Err(fail) => {
            let text = serde_json::to_string(&fail).context("cannot tell why")?;
            fs::write(RESULT, text).context("cannot write the result")?;
            Ok(FAILED)
        }
    }
}

/// Runs a test by name; `before` is the host without it.
pub fn supervise(name: &str, before: &Snapshot) -> Outcome {
    let timeout = scaled(tests::find(name)?.timeout);
    let mark = kmsg::mark(name);
    drop(fs::remove_file(RESULT));
    let mut child = start(name)?;
    let session = child.id();
    let ended = wait(&mut child, timeout);
    let mut outcome = judge(ended, timeout);
    if outcome.is_ok() {
        let left = system::leftovers(before, Duration::from_secs(3));
        if let Some(first) = left.first() {
            outcome = Err(Fail {
                details: system::shortened(left.clone()),
                ..Fail::new(format!("passed, but left {first}"))
            });
        }
    }
    let log = kmsg::since(&mark);
    if let (Ok(()), Some(alarm)) = (&outcome, kmsg::alarm(&log)) {
        outcome = Err(Fail::new(format!("the kernel complains: {}", alarm.trim())));
    }
    if let Err(fail) = outcome {
        // A skip tells all there is to tell.
        outcome = Err(if fail.skip { fail } else { explained(fail, &log) });
    }
    let remains = clean::enforce(Some(session), before);
    drop(child.try_wait());
    if let Some(first) = remains.first() {
        let told = format!("even after detach --all --force and gc there is {first}");
        outcome = match outcome {
            Err(mut fail) if !fail.skip => {
                fail.details.push(told);
                fail.details.extend(system::shortened(remains));
                Err(fail)
            }
            _ => Err(Fail { details: system::shortened(remains), ..Fail::new(told) }),
        };
    }
    outcome
}

/// `VMTEST_TIMEOUT_SCALE` stretches every timeout, for a slower machine.
fn scaled(seconds: u64) -> Duration {
    let scale = std::env::var("VMTEST_TIMEOUT_SCALE").ok().and_then(|scale| scale.parse().ok());
    Duration::from_secs(seconds * scale.unwrap_or(1).max(1))
}

fn start(name: &str) -> Outcome<Child> {
    let output = File::create(OUTPUT).context("cannot create the output file")?;
    let errors = output.try_clone().context("cannot share the output file")?;
    let us = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new(us);
    command.args(["child", name]).stdin(Stdio::null()).stdout(output).stderr(errors);
    // SAFETY: setsid is async-signal-safe and is all that runs between fork and exec.
    unsafe {
        command.pre_exec(|| if libc::setsid() < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    }
    command.spawn().context("cannot start the test's process")
}

fn wait(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

fn judge(ended: Option<ExitStatus>, timeout: Duration) -> Outcome {
    let Some(status) = ended else {
        return Err(Fail::new(format!(
            "not done within {} s\n{}",
            timeout.as_secs(),
            procfs::stuck().join("\n")
        )));
    };
    if status.success() {
        return Ok(());
    }
    let told = fs::read_to_string(RESULT).ok().and_then(|text| serde_json::from_str::<Fail>(&text).ok());
    Err(told.unwrap_or_else(|| match status.signal() {
        Some(signal) => Fail::new(format!("the test's process died of signal {signal}")),
        None => Fail::new("the test's process failed without saying why"),
    }))
}

/// Adds what a person would look at next, while it is still there.
fn explained(mut fail: Fail, kernel: &str) -> Fail {
    let output = fs::read_to_string(OUTPUT).unwrap_or_default();
    fail = fail.detail("output of the test", &output);
    for log in logs() {
        if let Ok(text) = fs::read_to_string(&log) {
            fail = fail.detail(&log.display().to_string(), &text);
        }
    }
    for pid in system::servers() {
        fail.details.push(format!("process {pid}: {}", procfs::cmdline(pid)));
        fail.details.extend(procfs::waiting(pid, |_| true));
    }
    fail.details.extend(procfs::stuck());
    let recent: Vec<&str> = last_lines(kernel, 10).collect();
    fail.detail("the kernel's log", &recent.join("\n"))
}

fn logs() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(blockhaus::run_dir()) else { return Vec::new() };
    let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
    entries.flatten().map(|entry| entry.path()).filter(is_log).take(4).collect()
}

/// Refuses to run where the tests would take away somebody's devices.
pub fn safe_here() -> Outcome {
    let occupied = fs::read_dir(blockhaus::run_dir()).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.path().extension().is_some_and(|kind| kind == "json"))
    });
    if occupied || !system::servers().is_empty() {
        return Err(Fail::new(format!(
            "there are blockhaus devices on this host, which the tests would detach; set BLOCKHAUS_RUN_DIR or empty {}",
            blockhaus::run_dir().display()
        )));
    }
    fs::create_dir_all("/tmp/vmtest").context("cannot make /tmp/vmtest")?;
    let root = run::Cmd::new("id").arg("-u").ok()?;
    if root.trim() != "0" {
        return Err(Fail::new("the tests need root"));
    }
    Ok(())
}
