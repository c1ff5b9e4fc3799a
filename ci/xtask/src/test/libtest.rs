//! Reading what `cargo test` says: the counts of each test program, and the
//! names, reasons and words of the tests that did not pass.

use std::collections::BTreeMap;

use super::tally::{Failure, Skip, Tally};

/// Reads `cargo test`, both its streams in one, line by line.
#[derive(Default)]
pub struct Reader {
    /// The test program that is running, and whether it has given its counts.
    program: Option<(String, bool)>,
    tally: Tally,
    /// Failed tests of this program by name; their words come in blocks of their own.
    failed: BTreeMap<String, Vec<String>>,
    /// Ignored tests of this program.
    ignored: Vec<Skip>,
    /// Whose words the lines are, at present.
    block: Option<String>,
}

impl Reader {
    /// Take one line; whether a person who watches wants to see it.
    pub fn take(&mut self, line: &str) -> bool {
        if let Some(program) = program(line) {
            self.end_program();
            self.program = Some((program, false));
            return true;
        }
        if let Some(counts) = counts(line) {
            self.counted(counts);
            return true;
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.block = Some(name.to_string());
            return false;
        }
        if line == "failures:" || line == "successes:" {
            self.block = None;
            return false;
        }
        if let Some(words) = self.block.as_ref().and_then(|name| self.failed.get_mut(name)) {
            words.push(line.to_string());
            return false;
        }
        match line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            Some((name, "ok")) if !name.is_empty() => false,
            Some((name, "FAILED")) => {
                self.failed.insert(name.to_string(), Vec::new());
                true
            }
            Some((name, state)) if state == "ignored" || state.starts_with("ignored, ") => {
                let why = state.strip_prefix("ignored, ").unwrap_or("marked #[ignore]").to_string();
                self.ignored.push(Skip { name: self.named(name), why });
                false
            }
            _ => is_cargos(line),
        }
    }

    fn named(&self, test: &str) -> String {
        match &self.program {
            Some((program, _)) => format!("{program} {test}"),
            None => test.to_string(),
        }
    }

    /// The counts are what is believed; names are found as well as may be, since
    /// a test's own output can land in the middle of a line.
    fn counted(&mut self, [passed, failed, ignored]: [usize; 3]) {
        self.tally.passed += passed;
        let mut names: Vec<_> = std::mem::take(&mut self.failed).into_iter().collect();
        names.truncate(failed);
        for at in names.len()..failed {
            names.push((format!("(a test whose name was lost, {})", at + 1), Vec::new()));
        }
        for (name, words) in names {
            let why = reason(&words);
            let failure = Failure::new(self.named(&name), &why);
            self.tally.failed.push(failure.with_details(words.iter().map(String::as_str)));
        }
        let mut skips = std::mem::take(&mut self.ignored);
        skips.truncate(ignored);
        while skips.len() < ignored {
            let name = self.named("(a test whose name was lost)");
            skips.push(Skip { name, why: "marked #[ignore]".into() });
        }
        self.tally.skipped.append(&mut skips);
        self.block = None;
        if let Some((_, counted)) = &mut self.program {
            *counted = true;
        }
    }

    /// A program that began and never counted has died.
    fn end_program(&mut self) {
        if let Some((program, false)) = self.program.take() {
            let failure = Failure::new(program, "the test program ended without counting its tests");
            let named = self.failed.keys().map(|name| format!("had failed: {name}"));
            let named: Vec<String> = named.collect();
            self.tally.failed.push(failure.with_details(named.iter().map(String::as_str)));
        }
        self.failed.clear();
        self.ignored.clear();
        self.block = None;
    }

    /// All that was read; `end` is the last of cargo's words when it failed.
    pub fn finish(mut self, end: Result<(), Failure>) -> Tally {
        self.end_program();
        match end {
            // Cargo's failure only repeats the tests' own, when those are known.
            Err(failure) if self.tally.failed.is_empty() => self.tally.failed.push(failure),
            Err(failure) => {
                let last = self.tally.failed.iter_mut().find(|f| f.why.contains("without counting"));
                if let Some(last) = last {
                    last.details.extend(failure.details);
                }
            }
            Ok(()) => {}
        }
        self.tally
    }
}

/// What the panic said, or the first words there are.
fn reason(words: &[String]) -> String {
    let panicked = words.iter().position(|line| line.contains("panicked at"));
    let said =
        panicked.and_then(|at| words.get(at + 1)).or_else(|| words.iter().find(|l| !l.trim().is_empty()));
    said.map_or_else(|| "it failed without a word".to_string(), |line| line.trim().to_string())
}

/// The test program in `Running unittests src/lib.rs (target/debug/deps/x-0123)`
/// or `Doc-tests x`.
fn program(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} (documentation)"));
    }
    let (source, file) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once(" (")?;
    let file = file.rsplit('/').next()?;
    let name = file.rsplit_once('-').map_or(file, |(name, _)| name);
    Some(if source.starts_with("unittests") && !source.ends_with("main.rs") {
        name.to_string()
    } else if let Some(source) = source.strip_prefix("unittests ") {
        format!("{name} ({source})")
    } else {
        format!("tests/{name}")
    })
}

/// `[passed, failed, ignored]` of `test result: ok. 1 passed; 0 failed; 0 ignored; …`.
fn counts(line: &str) -> Option<[usize; 3]> {
    // What a test printed without a newline may stand before it.
    let (_, rest) = line.split_once("test result: ")?;
    let (_, rest) = rest.split_once(". ")?;
    let number = |word: &str| {
        rest.split("; ").find_map(|part| part.strip_suffix(word)?.strip_suffix(' ')?.parse::<usize>().ok())
    };
    Some([number("passed")?, number("failed")?, number("ignored")?])
}

fn is_cargos(line: &str) -> bool {
    let line = line.trim_start();
    ["Compiling ", "Finished ", "Downloading ", "Downloaded ", "error", "warning", "Caused by"]
        .iter()
        .any(|word| line.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, end: Result<(), Failure>) -> Tally {
        let mut reader = Reader::default();
        for line in text.lines() {
            reader.take(line);
        }
        reader.finish(end)
    }

    const GOOD: &str = "\
   Compiling x v0.1.0
     Running unittests src/lib.rs (target/debug/deps/x-0123abcd)

running 3 tests
test a::b ... ok
test c ... ignored, takes minutes
test d ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

   Doc-tests x
test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    #[test]
    fn counts_are_added_and_what_is_ignored_is_named() {
        let tally = read(GOOD, Ok(()));
        assert_eq!((tally.passed, tally.failed.len()), (6, 0));
        assert_eq!(tally.skipped, [Skip { name: "x c".into(), why: "takes minutes".into() }]);
    }

    #[test]
    fn a_failure_has_its_name_its_reason_and_its_words() {
        let text = "\
     Running tests/cli.rs (target/debug/deps/cli-77)
test good ... ok
test bad ... FAILED

failures:

---- bad stdout ----
about to fail
thread 'bad' (7) panicked at tests/cli.rs:3:5:
left is not right
stack backtrace:

failures:
    bad

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
error: 1 target failed:
";
        let tally = read(text, Err(Failure::new("host", "cargo failed")));
        assert_eq!((tally.passed, tally.failed.len()), (1, 1));
        let failure = &tally.failed[0];
        assert_eq!((failure.name.as_str(), failure.why.as_str()), ("tests/cli bad", "left is not right"));
        assert!(failure.details.contains(&"about to fail".to_string()), "{failure:?}");
        assert!(!failure.details.iter().any(|line| line.contains("    bad")), "{failure:?}");
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let text = "\
     Running unittests src/lib.rs (target/debug/deps/x-01)
test a ... ok
     Running unittests src/main.rs (target/debug/deps/x-02)
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";
        let said = Failure::new("host", "cargo failed\nsignal: 6, SIGABRT");
        let tally = read(text, Err(said));
        assert_eq!((tally.passed, tally.failed.len()), (1, 1));
        assert_eq!(tally.failed[0].name, "x");
        assert!(tally.failed[0].details.iter().any(|line| line.contains("SIGABRT")));
    }

    #[test]
    fn a_failure_to_compile_is_one_failure() {
        let tally = read("   Compiling x\nerror[E0308]: mismatched types\n", Err(Failure::new("host", "no")));
        assert_eq!((tally.passed, tally.failed.len()), (0, 1));
    }

    #[test]
    fn counts_are_believed_when_names_are_lost() {
        let text = "\
     Running unittests src/lib.rs (target/debug/deps/x-01)
noise test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.0s";
        let tally = read(text, Ok(()));
        assert_eq!((tally.passed, tally.failed.len(), tally.skipped.len()), (1, 2, 1));
    }

    #[test]
    fn programs_are_named_as_people_know_them() {
        let name = |line| program(line).unwrap();
        assert_eq!(name("     Running unittests src/lib.rs (target/debug/deps/block_haus-1f)"), "block_haus");
        assert_eq!(name("     Running unittests src/main.rs (t/block-1f)"), "block (src/main.rs)");
        assert_eq!(name("     Running tests/header/main.rs (t/header-1f)"), "tests/header");
        assert_eq!(program("Running out of words"), None);
    }
}
