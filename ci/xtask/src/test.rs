//! The verb `test`: everything that CI runs, on one machine, ending in one line
//! that counts it.
//!
//! plan → prepare (in the background), checks and licenses (here), guest →
//! machines → boots → ledger; tally and summary at the end

mod boots;
mod cargo;
mod checks;
mod export_boot;
mod full;
mod fuzz;
mod guest;
mod ledger;
mod libtest;
mod licenses;
mod machines;
mod plan;
mod prepare;
mod progress;
mod summary;
mod tally;

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::Result;

use crate::vm::recipe::DEFAULT_KERNEL;
use crate::{host, say};
use full::Results;
use guest::Guest;
use machines::Machines;
use plan::Plan;
use prepare::Preparation;
use tally::{Failure, SuiteResult, Tally};

/// What can be said after `cargo xtask test`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Run every combination in the machines, for hours, not only CI's choice
    #[arg(long)]
    full: bool,
    /// With --full: leave out what has passed with the same binaries and kernel
    #[arg(long, requires = "full")]
    resume: bool,
    /// Only this suite: fmt, clippy, host, sim, fuzz, doc, licenses, vm, vm:7.2 (may be repeated)
    #[arg(long, value_name = "SUITE")]
    only: Vec<String>,
    /// Only tests with this in their names
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Say which suites and which tests in machines there are
    #[arg(long)]
    list: bool,
    /// Look for newer kernels, headers and a newer root file system
    #[arg(long)]
    refresh: bool,
    /// Machines at the same time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
}

/// Run what was asked for; the status is 0 when nothing failed.
pub fn main(args: &Args) -> Result<ExitCode> {
    let plan = Plan::new(&args.only, args.filter.is_some())?;
    if args.list {
        return list(args, &plan).map(|()| ExitCode::SUCCESS);
    }
    let began = Instant::now();
    host::ensure(host::TO_COMPILE)?;
    if plan.host.contains(&"host") {
        host::ensure(host::TO_INTEROPERATE)?;
        host::ensure(host::TO_MOUNT)?;
    }
    let preparation = Preparation::start(plan.host.contains(&"host"), plan.kernels.clone(), args.refresh);
    let mut results = Vec::new();
    for name in &plan.host {
        results.push(timed(name, || on_host(name, args, &preparation)));
    }
    if !plan.kernels.is_empty() {
        results.extend(in_machines(args, &plan, preparation));
    }
    say::raw(summary::text(&results, began.elapsed()).as_bytes());
    Ok(if summary::all_well(&results) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn timed(name: &str, suite: impl FnOnce() -> Result<Tally>) -> SuiteResult {
    say::line(format!("== {name}"));
    let began = Instant::now();
    let tally = suite().unwrap_or_else(|error| Tally::failed(Failure::new(name, &format!("{error:#}"))));
    let took = began.elapsed();
    let verdict = if tally.failed.is_empty() { "ok" } else { "FAILED" };
    say::line(format!("== {name}: {verdict} after {}", summary::clock(took)));
    SuiteResult { name: name.to_string(), took, tally: Some(tally) }
}

fn on_host(name: &str, args: &Args, preparation: &Preparation) -> Result<Tally> {
    match name {
        "fmt" => cargo::ensure_components().and_then(|()| checks::fmt()),
        "clippy" => cargo::ensure_components().and_then(|()| checks::clippy()),
        "sim" => checks::sim(args.filter.as_deref()),
        "fuzz" => fuzz::run(),
        "doc" => checks::doc(),
        "licenses" => licenses::check(),
        _ => checks::host(&preparation.headers()?, args.filter.as_deref()),
    }
}

/// Build the payload and run every kernel's tests. What cannot even begin is a
/// failure of every suite it belongs to.
fn in_machines(args: &Args, plan: &Plan, preparation: Preparation) -> Vec<SuiteResult> {
    let mut rows = Vec::new();
    let began = Instant::now();
    say::line("== guest build");
    let guest = Guest::build();
    rows.push(SuiteResult { name: "guest build".into(), took: began.elapsed(), tally: None });
    let waited = Instant::now();
    let images = preparation.images().unwrap_or_default();
    rows.push(SuiteResult { name: "images (background)".into(), took: images.took, tally: None });
    if waited.elapsed().as_secs() > 0 {
        rows.push(SuiteResult { name: "  waited for them".into(), took: waited.elapsed(), tally: None });
    }
    say::line("== machines");
    let began = Instant::now();
    let done = guest.and_then(|guest| {
        let results = if args.full { Some(Results::open(&guest.hash, args.resume)?) } else { None };
        let machines = Machines {
            guest: &guest,
            jobs: args.jobs.into(),
            full: args.full,
            results: results.map(Mutex::new),
        };
        let work = plan.kernels.iter().map(|kernel| machines.work(kernel, args.filter.as_deref()));
        let mut suites = machines.run(work.collect::<Result<_>>()?, &images.broken);
        if boots_from_export(args, plan) {
            suites.push(timed(export_boot::SUITE, || Ok(export_boot::run(&guest))));
        }
        if let Some(results) = machines.results {
            let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            say::line(format!("the report is {}", cargo::shown(&results.report()?)));
        }
        Ok(suites)
    });
    match done {
        Ok(suites) => rows.extend(suites),
        Err(error) => {
            let failed = |kernel: &String| SuiteResult {
                name: plan::suite(kernel),
                took: began.elapsed(),
                tally: Some(Tally::failed(Failure::new("the suite", &format!("{error:#}")))),
            };
            rows.extend(plan.kernels.iter().map(failed));
        }
    }
    rows
}

/// Whether a machine is to boot from an export: one kernel is enough, since it does not know.
fn boots_from_export(args: &Args, plan: &Plan) -> bool {
    let wanted = args.filter.as_ref().is_none_or(|filter| export_boot::NAME.contains(filter));
    plan.has_kernel(DEFAULT_KERNEL) && wanted
}

fn list(args: &Args, plan: &Plan) -> Result<()> {
    for (name, about) in plan::HOST.iter().filter(|(name, _)| plan.host.contains(name)) {
        say::line(format!("{name:10} {about}"));
    }
    if plan.kernels.is_empty() {
        return Ok(());
    }
    let guest = Guest::build()?;
    for kernel in &plan.kernels {
        let tests = guest.list(kernel, args.full)?;
        let wanted = |test: &&String| args.filter.as_ref().is_none_or(|filter| test.contains(filter));
        for test in tests.iter().filter(wanted) {
            say::line(format!("{:10} {test}", plan::suite(kernel)));
        }
    }
    if boots_from_export(args, plan) {
        say::line(format!("{:10} {}", export_boot::SUITE, export_boot::NAME));
    }
    Ok(())
}
