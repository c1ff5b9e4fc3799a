//! The tests of one kernel over as many boots as they need: when a machine
//! dies, the test that was running is to blame and the rest gets a new one.

use anyhow::Result;

use super::ledger::{Case, Ledger, Meaning};
use crate::vm::ExitStatusCode;

/// What the guest's script says first: from here on a death is a test's fault.
pub const BEGUN: &str = "xtask: the guest is up";

/// A kernel on which this many machines died is not worth more boots.
const DEATHS: usize = 5;

/// A machine that can be booted anew for each list of tests.
pub trait Boot {
    /// Boot, run these tests, pass on every line.
    fn run(&mut self, names: &[String], on_line: &mut dyn FnMut(&str)) -> Result<ExitStatusCode>;
}

/// What is told while it happens.
pub trait Watch {
    /// A test begins, or none runs any more.
    fn running(&mut self, test: Option<&str>);
    /// A test has ended.
    fn ended(&mut self, case: &Case);
    /// Any line of the guest's.
    fn line(&mut self, line: &str);
}

/// Run all of `names`, at most `per_boot` in one machine. Every name gets a case.
pub fn run(names: &[String], per_boot: usize, boot: &mut dyn Boot, watch: &mut dyn Watch) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut left = names.to_vec();
    let mut deaths = 0;
    while !left.is_empty() {
        let rest = left.split_off(left.len().min(per_boot));
        let (done, open, death) = one_boot(&left, boot, watch);
        cases.extend(done);
        left = open.into_iter().chain(rest).collect();
        deaths += usize::from(death);
        if deaths >= DEATHS && !left.is_empty() {
            let why = format!("not run: {DEATHS} machines with this kernel have died already");
            cases.extend(give_up(&left, &why, watch));
            break;
        }
    }
    watch.running(None);
    cases
}

/// One machine: its verdicts, the tests that it still owes, and whether it died.
fn one_boot(names: &[String], boot: &mut dyn Boot, watch: &mut dyn Watch) -> (Vec<Case>, Vec<String>, bool) {
    let mut ledger = Ledger::new(names);
    let mut begun = false;
    let mut said = Vec::new();
    watch.running(ledger.running());
    let status = boot.run(names, &mut |line| {
        watch.line(line);
        begun |= line == BEGUN;
        match ledger.take(line) {
            Meaning::Verdict => {
                watch.running(ledger.running());
                // Told at once, without the details, which come in later lines.
                if let Some(case) = ledger.cases().last() {
                    watch.ended(case);
                }
            }
            Meaning::Detail => {}
            Meaning::Other => said.push(line.to_string()),
        }
    });
    let told = ledger.cases().len();
    let mut died = false;
    match status {
        // Without a machine there is nothing to try again with.
        Err(error) if !begun => ledger.fail_open(&format!("no machine could be made: {error:#}")),
        Err(error) => {
            died = true;
            ledger.blame(&format!("was running when the machine died: {error:#}"));
        }
        Ok(status) if ledger.running().is_some() => {
            let last = said[said.len().saturating_sub(15)..].join("\n");
            let why = format!("vmtest ended (status {}) without a verdict for it\n{last}", status.0);
            if told == 0 {
                // It refused at once, and would do so again.
                ledger.fail_open(&why);
            } else {
                died = true;
                ledger.blame(&why);
            }
        }
        Ok(_) => {}
    }
    for case in &ledger.cases()[told..] {
        watch.ended(case);
    }
    let (cases, open) = ledger.close();
    (cases, open, died)
}

fn give_up(names: &[String], why: &str, watch: &mut dyn Watch) -> Vec<Case> {
    let mut ledger = Ledger::new(names);
    ledger.fail_open(why);
    for case in ledger.cases() {
        watch.ended(case);
    }
    ledger.close().0
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Verdict;
    use super::*;

    /// A machine that dies in the tests it is told, or cannot be made.
    struct Fake {
        boots: usize,
        deadly: Vec<&'static str>,
        made: bool,
        refuses: bool,
    }

    impl Fake {
        fn deadly(deadly: &[&'static str]) -> Self {
            Self { boots: 0, deadly: deadly.to_vec(), made: true, refuses: false }
        }
    }

    impl Boot for Fake {
        fn run(&mut self, names: &[String], on_line: &mut dyn FnMut(&str)) -> Result<ExitStatusCode> {
            self.boots += 1;
            if !self.made {
                anyhow::bail!("no mirror\nmore about it");
            }
            on_line(BEGUN);
            if self.refuses {
                on_line("vmtest: the tests need root");
                return Ok(ExitStatusCode(2));
            }
            for name in names {
                if self.deadly.contains(&name.as_str()) {
                    anyhow::bail!("the guest's kernel panicked. The last lines of its console:\nOops");
                }
                on_line(&format!("ok {name} 1.0s"));
            }
            Ok(ExitStatusCode(0))
        }
    }

    #[derive(Default)]
    struct Seen(Vec<String>);

    impl Watch for Seen {
        fn running(&mut self, _: Option<&str>) {}
        fn ended(&mut self, case: &Case) {
            self.0.push(case.name.clone());
        }
        fn line(&mut self, _: &str) {}
    }

    fn go(count: usize, per_boot: usize, fake: &mut Fake) -> (Vec<Case>, Vec<String>) {
        let names: Vec<String> = (1..=count).map(|n| format!("t{n}")).collect();
        let mut seen = Seen::default();
        let cases = run(&names, per_boot, fake, &mut seen);
        let mut told = seen.0.clone();
        told.sort();
        let mut all = names;
        all.sort();
        assert_eq!(told, all, "each is told once");
        (cases, seen.0)
    }

    fn failed(cases: &[Case]) -> Vec<(&str, &str)> {
        cases
            .iter()
            .filter_map(|case| match &case.verdict {
                Verdict::Failed(failure) => Some((case.name.as_str(), failure.why.as_str())),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn one_boot_does_when_nothing_dies() {
        let mut fake = Fake::deadly(&[]);
        let (cases, _) = go(4, 100, &mut fake);
        assert_eq!((fake.boots, cases.len(), failed(&cases).len()), (1, 4, 0));
        let mut fake = Fake::deadly(&[]);
        go(5, 2, &mut fake);
        assert_eq!(fake.boots, 3);
    }

    #[test]
    fn a_panic_names_its_test_and_the_rest_goes_on() {
        let mut fake = Fake::deadly(&["t2"]);
        let (cases, _) = go(4, 100, &mut fake);
        let failed = failed(&cases);
        assert_eq!((fake.boots, failed.len()), (2, 1));
        assert_eq!(failed[0].0, "t2");
        assert!(failed[0].1.contains("the machine died: the guest's kernel panicked"), "{failed:?}");
    }

    #[test]
    fn a_kernel_that_dies_again_and_again_is_left() {
        let mut fake = Fake::deadly(&["t1", "t2", "t3", "t4", "t5", "t6", "t7"]);
        let (cases, _) = go(8, 100, &mut fake);
        assert_eq!((fake.boots, failed(&cases).len()), (DEATHS, 8));
        assert!(failed(&cases)[7].1.starts_with("not run"));
    }

    #[test]
    fn no_machine_fails_every_test_with_the_reason() {
        let mut fake = Fake { made: false, ..Fake::deadly(&[]) };
        let (cases, _) = go(3, 100, &mut fake);
        let failed = failed(&cases);
        assert_eq!((fake.boots, failed.len()), (1, 3));
        assert_eq!(failed[0].1, "no machine could be made: no mirror");
    }

    #[test]
    fn a_refusal_of_vmtest_fails_every_test_with_its_words() {
        let mut fake = Fake { refuses: true, ..Fake::deadly(&[]) };
        let (cases, _) = go(3, 100, &mut fake);
        assert_eq!((fake.boots, failed(&cases).len()), (1, 3));
        let Verdict::Failed(failure) = &cases[0].verdict else { panic!("{cases:?}") };
        assert!(failure.details.iter().any(|line| line.contains("need root")), "{failure:?}");
    }
}
