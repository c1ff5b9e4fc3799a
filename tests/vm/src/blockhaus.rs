//! The command line of blockhaus, typed through its `--json`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::ensure;
use crate::outcome::{Context, Fail, Outcome};
use crate::procfs;
use crate::run::{Cmd, Ran, wait_until};

/// What the contract allows every answer of the control plane.
pub const ANSWER: Duration = Duration::from_secs(10);
/// Above `ANSWER`, so that a late answer is told from none.
const PATIENCE: u64 = 40;

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("BLOCKHAUS").map_or_else(|| PathBuf::from("/payload/blockhaus"), PathBuf::from)
}

/// Where it keeps its state.
pub fn run_dir() -> PathBuf {
    std::env::var_os("BLOCKHAUS_RUN_DIR").map_or_else(|| PathBuf::from("/run/blockhaus"), PathBuf::from)
}

/// A binary with blockhaus' command line: blockhaus itself or an example.
#[derive(Clone)]
pub struct Blockhaus {
    binary: PathBuf,
}

/// A device that is attached. Forced away when dropped, so that a failing test cleans up.
pub struct Device {
    pub info: Attached,
    tool: Blockhaus,
    gone: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Attached {
    pub name: String,
    pub id: u32,
    pub device: String,
    pub engine: String,
    pub data_path: String,
    pub data_path_reason: String,
    pub queues: u16,
    pub depth: u16,
    pub block_size: u32,
    pub size: u64,
    pub pid: u32,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Listed {
    pub name: String,
    pub id: u32,
    pub device: String,
    pub spec: Option<String>,
    pub state: String,
    pub pid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub state: String,
    pub engine: String,
    pub pid: Option<u32>,
    pub keeper: Option<u32>,
    pub size: u64,
    pub queues: u16,
    pub depth: u16,
    pub memory: Memory,
    pub queue_threads: Vec<QueueThread>,
}

/// What `stats` says of one engine of a disk.
#[derive(Clone, Debug, Deserialize)]
pub struct Stats {
    pub engine: String,
    pub name: String,
    pub data_path: Option<String>,
    pub ops: Vec<OpStats>,
    pub queues: Vec<QueueStats>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct QueueStats {
    pub in_flight: u64,
    pub ops: Vec<OpStats>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct OpStats {
    pub op: String,
    pub requests: u64,
    pub bytes: u64,
    pub errors: u64,
    pub latency: Option<Latency>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Latency {
    pub measured: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub max_ns: u64,
}

impl Stats {
    pub fn op(&self, name: &str) -> Outcome<&OpStats> {
        self.ops.iter().find(|op| op.op == name).context(format!("stats has nothing about {name}"))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Memory {
    pub locked_buffers: u64,
    pub resident: u64,
    pub locked: u64,
    pub backend: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct QueueThread {
    pub queue: u16,
    pub tid: u32,
    pub cpus: String,
    pub io_flusher: bool,
    pub scheduling: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Features {
    pub kernel: String,
    pub engines: Vec<EngineRow>,
    pub ublk: bool,
    pub reason: Option<String>,
    pub mask: Option<String>,
    pub features: Vec<Feature>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct EngineRow {
    pub engine: String,
    pub offered: bool,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Feature {
    pub bit: u32,
    pub name: String,
    pub meaning: String,
    pub offered: bool,
}

impl Blockhaus {
    pub fn new() -> Self {
        Self { binary: binary() }
    }

    pub fn at(binary: PathBuf) -> Self {
        Self { binary }
    }

    /// Any command line, unjudged.
    pub fn command(&self, args: &[&str]) -> Cmd {
        Cmd::new(&self.binary).args(args).timeout(PATIENCE)
    }

    /// Runs a verb with `--json`, requires success, reads its answer.
    fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Outcome<T> {
        let ran = self.command(args).arg("--json").run()?.done()?;
        parse(&ran)
    }

    /// Attaches in the background; the engine must be ublk.
    pub fn attach(&self, args: &[&str]) -> Outcome<Device> {
        self.attached("ublk", self.command(&["attach"]).args(args))
    }

    /// Attaches with the kernel's NBD driver.
    pub fn attach_nbd(&self, args: &[&str]) -> Outcome<Device> {
        self.attached("nbd", self.command(&["attach", "--engine", "nbd"]).args(args))
    }

    /// Runs an `attach` and requires the engine that it is to take.
    pub fn attached(&self, engine: &str, command: Cmd) -> Outcome<Device> {
        let ran = command.arg("--json").run()?.done()?;
        let info: Attached = parse(&ran)?;
        let device = Device { info, tool: self.clone(), gone: false };
        ensure!(
            !ran.held_open,
            "`{}` left its output open in the server: $(blockhaus attach) hangs in every shell",
            ran.line
        );
        let taken = &device.info.engine;
        ensure!(taken == engine, "attach took the engine {taken:?}, not {engine}");
        Ok(device)
    }

    pub fn list(&self) -> Outcome<Vec<Listed>> {
        self.json(&["list"])
    }

    pub fn status(&self, id: u32) -> Outcome<Status> {
        self.status_of(&id.to_string())
    }

    /// By any of a device's names.
    pub fn status_of(&self, device: &str) -> Outcome<Status> {
        self.json(&["status", device])
    }

    /// Of the device alone.
    pub fn stats(&self, id: u32) -> Outcome<Stats> {
        self.stats_of(&id.to_string())
    }

    /// By any of a device's names.
    pub fn stats_of(&self, device: &str) -> Outcome<Stats> {
        let mut engines: Vec<Stats> = self.json(&["stats", device])?;
        ensure!(engines.len() == 1, "stats has {} engines of one device", engines.len());
        Ok(engines.remove(0))
    }

    pub fn features(&self) -> Outcome<Features> {
        self.json(&["features"])
    }

    /// The state of one device in `list`; None when it is not listed.
    pub fn state(&self, id: u32) -> Outcome<Option<String>> {
        Ok(self.list()?.into_iter().find(|listed| listed.id == id).map(|listed| listed.state))
    }

    /// As [`state`](Self::state), by the device's name.
    pub fn state_of(&self, name: &str) -> Outcome<Option<String>> {
        Ok(self.list()?.into_iter().find(|listed| listed.name == name).map(|listed| listed.state))
    }

    /// Runs a verb that may succeed or not but has to answer in time.
    pub fn answer(&self, args: &[&str]) -> Outcome<Ran> {
        let ran = self.command(args).run()?;
        ensure!(
            ran.elapsed <= ANSWER,
            "`{}` answered after {:.1} s, later than 10 s",
            ran.line,
            ran.elapsed.as_secs_f64()
        );
        Ok(ran)
    }
}

fn parse<T: DeserializeOwned>(ran: &Ran) -> Outcome<T> {
    serde_json::from_str(&ran.stdout)
        .map_err(|error| ran.fail(&format!("does not print what the contract says: {error}")))
}

impl Device {
    pub fn id(&self) -> u32 {
        self.info.id
    }

    pub fn name(&self) -> &str {
        &self.info.name
    }

    pub fn path(&self) -> &str {
        &self.info.device
    }

    pub fn status(&self) -> Outcome<Status> {
        self.tool.status_of(self.name())
    }

    /// Detaches, requires success and that nothing of the device is there any more.
    pub fn detach(self) -> Outcome {
        self.leave(&[])
    }

    pub fn force(self) -> Outcome {
        self.leave(&["--force"])
    }

    fn leave(mut self, more: &[&str]) -> Outcome {
        let name = self.name().to_string();
        let args: Vec<&str> = ["detach", &name].iter().chain(more).copied().collect();
        self.tool.answer(&args)?.done()?;
        self.gone = true;
        self.assert_gone("detach")
    }

    /// Nothing of it may be there once `verb` has returned; the process may take a moment to exit.
    pub fn assert_gone(&self, verb: &str) -> Outcome {
        let id = self.id();
        let paths = match self.info.engine.as_str() {
            // Its nodes stay.
            "nbd" => vec![format!("/sys/block/nbd{id}/pid")],
            _ => vec![format!("/dev/ublkb{id}"), format!("/dev/ublkc{id}"), format!("/sys/block/ublkb{id}")],
        };
        for path in paths {
            ensure!(!std::path::Path::new(&path).exists(), "{path} is still there after {verb} returned");
        }
        let pid = self.info.pid;
        ensure!(
            wait_until(Duration::from_secs(2), || !procfs::alive(pid)),
            "the server (process {pid}) still runs 2 s after {verb} returned"
        );
        Ok(())
    }

    /// The test has seen to its end in another way.
    pub fn forget(mut self) -> Attached {
        self.gone = true;
        self.info.clone()
    }

    /// A sysfs attribute of the disk.
    pub fn sys(&self, name: &str) -> Outcome<String> {
        let path = format!("/sys/block/{}/{name}", self.name());
        Ok(std::fs::read_to_string(&path).context(format!("cannot read {path}"))?.trim().to_string())
    }

    /// Requests that the disk has completed (reads and writes).
    pub fn requests(&self) -> Outcome<u64> {
        let stat = self.sys("stat")?;
        let fields: Vec<u64> = stat.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match fields[..] {
            [reads, _, _, _, writes, ..] => Ok(reads + writes),
            _ => Err(Fail::new(format!("cannot read the disk's stat: {stat:?}"))),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.gone {
            let name = self.name().to_string();
            // Best effort on the way out of a failed test; the runner cleans up what remains.
            drop(self.tool.command(&["detach", &name, "--force"]).timeout(15).run());
        }
    }
}
