//! `cargo xtask bench`: what an I/O costs, in instructions of the whole guest,
//! ours beside the peers' from one run.
//!
//! plan (what to measure, the guest's script) → peer (rublk, kublk) → results (its
//! lines) → report (table, JSON, verdict); nbd, by the clock, and map, by the symbol, apart from these

mod map;
mod nbd;
mod peer;
mod plan;
mod report;
mod results;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::guest_build::{self, Target};
use crate::vm::{Machine, Payload};
use crate::{paths, run, say};
use plan::{Device, Plan};
use results::Results;

/// Long enough for a host that does much else besides.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// What can be said after `cargo xtask bench`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The kernel to measure on, one of `cargo xtask vm --list`
    #[arg(long, default_value = "7.2")]
    kernel: String,
    /// Fewer I/Os, once: a third of the time, and fio's start weighs a few percent
    #[arg(long)]
    quick: bool,
    /// How often each cell is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,
    /// Only these devices
    #[arg(long, value_name = "NAME,…", value_enum, value_delimiter = ',')]
    only: Vec<Device>,
    /// Print instead where the instructions go under this load, by symbol: `4k-randread-qd64` or another column
    #[arg(long, value_name = "COLUMN", conflicts_with_all = ["quick", "json", "nbd", "assert_rublk", "assert_kublk"])]
    map: Option<String>,
    /// Measure NBD instead, by the clock and on this machine: ours beside nbdkit
    #[arg(long, conflicts_with_all = ["quick", "only", "json", "assert_rublk", "assert_kublk"])]
    nbd: bool,
    /// How long each load of --nbd runs
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Fail when --nbd finds fewer than this many times nbdkit's IOPS under any load
    #[arg(long, value_name = "FACTOR", requires = "nbd")]
    assert_nbdkit: Option<f64>,
    /// Write the figures there as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when blockhaus takes more than this many times rublk's instructions in any column
    #[arg(long, value_name = "FACTOR")]
    assert_rublk: Option<f64>,
    /// The same with kublk, the C server of the kernel's own tests
    #[arg(long, value_name = "FACTOR")]
    assert_kublk: Option<f64>,
}

impl Args {
    fn bars(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let bars = [("rublk", self.assert_rublk), ("kublk", self.assert_kublk)];
        bars.into_iter().filter_map(|(peer, bar)| Some((peer, bar?)))
    }
}

/// Measure, print, and judge when that was asked for.
pub fn main(args: &Args) -> Result<ExitCode> {
    if args.nbd {
        return nbd::main(args.runs, args.seconds, args.assert_nbdkit);
    }
    if let Some(column) = &args.map {
        return map::main(&args.kernel, column, &args.only).map(|()| ExitCode::SUCCESS);
    }
    let plan = Plan::new(args.quick, args.runs, &args.only);
    for (peer, _) in args.bars() {
        if plan.compared(peer).next().is_none() {
            bail!(
                "--assert-{peer} compares blockhaus with {peer}, and --only leaves no pair of them; name both"
            );
        }
    }
    let began = Instant::now();
    let results = measure(&args.kernel, &plan)?;
    report::table(&plan, &results).lines().for_each(say::line);
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&report::json(&plan, &results))? + "\n";
        paths::write_whole(file, json.as_bytes())?;
    }
    say::step(format!("measured in {} s", began.elapsed().as_secs()));
    let met: Vec<bool> = args.bars().map(|(peer, bar)| report::verdict(&plan, &results, peer, bar)).collect();
    Ok(if met.contains(&false) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Boot one counting machine and measure all of `plan` in it.
fn measure(kernel: &str, plan: &Plan) -> Result<Results> {
    let mut payload = Vec::new();
    let mut results = Results::default();
    if plan.has("blockhaus") {
        let binary = guest_build::static_binary("blockhaus", Target::Bin("blockhaus"))?;
        payload.push(Payload::new(binary, "blockhaus"));
    }
    if plan.has("rublk") {
        payload.push(Payload::new(peer::rublk()?, "rublk"));
    }
    if plan.has("kublk") {
        let (binary, version) = peer::kublk()?;
        payload.push(Payload::new(binary, "kublk"));
        results.versions.push(("kublk".into(), version));
    }
    let machine = Machine {
        kernel: kernel.to_string(),
        cpus: 1,
        icount: true,
        payload,
        timeout: Some(TIMEOUT),
        ..Machine::default()
    };
    machine.prepare(false)?;
    say::step(format!("measuring {} cells in a machine that counts instructions", plan.cells()));
    let mut said = String::new();
    let status = machine.run(&plan.script(), |line| match results.take(line) {
        Ok(Some(progress)) => say::step(format!("[{}/{}] {progress}", results.taken(), plan.cells())),
        Ok(None) => {}
        Err(other) => {
            say::step(&other);
            said = said.clone() + &other + "\n";
        }
    })?;
    if !status.success() || results.taken() != plan.cells() {
        bail!(
            "the measurement ended early in the guest ({} of {} cells, exit status {}): {}",
            results.taken(),
            plan.cells(),
            status.0,
            run::last_lines(&said, 15)
        );
    }
    Ok(results)
}
