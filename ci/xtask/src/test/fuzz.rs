//! The suite that feeds decoders with whatever a fuzzer thinks of: each target of `fuzz/` for a minute, from the
//! corpus that is in the repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cargo;
use super::tally::Tally;
use crate::paths;

/// How long each target runs.
const SECONDS: u32 = 60;

/// The cargo-fuzz that is installed where none is there.
const VERSION: &str = "0.13.1";

/// Run every target.
pub fn run() -> Result<Tally> {
    let program = program()?;
    let folder = paths::workspace().join("fuzz");
    let mut tally = Tally::default();
    for target in targets(&folder)? {
        // What it finds on the way stays out of the repository's corpus.
        let found = paths::workspace().join("target/fuzz/corpus").join(&target);
        paths::make_dir(&found)?;
        let mut command = Command::new(&program);
        command
            .args(["fuzz", "run", "--fuzz-dir"])
            .arg(&folder)
            .arg(&target)
            .arg(&found)
            .arg(folder.join("corpus").join(&target))
            .args(["--", &format!("-max_total_time={SECONDS}"), "-print_final_stats=1", "-verbosity=0"])
            .current_dir(paths::workspace())
            .env("CARGO_TARGET_DIR", paths::workspace().join("target/fuzz"))
            // The instruments are unstable options, which the stable compiler has.
            .env("RUSTC_BOOTSTRAP", "1");
        let name = format!("fuzz-{target}");
        let shown = |line: &str| line.contains("number_of_executed_units") || line.contains("SUMMARY");
        let one = Tally::one(cargo::run(&name, &mut command, shown)?);
        tally.passed += one.passed;
        tally.failed.extend(one.failed);
    }
    Ok(tally)
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
