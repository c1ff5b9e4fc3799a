//! The suite that feeds decoders with whatever a fuzzer thinks of: each target of `fuzz/` for a minute, from the
//! corpus that is in the repository, on as many processors as there are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use super::cargo;
use super::tally::{Failure, Tally};
use crate::{paths, say};

/// How long each target runs, unless the environment says otherwise.
const SECONDS: u32 = 60;

/// Where the environment says for how many seconds.
const SECONDS_OF_OURS: &str = "BLOCKHAUS_FUZZ_SECONDS";

/// The cargo-fuzz that is installed where none is there.
const VERSION: &str = "0.13.1";

/// Run every target.
pub fn run() -> Result<Tally> {
    let program = program()?;
    let folder = paths::workspace().join("fuzz");
    let seconds = seconds()?;
    // Once for all of them: they have everything but themselves in common.
    let mut build = command(&program, "build", &folder);
    if let Err(failure) = cargo::run("fuzz-build", &mut build, |_| false)? {
        return Ok(Tally::failed(failure));
    }
    let targets = targets(&folder)?;
    let (next, done) = (Mutex::new(targets.iter()), Mutex::new((Tally::default(), 0)));
    let at_once = thread::available_parallelism().map_or(1, usize::from).min(targets.len());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(target) = { locked(&next).next() } {
                    let one = run_one(&program, &folder, target, seconds).unwrap_or_else(|error| {
                        (Tally::failed(Failure::new(target, &format!("{error:#}"))), 0)
                    });
                    let (tally, executions) = &mut *locked(&done);
                    tally.passed += one.0.passed;
                    tally.failed.extend(one.0.failed);
                    *executions += one.1;
                }
            });
        }
    });
    let (tally, executions) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    say::line(format!("  {executions} executions in all"));
    Ok(tally)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seconds() -> Result<u32> {
    match std::env::var(SECONDS_OF_OURS) {
        Ok(text) => text.parse().with_context(|| format!("{SECONDS_OF_OURS}={text} is no number of seconds")),
        Err(_) => Ok(SECONDS),
    }
}

/// `cargo fuzz VERB`. Without a sanitizer: `fuzz/src/lib.rs` says why.
fn command(program: &Path, verb: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["fuzz", verb, "--sanitizer", "none", "--fuzz-dir"])
        .arg(folder)
        .current_dir(paths::workspace())
        .env("CARGO_TARGET_DIR", paths::workspace().join("target/fuzz"))
        // The instruments are unstable options, which the stable compiler has.
        .env("RUSTC_BOOTSTRAP", "1");
    command
}

/// What became of a target, and how often it was executed.
fn run_one(program: &Path, folder: &Path, target: &str, seconds: u32) -> Result<(Tally, u64)> {
    // What it finds on the way stays out of the repository's corpus.
    let found = paths::workspace().join("target/fuzz/corpus").join(target);
    paths::make_dir(&found)?;
    let mut command = command(program, "run", folder);
    command.arg(target).arg(&found).arg(folder.join("corpus").join(target)).args([
        "--",
        &format!("-max_total_time={seconds}"),
        "-print_final_stats=1",
        "-verbosity=0",
    ]);
    let mut executions = 0;
    let outcome = cargo::run(&format!("fuzz-{target}"), &mut command, |line| {
        executions = executed(line).unwrap_or(executions);
        line.contains("SUMMARY")
    })?;
    say::line(format!("  {target}: {executions} executions"));
    Ok((Tally::one(outcome), executions))
}

/// How often a target was executed, where a line of libFuzzer's last words says so.
fn executed(line: &str) -> Option<u64> {
    line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok()
}

/// The names of the targets: their files'.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let sources = folder.join("fuzz_targets");
    let entries = fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort_unstable();
    if names.is_empty() {
        bail!("there is no target in {}", sources.display());
    }
    Ok(names)
}

/// cargo-fuzz: the one in PATH, or one of our own.
fn program() -> Result<PathBuf> {
    if let Some(there) = crate::run::find_program("cargo-fuzz") {
        return Ok(there);
    }
    let root = paths::workspace().join("target/tools");
    let program = root.join("bin/cargo-fuzz");
    if !program.exists() {
        let install = ["install", "cargo-fuzz", "--version", VERSION, "--locked", "--root"];
        let mut command = cargo::command(&install);
        if let Err(failure) = cargo::run("cargo-fuzz", command.arg(&root), |_| false)? {
            bail!("cannot install cargo-fuzz: {failure:?}");
        }
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzer_says_how_often_it_has_executed() {
        assert_eq!(executed("stat::number_of_executed_units: 1596676"), Some(1_596_676));
        assert_eq!(executed("stat::average_exec_per_sec:     61410"), None);
    }

    #[test]
    fn every_target_has_a_corpus_and_a_place_in_the_manifest() {
        let folder = paths::workspace().join("fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for target in targets(&folder).unwrap() {
            let corpus = fs::read_dir(folder.join("corpus").join(&target)).unwrap();
            assert!(corpus.count() > 5, "{target}");
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
        }
    }
}
