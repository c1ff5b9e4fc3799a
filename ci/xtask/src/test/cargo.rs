//! Running cargo: both its streams in one, every line into a log, some of them
//! shown, the last of them kept for the reason when it fails.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::tally::Failure;
use crate::{paths, run, say};

/// How many of the last lines a failure carries.
const LAST: usize = 40;

/// The folder with the whole output of every suite of the last run.
pub fn logs() -> PathBuf {
    paths::workspace().join("target/test/logs")
}

/// A log file of the last run.
pub fn log(suite: &str) -> Result<(PathBuf, File)> {
    paths::make_dir(&logs())?;
    let path = logs().join(format!("{}.log", suite.replace(':', "-")));
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok((path, file))
}

/// `cargo`, the one that runs us, with plain output.
pub fn command(args: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(args)
        .current_dir(paths::workspace())
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TERM_PROGRESS_WHEN", "never");
    cargo
}

/// Run it for `suite`; `on_line` says which lines are shown. The inner result
/// is how it ended, with its last words.
pub fn run(
    suite: &str,
    command: &mut Command,
    mut on_line: impl FnMut(&str) -> bool,
) -> Result<Result<(), Failure>> {
    let (path, mut log) = log(suite)?;
    let (read, write) = std::io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(write.try_clone()?).stderr(write);
    let mut child = run::die_with_us(command).spawn().context("cannot start cargo; is it in PATH?")?;
    // The command holds the pipe's other end, which would keep it open for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let said = follow(read, &mut log, &mut on_line)?;
    let status = child.wait().context("cannot wait for cargo")?;
    if status.success() {
        return Ok(Ok(()));
    }
    let what = said.error.unwrap_or_else(|| format!("cargo ended with {status}"));
    let why = format!("{what} ({} has it all)", shown(&path));
    Ok(Err(Failure::new(suite, &why).with_details(said.last.iter().map(String::as_str))))
}

/// What a failure tells of cargo's words.
#[derive(Default)]
struct Said {
    /// The first error; what comes later often follows from it.
    error: Option<String>,
    last: VecDeque<String>,
}

fn follow(read: PipeReader, log: &mut File, on_line: &mut dyn FnMut(&str) -> bool) -> Result<Said> {
    let mut said = Said::default();
    for bytes in BufReader::new(read).split(b'\n') {
        let bytes = bytes.context("cannot read what cargo says")?;
        let line = String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_string();
        writeln!(log, "{line}").context("cannot write the log; is the disk full?")?;
        if on_line(&line) {
            say::line(format!("  {line}"));
        }
        if said.error.is_none() && line.starts_with("error") {
            said.error = Some(line.clone());
        }
        said.last.push_back(line);
        if said.last.len() > LAST {
            said.last.pop_front();
        }
    }
    Ok(said)
}

/// A path below the checkout, as a person in the checkout names it.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(paths::workspace()).unwrap_or(path).display().to_string()
}

/// The tools of these names (`fmt`, `clippy`) come with every toolchain but the
/// smallest; have rustup add them there.
pub fn ensure_components() -> Result<()> {
    let missing: Vec<&str> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(verb, _)| run::quiet(&mut command(&[verb, "--version"])).is_err())
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    say::step(format!("adding {list} to the Rust toolchain"));
    run::quiet(
        run::command("rustup").args(["component", "add"]).args(&missing).current_dir(paths::workspace()),
    )
    .with_context(|| format!("the Rust toolchain lacks {list}; try `rustup component add {list}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_first_error_and_keeps_the_last_words() {
        let mut script = run::command("sh");
        script.args(["-c", "echo fine; echo 'error: one' >&2; echo 'error: two'; echo end; exit 3"]);
        let mut seen = 0;
        let failure = run("unit-test", &mut script, |_| {
            seen += 1;
            false
        });
        let failure = failure.unwrap().unwrap_err();
        assert!(failure.why.starts_with("error: one (target/test/logs/unit-test.log"), "{failure:?}");
        assert_eq!((seen, failure.details.last().map(String::as_str)), (4, Some("end")));
        assert_eq!(run("unit-test", &mut run::command("true"), |_| true).unwrap(), Ok(()));
    }
}
