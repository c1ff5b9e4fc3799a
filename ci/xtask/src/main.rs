//! `cargo xtask`: the project's own commands, run from a checkout.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, demo, say, test, vm};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run everything that CI runs, and count it.
    Test(test::Args),
    /// Boot a Debian kernel in QEMU and run a command inside it.
    Vm(vm::cli::Args),
    /// Count the instructions an I/O takes, beside null_blk, loop and rublk.
    Bench(bench::Args),
    /// Make, format, mount, verify and measure a disk: the first thing to run.
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Test(args) => test::main(&args),
        Verb::Vm(args) => vm::cli::main(&args),
        Verb::Bench(args) => bench::main(&args),
        Verb::Demo(args) => demo::main(&args),
    };
    done.unwrap_or_else(|error| {
        say::error(&error);
        ExitCode::from(125)
    })
}
