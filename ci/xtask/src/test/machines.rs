//! The suites that need other kernels: one machine after the other, or two at
//! a time, each with a kernel of its own.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::boots::{self, BEGUN, Boot, Watch};
use super::full::Results;
use super::guest::Guest;
use super::ledger::{Case, Verdict};
use super::progress::Progress;
use super::tally::{Failure, Skip, SuiteResult, Tally};
use super::{cargo, ledger, plan};
use crate::vm::{ExitStatusCode, Machine, kernel};

/// The work for one kernel.
pub struct Work {
    kernel: String,
    /// What `uname -r` says there.
    release: String,
    tests: Vec<String>,
    /// Those that need not run again.
    earlier: usize,
}

/// All that machines are to do.
pub struct Machines<'a> {
    /// What they get.
    pub guest: &'a Guest,
    /// How many run at the same time.
    pub jobs: usize,
    /// Whether everything runs, for hours.
    pub full: bool,
    /// Where verdicts are kept, when they are.
    pub results: Option<Mutex<Results>>,
}

impl Machines<'_> {
    /// The tests of a kernel that are still to be run.
    pub fn work(&self, kernel_name: &str, filter: Option<&str>) -> Result<Work> {
        let mut tests = self.guest.list(kernel_name, self.full)?;
        let twice = ledger::twice(&tests);
        anyhow::ensure!(twice.is_empty(), "vmtest lists {} twice", twice.join(", "));
        tests.retain(|test| filter.is_none_or(|filter| test.contains(filter)));
        let release = kernel::cached(kernel_name).map_or_else(String::new, |kernel| kernel.release);
        let all = tests.len();
        if let Some(results) = &self.results {
            let results = lock(results);
            tests.retain(|test| !results.passed(&release, test));
        }
        Ok(Work { kernel: kernel_name.to_string(), release, earlier: all - tests.len(), tests })
    }

    /// Run it all; the results come in the order of `work`.
    pub fn run(&self, work: Vec<Work>, broken: &BTreeMap<String, String>) -> Vec<SuiteResult> {
        let order: Vec<String> = work.iter().map(|work| plan::suite(&work.kernel)).collect();
        let progress = Progress::new(work.iter().map(|work| work.tests.len()).sum(), self.full);
        let mut queue = work;
        // The longest first: then no machine is left alone at the end.
        queue.sort_by_key(|work| std::cmp::Reverse(work.tests.len()));
        let queue = Mutex::new(VecDeque::from(queue));
        let done = Mutex::new(BTreeMap::new());
        thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    loop {
                        let Some(work) = lock(&queue).pop_front() else { return };
                        let began = Instant::now();
                        let tally = match broken.get(&work.kernel) {
                            Some(why) => no_machine(&work, why),
                            None => self.one(&work, &progress).unwrap_or_else(|error| {
                                Tally::failed(Failure::new("the suite", &format!("{error:#}")))
                            }),
                        };
                        let name = plan::suite(&work.kernel);
                        let result =
                            SuiteResult { name: name.clone(), took: began.elapsed(), tally: Some(tally) };
                        lock(&done).insert(name, result);
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        order.iter().filter_map(|name| done.remove(name)).collect()
    }

    fn one(&self, work: &Work, progress: &Progress) -> Result<Tally> {
        let suite = plan::suite(&work.kernel);
        let (_, log) = cargo::log(&suite)?;
        let mut watch = Watcher { machines: self, work, suite, progress, log, trouble: None };
        let mut boot = Guests { work, guest: self.guest, full: self.full };
        // A hang of the kernel costs at most one boot's tests.
        let per_boot = if self.full { 12 } else { 40 };
        let cases = boots::run(&work.tests, per_boot, &mut boot, &mut watch);
        match watch.trouble {
            Some(trouble) => Err(trouble),
            None => Ok(tally(cases, work.earlier)),
        }
    }
}

/// A lock that another thread's panic does not make worse.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Not one test has run: all count as failed, for one reason.
fn no_machine(work: &Work, why: &str) -> Tally {
    let why = format!("no machine could be made: {why}");
    let failed = work.tests.iter().map(|test| Failure::new(test.clone(), &why)).collect();
    Tally { failed, earlier: work.earlier, ..Tally::default() }
}

fn tally(cases: Vec<Case>, earlier: usize) -> Tally {
    let mut tally = Tally { earlier, ..Tally::default() };
    for Case { name, verdict, .. } in cases {
        match verdict {
            Verdict::Passed => tally.passed += 1,
            Verdict::Failed(failure) => tally.failed.push(failure),
            Verdict::Skipped(why) => tally.skipped.push(Skip { name, why }),
        }
    }
    tally
}

/// Boots machines for one kernel's tests.
struct Guests<'a> {
    work: &'a Work,
    guest: &'a Guest,
    full: bool,
}

impl Boot for Guests<'_> {
    fn run(&mut self, names: &[String], on_line: &mut dyn FnMut(&str)) -> Result<ExitStatusCode> {
        let machine = Machine {
            payload: self.guest.payload.clone(),
            timeout: Some(limit(names, self.full)),
            ..Machine::with_kernel(&self.work.kernel)
        };
        machine.run(&script(names), on_line)
    }
}

/// When the kernel itself must be stuck, since vmtest ends a test that is.
fn limit(names: &[String], full: bool) -> Duration {
    let each = if full { 300 } else { 15 };
    Duration::from_secs(900 + each * names.len() as u64)
}

/// Emulated, beside another machine: tests get twice their usual time.
fn script(names: &[String]) -> String {
    format!(
        "echo '{BEGUN}'\nexport VMTEST_REQUIRE_EXAMPLES=1 VMTEST_TIMEOUT_SCALE=2\nexec /payload/vmtest run {}\n",
        names.join(" ")
    )
}

/// Tells a person, keeps the log, and keeps verdicts.
struct Watcher<'a> {
    machines: &'a Machines<'a>,
    work: &'a Work,
    suite: String,
    progress: &'a Progress,
    log: File,
    /// What went wrong in keeping; it is told when the tests are done.
    trouble: Option<anyhow::Error>,
}

impl Watch for Watcher<'_> {
    fn running(&mut self, test: Option<&str>) {
        self.progress.running(&self.suite, test);
    }

    fn ended(&mut self, case: &Case) {
        self.progress.ended(&self.suite, case);
        if let Some(results) = &self.machines.results
            && let Err(error) = lock(results).keep(&self.work.kernel, &self.work.release, case)
        {
            self.trouble = Some(error);
        }
    }

    fn line(&mut self, line: &str) {
        if let Err(error) = writeln!(self.log, "{line}") {
            self.trouble = Some(anyhow::Error::new(error).context("cannot write the log; is the disk full?"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_counts_once() {
        let case = |name: &str, verdict| Case { name: name.into(), verdict, seconds: 1.0 };
        let cases = vec![
            case("a", Verdict::Passed),
            case("b", Verdict::Failed(Failure::new("b", "why"))),
            case("c", Verdict::Skipped("no".into())),
        ];
        let tally = tally(cases, 7);
        assert_eq!((tally.passed, tally.failed.len(), tally.skipped.len(), tally.earlier), (1, 1, 1, 7));
    }

    #[test]
    fn without_a_machine_every_test_has_failed() {
        let tests = vec!["a".to_string(), "b".to_string()];
        let work = Work { kernel: "7.2".into(), release: String::new(), tests, earlier: 0 };
        let tally = no_machine(&work, "no mirror\nmore");
        assert_eq!((tally.passed, tally.failed.len(), tally.skipped.len()), (0, 2, 0));
        assert!(tally.failed[1].why.contains("no mirror"));
    }
}
