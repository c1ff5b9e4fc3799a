//! The suites that need no other kernel: fmt, clippy, host, doc.

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

/// No lint has anything to say.
pub fn clippy() -> Result<Tally> {
    let args = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    one("clippy", &mut cargo::command(&args), |_| true)
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
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    let mut reader = Reader::default();
    let end = cargo::run("host", &mut command, |line| reader.take(line))?;
    Ok(reader.finish(end))
}
