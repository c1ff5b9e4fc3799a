//! Every test there is, by name, and on which kernels it runs.

use crate::cell::{self, Cell, Extent};
use crate::check::fs;
use crate::outcome::{Fail, Outcome};

mod alloc;
mod attributes;
mod bad;
mod bad_holders;
mod bench;
mod both;
mod busy;
mod cells;
mod chain;
mod crash;
mod enospc;
mod examples;
mod features;
mod fuse;
mod life;
mod memory;
mod nbd;
mod nbd_others;
mod none;
mod paths;
mod shutdown;
mod statistics;
mod up;
mod vsock;

/// Where a test runs.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    /// Wherever there is ublk, in CI too.
    Ublk,
    /// The oldest kernel with ublk and the newest released; `--full`: wherever there is ublk.
    Ends,
    /// Where there is no ublk.
    NoUblk,
    /// On every kernel.
    Everywhere,
    /// The oldest kernel and the newest released, as clients of NBD; `--full`: on every kernel.
    NbdEnds,
    /// The newest released kernel, as a client of NBD; `--full`: on every kernel.
    NbdNewest,
}

/// A test without parameters.
struct Entry {
    name: &'static str,
    timeout: u64,
    at: Where,
    run: fn() -> Outcome,
}

const fn entry(name: &'static str, timeout: u64, at: Where, run: fn() -> Outcome) -> Entry {
    Entry { name, timeout, at, run }
}

/// One that is about to run.
pub struct Test {
    pub timeout: u64,
    pub run: Box<dyn FnOnce() -> Outcome>,
}

const AREAS: [&[Entry]; 23] = [
    features::TESTS,
    none::TESTS,
    life::TESTS,
    attributes::TESTS,
    memory::TESTS,
    busy::TESTS,
    shutdown::TESTS,
    crash::TESTS,
    paths::TESTS,
    bad::TESTS,
    bad_holders::TESTS,
    enospc::TESTS,
    examples::TESTS,
    alloc::TESTS,
    up::TESTS,
    both::TESTS,
    chain::TESTS,
    statistics::TESTS,
    bench::TESTS,
    vsock::TESTS,
    nbd::TESTS,
    nbd_others::TESTS,
    fuse::TESTS,
];

fn entries() -> impl Iterator<Item = &'static Entry> {
    AREAS.into_iter().flatten()
}

/// What needs a disk alone, whoever serves it, with every file system.
pub fn on_device(path: &str, depth: u16, full: bool) -> Outcome {
    cells::inner(path, depth, full, &fs::KINDS)
}

/// The names that apply to a kernel such as `6.12`.
pub fn names(kernel: &str, full: bool) -> Vec<String> {
    let no_ublk = kernel == "6.1" || kernel.starts_with("6.1.");
    let ends = full || kernel == cell::KERNELS[0] || kernel == cell::KERNELS[cell::KERNELS.len() - 1];
    let newest = cell::KERNELS[cell::KERNELS.len() - 1];
    let here = |at: Where| match at {
        Where::Ublk => !no_ublk,
        Where::Ends => !no_ublk && ends,
        Where::NoUblk => no_ublk,
        Where::Everywhere => true,
        Where::NbdEnds => full || no_ublk || kernel == newest,
        Where::NbdNewest => full || kernel == newest,
    };
    let mut names: Vec<String> = cell::cells(kernel, full).iter().map(Cell::to_string).collect();
    names.extend(nbd::names(kernel, full));
    if !no_ublk {
        names.push(format!("life/rounds-{}", if full { 200 } else { 20 }));
        names.push(format!("life/full-load-{}", if full { 50 } else { 5 }));
    }
    names.extend(entries().filter(|entry| here(entry.at)).map(|entry| entry.name.to_string()));
    names
}

/// The test of that name; any number of rounds will do.
pub fn find(name: &str) -> Outcome<Test> {
    if let Ok(cell) = name.parse::<Cell>() {
        let timeout = if cell.extent == Extent::Full { 900 } else { 300 };
        return Ok(Test { timeout, run: Box::new(move || cells::run(cell)) });
    }
    if let Some(cell) = nbd::find(name) {
        return Ok(Test { timeout: 300, run: Box::new(move || nbd::cell(&cell)) });
    }
    let count = |prefix: &str| name.strip_prefix(prefix).and_then(|count| count.parse::<u32>().ok());
    if let Some(rounds) = count("life/rounds-") {
        return Ok(Test {
            timeout: 60 + 12 * u64::from(rounds),
            run: Box::new(move || life::rounds(rounds)),
        });
    }
    if let Some(rounds) = count("life/full-load-") {
        return Ok(Test {
            timeout: 60 + 40 * u64::from(rounds),
            run: Box::new(move || life::full_load(rounds)),
        });
    }
    let found = entries().find(|entry| entry.name == name);
    let found =
        found.ok_or_else(|| Fail::new(format!("there is no test named {name}; `vmtest list` has them")))?;
    Ok(Test { timeout: found.timeout, run: Box::new(found.run) })
}

#[cfg(test)]
mod listing {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_listed_name_is_found_and_no_name_is_used_twice() {
        for kernel in ["6.1", "6.12", "6.18", "7.2", "7.3"] {
            for full in [false, true] {
                let names = names(kernel, full);
                assert!(!names.is_empty());
                assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
                for name in names {
                    assert!(find(&name).is_ok(), "{name}");
                    assert!(!name.contains(char::is_whitespace) && !name.contains(':'), "{name}");
                }
            }
        }
        assert!(find("life/nothing").is_err());
    }

    #[test]
    fn every_test_runs_somewhere_in_ci() {
        let all: BTreeSet<String> =
            ["6.1", "6.12", "6.18", "7.2", "7.3"].iter().flat_map(|kernel| names(kernel, false)).collect();
        for entry in entries() {
            assert!(all.contains(entry.name), "{}", entry.name);
        }
    }
}
