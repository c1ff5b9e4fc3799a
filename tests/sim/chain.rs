//! The NBD client in the simulated world: an export that lies on another server's export. That server is killed, or
//! loses power and what was not flushed, again and again; the clients of the first must not notice.

use std::path::Path;

use blockhaus::backend::nbd::{Nbd, Options as ClientOptions};
use blockhaus::engine::nbd::Options;
use blockhaus::nbd::uri::{Address, Place};
use blockhaus::port::clock::{Duration, sleep};
use blockhaus::port::sim::{Bug, Config, DiskShape, Kernel, Outcome, PowerLoss, Random, World, note};

use crate::chance;
use crate::model::Model;
use crate::nbd::{Clients, serve, stop, wait};
use crate::nbd_client::Habits as ClientHabits;
use crate::process::Server;
use crate::slow::Slow;
use crate::stacks::{Filters, Kind, Layers};
use crate::workload::{Habits, Shared};

struct Plan {
    config: Config,
    layers: Layers,
    disk: DiskShape,
    options: Options,
    connections: u16,
    /// Bytes of the journal: small ones are always full.
    replay: u64,
    habits: Habits,
    clients: ClientHabits,
    /// How the server behind ends, each time; `None` for a kill without a loss of power.
    ends: Vec<Option<PowerLoss>>,
    /// How long it stays away, in milliseconds.
    away_ms: u64,
}

fn plan(seed: u64, bug: Option<Bug>) -> Plan {
    let mut random = Random::new(seed ^ 0x6368_6169_6e00);
    let kernel =
        Kernel { version: 702, udev: false, lost_commands: 0, queues_max: 4, failed_registrations: 0 };
    let faults = chance::faults(&mut random, false, &[0, 10]);
    let config = Config {
        seed: random.number(),
        kernel,
        faults,
        cpus: 4,
        points_per_thousand: *random.pick(&[0, 50]),
        bug,
    };
    let disk = chance::disk(&mut random, Filters::None);
    let layers = Layers::new(&mut random, disk, Kind::File, Filters::None, false);
    let options = Options { queues: random.between(1, 2) as u16, depth: *random.pick(&[1, 2, 8, 16]) };
    let mut habits = chance::habits(&mut random, &layers, &[3, 16, 1000], false);
    // The protocol promises nothing about what was trimmed.
    habits.discard_zeroes = false;
    let clients = ClientHabits {
        connections: random.between(1, 3) as usize,
        breaks_off: 0,
        slow: *random.pick(&[0, 20]),
        in_pieces: *random.pick(&[0, 100]),
    };
    let end = |random: &mut Random| match random.below(3) {
        0 => None,
        1 => Some(PowerLoss::Nothing),
        _ => Some(PowerLoss::Any),
    };
    Plan {
        config,
        layers,
        disk,
        options,
        connections: random.between(1, 3) as u16,
        replay: *random.pick(&[20_000, 64 << 10, 64 << 20]),
        habits,
        clients,
        ends: (0..random.between(1, 4)).map(|_| end(&mut random)).collect(),
        away_ms: *random.pick(&[0, 5, 200]),
    }
}

/// Runs a seed, with a bug planted.
pub fn run(seed: u64, bug: Option<Bug>) -> Outcome {
    let plan = plan(seed, bug);
    let folder = tempfile::tempdir().expect("a folder for sockets");
    World::run(plan.config.clone(), |world| live(world, seed, &plan, folder.path()))
}

fn live(world: &World, seed: u64, plan: &Plan, folder: &Path) {
    let disk = world.add_disk(plan.disk);
    let (behind, front) = (folder.join("behind"), folder.join("front"));
    let workload = Shared::new(seed, plan.habits, Model::new(plan.layers.size(), plan.layers.atom()));
    let requests = 60 * (plan.ends.len() as u32 + 1);
    workload.lock().begin(requests);
    let start_behind = || {
        let (layers, options, disk, listen) = (plan.layers, plan.options, disk.clone(), behind.clone());
        let slow = Slow::new(plan.disk.size, plan.disk.sector, seed);
        Server::start(world, move |stopped| serve(layers.open(&disk, slow)?, &options, &listen, stopped))
    };
    let mut server = start_behind();
    while !behind.exists() {
        sleep(Duration::from_millis(1));
    }
    let client = ClientOptions {
        address: Address { place: Place::Unix(behind.clone()), export: "disk".into(), tls: None },
        connections: plan.connections,
        answer: Duration::from_secs(5),
        dead: Duration::from_secs(50),
        replay: plan.replay,
        unit: plan.layers.block(),
        say: |_| {},
    };
    let (options, listen) = (plan.options, front.clone());
    let first = Server::start(world, move |stopped| {
        serve(std::sync::Arc::new(Nbd::open(&client)?), &options, &listen, stopped)
    });
    let block = plan.layers.block();
    let clients = Clients::start(world, plan.clients, block, &front, &workload, seed);
    for end in &plan.ends {
        let enough = workload.lock().answers + 40;
        wait(world, &first, &workload, &clients, enough);
        world.kill(server.process);
        if let Some(how) = end {
            world.lose_power(0, *how);
        }
        note("server behind gone", [u64::from(end.is_some()), 0, 0, 0], &[]);
        sleep(Duration::from_millis(plan.away_ms));
        server = start_behind();
    }
    wait(world, &first, &workload, &clients, u64::MAX);
    clients.stop(world);
    stop(world, &first);
    if let Some(why) = first.error() {
        world.fail(format!("the server in front failed: {why}"));
    }
    // It flushed what there was: now the server behind may lose everything else.
    world.kill(server.process);
    world.lose_power(0, PowerLoss::Any);
    {
        let mut workload = workload.lock();
        clients.judge_lost(&mut workload);
        workload.model.closed();
        if let Some(what) = workload.failure.clone() {
            world.fail(what);
        }
        workload.begin(0);
    }
    // What is there is read without the client.
    let server = start_behind();
    while !behind.exists() {
        sleep(Duration::from_millis(1));
    }
    let clients = Clients::start(world, plan.clients, block, &behind, &workload, seed + 1);
    wait(world, &server, &workload, &clients, u64::MAX);
    clients.stop(world);
    stop(world, &server);
    if let Some(what) = workload.lock().failure.clone() {
        world.fail(what);
    }
}
