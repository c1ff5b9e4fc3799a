//! The simulated world: the production code, from the ublk commands to the file backend, against a
//! seeded driver, disk and scheduler, each answer held against a model of what a disk may answer.
//!
//! A seed that fails prints the command that replays it. `BLOCKHAUS_SIM_SEEDS=100000` runs so many
//! instead of the usual number.

mod careless;
mod model;
mod pattern;
mod planted;
mod scenario;
mod workload;

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
        "{}\n{}seed {seed} failed: {}\nreplay it with:\n  BLOCKHAUS_SIM_SEED={seed} cargo test --profile sim \
         --features sim --test sim one_seed -- --nocapture",
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

/// The seed of BLOCKHAUS_SIM_SEED, or the first.
#[test]
fn one_seed() {
    let seed = number("BLOCKHAUS_SIM_SEED").unwrap_or(0);
    check(seed);
}
