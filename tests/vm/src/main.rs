//! The tests that need a kernel: run inside the virtual machine, or on a host that has ublk.
//!
//! `vmtest list --kernel 6.12` names the tests for a kernel, `vmtest run NAME…` runs them. Each
//! runs in a process of its own with a deadline; after each the host must be as it was before.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

mod blockhaus;
mod cell;
mod check;
mod clean;
mod home;
mod kmsg;
mod outcome;
mod procfs;
mod raw;
mod report;
mod run;
mod runner;
mod system;
mod tests;

#[derive(Parser)]
#[command(name = "vmtest", about = "Tests of blockhaus that need a kernel")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Names the tests for a kernel, one a line
    List {
        /// Its version, such as 6.12
        #[arg(long)]
        kernel: String,
        /// All of them, not only CI's choice
        #[arg(long)]
        full: bool,
    },
    /// Runs tests by name
    Run {
        #[arg(required = true)]
        names: Vec<String>,
        /// Tests at the same time; always 1, since each looks at the whole host for what it left
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=1))]
        jobs: u8,
    },
    /// Runs one test in this process (what `run` starts)
    #[command(hide = true)]
    Child { name: String },
    /// Runs a command that can make no netlink socket
    #[command(hide = true)]
    WithoutNetlink {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Runs a cell's inner checks on any disk; its contents are lost
    #[command(hide = true)]
    RunOnDevice {
        device: String,
        #[arg(long)]
        full: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::List { kernel, full } => {
            tests::names(&kernel, full).iter().for_each(|name| report::line(name));
            Ok(0)
        }
        Verb::Run { names, jobs: _ } => run_all(&names),
        Verb::Child { name } => runner::child(&name),
        Verb::WithoutNetlink { command } => run::without_netlink(&command),
        Verb::RunOnDevice { device, full } => run_on_device(&device, full),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(fail) => {
            eprintln!("vmtest: {fail}");
            ExitCode::from(2)
        }
    }
}

fn run_all(names: &[String]) -> outcome::Outcome<u8> {
    // A name that does not exist fails before anything has run.
    for name in names {
        tests::find(name)?;
    }
    runner::safe_here()?;
    home::prepare()?;
    let mut before = system::Snapshot::take();
    let mut total = report::Total::default();
    let mut broken_by: Option<&str> = None;
    for name in names {
        let started = Instant::now();
        let outcome = match broken_by {
            // Whatever it said now would be about the kernel's state, not about us.
            Some(test) => Err(outcome::Fail::new(format!("not run: the kernel broke during {test}"))),
            None => runner::supervise(name, &before),
        };
        total.add(name, started.elapsed(), &outcome);
        if broken_by.is_none() && kmsg::kernel_died() {
            broken_by = Some(name);
        }
        if outcome.is_err() {
            // What could not be taken away was told once; it is no fault of those that follow.
            before = system::Snapshot::take();
        }
    }
    total.print();
    Ok(u8::from(!total.all_well()))
}

fn run_on_device(device: &str, full: bool) -> outcome::Outcome<u8> {
    std::fs::create_dir_all(home::scratch()).ok();
    let started = Instant::now();
    let outcome = tests::on_device(device, 16, full);
    let mut total = report::Total::default();
    total.add(&format!("on-device{device}"), started.elapsed().max(Duration::ZERO), &outcome);
    total.print();
    Ok(u8::from(!total.all_well()))
}
