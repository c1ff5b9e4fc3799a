//! The server with disks that are only played: many of them, reloads, refusals, ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use super::disk::{Added, Disk, Node};
use super::*;
use crate::engine::ublk::{Load, Options, Wish};
use crate::engine::{DeviceName, DeviceOptions, Memory, Report, Tell, nbd};
use crate::error::Kind;
use crate::metrics::Stats;
use crate::registry::control::{Client, DiskStats, Reply, Request, State};
use crate::registry::detach::detach;

mod books;
mod exports;
mod recovered;

/// Above what any test machine has.
const FIRST_ID: u32 = 999_900;

/// What happens to the disks of a test, and who uses them.
#[derive(Default)]
struct World {
    said: Mutex<Vec<String>>,
    busy: Mutex<BTreeSet<u32>>,
    failed: Mutex<BTreeSet<u32>>,
    broken: Mutex<BTreeSet<u32>>,
    slow: Mutex<BTreeSet<u32>>,
    alarms: Mutex<Vec<Tell>>,
    /// Folders that are made as soon as there is a device.
    in_the_way: Mutex<Vec<std::path::PathBuf>>,
}

impl World {
    fn say(&self, what: &str, id: u32) {
        self.said.lock().unwrap().push(format!("{what} {}", id - FIRST_ID));
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut *self.said.lock().unwrap())
    }
}

struct Fake {
    id: u32,
    is_device: bool,
    export: Option<String>,
    world: Arc<World>,
}

impl Disk for Fake {
    fn node(&self) -> Option<Node> {
        self.is_device.then_some(Node::of_kernel(DeviceName::ublk(self.id)))
    }

    fn name(&self) -> String {
        self.node()
            .map_or_else(|| format!("export {:?}", self.export), |node| node.path.display().to_string())
    }

    fn export(&self) -> Option<nbd::Report> {
        self.export.clone().map(|name| nbd::Report {
            name,
            engine: "nbd".into(),
            spec: "played".into(),
            size: 1 << 20,
            block_size: 1,
            read_only: false,
            queues: 1,
            depth: 1,
            connections: 3,
            tls: "off".into(),
            uris: vec!["nbd://played".into()],
            notes: Vec::new(),
        })
    }

    fn stats(&self) -> Vec<DiskStats> {
        let (engine, data_path) = if self.is_device { ("ublk", Some("copy".into())) } else { ("nbd", None) };
        let stats = Stats::of(&[Arc::default()]);
        vec![DiskStats { engine: engine.into(), name: self.name(), spec: String::new(), data_path, stats }]
    }

    fn report(&self) -> Option<Report> {
        if !self.is_device {
            return None;
        }
        let memory = Memory { locked_buffers: 0, backend: None };
        let text = String::new;
        let (features, flags, queue_threads, notes) = Default::default();
        Some(Report {
            engine: text(),
            data_path: text(),
            data_path_reason: text(),
            queues: 1,
            depth: 1,
            block_size: 512,
            size: 1 << 20,
            max_io_size: 4096,
            read_only: false,
            features,
            flags,
            memory,
            queue_threads,
            notes,
        })
    }

    fn failure(&self) -> Option<String> {
        self.world.failed.lock().unwrap().contains(&self.id).then(|| "a queue ended".to_owned())
    }

    fn on_end(&self, tell: Tell) {
        self.world.alarms.lock().unwrap().push(tell);
    }

    fn stop(&self, only_if_idle: bool) -> Result<()> {
        if only_if_idle && self.world.busy.lock().unwrap().contains(&self.id) {
            return Err(Error::new(Kind::Busy, "cannot stop", "somebody has it open"));
        }
        self.world.say("stopped", self.id);
        Ok(())
    }

    fn drain(&self, at_once: &dyn Fn() -> bool) {
        // Clients that never take their replies.
        let slow = || self.world.slow.lock().unwrap().contains(&self.id);
        while slow() && !at_once() {
            clock::sleep(Duration::from_millis(5));
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.world.say("finished", self.id);
        Ok(())
    }
}

/// What the next reload says.
#[derive(Clone, Default)]
struct Next(Arc<Mutex<Option<Result<Change>>>>);

impl Source for Next {
    fn reload(&mut self, _served: &[Key]) -> Result<Change> {
        let nothing = Change { stop: Vec::new(), start: Vec::new() };
        self.0.lock().unwrap().take().unwrap_or(Ok(nothing))
    }
}

struct Scene {
    server: Server,
    world: Arc<World>,
    next: Next,
    registry: Registry,
    _folder: tempfile::TempDir,
}

fn job(key: Key, spec: &str, after: &[Key]) -> Job {
    let stack = Arc::new(crate::backend::null::Null::new(1 << 20, 512, false));
    let options = Options {
        id: Some(FIRST_ID + key as u32),
        queues: 1,
        depth: 1,
        partition_scan: false,
        data_path: Wish::Auto,
        load: Load::Any,
        spin: Duration::ZERO,
        registered_tags: None,
    };
    let plan = Plan {
        spec: spec.into(),
        stack,
        engines: Engines::Device(DeviceOptions::Ublk(options)),
        notes: vec!["a remark".into()],
    };
    let device = options.id.map(DeviceName::ublk);
    Job { key, spec: spec.into(), device, name: None, after: after.into(), open: Box::new(|| Ok(plan)) }
}

/// A job for an export of this name; with `is_device` for a device that has one.
fn offer(key: Key, name: &str, is_device: bool, after: &[Key]) -> Job {
    let stack = Arc::new(crate::backend::null::Null::new(1 << 20, 512, false));
    let offering = Offering {
        name: name.into(),
        description: String::new(),
        options: nbd::Options { queues: 1, depth: 1 },
    };
    let id = FIRST_ID + key as u32;
    let device = job(key, "x", after);
    let options = (device.open)().unwrap().engines.device().cloned();
    let engines = match options {
        Some(options) if is_device => Engines::Both(options, offering),
        _ => Engines::Export(offering),
    };
    // The played export has its number from here.
    let spec = format!("disk {id}");
    let plan = Plan { spec: spec.clone(), stack, engines, notes: vec!["a remark".into()] };
    let open = Box::new(|| Ok(plan));
    Job {
        key,
        spec,
        device: is_device.then_some(DeviceName::ublk(id)),
        name: Some(name.into()),
        after: after.into(),
        open,
    }
}

impl Scene {
    fn new(specs: &[&str]) -> Scene {
        Scene::with(specs.iter().zip(0..).map(|(spec, key)| job(key, spec, &[])).collect())
    }

    fn with(jobs: Vec<Job>) -> Scene {
        let (folder, registry) = Registry::temporary();
        let (world, next) = (Arc::new(World::default()), Next::default());
        let of_make = world.clone();
        let make = move |plan: &Plan, added: Added<'_>| {
            let device = plan.engines.device().and_then(DeviceOptions::name);
            let of_export = || plan.spec.trim_start_matches("disk ").parse().unwrap();
            let id = device.map_or_else(of_export, |device| device.id);
            if let Some(device) = device {
                added(Node::of_kernel(device))?;
            }
            let export = plan.engines.export().map(|offering| offering.name.clone());
            for path in of_make.in_the_way.lock().unwrap().drain(..) {
                std::fs::create_dir(path).unwrap();
            }
            of_make.say("made", id);
            match plan.spec.as_str() {
                "broken" => {
                    of_make.broken.lock().unwrap().insert(id);
                    Err(Error::new(Kind::Failed, "cannot start", "it is broken"))
                }
                _ => {
                    let fake = Fake { id, is_device: device.is_some(), export, world: of_make.clone() };
                    Ok(Box::new(fake) as Box<dyn Disk>)
                }
            }
        };
        let service = Service {
            config: Some("/etc/up.toml".into()),
            jobs,
            entrance: None,
            source: Some(Box::new(next.clone())),
            notifier: Notifier::default(),
        };
        let signals = Signals::block().unwrap();
        let presence = Presence::new(&registry, std::path::Path::new("/etc/up.toml")).unwrap();
        let mut server = Server::new(service, registry.clone(), signals, Arc::new(make)).unwrap();
        server.presence = Some(presence);
        // What a test waits for need not be told to anybody.
        server.longest_sleep = Duration::from_millis(50);
        Scene { server, world, next, registry, _folder: folder }
    }

    /// One that is up.
    fn up(specs: &[&str]) -> Scene {
        Scene::up_with(specs.iter().zip(0..).map(|(spec, key)| job(key, spec, &[])).collect())
    }

    fn up_with(jobs: Vec<Job>) -> Scene {
        let mut scene = Scene::with(jobs);
        scene.until(|scene| scene.server.handed_over);
        scene.world.said();
        scene
    }

    /// Turns until something holds. True when the server has ended.
    fn until(&mut self, mut holds: impl FnMut(&Scene) -> bool) -> bool {
        let deadline = Deadline::after(Duration::from_secs(20));
        loop {
            let ended = self.server.turn(&mut |_| Ok(())).unwrap();
            if ended || holds(self) {
                return ended;
            }
            assert!(!deadline.passed(), "it takes for ever");
        }
    }

    fn live(&self) -> Vec<Key> {
        let live = self.server.served.iter().filter(|served| matches!(served.phase, Phase::Live(_)));
        live.map(|served| served.key).collect()
    }

    fn entries(&self) -> Vec<u32> {
        self.registry.names().into_keys().map(|name| name.id - FIRST_ID).collect()
    }

    /// Asks the server of a device on a thread of its own, while the server turns.
    fn ask(&mut self, key: Key, request: Request) -> Vec<Reply> {
        let registry = self.registry.clone();
        let entry = registry.read(DeviceName::ublk(FIRST_ID + key as u32)).unwrap();
        let asking = std::thread::spawn(move || {
            let mut client = Client::send(&registry, &entry, request).unwrap();
            let deadline = Deadline::after(Duration::from_secs(20));
            let mut replies = vec![client.receive(deadline).unwrap()];
            if matches!(replies[0], Reply::Accepted) {
                replies.push(client.receive(deadline).unwrap());
            }
            replies
        });
        self.until(|_| asking.is_finished());
        asking.join().unwrap()
    }

    /// Asks the process, on a thread of its own, while the server turns.
    fn ask_process(&mut self, request: Request) -> Vec<Reply> {
        let registry = self.registry.clone();
        let process = registry.servers().pop().unwrap();
        let asking = std::thread::spawn(move || {
            let mut client = Client::send_to_server(&registry, &process, request).unwrap();
            let deadline = Deadline::after(Duration::from_secs(20));
            let mut replies = vec![client.receive(deadline).unwrap()];
            // The last word comes after the last turn.
            while matches!(replies.last(), Some(Reply::Accepted)) {
                match client.receive(deadline) {
                    Ok(reply) => replies.push(reply),
                    Err(_) => break,
                }
            }
            replies
        });
        let ended = self.until(|_| asking.is_finished());
        if ended && let Some(presence) = self.server.presence.take() {
            presence.leave(&Ok(()));
        }
        asking.join().unwrap()
    }

    fn exports(&mut self) -> Vec<(String, State, Option<String>)> {
        let replies = self.ask_process(Request::Exports);
        let [Reply::Exports { exports }] = &replies[..] else { panic!("{replies:?}") };
        exports.iter().map(|one| (one.report.name.clone(), one.state, one.device.clone())).collect()
    }

    fn reload(&mut self, change: Result<Change>) {
        *self.next.0.lock().unwrap() = Some(change);
        self.server.signalled(Signal::Hangup);
        self.until(|scene| !scene.server.reloading.is_busy());
    }
}

#[test]
fn a_quiet_server_sleeps_until_a_queue_has_ended() {
    let mut scene = Scene::up(&["a", "b"]);
    scene.server.longest_sleep = LOOK_SELDOM;
    assert!(scene.server.is_quiet());
    let world = scene.world.clone();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        world.failed.lock().unwrap().insert(FIRST_ID);
        world.alarms.lock().unwrap().iter().for_each(|tell| tell());
    });
    let began = clock::Instant::now();
    assert!(!scene.server.turn(&mut |_| Ok(())).unwrap());
    ending.join().unwrap();
    scene.until(|scene| scene.live() == [1]);
    assert!(began.elapsed() < Duration::from_secs(20), "it slept through the end of a queue");
}

#[test]
fn each_of_many_is_known_by_itself_and_goes_by_itself() {
    let mut scene = Scene::new(&["a", "b", "c"]);
    let mut ready = Vec::new();
    while ready.is_empty() {
        let mut said = |disks: &[Shown]| {
            let device = |disk: &Shown| match disk {
                Shown::Device(ready) => (ready.id - FIRST_ID, ready.notes.clone()),
                Shown::Export(export) => panic!("{export:?}"),
            };
            ready = disks.iter().map(device).collect();
            Ok(())
        };
        assert!(!scene.server.turn(&mut said).unwrap());
    }
    let notes = vec!["a remark".to_owned()];
    assert_eq!(ready, [(0, notes.clone()), (1, notes.clone()), (2, notes)]);
    assert_eq!(scene.world.said(), ["made 0", "made 1", "made 2"]);
    let entry = scene.registry.read(DeviceName::ublk(FIRST_ID + 1)).unwrap();
    assert_eq!((entry.spec.as_str(), entry.config), ("b", Some("/etc/up.toml".into())));
    assert_eq!(scene.server.serving(), "serving 3 devices");
    let replies = scene.ask(1, Request::Status);
    assert!(matches!(&replies[..], [Reply::Status { state: State::Live, report: Some(_) }]), "{replies:?}");
    // The whole way of `detach`, which must not wait for the process here.
    let registry = scene.registry.clone();
    let detaching =
        std::thread::spawn(move || detach(&registry, DeviceName::ublk(FIRST_ID + 1), false).unwrap().how);
    scene.until(|_| detaching.is_finished());
    assert_eq!(detaching.join().unwrap(), "stopped");
    assert_eq!((scene.live(), scene.entries()), (vec![0, 2], vec![0, 2]));
    assert_eq!(scene.world.said(), ["stopped 1", "finished 1"]);
}

#[test]
fn at_the_start_it_is_all_or_none() {
    let mut scene = Scene::new(&["a", "broken", "c"]);
    assert!(scene.until(|_| false));
    assert!(!scene.server.handed_over);
    assert!(scene.server.error.unwrap().to_string().contains("it is broken"));
    let said = scene.world.said();
    assert!(said.contains(&"finished 0".to_owned()), "{said:?}");
    let count = |what: &str| said.iter().filter(|said| said.starts_with(what)).count();
    // The broken one was made and never lived.
    assert_eq!(count("finished") + 1, count("made"), "{said:?}");
    assert!(scene.registry.names().is_empty());
}

#[test]
fn a_device_that_cannot_be_announced_leaves_no_socket_behind() {
    let mut scene = Scene::new(&["a"]);
    // No file can take its place.
    let entry = scene.registry.folder().join(format!("ublkb{FIRST_ID}.json"));
    std::fs::create_dir(&entry).unwrap();
    assert!(scene.until(|_| false));
    let error = scene.server.error.unwrap().to_string();
    assert!(error.contains(entry.to_str().unwrap()), "{error}");
    assert!(!scene.registry.socket(DeviceName::ublk(FIRST_ID)).exists());
}

#[test]
fn a_reload_stops_and_starts_and_leaves_the_rest() {
    let mut scene = Scene::up(&["a", "b", "c"]);
    scene.reload(Ok(Change { stop: vec![1], start: vec![job(5, "new b", &[1]), job(6, "d", &[])] }));
    assert_eq!(scene.live(), [0, 2, 5, 6]);
    let said = scene.world.said();
    let at = |what: &str| said.iter().position(|said| said == what).unwrap();
    assert!(at("finished 1") < at("made 5"), "{said:?}");
    assert!(!said.iter().any(|said| said.ends_with('0') || said.ends_with('2')), "{said:?}");
    assert_eq!(scene.entries(), [0, 2, 5, 6]);
    scene.reload(Err(Error::invalid("up.toml, line 1", "there is nothing to serve")));
    scene.reload(Ok(Change { stop: vec![], start: vec![job(7, "broken", &[])] }));
    assert_eq!((scene.live(), scene.entries()), (vec![0, 2, 5, 6], vec![0, 2, 5, 6]));
    assert!(scene.server.error.is_none());
}

#[test]
fn what_is_in_use_outlives_a_reload_and_its_successor_does_not_come() {
    let mut scene = Scene::up(&["a", "b"]);
    scene.world.busy.lock().unwrap().insert(FIRST_ID + 1);
    scene.reload(Ok(Change { stop: vec![1], start: vec![job(5, "new b", &[1])] }));
    assert_eq!((scene.live(), scene.world.said()), (vec![0, 1], vec![]));
    // Nor does another with its id, and what has nothing to do with it comes.
    let same_id = Job { device: Some(DeviceName::ublk(FIRST_ID + 1)), ..job(6, "x", &[]) };
    scene.reload(Ok(Change { stop: vec![1], start: vec![same_id, job(7, "d", &[])] }));
    assert_eq!((scene.live(), scene.world.said()), (vec![0, 1, 7], vec!["made 7".to_owned()]));
}

#[test]
fn told_to_end_it_takes_all_and_what_refuses_goes_by_force() {
    let mut scene = Scene::up(&["a", "b", "c"]);
    scene.world.busy.lock().unwrap().insert(FIRST_ID + 1);
    let replies = scene.ask(1, Request::End { force: false });
    assert!(matches!(&replies[..], [Reply::Accepted, Reply::Failed { .. }]), "{replies:?}");
    assert_eq!(scene.live(), [1]);
    assert!(!scene.server.ending);
    let replies = scene.ask(1, Request::End { force: true });
    assert!(matches!(&replies[..], [Reply::Accepted, Reply::Stopped]), "{replies:?}");
    assert!(scene.until(|_| false));
    assert!(scene.server.error.is_none() && scene.registry.names().is_empty());
}

#[test]
fn the_second_signal_forces_what_the_first_did_not_get() {
    let mut scene = Scene::up(&["a", "b"]);
    scene.world.busy.lock().unwrap().insert(FIRST_ID);
    scene.server.signalled(Signal::Terminate);
    scene.until(|scene| scene.live() == [0] && scene.server.served.len() == 1);
    assert_eq!(scene.world.said(), ["stopped 1", "finished 1"]);
    scene.server.signalled(Signal::Terminate);
    assert!(scene.until(|_| false));
    assert_eq!(scene.world.said(), ["stopped 0", "finished 0"]);
}

#[test]
fn one_that_fails_goes_alone_and_the_last_takes_the_process_along() {
    let mut scene = Scene::up(&["a", "b"]);
    scene.world.failed.lock().unwrap().insert(FIRST_ID);
    scene.until(|scene| scene.server.served.len() == 1);
    assert_eq!((scene.live(), scene.entries()), (vec![1], vec![1]));
    assert!(scene.server.error.is_none());
    scene.world.failed.lock().unwrap().insert(FIRST_ID + 1);
    assert!(scene.until(|_| false));
    assert!(scene.server.error.unwrap().to_string().contains("a queue ended"));
}

#[test]
fn ids_that_were_asked_for_are_had_before_others_can_take_them() {
    let asked = |id: Option<u32>, key| Job { device: id.map(DeviceName::ublk), ..job(key, "x", &[]) };
    let jobs = vec![asked(None, 0), asked(Some(FIRST_ID + 1), 1), asked(None, 2)];
    let mut scene = Scene::new(&[]);
    scene.server.served = jobs.into_iter().map(Served::new).collect();
    scene.until(|scene| scene.server.handed_over);
    assert_eq!(scene.world.said(), ["made 1", "made 0", "made 2"]);
    let by_key: BTreeMap<Key, String> =
        scene.server.served.iter().map(|served| (served.key, served.name())).collect();
    assert_eq!(by_key[&2], format!("/dev/ublkb{}", FIRST_ID + 2));
}
