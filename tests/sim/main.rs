//! The simulated world: the production code, from the ublk commands to the file backend, against a
//! seeded driver, disk and scheduler, each answer held against a model of what a disk may answer.
//!
//! A seed that fails prints the command that replays it. `BLOCKHAUS_SIM_SEEDS=100000` runs so many
//! instead of the usual number.

mod allocations;
mod careless;
mod model;
mod pattern;
mod planted;
mod scenario;
mod slow;
mod stacks;
mod workload;

use std::collections::BTreeMap;

use blockhaus::port::sim::Outcome;
use scenario::Wishes;

/// Seeds of a usual run, over all batches.
const SEEDS: u64 = 2_000;
/// Tests that share them.
const BATCHES: u64 = 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn describe(seed: u64, outcome: &Outcome) -> String {
    let Some(failure) = &outcome.failure else { return format!("seed {seed}: well") };
    format!(
        "{}\n{}seed {seed} failed: {}\nreplay it with:\n  BLOCKHAUS_SIM_SEED={seed} cargo test --features sim \
         --test sim one_seed -- --nocapture",
        failure.what, failure.trace, failure.what
    )
}

/// Runs a seed twice.
fn check(seed: u64) {
    let first = scenario::run(seed, Wishes::default());
    if first.failure.is_some() {
        panic!("{}", describe(seed, &first));
    }
    let second = scenario::run(seed, Wishes::default());
    assert_eq!(
        (first.hash, first.lines, first.took_ns),
        (second.hash, second.lines, second.took_ns),
        "seed {seed} is not the same twice"
    );
}

fn batch(number_of_batch: u64) {
    let seeds = number("BLOCKHAUS_SIM_SEEDS").unwrap_or(SEEDS) / BATCHES;
    for seed in number_of_batch * seeds..(number_of_batch + 1) * seeds {
        check(seed);
    }
}

macro_rules! batches {
    ($($name:ident $number:literal)*) => {
        $(#[test]
        fn $name() {
            batch($number);
        })*
    };
}

batches! {
    seeds_00 0 seeds_01 1 seeds_02 2 seeds_03 3 seeds_04 4 seeds_05 5 seeds_06 6 seeds_07 7 seeds_08 8
    seeds_09 9 seeds_10 10 seeds_11 11 seeds_12 12 seeds_13 13 seeds_14 14 seeds_15 15 seeds_16 16
    seeds_17 17 seeds_18 18 seeds_19 19
}

/// A world in which nothing goes wrong proves nothing: everything it can do must have happened.
#[test]
fn the_seeds_meet_everything() {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..150 {
        for (what, count) in scenario::run(seed, Wishes::default()).counts {
            *counts.entry(what).or_default() += count;
        }
    }
    eprintln!("{counts:?}");
    for (what, least) in [
        ("request", 10_000),
        ("deliver", 10_000),
        ("effect", 10_000),
        ("disk interrupted", 500),
        ("disk short", 500),
        ("disk error", 50),
        ("sync", 50),
        ("timer", 500),
        ("user copy", 1_000),
        ("data asked for", 500),
        ("buffer command", 500),
        ("registered", 500),
        ("not registered", 100),
        ("kill", 50),
        ("power lost", 50),
        ("unflushed at power loss", 20),
        ("operation of the dead", 50),
        ("request of the dead", 50),
        ("live", 200),
        ("stop", 150),
        ("stop while busy", 30),
        ("stop refused", 10),
        ("request refused", 20),
        ("control lost", 5),
        ("node refused", 20),
    ] {
        let count = counts.get(what).copied().unwrap_or(0);
        assert!(count >= least, "{what} happened {count} times of {least}");
    }
}

/// The seed of BLOCKHAUS_SIM_SEED, or the first.
#[test]
fn one_seed() {
    let seed = number("BLOCKHAUS_SIM_SEED").unwrap_or(0);
    check(seed);
}
