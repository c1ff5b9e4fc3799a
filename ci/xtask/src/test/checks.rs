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
    both("clippy", |what| {
        cargo::command(&[&["clippy"], what, &["--all-targets", "--", "-D", "warnings"]].concat())
    })
}

/// The documentation builds, and every link in it leads somewhere, also where it has the simulated world.
pub fn doc() -> Result<Tally> {
    both("doc", |what| {
        let mut command = cargo::command(&[&["doc", "--no-deps"], what].concat());
        command.env("RUSTDOCFLAGS", "-D warnings");
        command
    })
}

/// A command for the program with its simulated world, and then for everything without that.
fn both(name: &str, command: impl Fn(&[&str]) -> Command) -> Result<Tally> {
    let mut both = one(&format!("{name}-sim"), &mut command(&["--features", "sim"]), |_| true)?;
    let plain = one(name, &mut command(&["--workspace"]), |_| true)?;
    both.passed += plain.passed;
    both.failed.extend(plain.failed);
    Ok(both)
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
