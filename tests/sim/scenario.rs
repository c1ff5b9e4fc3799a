//! One run of a seed: a world, servers that live one after another on one disk, and a workload.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blockhaus::engine::LiveDevice;
use blockhaus::engine::ublk::{DATA_PATHS, DataPath, Device, Load, Options, Wish};
use blockhaus::metrics::{OpStats, Stats};
use blockhaus::port::channel::Receiver;
use blockhaus::port::sim::{Bug, Config, DiskShape, Kernel, Outcome, PowerLoss, Random, World};
use blockhaus::queue::Stack;

use crate::chance::{self, End};
use crate::model::Model;
use crate::process::Server;
use crate::slow::Slow;
use crate::stacks::{Filters, Kind, Layers};
use crate::workload::{Habits, Shared};

/// Longer than a healthy server takes for anything, in the world's time.
pub const LONG_NS: u64 = 400_000_000_000;

/// What a test wants of a seed instead of chance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    pub kind: Option<Kind>,
    pub filters: Option<Filters>,
    /// Where kernel and stack have it.
    pub path: Option<DataPath>,
    pub bug: Option<Bug>,
}

struct Plan {
    config: Config,
    layers: Layers,
    disk: DiskShape,
    options: Options,
    habits: Habits,
    lives: Vec<(u32, End)>,
    /// Stop whoever has the disk open.
    force: bool,
}

fn plan(seed: u64, wishes: Wishes) -> Plan {
    let mut random = Random::new(seed);
    let kind =
        wishes.kind.unwrap_or(*random.pick(&[Kind::Ram, Kind::Slow, Kind::File, Kind::File, Kind::File]));
    let version = *random.pick(&[608, 612, 614, 616, 618, 700, 702, 703]);
    let kernel = Kernel {
        version,
        udev: random.chance(500),
        lost_commands: *random.pick(&[0, 0, 20]),
        queues_max: *random.pick(&[1, 2, 2, 4]),
        failed_registrations: *random.pick(&[0, 50, 500]),
    };
    let hard = random.chance(250);
    let faults = chance::faults(&mut random, hard, &[0, 10, 50]);
    let config = Config {
        seed: random.number(),
        kernel,
        faults,
        cpus: 4,
        points_per_thousand: *random.pick(&[0, 50, 300]),
        bug: wishes.bug,
    };
    let filters = wishes.filters.unwrap_or(Filters::choose(&mut random, kind));
    let disk = chance::disk(&mut random, filters);
    let layers = Layers::new(&mut random, disk, kind, filters, hard);
    let depth = *random.pick(&[1, 2, 3, 8, 16]);
    let (data_path, by_itself) = data_path(&mut random, version, layers.takes_hidden(), depth, wishes.path);
    let few_places = by_itself && random.chance(300);
    let options = Options {
        id: random.chance(300).then(|| random.below(5) as u32),
        queues: random.between(1, 3) as u16,
        depth,
        partition_scan: random.chance(600),
        data_path,
        load: Load::Any,
        spin: Duration::ZERO,
        registered_tags: few_places.then(|| random.between(1, u64::from(depth)) as u16),
    };
    let habits = chance::habits(&mut random, &layers, &[3, 16, 1000, 1000], hard);
    let end = |random: &mut Random| match random.below(6) {
        0 => End::Idle,
        1 => End::Busy,
        2 => End::Killed,
        3 => End::PowerLost(PowerLoss::Nothing),
        4 => End::PowerLost(PowerLoss::Any),
        _ => End::PowerLost(*random.pick(&[PowerLoss::Beginning, PowerLoss::Everything])),
    };
    let mut lives: Vec<(u32, End)> =
        (0..random.between(1, 3)).map(|_| (random.between(10, 120) as u32, end(&mut random))).collect();
    // The last one looks at what the others left.
    lives.push(if random.chance(500) { (0, End::Idle) } else { (100, End::Busy) });
    Plan { config, layers, disk, options, habits, lives, force: random.chance(600) }
}

/// How the bytes travel, as far as kernel and stack have it; and whether the driver registers them.
fn data_path(
    random: &mut Random,
    version: u32,
    hidden: bool,
    depth: u16,
    wish: Option<DataPath>,
) -> (Wish, bool) {
    let hidden = hidden && version >= 616;
    let batches = version >= 700 && depth > 1;
    let there = |path: &DataPath| (hidden || !path.hides()) && (batches || !path.is_batch());
    let paths: Vec<DataPath> = DATA_PATHS.into_iter().filter(there).collect();
    let path = *random.pick(&paths);
    let path = wish.filter(there).unwrap_or(path);
    let auto = random.chance(400) && wish.is_none();
    (if auto { Wish::Auto } else { Wish::Exactly(path) }, if auto { hidden } else { path.registers() })
}

/// Runs a seed.
pub fn run(seed: u64, wishes: Wishes) -> Outcome {
    let plan = plan(seed, wishes);
    World::run(plan.config.clone(), |world| live(world, seed, &plan))
}

fn live(world: &World, seed: u64, plan: &Plan) {
    let path = world.add_disk(plan.disk);
    let slow = Slow::new(plan.disk.size, plan.disk.sector, seed);
    let model = || Model::new(plan.layers.size(), plan.layers.atom());
    let workload = Shared::new(seed, plan.habits, model());
    world.set_client(Box::new(workload.clone()));
    let hard = plan.habits.hard_faults;
    for &(requests, end) in &plan.lives {
        workload.lock().begin(requests);
        let (layers, options, force) = (plan.layers, plan.options, plan.force);
        let (disk, slow) = (path.clone(), slow.clone());
        let counted = Arc::new(Mutex::new(None));
        let count = counted.clone();
        let tell =
            move |stats, path| *count.lock().unwrap_or_else(PoisonError::into_inner) = Some((stats, path));
        let server = Server::start(world, move |stopped| {
            serve(layers.open(&disk, slow)?, &options, stopped, force, &tell)
        });
        let checked = |world: &World| {
            let found = workload.lock().failure.clone();
            if let Some(what) = found {
                world.fail(what);
            }
        };
        let stopped = match end {
            End::Idle => world.wait_for_client(LONG_NS, || workload.lock().done() || server.ended()),
            _ => {
                let answers = workload.lock().answers;
                let enough = answers + u64::from(requests / 2) + 3;
                world.wait_for_client(LONG_NS, || {
                    let workload = workload.lock();
                    workload.answers >= enough || workload.done() || server.ended()
                })
            }
        };
        checked(world);
        if stopped {
            world.fail("the server does nothing".into());
        }
        match end {
            End::Idle | End::Busy => {
                server.stop();
                if world.join(server.process, LONG_NS) {
                    world.fail("the server does not stop".into());
                }
                if let Some(why) = server.error()
                    && !hard
                {
                    world.fail(format!("the server failed: {why}"));
                }
                settle(world, &workload);
                if let Some(what) = world.leftovers() {
                    world.fail(what);
                }
                let mut workload = workload.lock();
                if server.error().is_none() {
                    workload.model.closed();
                    let counted = counted.lock().unwrap_or_else(PoisonError::into_inner).take();
                    if let Some(what) =
                        counted.and_then(|(stats, path)| miscounted(&stats, path, workload.delivered))
                    {
                        world.fail(what);
                    }
                }
            }
            End::Killed | End::PowerLost(_) => {
                workload.lock().dying = true;
                world.kill(server.process);
                settle(world, &workload);
                workload.lock().model.killed();
            }
        }
        checked(world);
        if let End::PowerLost(how) = end {
            world.lose_power(0, how);
            workload.lock().model.lost_power();
        }
        if plan.layers.kind == Kind::Ram {
            workload.lock().model = model();
        }
    }
}

/// What is wrong with a server's own count of what it was asked, after everything was answered.
fn miscounted(stats: &Stats, path: DataPath, delivered: u64) -> Option<String> {
    let measured = |op: &OpStats| op.latency.map_or(0, |latency| latency.measured);
    // Of the requests that went as chains those since the last that was none.
    let unmeasured = if path.registers() { 31 } else { 0 };
    let is_measured = |op: &OpStats| (op.requests - measured(op).min(op.requests)) <= unmeasured;
    for op in stats.queues.iter().flat_map(|queue| &queue.ops) {
        if measured(op) > op.requests || !is_measured(op) {
            let (name, requests, measured) = (&op.op, op.requests, measured(op));
            return Some(format!("by {path}: of {requests} requests to {name} {measured} were measured"));
        }
    }
    let requests = stats.ops.iter().map(|op| op.requests).sum::<u64>();
    // The kernel's own look for partitions may be one more.
    let is_right = (delivered..=delivered + 1).contains(&requests);
    let in_flight = stats.in_flight();
    let wrong = || format!("the server counted {requests} requests, {in_flight} in flight, of {delivered}");
    (!is_right || in_flight != 0).then(wrong)
}

/// Waits for the answers that are still on their way.
fn settle(world: &World, workload: &Shared) {
    if world.wait_for_client(LONG_NS, || workload.lock().idle()) {
        world.fail("requests were never answered".into());
    }
}

/// What a server's main thread does.
pub fn serve(
    stack: Arc<dyn Stack>,
    options: &Options,
    stopped: &Receiver<()>,
    force: bool,
    counted: &dyn Fn(Stats, DataPath),
) -> blockhaus::error::Result<()> {
    let device = Device::start(stack, options, &mut |_| Ok(()))?;
    let _ = stopped.recv();
    if force || device.stop(true).is_err() {
        device.stop(false)?;
    }
    counted(device.stats(), device.data_path());
    Box::new(device).finish()
}
