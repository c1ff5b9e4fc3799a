//! The simulated world: the production code, from the ublk commands to the file backend, against a
//! seeded driver, disk and scheduler, each answer held against a model of what a disk may answer.
//!
//! A seed that fails prints the command that replays it. `BLOCKHAUS_SIM_SEEDS=100000` runs so many
//! instead of the usual number, and a twentieth of that by NBD.

mod allocations;
mod careless;
mod chain;
mod chance;
#[path = "../harness/counting.rs"]
mod counting;
mod model;
mod nbd;
mod nbd_client;
mod pattern;
mod planted;
mod process;
mod scenario;
mod slow;
mod stacks;
mod workload;

use std::collections::BTreeMap;

use blockhaus::port::sim::Outcome;
use scenario::Wishes;

/// Seeds of a usual run, over all batches.
const SEEDS: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// An engine, by the name of the test that replays a seed of it.
#[derive(Clone, Copy)]
enum Engine {
    Ublk,
    Nbd,
    /// Two of them, one on the other.
    Chain,
}

impl Engine {
    fn run(self, seed: u64) -> Outcome {
        match self {
            Engine::Ublk => scenario::run(seed, Wishes::default()),
            Engine::Nbd => nbd::run(seed, None),
            Engine::Chain => chain::run(seed, None),
        }
    }

    /// Seeds of all batches together: a world of NBD's has much more memory to make.
    fn seeds(self) -> u64 {
        let seeds = number("BLOCKHAUS_SIM_SEEDS").unwrap_or(SEEDS);
        match self {
            Engine::Ublk => seeds,
            Engine::Nbd => seeds / 20,
            Engine::Chain => seeds / 40,
        }
    }

    fn replayed_by(self) -> &'static str {
        match self {
            Engine::Ublk => "one_seed",
            Engine::Nbd => "one_nbd_seed",
            Engine::Chain => "one_chain_seed",
        }
    }

    /// Runs a seed twice.
    fn check(self, seed: u64) {
        let first = self.run(seed);
        let replay = format!(
            "replay it with:\n  BLOCKHAUS_SIM_SEED={seed} cargo test --features sim --test sim {} -- --exact \
             --nocapture",
            self.replayed_by()
        );
        if let Some(failure) = &first.failure {
            panic!("{}\n{}seed {seed} failed: {}\n{replay}", failure.what, failure.trace, failure.what);
        }
        let second = self.run(seed);
        assert_eq!(
            (first.hash, first.lines, first.took_ns),
            (second.hash, second.lines, second.took_ns),
            "seed {seed} is not the same twice\n{replay}"
        );
    }

    /// One of so many batches.
    fn batch(self, number: u64, of: u64) {
        let seeds = (self.seeds() / of).max(1);
        for seed in number * seeds..(number + 1) * seeds {
            self.check(seed);
        }
    }
}

macro_rules! batches {
    ($engine:expr, $of:literal: $($name:ident $number:literal)*) => {
        $(#[test]
        fn $name() {
            $engine.batch($number, $of);
        })*
    };
}

// Many, so that as many threads run them as there are processors.
batches! {
    Engine::Ublk, 20:
    seeds_00 0 seeds_01 1 seeds_02 2 seeds_03 3 seeds_04 4 seeds_05 5 seeds_06 6 seeds_07 7 seeds_08 8
    seeds_09 9 seeds_10 10 seeds_11 11 seeds_12 12 seeds_13 13 seeds_14 14 seeds_15 15 seeds_16 16
    seeds_17 17 seeds_18 18 seeds_19 19
}

batches! {
    Engine::Nbd, 4: nbd_seeds_0 0 nbd_seeds_1 1 nbd_seeds_2 2 nbd_seeds_3 3
}

batches! {
    Engine::Chain, 2: chain_seeds_0 0 chain_seeds_1 1
}

/// So often, all seeds together, what is named must have happened.
fn are_met(outcomes: impl Iterator<Item = Outcome>, least: &[(&str, u64)]) {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (what, count) in outcomes.flat_map(|outcome| outcome.counts) {
        *counts.entry(what).or_default() += count;
    }
    eprintln!("{counts:?}");
    for &(what, least) in least {
        let count = counts.get(what).copied().unwrap_or(0);
        assert!(count >= least, "{what} happened {count} times of {least}");
    }
}

/// A world in which nothing goes wrong proves nothing: everything it can do must have happened.
#[test]
fn everything_is_met() {
    let least = [
        ("request", 10_000),
        ("deliver", 10_000),
        ("effect", 10_000),
        ("disk interrupted", 500),
        ("disk short", 500),
        ("disk error", 50),
        ("sync", 50),
        ("timer", 500),
        ("chain", 200),
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
    ];
    are_met((0..150).map(|seed| scenario::run(seed, Wishes::default())), &least);
}

/// What the NBD engine's worlds are to have met.
#[test]
fn everything_is_met_by_nbd() {
    let least = [
        ("ask", 2_000),
        ("reply", 2_000),
        ("transfer", 5_000),
        ("transfer failed", 3),
        ("hands shaken", 50),
        ("chunk", 500),
        ("hole", 100),
        ("status", 50),
        ("breaks off", 10),
        ("kill", 10),
        ("disk error", 5),
        ("unflushed at power loss", 3),
    ];
    are_met((0..30).map(|seed| nbd::run(seed, None)), &least);
}

/// And what those of a chain are to have met.
#[test]
fn everything_is_met_by_a_chain() {
    let least = [
        ("reply", 1_000),
        ("server behind gone", 15),
        ("kill", 25),
        ("power lost", 15),
        ("unflushed at power loss", 5),
        ("status", 50),
    ];
    are_met((0..15).map(|seed| chain::run(seed, None)), &least);
}

/// The seed of BLOCKHAUS_SIM_SEED, or the first.
#[test]
fn one_seed() {
    Engine::Ublk.check(number("BLOCKHAUS_SIM_SEED").unwrap_or(0));
}

/// The same of the NBD engine's.
#[test]
fn one_nbd_seed() {
    Engine::Nbd.check(number("BLOCKHAUS_SIM_SEED").unwrap_or(0));
}

/// The same of a chain.
#[test]
fn one_chain_seed() {
    Engine::Chain.check(number("BLOCKHAUS_SIM_SEED").unwrap_or(0));
}
