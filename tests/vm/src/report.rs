//! The one module that prints: the lines xtask reads.
#![expect(clippy::print_stdout, reason = "standard output is what this program is for")]

use std::io::{Write, stdout};
use std::time::Duration;

use crate::outcome::Outcome;

/// How many ended how.
#[derive(Default)]
pub struct Total {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Total {
    pub fn add(&mut self, name: &str, took: Duration, outcome: &Outcome) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("ok {name} {:.1}s", took.as_secs_f64());
            }
            Err(skip) if skip.skip => {
                self.skipped += 1;
                println!("skip {name}: {}", skip.why);
            }
            Err(fail) => {
                self.failed += 1;
                println!("FAIL {name} {:.1}s: {}", took.as_secs_f64(), fail.why);
                for line in &fail.details {
                    println!("  | {line}");
                }
            }
        }
        // Over a serial console each line has to be out before the next test may hang.
        drop(stdout().flush());
    }

    pub fn print(&self) {
        println!("TOTAL {} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
    }

    pub fn all_well(&self) -> bool {
        self.failed == 0
    }
}

pub fn line(text: &str) {
    println!("{text}");
}
