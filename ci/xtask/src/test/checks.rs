//! The suites that need no other kernel: fmt, clippy, host, sim, doc.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::cargo;
use super::libtest::Reader;
use super::tally::Tally;

/// Every file is as rustfmt writes it.
pub fn fmt() -> Result<Tally> {
    // The names of the files will do; the differences are in the log.
    one("fmt", &mut cargo::command(&["fmt", "--all", "--check"]), |line| line.starts_with("Diff in"))
}

/// No lint has anything to say, of the program and of the simulated world behind it.
pub fn clippy() -> Result<Tally> {
    let args = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    let mut both = one("clippy", &mut cargo::command(&args), |_| true)?;
    let args = ["clippy", "--features", "sim", "--all-targets", "--", "-D", "warnings"];
    let sim = one("clippy-sim", &mut cargo::command(&args), |_| true)?;
    both.passed += sim.passed;
    both.failed.extend(sim.failed);
    Ok(both)
}

/// The documentation builds, and every link in it leads somewhere.
pub fn doc() -> Result<Tally> {
    let mut command = cargo::command(&["doc", "--no-deps", "--workspace"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    one("doc", &mut command, |_| true)
}

fn one(name: &str, command: &mut Command, shown: impl FnMut(&str) -> bool) -> Result<Tally> {
    Ok(Tally::one(cargo::run(name, command, shown)?))
}

/// Every test that runs on the host, those with `filter` in their names.
pub fn host(headers: &Path, filter: Option<&str>) -> Result<Tally> {
    let mut command = cargo::command(&["test", "--workspace", "--no-fail-fast"]);
    command.env("BLOCKHAUS_UBLK_HEADER", headers);
    tests("host", command, filter)
}

/// The simulated world (tests/sim).
pub fn sim(filter: Option<&str>) -> Result<Tally> {
    tests("sim", cargo::command(&["test", "--features", "sim", "--test", "sim"]), filter)
}

fn tests(name: &str, mut command: Command, filter: Option<&str>) -> Result<Tally> {
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    let mut reader = Reader::default();
    let end = cargo::run(name, &mut command, |line| reader.take(line))?;
    Ok(reader.finish(end))
}
