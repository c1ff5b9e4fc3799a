//! `--full` takes hours: its verdicts are kept as they come, so that a run
//! that was stopped can be resumed, and a report is written at the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::ledger::{Case, Verdict};
use super::summary::clock;
use crate::paths;
use crate::vm::recipe;

/// One verdict. What it is worth depends on the kernel and the binaries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    kernel: String,
    release: String,
    test: String,
    binaries: String,
    verdict: String,
    seconds: f64,
    #[serde(default)]
    why: String,
}

/// The file of verdicts.
pub struct Results {
    records: Vec<Record>,
    file: File,
    binaries: String,
    folder: PathBuf,
}

impl Results {
    /// In `target/full`. Without `resume`, what was there is put aside.
    pub fn open(binaries: &str, resume: bool) -> Result<Self> {
        Self::open_in(&paths::workspace().join("target/full"), binaries, resume)
    }

    fn open_in(folder: &Path, binaries: &str, resume: bool) -> Result<Self> {
        paths::make_dir(folder)?;
        let path = folder.join("RESULTS.jsonl");
        if !resume && path.exists() {
            fs::rename(&path, folder.join("RESULTS.previous.jsonl"))?;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        if !text.is_empty() && !text.ends_with('\n') {
            // We were stopped in the middle of a line, which is then worth nothing.
            writeln!(file)?;
        }
        let records = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Self { records, file, binaries: binaries.to_string(), folder: folder.to_path_buf() })
    }

    /// Whether this test has passed already, with these binaries on this very kernel.
    pub fn passed(&self, release: &str, test: &str) -> bool {
        self.ours().any(|record| record.verdict == "ok" && record.release == release && record.test == test)
    }

    fn ours(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.binaries == self.binaries)
    }

    /// Keep a verdict, at once.
    pub fn keep(&mut self, kernel: &str, release: &str, case: &Case) -> Result<()> {
        let (verdict, why) = match &case.verdict {
            Verdict::Passed => ("ok", ""),
            Verdict::Failed(failure) => ("FAIL", failure.why.as_str()),
            Verdict::Skipped(why) => ("skip", why.as_str()),
        };
        let record = Record {
            kernel: kernel.to_string(),
            release: release.to_string(),
            test: case.name.clone(),
            binaries: self.binaries.clone(),
            verdict: verdict.to_string(),
            seconds: case.seconds,
            why: why.to_string(),
        };
        let line = serde_json::to_string(&record)? + "\n";
        self.file.write_all(line.as_bytes()).context("cannot keep a verdict; is the disk full?")?;
        self.records.push(record);
        Ok(())
    }

    /// Write the report about these binaries, and say where it is.
    pub fn report(&self) -> Result<PathBuf> {
        let path = self.folder.join("report.md");
        paths::write_whole(&path, self.markdown().as_bytes())?;
        Ok(path)
    }

    fn markdown(&self) -> String {
        // The last verdict of each test counts.
        let mut last: HashMap<(&str, &str), &Record> = HashMap::new();
        for record in self.ours() {
            last.insert((&record.test, &record.kernel), record);
        }
        let mut releases: BTreeMap<&str, &str> = BTreeMap::new();
        for record in self.ours() {
            releases.insert(&record.kernel, &record.release);
        }
        let mut kernels: Vec<&str> = releases.keys().copied().collect();
        let rank = recipe::kernel_names().unwrap_or_default();
        kernels.sort_by_key(|kernel| rank.iter().position(|known| known == kernel));
        let mut out = format!("# The full matrix\n\nBinaries {}.\n\n", self.binaries);
        out.push_str(
            "| kernel | release | passed | failed | skipped | time in tests |\n|---|---|---|---|---|---|\n",
        );
        for kernel in &kernels {
            let of = |verdict: &str| {
                last.values().filter(|record| record.kernel == *kernel && record.verdict == verdict).count()
            };
            let seconds: f64 =
                last.values().filter(|record| record.kernel == *kernel).map(|record| record.seconds).sum();
            let time = clock(std::time::Duration::from_secs_f64(seconds.max(0.0)));
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "| {kernel} | {} | {} | {} | {} | {time} |",
                releases[kernel],
                of("ok"),
                of("FAIL"),
                of("skip")
            );
        }
        let _ = write!(out, "\n| test | {} |\n|---|{}\n", kernels.join(" | "), "---|".repeat(kernels.len()));
        let tests: BTreeSet<&str> = last.keys().map(|(test, _)| *test).collect();
        for test in tests {
            let cells = kernels.iter().map(|kernel| match last.get(&(test, *kernel)) {
                Some(record) => format!("{} {:.1} s", record.verdict, record.seconds),
                None => String::new(),
            });
            let _ = writeln!(out, "| {test} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
        let mut failed: Vec<&&Record> = last.values().filter(|record| record.verdict != "ok").collect();
        failed.sort_by_key(|record| (&record.kernel, &record.test));
        if !failed.is_empty() {
            out.push_str("\n## Not passed\n\n");
        }
        for record in failed {
            let _ =
                writeln!(out, "- {} {} on {}: {}", record.verdict, record.test, record.kernel, record.why);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::tally::Failure;
    use super::*;

    fn case(name: &str, verdict: Verdict) -> Case {
        Case { name: name.into(), verdict, seconds: 61.0 }
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_passed_is_known_after_a_stop_for_the_same_binaries_and_kernel_only() {
        let scratch = folder();
        let mut results = Results::open_in(scratch.path(), "aa", true).unwrap();
        results.keep("7.2", "7.2.12", &case("good", Verdict::Passed)).unwrap();
        let failure = Verdict::Failed(Failure::new("bad", "differs"));
        results.keep("7.2", "7.2.12", &case("bad", failure)).unwrap();
        drop(results);
        // Stopped in the middle of a line.
        let path = scratch.path().join("RESULTS.jsonl");
        let text = fs::read_to_string(&path).unwrap() + "{\"kernel\":\"7.2\",\"rel";
        fs::write(&path, text).unwrap();

        let mut again = Results::open_in(scratch.path(), "aa", true).unwrap();
        assert!(again.passed("7.2.12", "good"));
        assert!(!again.passed("7.2.12", "bad") && !again.passed("7.2.13", "good"));
        again.keep("7.2", "7.2.12", &case("later", Verdict::Passed)).unwrap();
        drop(again);
        assert!(Results::open_in(scratch.path(), "aa", true).unwrap().passed("7.2.12", "later"));
        assert!(!Results::open_in(scratch.path(), "bb", true).unwrap().passed("7.2.12", "good"));
        assert!(!Results::open_in(scratch.path(), "aa", false).unwrap().passed("7.2.12", "good"));
        assert!(scratch.path().join("RESULTS.previous.jsonl").exists());
    }

    #[test]
    fn the_report_has_each_tests_last_verdict() {
        let scratch = folder();
        let mut results = Results::open_in(scratch.path(), "aa", false).unwrap();
        let failure = || Verdict::Failed(Failure::new("cell", "differs"));
        results.keep("7.2", "7.2.12", &case("cell", failure())).unwrap();
        results.keep("7.2", "7.2.12", &case("cell", Verdict::Passed)).unwrap();
        results.keep("6.12", "6.12.1", &case("cell", failure())).unwrap();
        let report = fs::read_to_string(results.report().unwrap()).unwrap();
        for line in [
            "| 7.2 | 7.2.12 | 1 | 0 | 0 | 1:01 |",
            "| test | 6.12 | 7.2 |",
            "| cell | FAIL 61.0 s | ok 61.0 s |",
            "- FAIL cell on 6.12: differs",
        ] {
            assert!(report.contains(line), "{line} in\n{report}");
        }
    }
}
