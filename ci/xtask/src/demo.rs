//! `cargo xtask demo`: a disk over a file, made, formatted, mounted, verified
//! and measured, on this machine or in a virtual one.
//!
//! place (where, and why) → here, guest (run steps.sh there) → show (its words)

mod guest;
mod here;
mod place;
mod show;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::guest_build::{self, Target};
use crate::say;
use crate::vm::recipe;
use place::Place;
use show::Show;

/// The steps, the same in both places.
const STEPS: &str = include_str!("demo/steps.sh");

/// The exit status of an interrupted command.
const INTERRUPTED: u8 = 130;

/// What can be said after `cargo xtask demo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// On this machine, by NBD or FUSE where its kernel has no ublk
    #[arg(long, conflicts_with_all = ["vm", "kernel"])]
    host: bool,
    /// In a virtual machine, also when this machine could do it
    #[arg(long)]
    vm: bool,
    /// The virtual machine's kernel, one of `cargo xtask vm --list`
    #[arg(long, default_value = recipe::DEFAULT_KERNEL)]
    kernel: String,
    /// How long each load of the measurement runs
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

/// Run the demo; the exit status is 0 when every step went well.
pub fn main(args: &Args) -> Result<ExitCode> {
    let place = Place::choose(args.host, args.vm, &args.kernel)?;
    say::line(format!("blockhaus demo: {}", place.why()));
    if let Some(words) = place.first_time(&args.kernel) {
        say::line(words);
    }
    let began = Instant::now();
    let binary = guest_build::static_binary("blockhaus", Target::Bin("blockhaus"))?;
    let mut show = Show::new(STEPS);
    let status = match &place {
        Place::Here { .. } => here::run(&binary, args.seconds, &mut |line| show.take(line))?,
        Place::Guest { .. } => guest::run(&args.kernel, &binary, args.seconds, &mut |line| show.take(line))?,
    };
    if status == INTERRUPTED {
        say::step("interrupted; nothing is left behind");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if let Some(why) = show.failure() {
        bail!("the demo failed: {why}");
    }
    if status != 0 {
        bail!("the demo ended early, with exit status {status}; its last words are above");
    }
    say::line(format!("\nAll steps went well, in {} s.\n", began.elapsed().as_secs()));
    place.what_next().lines().for_each(say::line);
    Ok(ExitCode::SUCCESS)
}

/// What the steps are told, and the steps.
fn script(blockhaus: &str, base: &str, seconds: u32) -> String {
    format!("blockhaus={}\nbase={}\nseconds={seconds}\n{STEPS}", quoted(blockhaus), quoted(base))
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run;

    #[test]
    fn the_steps_are_a_script_that_bash_reads() {
        let script = script("/it's/here", "/var/tmp", 3);
        assert!(script.starts_with("blockhaus='/it'\\''s/here'\nbase='/var/tmp'\nseconds=3\n"));
        run::quiet(run::command("bash").args(["-n", "-c", &script])).unwrap();
    }
}
