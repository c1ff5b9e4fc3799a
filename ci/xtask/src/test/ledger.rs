//! Reading what `vmtest run` says: a verdict for each test, in the order they
//! were asked for, and what to think of those that got none.

use std::collections::BTreeMap;

use super::tally::Failure;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Passed,
    /// With a reason and perhaps details.
    Failed(Failure),
    /// Not run; why.
    Skipped(String),
}

/// A test's verdict, and the seconds it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Its name in vmtest.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took, as vmtest says.
    pub seconds: f64,
}

/// The tests of one run of vmtest.
pub struct Ledger {
    /// Those without a verdict, in their order.
    open: Vec<String>,
    cases: Vec<Case>,
}

/// What a line meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A verdict: the newest of [`Ledger::cases`].
    Verdict,
    /// More about the newest failure.
    Detail,
    /// Nothing of ours.
    Other,
}

impl Ledger {
    /// For a run of these tests.
    pub fn new(names: &[String]) -> Self {
        Self { open: names.to_vec(), cases: Vec::new() }
    }

    /// Take one line of output.
    pub fn take(&mut self, line: &str) -> Meaning {
        let line = line.trim_end_matches('\r');
        if let Some(detail) = line.strip_prefix("  | ")
            && let Some(Case { verdict: Verdict::Failed(failure), .. }) = self.cases.last_mut()
        {
            failure.details.push(detail.to_string());
            return Meaning::Detail;
        }
        let Some(case) = verdict(line) else { return Meaning::Other };
        // A program under test may print such words too: only names that were asked for count.
        let Some(at) = self.open.iter().position(|name| *name == case.name) else {
            return Meaning::Other;
        };
        self.open.remove(at);
        self.cases.push(case);
        Meaning::Verdict
    }

    /// The test that is running: the first without a verdict.
    pub fn running(&self) -> Option<&str> {
        self.open.first().map(String::as_str)
    }

    /// The verdicts so far.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Blame the running test for the end of the machine.
    pub fn blame(&mut self, why: &str) {
        if !self.open.is_empty() {
            let name = self.open.remove(0);
            self.fail(name, why);
        }
    }

    /// Count all that have no verdict as failed.
    pub fn fail_open(&mut self, why: &str) {
        for name in std::mem::take(&mut self.open) {
            self.fail(name, why);
        }
    }

    fn fail(&mut self, name: String, why: &str) {
        let verdict = Verdict::Failed(Failure::new(name.clone(), why));
        self.cases.push(Case { name, verdict, seconds: 0.0 });
    }

    /// The verdicts, and the tests that got none.
    pub fn close(self) -> (Vec<Case>, Vec<String>) {
        (self.cases, self.open)
    }
}

/// The verdict in a line, if it is one.
fn verdict(line: &str) -> Option<Case> {
    let (word, rest) = line.split_once(' ')?;
    let (head, why) = match rest.split_once(':') {
        Some((head, why)) => (head, Some(why.trim())),
        None => (rest, None),
    };
    let mut words = head.split_whitespace();
    let name = words.next()?.to_string();
    let seconds = match words.next() {
        Some(time) => Some(time.strip_suffix('s')?.parse::<f64>().ok()?),
        None => None,
    };
    if words.next().is_some() {
        return None;
    }
    let verdict = match (word, seconds, why) {
        ("ok", Some(_), None) => Verdict::Passed,
        ("FAIL", Some(_), Some(why)) => Verdict::Failed(Failure::new(name.clone(), why)),
        ("skip", None, Some(why)) => Verdict::Skipped(why.to_string()),
        _ => return None,
    };
    Some(Case { name, verdict, seconds: seconds.unwrap_or(0.0) })
}

/// The tests that are named more than once in a list, which would lose a verdict.
pub fn twice(names: &[String]) -> Vec<&str> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_insert(0) += 1;
    }
    counts.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn read(asked: &[&str], text: &str) -> Ledger {
        let mut ledger = Ledger::new(&names(asked));
        for line in text.lines() {
            ledger.take(line);
        }
        ledger
    }

    #[test]
    fn every_form_of_verdict_is_read() {
        let text = "\
some program's words
ok a/1 12.3s
FAIL b 3.2s: sizes differ: 1: 2
  | expected 1
  | found 2
skip c/d: no such thing here
TOTAL 1 passed, 1 failed, 1 skipped";
        let (cases, open) = read(&["a/1", "b", "c/d"], text).close();
        assert!(open.is_empty());
        assert_eq!((cases[0].verdict.clone(), cases[0].seconds), (Verdict::Passed, 12.3));
        let Verdict::Failed(failure) = &cases[1].verdict else { panic!("{cases:?}") };
        assert_eq!(failure.why, "sizes differ: 1: 2");
        assert_eq!(failure.details, ["expected 1", "found 2"]);
        assert_eq!(cases[2].verdict, Verdict::Skipped("no such thing here".into()));
    }

    #[test]
    fn only_what_was_asked_for_counts_and_only_once() {
        let ledger = read(&["a"], "ok z 1.0s\nok a 1.0s\nFAIL a 1.0s: late\n  | late too");
        assert_eq!(ledger.cases().len(), 1);
        assert_eq!(ledger.cases()[0].verdict, Verdict::Passed);
    }

    #[test]
    fn words_that_only_look_like_a_verdict_are_none() {
        for line in
            ["ok", "ok a", "ok a b", "ok a 1.0s: why", "FAIL a 1.0s", "FAIL a", "skip a", "ok a 1.0s x"]
        {
            assert_eq!(verdict(line), None, "{line}");
        }
        assert!(verdict("ok a 1.0s").is_some());
    }

    #[test]
    fn a_test_without_a_verdict_is_the_one_that_was_running() {
        let mut ledger = read(&["a", "b", "c"], "ok a 1.0s\n");
        assert_eq!(ledger.running(), Some("b"));
        ledger.blame("the guest's kernel panicked. The last lines:\nOops\nRIP");
        let (cases, open) = ledger.close();
        let Verdict::Failed(failure) = &cases[1].verdict else { panic!("{cases:?}") };
        assert_eq!((failure.name.as_str(), failure.details.len()), ("b", 2));
        assert!(failure.why.contains("panicked"));
        assert_eq!(open, ["c"]);
    }

    #[test]
    fn details_without_a_failure_are_nobodys() {
        let mut ledger = read(&["a", "b"], "ok a 1.0s\n");
        assert_eq!(ledger.take("  | stray"), Meaning::Other);
        ledger.fail_open("gone");
        assert_eq!(ledger.cases().len(), 2);
    }

    #[test]
    fn a_name_used_twice_is_found() {
        assert_eq!(twice(&names(&["a", "b", "a"])), ["a"]);
    }
}
