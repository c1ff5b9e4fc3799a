//! The end of a run: what was skipped, what failed, how long each suite took,
//! and the one line that a machine reads.

use std::fmt::Write;
use std::time::Duration;

use super::tally::{Failure, SuiteResult, Tally};

/// How many lines of a failure's details are shown.
const DETAILS: usize = 15;

/// All of it, as text that ends with the last line.
pub fn text(suites: &[SuiteResult], wall: Duration) -> String {
    let mut out = String::new();
    skipped(&mut out, suites);
    failures(&mut out, suites);
    table(&mut out, suites, wall);
    let count = |of: fn(&Tally) -> usize| tallies(suites).map(|(_, tally)| of(tally)).sum::<usize>();
    let earlier = count(|tally| tally.earlier);
    if earlier > 0 {
        line(
            &mut out,
            format!("{earlier} more passed earlier with the same binaries and were not run again"),
        );
    }
    let (passed, failed, skipped) =
        (count(|tally| tally.passed), count(|tally| tally.failed.len()), count(|tally| tally.skipped.len()));
    line(&mut out, format!("{passed} passed, {failed} failed, {skipped} skipped"));
    out
}

/// Whether nothing failed, and anything passed at all.
pub fn all_well(suites: &[SuiteResult]) -> bool {
    let good = |tally: &Tally| tally.passed + tally.earlier > 0;
    tallies(suites).all(|(_, tally)| tally.failed.is_empty()) && tallies(suites).any(|(_, tally)| good(tally))
}

fn tallies(suites: &[SuiteResult]) -> impl Iterator<Item = (&str, &Tally)> {
    suites.iter().filter_map(|suite| Some((suite.name.as_str(), suite.tally.as_ref()?)))
}

fn line(out: &mut String, text: impl AsRef<str>) {
    out.push_str(text.as_ref());
    out.push('\n');
}

fn skipped(out: &mut String, suites: &[SuiteResult]) {
    for (suite, tally) in tallies(suites) {
        for (at, skip) in tally.skipped.iter().enumerate() {
            if at == 0 {
                out.push('\n');
            }
            line(out, format!("skipped  {}: {}", named(suite, &skip.name), skip.why));
        }
    }
}

fn failures(out: &mut String, suites: &[SuiteResult]) {
    for (suite, tally) in tallies(suites) {
        let mut before: Option<&Failure> = None;
        for failure in &tally.failed {
            let Failure { name, why, details } = failure;
            // One reason can fail a whole suite; its details are shown once.
            let again = before.is_some_and(|before| (&before.why, &before.details) == (why, details));
            line(out, format!("{}FAILED   {}: {why}", if again { "" } else { "\n" }, named(suite, name)));
            let shown = if again { &[] } else { &details[details.len().saturating_sub(DETAILS)..] };
            for detail in shown {
                line(out, format!("    {detail}"));
            }
            before = Some(failure);
        }
    }
}

/// A check that is all of its suite is not named twice.
fn named(suite: &str, test: &str) -> String {
    if suite == test { suite.to_string() } else { format!("{suite} {test}") }
}

fn table(out: &mut String, suites: &[SuiteResult], wall: Duration) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "\n{:22} {:>8} {:>7} {:>7} {:>8}", "suite", "time", "passed", "failed", "skipped");
    for SuiteResult { name, took, tally } in suites {
        let numbers = tally.as_ref().map_or([const { String::new() }; 3], |tally| {
            [tally.passed, tally.failed.len(), tally.skipped.len()].map(|count| count.to_string())
        });
        let row =
            format!("{name:22} {:>8} {:>7} {:>7} {:>8}", clock(*took), numbers[0], numbers[1], numbers[2]);
        line(out, row.trim_end());
    }
    line(out, format!("{:22} {:>8}", "all, by the clock", clock(wall)));
}

/// `1:02:03`, or `2:03` within an hour.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::super::tally::Skip;
    use super::*;

    fn suites() -> Vec<SuiteResult> {
        let took = Duration::from_secs(75);
        let details: Vec<String> = (1..=20).map(|n| format!("line {n}")).collect();
        let vm = Tally {
            passed: 30,
            failed: vec![Failure { name: "cell/ram".into(), why: "it differs".into(), details }],
            skipped: vec![Skip { name: "life/x".into(), why: "no such kernel".into() }],
            earlier: 0,
        };
        vec![
            SuiteResult { name: "fmt".into(), took, tally: Some(Tally::one(Ok(()))) },
            SuiteResult { name: "guest build".into(), took, tally: None },
            SuiteResult { name: "vm:7.2".into(), took, tally: Some(vm) },
        ]
    }

    #[test]
    fn the_last_line_counts_and_all_else_is_above_it() {
        let text = text(&suites(), Duration::from_secs(3723));
        assert_eq!(text.lines().next_back(), Some("31 passed, 1 failed, 1 skipped"));
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part} in {text}"));
        assert!(at("skipped  vm:7.2 life/x: no such kernel") < at("FAILED   vm:7.2 cell/ram: it differs"));
        assert!(at("FAILED") < at("suite "));
        assert!(!text.contains("line 5\n") && text.contains("    line 6\n") && text.contains("line 20\n"));
        assert!(text.contains("1:02:03") && text.contains("1:15"));
        assert!(!all_well(&suites()));
    }

    #[test]
    fn nothing_run_is_not_well() {
        assert!(!all_well(&[]));
        assert!(all_well(&suites()[..2]));
    }

    #[test]
    fn a_check_is_named_once() {
        assert_eq!(named("fmt", "fmt"), "fmt");
        assert_eq!(named("host", "a::b"), "host a::b");
    }
}
