//! NBD by the clock: fio's nbd engine over a Unix socket, ours beside nbdkit's memory plugin, on this
//! machine, in turn.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::number::thousands;
use crate::host::{self, Need};
use crate::{paths, run, say};

const NEEDS: &[Need] = &[Need::new("nbdkit", "nbdkit"), Need::new("fio", "fio"), Need::new("cc", "gcc")];

/// Bytes of each disk.
const SIZE: &str = "512M";

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(10);

/// Loads: what fio calls it, and connections.
const LOADS: [(&str, u32); 4] = [("randread", 1), ("randwrite", 1), ("randread", 4), ("randwrite", 4)];

/// A server with its socket, killed when dropped.
struct Server {
    name: &'static str,
    child: Child,
    uri: String,
}

impl Server {
    fn start(name: &'static str, command: &mut Command, socket: &Path) -> Result<Server> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {name}"))?;
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        let mut server = Server { name, child, uri };
        let until = Instant::now() + START;
        while !socket.exists() {
            if server.child.try_wait()?.is_some() || Instant::now() > until {
                bail!("{name} does not listen on {}", socket.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Every block has its memory before anything is measured.
    fn fill(&self) -> Result<()> {
        fio(&self.uri, &["--rw=write", "--bs=1M", "--iodepth=8"]).map(drop)
    }

    fn iops(&self, (rw, connections): (&str, u32), seconds: u32) -> Result<f64> {
        let rw = format!("--rw={rw}");
        let (jobs, runtime) = (format!("--numjobs={connections}"), format!("--runtime={seconds}"));
        let load = [&rw, "--bs=4k", "--iodepth=64", &jobs, "--time_based", &runtime, "--group_reporting"];
        let job = fio(&self.uri, &load)?;
        let side = |name: &str| job[name]["iops"].as_f64().unwrap_or(0.0);
        Ok(side("read") + side("write"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What fio says of its job.
fn fio(uri: &str, load: &[&str]) -> Result<Value> {
    let mut command = run::command("fio");
    command.args(["--name=nbd", "--ioengine=nbd", "--output-format=json"]).arg(format!("--uri={uri}"));
    let text = run::output(command.arg(format!("--size={SIZE}")).args(load))?;
    // Warnings may stand before it.
    let json = text.find('{').map(|start| &text[start..]).context("fio printed no JSON")?;
    let mut said: Value = serde_json::from_str(json).context("fio's JSON cannot be read")?;
    Ok(said["jobs"][0].take())
}

/// Measures all loads `runs` times for `seconds` each, and judges when there is a bar.
pub fn main(runs: u32, seconds: u32, bar: Option<f64>) -> Result<ExitCode> {
    host::ensure(NEEDS)?;
    say::step("building blockhaus for this machine");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    run::quiet(build.args(["build", "--release", "--bin", "blockhaus"]).current_dir(paths::workspace()))?;
    let folder = paths::Scratch::new_in(&paths::workspace().join("target/bench"))?;
    let socket = |name: &str| folder.path().join(name);
    let mut nbdkit = run::command("nbdkit");
    nbdkit.args(["-f", "-U"]).arg(socket("k")).args(["memory", SIZE]);
    let mut ours = Command::new(paths::workspace().join("target/release/blockhaus"));
    ours.args(["serve", "--listen"]).arg(format!("unix:{}", socket("b").display()));
    ours.arg(format!("disk=ram:{SIZE}"));
    let servers = [
        Server::start("nbdkit", &mut nbdkit, &socket("k"))?,
        Server::start("blockhaus", &mut ours, &socket("b"))?,
    ];
    servers.iter().try_for_each(Server::fill)?;
    let mut found: [[Vec<f64>; LOADS.len()]; 2] = Default::default();
    for run in 1..=runs {
        say::step(format!("[{run}/{runs}] {} loads of {seconds} s on each of two servers", LOADS.len()));
        for (at, load) in LOADS.into_iter().enumerate() {
            for (server, found) in servers.iter().zip(&mut found) {
                found[at].push(server.iops(load, seconds)?);
            }
        }
    }
    let found = found.map(|loads| loads.map(median));
    say::line(format!("IOPS over a Unix socket, fio's nbd engine, 4k, depth 64, median of {runs} runs"));
    let mut lowest = f64::INFINITY;
    for (at, (rw, connections)) in LOADS.into_iter().enumerate() {
        let (theirs, ours) = (found[0][at], found[1][at]);
        lowest = lowest.min(ours / theirs);
        say::line(format!(
            "{rw:10} {connections} x 64  {} {:>9}  {} {:>9}  ratio {:.2}",
            servers[0].name,
            thousands(theirs),
            servers[1].name,
            thousands(ours),
            ours / theirs
        ));
    }
    match bar {
        Some(bar) if lowest < bar => {
            say::line(format!("below {bar} times nbdkit: the lowest is {lowest:.2}"));
            Ok(ExitCode::FAILURE)
        }
        Some(bar) => {
            say::line(format!("at least {bar} times nbdkit under every load; the lowest is {lowest:.2}"));
            Ok(ExitCode::SUCCESS)
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
