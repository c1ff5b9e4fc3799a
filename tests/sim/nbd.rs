//! The NBD engine in the simulated world: clients with several connections, which send and receive in
//! pieces, are slow, and break off, and whose answers the model judges.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blockhaus::engine::nbd::{self, Catalogue, Exported, Offer, Options};
use blockhaus::error::{Error, Result};
use blockhaus::port::channel::Receiver;
use blockhaus::port::clock::{Duration, sleep};
use blockhaus::port::sim::{Config, DiskShape, Kernel, Outcome, PowerLoss, Process, Random, World};
use blockhaus::port::stream::Listener;
use blockhaus::queue::Stack;

use crate::chance::{self, End};
use crate::model::Model;
use crate::nbd_client::{Client, Habits as ClientHabits};
use crate::process::Server;
use crate::scenario::LONG_NS;
use crate::slow::Slow;
use crate::stacks::{Filters, Kind, Layers};
use crate::workload::{Habits, Shared};

/// How long nothing may happen.
const PATIENCE_NS: u64 = 60_000_000_000;
/// The same where a connection that broke off holds what everybody waits for.
const AFTER_LOSS_NS: u64 = 500_000_000;

/// Connections at once; those that broke off count until the server has seen it.
const MAX_CONNECTIONS: u16 = 6;

struct Plan {
    config: Config,
    layers: Layers,
    disk: DiskShape,
    options: Options,
    habits: Habits,
    clients: ClientHabits,
    lives: Vec<(u32, End)>,
}

fn plan(seed: u64, wish: Option<Kind>) -> Plan {
    let mut random = Random::new(seed ^ 0x6e62_6400);
    let kind = wish.unwrap_or(*random.pick(&[Kind::Ram, Kind::Slow, Kind::File, Kind::File]));
    let kernel =
        Kernel { version: 702, udev: false, lost_commands: 0, queues_max: 4, failed_registrations: 0 };
    let hard = random.chance(250);
    let faults = chance::faults(&mut random, hard, &[0, 10]);
    let config = Config {
        seed: random.number(),
        kernel,
        faults,
        cpus: 4,
        points_per_thousand: *random.pick(&[0, 50, 300]),
        bug: None,
    };
    let filters = if wish.is_some() { Filters::None } else { Filters::choose(&mut random, kind) };
    let disk = chance::disk(&mut random, filters);
    let layers = Layers::new(&mut random, disk, kind, filters, hard);
    let options = Options { queues: random.between(1, 2) as u16, depth: *random.pick(&[1, 2, 8, 16]) };
    let habits = chance::habits(&mut random, &layers, &[3, 16, 1000], hard);
    let clients = ClientHabits {
        connections: random.between(1, 4) as usize,
        breaks_off: *random.pick(&[0, 0, 3, 15]),
        slow: *random.pick(&[0, 20, 200]),
        in_pieces: *random.pick(&[0, 100, 600]),
    };
    let end = |random: &mut Random| match random.below(5) {
        0 => End::Idle,
        1 => End::Busy,
        2 => End::Killed,
        3 => End::PowerLost(PowerLoss::Nothing),
        _ => End::PowerLost(PowerLoss::Any),
    };
    let mut lives: Vec<(u32, End)> =
        (0..random.between(1, 2)).map(|_| (random.between(10, 120) as u32, end(&mut random))).collect();
    // The last one looks at what the others left.
    lives.push((60, End::Idle));
    Plan { config, layers, disk, options, habits, clients, lives }
}

/// Runs a seed; `wish` is the backend, alone.
pub fn run(seed: u64, wish: Option<Kind>) -> Outcome {
    let plan = plan(seed, wish);
    let folder = tempfile::tempdir().expect("a folder for sockets");
    World::run(plan.config.clone(), |world| live(world, seed, &plan, folder.path()))
}

fn live(world: &World, seed: u64, plan: &Plan, folder: &Path) {
    let disk = world.add_disk(plan.disk);
    let slow = Slow::new(plan.disk.size, plan.disk.sector, seed);
    let model = || Model::new(plan.layers.size(), plan.layers.atom());
    let workload = Shared::new(seed, plan.habits, model());
    for (number, &(requests, end)) in plan.lives.iter().enumerate() {
        workload.lock().begin(requests);
        let socket = folder.join(number.to_string());
        let (layers, options) = (plan.layers, plan.options);
        let (path, slow, listen) = (disk.clone(), slow.clone(), socket.clone());
        let server =
            Server::start(world, move |stopped| serve(layers.open(&path, slow)?, &options, &listen, stopped));
        let block = plan.layers.block();
        let clients = Clients::start(world, plan.clients, block, &socket, &workload, seed + number as u64);
        let enough = workload.lock().answers + u64::from(requests / 2) + 3;
        wait(world, &server, &workload, &clients, if end == End::Idle { u64::MAX } else { enough });
        match end {
            End::Idle => {
                clients.stop(world);
                stop(world, &server);
            }
            End::Busy => {
                stop(world, &server);
                clients.stop(world);
            }
            End::Killed | End::PowerLost(_) => {
                world.kill(server.process);
                clients.stop(world);
            }
        }
        let mut workload = workload.lock();
        // What was asked for by whoever broke off has happened or not, until the server ended.
        workload.dying = true;
        clients.judge_lost(&mut workload);
        match end {
            End::Idle | End::Busy => match server.error() {
                None => workload.model.closed(),
                Some(why) if !plan.habits.hard_faults => world.fail(format!("the server failed: {why}")),
                Some(_) => {}
            },
            End::Killed | End::PowerLost(_) => workload.model.killed(),
        }
        if let Some(what) = workload.failure.clone() {
            world.fail(what);
        }
        if let End::PowerLost(how) = end {
            world.lose_power(0, how);
            workload.model.lost_power();
        }
        if plan.layers.kind == Kind::Ram {
            workload.model = model();
        }
    }
}

/// Until so many answers have come, or all, or none comes any more.
pub fn wait(world: &World, server: &Server, workload: &Shared, clients: &Clients, enough: u64) {
    let (mut answers, mut since) = (0, world.now_ns());
    loop {
        let lost = clients.lost();
        let now = workload.lock().answers;
        if now != answers {
            (answers, since) = (now, world.now_ns());
        }
        if now >= enough || workload.lock().done_but_for(lost) || server.error().is_some() {
            return;
        }
        let silent = world.now_ns() - since;
        if lost > 0 && silent > AFTER_LOSS_NS {
            return;
        }
        if silent > PATIENCE_NS {
            world.fail("the server does nothing".into());
        }
        sleep(Duration::from_millis(1));
    }
}

pub fn stop(world: &World, server: &Server) {
    server.stop();
    if world.join(server.process, LONG_NS) {
        world.fail("the server does not stop".into());
    }
}

pub fn serve(stack: Arc<dyn Stack>, options: &Options, socket: &Path, stopped: &Receiver<()>) -> Result<()> {
    let listener = Listener::unix(socket).map_err(|error| Error::system("cannot listen", error))?;
    let offer = Offer { name: "disk".into(), description: String::new(), stack, is_shared: false };
    let catalogue = Catalogue::new(MAX_CONNECTIONS);
    let export = Exported::start(&catalogue, offer, options)?;
    let mut server = nbd::Server::open(&catalogue, vec![listener])?;
    export.started();
    let _ = stopped.recv();
    server.close();
    export.close(false);
    for _ in 0..100 {
        if export.has_ended() {
            break;
        }
        sleep(Duration::from_millis(5));
    }
    export.finish()
}

/// All connections.
pub struct Clients {
    processes: Vec<Process>,
    stop: Arc<AtomicBool>,
    lost: Arc<Mutex<Vec<u64>>>,
}

impl Clients {
    pub fn start(
        world: &World,
        habits: ClientHabits,
        block: u32,
        socket: &Path,
        workload: &Shared,
        seed: u64,
    ) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let lost: Arc<Mutex<Vec<u64>>> = Arc::default();
        let mut random = Random::new(seed);
        let processes = (0..habits.connections).map(|_| {
            let client = Client {
                path: PathBuf::from(socket),
                random: random.fork(),
                habits,
                block,
                workload: workload.clone(),
                stop: stop.clone(),
                lost: lost.clone(),
            };
            world.start(move || client.live())
        });
        Clients { processes: processes.collect(), stop, lost }
    }

    pub fn stop(&self, world: &World) {
        self.stop.store(true, Ordering::SeqCst);
        for process in &self.processes {
            if world.join(*process, LONG_NS) {
                world.fail("a client hears nothing".into());
            }
        }
    }

    fn lost(&self) -> usize {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn judge_lost(&self, workload: &mut crate::workload::Workload) {
        for number in self.lost.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            workload.answer(number, Err(libc::EIO), true);
        }
    }
}
