//! What came of a suite: how many passed, and what did not, by name.

use std::time::Duration;

/// Something that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The test, without its suite.
    pub name: String,
    /// One line.
    pub why: String,
    /// What one reads next.
    pub details: Vec<String>,
}

impl Failure {
    /// A failure whose reason may have several lines: the first says why.
    pub fn new(name: impl Into<String>, reason: &str) -> Self {
        let mut lines = reason.lines();
        let why = lines.next().unwrap_or("no reason given").to_string();
        Self { name: name.into(), why, details: lines.map(str::to_string).collect() }
    }

    /// The same with these details after its own.
    pub fn with_details<'a>(mut self, details: impl IntoIterator<Item = &'a str>) -> Self {
        self.details.extend(details.into_iter().map(str::to_string));
        self
    }
}

/// Something that was not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The test, without its suite.
    pub name: String,
    /// One line.
    pub why: String,
}

/// The counts of a suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many passed in this run.
    pub passed: usize,
    /// Those that failed.
    pub failed: Vec<Failure>,
    /// Those that were not run.
    pub skipped: Vec<Skip>,
    /// How many are known to pass from an earlier run with the same binaries.
    pub earlier: usize,
}

impl Tally {
    /// A suite that is one check.
    pub fn one(outcome: Result<(), Failure>) -> Self {
        match outcome {
            Ok(()) => Self { passed: 1, ..Self::default() },
            Err(failure) => Self::failed(failure),
        }
    }

    /// A suite of which only this is known.
    pub fn failed(failure: Failure) -> Self {
        Self { failed: vec![failure], ..Self::default() }
    }
}

/// A suite that has been run.
#[derive(Clone, Debug)]
pub struct SuiteResult {
    /// Its name, as `--only` takes it.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// What came of it; work that is no test (a build) has none.
    pub tally: Option<Tally>,
}
