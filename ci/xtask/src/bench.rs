//! `cargo xtask bench`: what an I/O costs, ours beside the peers' from one run.
//!
//! device, mode, plan (what is measured, and the script) → measure (in machines or here, with peer's
//! servers) → results → table, bars, chart, page (figures for people, for programs, for a bar).
//! map is apart: instructions by symbol.

mod about;
mod bars;
mod chart;
mod device;
mod map;
mod measure;
mod mode;
mod number;
mod page;
mod peer;
mod plan;
mod results;
mod servers;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{paths, say};
use about::About;
use bars::Verdict;
use device::Device;
use mode::Mode;
use page::Report;
use plan::Plan;

/// What can be said after `cargo xtask bench`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The kernel to measure on, one of `cargo xtask vm --list`
    #[arg(long, default_value = "7.2")]
    kernel: String,
    /// Measure by the clock, on two virtual CPUs: I/Os a second, latency, CPU time. Without it, count
    /// instructions
    #[arg(long, group = "by_clock")]
    clock: bool,
    /// Measure instead how it goes with depth and idle devices, or with --clock over jobs, queues and devices
    #[arg(long)]
    scale: bool,
    /// Measure this machine's own kernel and ublk, as root, and not a virtual machine
    #[arg(long, requires = "clock", conflicts_with = "kernel")]
    host: bool,
    /// Once, and shorter: enough to see that it works
    #[arg(long)]
    quick: bool,
    /// How often each cell is measured, three times if nothing is said and five by the clock; the median counts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99), conflicts_with = "quick")]
    runs: Option<u32>,
    /// Only these devices
    #[arg(long, value_name = "NAME,…", value_parser = device::parse, value_delimiter = ',')]
    only: Vec<&'static Device>,
    /// All devices: every data path of ours as well
    #[arg(long, conflicts_with_all = ["only", "scale"])]
    all: bool,
    /// Print instead where the instructions go under this load, by symbol: `4k-randread-qd64` or another column
    #[arg(
        long,
        value_name = "COLUMN",
        conflicts_with_all = ["quick", "runs", "all", "json", "nbd", "assert", "clock", "scale"]
    )]
    map: Option<String>,
    /// Measure NBD servers instead, by the clock and on this machine: ours beside nbdkit, qemu-nbd and one with
    /// nothing behind it
    #[arg(long, group = "by_clock", conflicts_with_all = ["all", "clock", "scale", "kernel", "host"])]
    nbd: bool,
    /// How long each load runs by the clock: three seconds if nothing is said
    #[arg(
        long,
        value_name = "SECONDS",
        requires = "by_clock",
        value_parser = clap::value_parser!(u32).range(1..=600)
    )]
    seconds: Option<u32>,
    /// Write the figures there as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write figures and charts to this folder, and the run's section into its README.md; with --map, the map
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Fail unless every bar of this measurement was measured and met
    #[arg(long)]
    assert: bool,
    /// Fail when blockhaus takes more than this many times rublk's instructions in any column
    #[arg(long, value_name = "FACTOR", conflicts_with_all = ["clock", "scale", "nbd", "map"])]
    assert_rublk: Option<f64>,
    /// The same with kublk, the C server of the kernel's own tests
    #[arg(long, value_name = "FACTOR", conflicts_with_all = ["clock", "scale", "nbd", "map"])]
    assert_kublk: Option<f64>,
}

impl Args {
    fn mode(&self) -> Mode {
        match (self.clock, self.scale) {
            _ if self.nbd => Mode::Nbd,
            (false, false) => Mode::Count,
            (false, true) => Mode::CountScale,
            (true, false) => Mode::Clock,
            (true, true) => Mode::ClockScale,
        }
    }

    fn plan(&self) -> Result<Plan> {
        let mode = self.mode();
        let devices = match self.only.is_empty() {
            true => mode.devices(self.all),
            false => device::DEVICES.iter().filter(|device| self.only.contains(device)).collect(),
        };
        if let Some(device) = devices.iter().find(|device| !mode.takes(device)) {
            bail!("{} is not for this measurement; {} are", device.name, names(&mode.devices(true)));
        }
        let mut plan = Plan::new(mode, devices, self.quick, self.runs);
        plan.seconds = self.seconds.unwrap_or(plan.seconds);
        for (peer, _) in self.peer_bars() {
            if plan.compared(peer).next().is_none() {
                bail!(
                    "--assert-{peer} compares blockhaus with {peer}, and --only leaves no pair of them; \
                     name both"
                );
            }
        }
        Ok(plan)
    }

    fn peer_bars(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let bars = [("rublk", self.assert_rublk), ("kublk", self.assert_kublk)];
        bars.into_iter().filter_map(|(peer, bar)| Some((peer, bar?)))
    }
}

/// Measure, print, and judge when that was asked for.
pub fn main(args: &Args) -> Result<ExitCode> {
    if let Some(column) = &args.map {
        return map::main(&args.kernel, column, &args.only, args.out.as_deref()).map(|()| ExitCode::SUCCESS);
    }
    let plan = args.plan()?;
    if let Some(folder) = &args.out {
        page::has_place(folder, plan.mode)?;
    }
    let began = Instant::now();
    let (results, machine) = if args.host || args.nbd {
        measure::here(&plan)?
    } else {
        measure::in_machines(&args.kernel, &plan)?
    };
    let about = About::this_run(&machine, &results)?;
    let verdicts = bars::verdicts(&plan, &results, args.assert);
    let report = Report { plan: &plan, results: &results, about: &about, verdicts: &verdicts };
    report.text().lines().for_each(say::line);
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&report.json())? + "\n";
        paths::write_whole(file, json.as_bytes())?;
    }
    if let Some(folder) = &args.out {
        report.publish(folder)?;
    }
    say::step(format!("measured in {} s", began.elapsed().as_secs()));
    say_bars(&verdicts);
    for (device, why) in &results.missing {
        say::step(format!("{device} was not measured: {why}"));
    }
    let mut success = results.missing.is_empty() && (!args.assert || bars::all_met(&verdicts));
    for (peer, factor) in args.peer_bars() {
        let verdict = bars::beside(&plan, &results, peer, factor);
        say::line(&verdict.words);
        success &= verdict.met == Some(true);
    }
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn names(devices: &[&Device]) -> String {
    devices.iter().map(|device| device.name).collect::<Vec<_>>().join(", ")
}

fn say_bars(verdicts: &[Verdict]) {
    verdicts.iter().for_each(|verdict| say::line(&verdict.words));
    if !verdicts.is_empty() {
        say::line(bars::summary(verdicts));
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        Cli::command().debug_assert();
        for words in [
            "--map 4k-randread-qd64 --all",
            "--map 4k-randread-qd64 --runs 5",
            "--map 4k-randread-qd64 --seconds 5",
            "--quick --runs 2",
            "--seconds 5",
            "--nbd --kernel 6.12",
            "--nbd --host",
            "--clock --nbd",
            "--host",
        ] {
            let words = ["bench"].into_iter().chain(words.split(' '));
            assert!(Cli::try_parse_from(words.clone()).is_err(), "{words:?}");
        }
        for words in
            ["--clock --seconds 5 --runs 2", "--nbd --seconds 5 --runs 2", "--map 4k-randread-qd1 --out x"]
        {
            Cli::try_parse_from(["bench"].into_iter().chain(words.split(' '))).unwrap();
        }
    }
}
