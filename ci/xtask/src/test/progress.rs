//! What a person sees while machines run: a line for each test, and on a
//! terminal also which tests are running now.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::ledger::{Case, Verdict};
use super::summary::clock;
use crate::say;

/// Shared by all machines.
pub struct Progress {
    total: usize,
    estimate: bool,
    terminal: bool,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    done: usize,
    /// What runs, by suite.
    running: BTreeMap<String, String>,
}

impl Progress {
    /// For so many tests. `estimate`: say how long the rest will take.
    pub fn new(total: usize, estimate: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { total, estimate, terminal, began: Instant::now(), state: Mutex::default() }
    }

    /// `suite` is at this test now.
    pub fn running(&self, suite: &str, test: Option<&str>) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match test {
            Some(test) => state.running.insert(suite.to_string(), test.to_string()),
            None => state.running.remove(suite),
        };
        self.show_running(&state);
    }

    /// A test of `suite` has ended.
    pub fn ended(&self, suite: &str, case: &Case) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.done += 1;
        let width = self.total.to_string().len();
        let left = if self.estimate { remaining(self.began.elapsed(), state.done, self.total) } else { None };
        let left = left.map_or_else(String::new, |left| format!("  (about {} left)", clock(left)));
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let line = line(suite, case);
        // In one piece: several machines write.
        say::raw(format!("{clear}[{:>width$}/{}] {line}{left}\n", state.done, self.total).as_bytes());
        self.show_running(&state);
    }

    fn show_running(&self, state: &State) {
        if self.terminal {
            let now: Vec<String> =
                state.running.iter().map(|(suite, test)| format!("{suite} {test}")).collect();
            say::raw(format!("\r\x1b[K{}", now.join("   ")).as_bytes());
        }
    }
}

fn line(suite: &str, case: &Case) -> String {
    let Case { name, verdict, seconds } = case;
    match verdict {
        Verdict::Passed => format!("ok    {suite} {name} {seconds:.1}s"),
        Verdict::Failed(failure) => format!("FAIL  {suite} {name} {seconds:.1}s: {}", failure.why),
        Verdict::Skipped(why) => format!("skip  {suite} {name}: {why}"),
    }
}

/// How long the rest takes if it goes on like this; too early, nobody knows.
fn remaining(elapsed: Duration, done: usize, total: usize) -> Option<Duration> {
    let each = elapsed.checked_div(u32::try_from(done).ok()?)?;
    (done >= 5).then(|| each.saturating_mul(u32::try_from(total.saturating_sub(done)).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_estimated_from_what_is_done() {
        let minute = Duration::from_secs(60);
        assert_eq!(remaining(minute, 2, 100), None);
        assert_eq!(remaining(minute, 6, 12), Some(minute));
        assert_eq!(remaining(minute, 12, 12), Some(Duration::ZERO));
        assert_eq!(remaining(minute, 0, 12), None);
    }

    #[test]
    fn a_line_has_the_suite_and_the_reason() {
        let case = |verdict| Case { name: "a".into(), verdict, seconds: 1.25 };
        assert_eq!(line("vm:7.2", &case(Verdict::Skipped("no disk".into()))), "skip  vm:7.2 a: no disk");
        assert!(line("vm:7.2", &case(Verdict::Passed)).starts_with("ok    vm:7.2 a 1."));
    }
}
