//! `blockhaus` with a run folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Why nothing can be tested here, if nothing can.
fn obstacle() -> Option<&'static str> {
    let opens = |path: &str| fs::File::options().read(true).write(true).open(path).is_ok();
    // SAFETY: the call takes nothing and always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        return Some("it takes root");
    }
    if !opens("/dev/fuse") {
        return Some("there is no /dev/fuse");
    }
    (!opens("/dev/loop-control")).then_some("there are no loop devices")
}

/// A run folder. What is left in it at the end of a test is removed by force.
pub struct World {
    pub home: tempfile::TempDir,
}

/// A disk that was attached.
pub struct Disk {
    pub name: String,
    /// The loop device.
    pub path: PathBuf,
    /// The file.
    pub file: PathBuf,
    pub pid: i32,
}

impl World {
    /// `None`, and said, where there is nothing to test with.
    pub fn new() -> Option<World> {
        if let Some(why) = obstacle() {
            eprintln!("SKIPPED: {why}");
            return None;
        }
        Some(World { home: tempfile::tempdir().unwrap() })
    }

    pub fn folder(&self) -> PathBuf {
        self.home.path().join("run")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockhaus"));
        command.args(arguments).env("BLOCKHAUS_RUN_DIR", self.folder()).stdin(Stdio::null());
        command.current_dir(self.home.path());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it prints; it must succeed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        text(self.run(arguments), arguments)
    }

    /// What it says; it must fail.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?} succeeded: {said}");
        said
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    pub fn attach(&self, arguments: &[&str]) -> Disk {
        let all = [&["attach", "--engine", "fuse", "--json"], arguments].concat();
        let ready = self.json(&all);
        let name = ready["name"].as_str().unwrap().to_owned();
        let file = self.folder().join(&name).join("disk");
        Disk {
            path: ready["device"].as_str().unwrap().into(),
            file,
            pid: ready["pid"].as_i64().unwrap() as i32,
            name,
        }
    }

    pub fn detach(&self, disk: &Disk) {
        self.ok(&["detach", &disk.name]);
        assert!(!disk.file.exists() && backing(&disk.path).is_none());
        self.is_empty();
    }

    /// Nothing of any disk is left.
    pub fn is_empty(&self) {
        let left: Vec<_> = fs::read_dir(self.folder())
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lock")
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let folder = self.folder();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(folder.to_str().unwrap()), "something is mounted: {mounts}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Of a test that has failed; one that has not left nothing.
        for arguments in [&["detach", "--all", "--force"][..], &["gc"]] {
            let _ = self.command(arguments).output();
        }
    }
}

/// The file of a loop device.
pub fn backing(device: &Path) -> Option<String> {
    let name = device.file_name()?.to_str()?;
    Some(fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?.trim().to_owned())
}

fn text(output: Output, what: &[&str]) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what:?}: {}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs another program, which must succeed; yields what it prints.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    text(output, &[&[program], arguments].concat())
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

pub fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}
