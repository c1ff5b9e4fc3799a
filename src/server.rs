//! The main thread of a process that serves disks: one device for `attach`, many devices and exports
//! for `up`.
//!
//! It never blocks for long: what can take its time (opening, starting, stopping, reading the file
//! again) runs on threads of their own, while this one answers signals and the control sockets.
//! What becomes of one disk is in `server/served.rs`, what concerns all of them is here.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};

use crate::error::{Error, Result};
use crate::port::clock::{self, Deadline, Duration};
use crate::port::notify::Notifier;
use crate::port::signal::{Signal, Signals};
use crate::port::{socket, thread};
use crate::registry::Registry;
use crate::registry::control::Reply;

mod clients;
mod disk;
pub mod entrance;
pub mod exports;
pub mod keeper;
mod network;
mod plan;
mod presence;
mod reloading;
mod served;
mod stopping;

pub use entrance::Entrance;
pub use plan::{Change, Engines, Job, Key, Offering, Plan, Ready, Service, Shown, Source};

use clients::Question;
use network::Network;
use presence::Presence;
use reloading::Reloading;
use served::{Around, Event, Phase, Served, What};
use stopping::Stopped;

/// How often the main thread looks at what goes on.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// And where nothing goes on of which it would not be told.
const LOOK_SELDOM: Duration = Duration::from_secs(60);

/// For how long after a refused signal the next one forces.
const SECOND_SIGNAL: Duration = Duration::from_secs(60);

/// Says something to whoever reads the log. Losing it is better than ending a disk over it, which
/// is what `eprintln` would do when nobody reads any more.
pub fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "blockhaus: {} {text}", clock::utc_now());
}

/// Serves a device until it is detached or a signal ends it. `signals` were blocked before any
/// thread was made; `ready` is called once, when the disk can be opened, and ends it all again
/// when it fails.
pub fn run(
    plan: Plan,
    signals: Signals,
    registry: Registry,
    ready: &mut dyn FnMut(&Ready) -> Result<()>,
) -> Result<()> {
    run_all(Service::of(plan), signals, registry, &mut |disks| {
        disks.iter().try_for_each(|disk| match disk {
            Shown::Device(device) => ready(device),
            Shown::Export(_) => Ok(()),
        })
    })
}

/// As [`run`], with as many disks as there are in `service`. It ends when the last of them is
/// gone; when one cannot be had at the start, there is none.
pub fn run_all(
    service: Service,
    signals: Signals,
    registry: Registry,
    ready: &mut dyn FnMut(&[Shown]) -> Result<()>,
) -> Result<()> {
    let _guard = thread::AbortOnPanic;
    registry.create()?;
    let presence = service.config.as_ref().map(|config| Presence::new(&registry, config)).transpose()?;
    let mut service = service;
    let network = service.entrance.take().map(Network::listen).transpose()?;
    let make = network::maker(network.as_ref());
    let mut server = Server::new(service, registry, signals, make)?;
    (server.presence, server.network) = (presence, network);
    while !server.turn(ready)? {}
    server.notifier.stopping();
    // Nobody listens any more when somebody hears that it is over.
    if let Some(network) = server.network.take() {
        network.close();
    }
    // Who wanted it gone before it was there has got what they wanted.
    let result = server.error.take().map_or(Ok(()), Err);
    if let Some(presence) = server.presence.take() {
        presence.leave(if server.told && !server.handed_over { &Ok(()) } else { &result });
    }
    result
}

struct Server {
    around: Around,
    signals: Signals,
    served: Vec<Served>,
    /// How a process of `up` is found, also when it has no device.
    presence: Option<Presence>,
    /// Where NBD clients come to.
    network: Option<Network>,
    reloading: Reloading,
    notifier: Notifier,
    events: Receiver<Event>,
    woken: File,
    /// The last signal was refused; until then another one forces.
    refused: Option<Deadline>,
    /// Whoever waited for the disks has them.
    handed_over: bool,
    /// All disks are to go, and none is to come.
    ending: bool,
    /// Somebody has asked for that over a control socket.
    told: bool,
    /// Why the process ends, where it was not a wish.
    error: Option<Error>,
    /// How long nobody looks while all is quiet.
    longest_sleep: Duration,
}

impl Server {
    fn new(service: Service, registry: Registry, signals: Signals, make: disk::Make) -> Result<Server> {
        let (woken, waker) =
            socket::wake_pipe().map_err(|error| Error::system("cannot make the server's pipe", error))?;
        let (sender, events) = channel();
        Ok(Server {
            around: Around::new(registry, service.config, make, sender, waker),
            signals,
            served: service.jobs.into_iter().map(Served::new).collect(),
            presence: None,
            network: None,
            reloading: Reloading::new(service.source),
            notifier: service.notifier,
            events,
            woken,
            refused: None,
            handed_over: false,
            ending: false,
            told: false,
            error: None,
            longest_sleep: LOOK_SELDOM,
        })
    }

    /// Waits for something to happen and deals with it. True when there is nothing left to serve.
    fn turn(&mut self, ready: &mut dyn FnMut(&[Shown]) -> Result<()>) -> Result<bool> {
        self.start_waiting();
        let mut polled = vec![(self.signals.as_fd(), false), (self.woken.as_fd(), false)];
        polled.extend(self.served.iter().flat_map(|served| served.clients.polled()));
        polled.extend(self.presence.iter().flat_map(Presence::polled));
        let patience = if self.is_quiet() { self.longest_sleep } else { LOOK_EVERY };
        socket::poll(&polled, patience).map_err(|error| Error::system("cannot wait for events", error))?;
        drop(polled);
        while let Some(signal) = self.signals.take() {
            self.signalled(signal);
        }
        let _ = self.woken.read(&mut [0; 64]);
        while let Ok(event) = self.events.try_recv() {
            self.happened(event);
        }
        if let Some(network) = &mut self.network {
            network.look();
        }
        // Before anybody can change it again: who waits for the disks hears of each of them.
        self.hand_over(ready);
        for served in &mut self.served {
            served.look_for_failure(&self.around);
        }
        let mut wishes: Vec<_> =
            self.served.iter_mut().flat_map(|served| served.serve_clients(&self.around)).collect();
        let served = &self.served;
        let answer = |question| match question {
            Question::State => {
                vec![Reply::Exports { exports: served.iter().filter_map(Served::export_status).collect() }]
            }
            Question::Stats => {
                let others = served.iter().filter(|served| !served.is_device());
                Reply::stats(others.flat_map(Served::stats).collect())
            }
        };
        wishes.extend(self.presence.as_mut().and_then(|presence| presence.serve(&answer)));
        if let Some(wish) =
            wishes.into_iter().filter(|wish| wish.all).reduce(|a, b| if a.force { a } else { b })
        {
            log(if wish.force { "told to end, by force" } else { "told to end" });
            self.told = true;
            self.end(wish.force);
        }
        self.settle_reload();
        self.served.retain(|served| !served.is_over());
        Ok(self.served.is_empty() && (self.ending || !self.reloading.is_busy()))
    }

    /// Whether all disks are there, nobody is connected, and nothing is being changed: whatever happens next wakes
    /// the main thread.
    fn is_quiet(&self) -> bool {
        self.handed_over
            && !self.ending
            && !self.reloading.is_busy()
            && self.presence.as_ref().is_none_or(Presence::is_quiet)
            && self.served.iter().all(Served::is_quiet)
    }

    /// Starts what may start now. One after the other until each has its name, so that these are given
    /// in the order of the file, and those that were asked for before those that are not.
    fn start_waiting(&mut self) {
        if self.served.iter().any(Served::waits_for_place) {
            return;
        }
        let asks_for_name = |served: &Served| served.waiting().is_some_and(|job| job.device.is_some());
        let first = self.served.iter().any(asks_for_name);
        let mut candidates = (0..self.served.len())
            .filter(|at| self.served[*at].waiting().is_some_and(|job| !first || job.device.is_some()));
        let found = candidates.find_map(|at| match self.obstacle(self.served[at].waiting()?) {
            Obstacle::None => Some((at, None)),
            Obstacle::Stays(name) => Some((at, Some(name))),
            Obstacle::Goes => None,
        });
        match found {
            None => {}
            Some((at, None)) => self.served[at].start(&self.around),
            Some((at, Some(name))) => {
                let spec = &self.served[at].spec;
                log(&format!("cannot serve {spec}: {name} has its name or its file and stays"));
                drop(self.served[at].gone(Ok(()), false, &self.around));
            }
        }
    }

    /// What a job still has to wait for.
    fn obstacle(&self, job: &Job) -> Obstacle {
        let mut obstacle = Obstacle::None;
        let in_the_way = |other: &&Served| {
            let has_device = job.device.is_some() && other.device() == job.device;
            let has_name = job.name.is_some() && other.export_name == job.name;
            // What waits as well, it itself too, has no name yet.
            let waits = other.waiting().is_some();
            job.after.contains(&other.key) || has_device || (has_name && !waits)
        };
        for other in self.served.iter().filter(in_the_way) {
            match other.phase {
                Phase::Gone(_) => {}
                Phase::Live(_) => return Obstacle::Stays(other.name()),
                Phase::Waiting(_) | Phase::Starting | Phase::Stopping => obstacle = Obstacle::Goes,
            }
        }
        obstacle
    }

    fn happened(&mut self, event: Event) {
        let (key, what) = match event {
            Event::Of(key, what) => (key, what),
            Event::Reloaded(change) => return self.reloaded(change),
        };
        let Some(at) = self.served.iter().position(|served| served.key == key) else { return };
        let served = &mut self.served[at];
        match what {
            What::Added(entry, listener) => served.added(entry, listener),
            What::Started(Err(error)) => self.gone(at, Err(error)),
            What::Started(Ok(begun)) => {
                served.started(begun, &self.around);
                // Before that, whoever waits for all of them is told.
                if self.handed_over {
                    log(&format!("{} is there: {}", served.name(), served.spec));
                }
            }
            What::Stopped(Stopped::Refused(device, error)) => {
                log(&error.to_string());
                if let Some(presence) = &mut self.presence {
                    presence.refuse(&error);
                }
                if self.refused.is_some_and(|until| !until.passed()) {
                    log("another signal within a minute detaches it all the same");
                }
                served.refused(device, &error);
                // What refuses goes on, and the others that are there go on with it.
                self.ending &= self.error.is_some();
            }
            What::Stopped(Stopped::Gone(result)) => self.gone(at, result),
        }
    }

    /// A disk is gone, or as far gone as it will get.
    fn gone(&mut self, at: usize, result: Result<()>) {
        let name = self.served[at].name();
        let error = match self.served[at].gone(result, self.handed_over, &self.around) {
            Err(error) => error,
            Ok(()) if self.reloading.is_possible() => return log(&format!("{name} is gone")),
            Ok(()) => return,
        };
        let is_last = self.served.iter().all(|served| matches!(served.phase, Phase::Gone(_)));
        match &self.error {
            // Before anybody has heard of any disk, it is all of them or none.
            None if !self.handed_over => self.fail(error),
            None if self.ending || is_last => self.error = Some(error),
            _ => log(&format!("{}: {error}", self.served[at].spec)),
        }
    }

    /// Takes everything away because there is no going on.
    fn fail(&mut self, error: Error) {
        self.error = Some(error);
        self.end(true);
    }

    /// Takes all disks away, each under the rules of its own.
    fn end(&mut self, force: bool) {
        self.ending = true;
        for served in &mut self.served {
            served.end(force, &self.around);
        }
    }

    /// Says that everything is there, when it is.
    fn hand_over(&mut self, ready: &mut dyn FnMut(&[Shown]) -> Result<()>) {
        if self.handed_over || self.ending {
            return;
        }
        let disks: Vec<Shown> = self.served.iter().filter_map(Served::shown).collect();
        let present = self.served.iter().filter(|served| !matches!(served.phase, Phase::Gone(_))).count();
        if disks.is_empty() || disks.len() < present {
            return;
        }
        match self.network.as_mut().map_or(Ok(()), Network::open).and_then(|()| ready(&disks)) {
            Ok(()) => {
                self.handed_over = true;
                self.notifier.ready(&self.serving());
            }
            Err(error) => self.fail(error),
        }
    }

    /// What is served at this moment, for people.
    fn serving(&self) -> String {
        let live: Vec<(bool, bool)> = self.served.iter().map(Served::live_as).collect();
        let devices = live.iter().filter(|live| live.0).count();
        let count = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        };
        match live.iter().filter(|live| live.1).count() {
            0 => format!("serving {}", count(devices, "device")),
            exports if devices == 0 => format!("serving {}", count(exports, "export")),
            exports => format!("serving {} and {}", count(devices, "device"), count(exports, "export")),
        }
    }

    fn signalled(&mut self, signal: Signal) {
        if signal == Signal::Hangup && self.reloading.is_possible() {
            return self.reload();
        }
        let again = self.refused.is_some_and(|until| !until.passed());
        // A server of one device takes a signal during somebody else's stop as a wish for force; one
        // of many may be changing a device because its file has changed, which is no reason.
        let hurry = again || !self.reloading.is_possible();
        let (mut asked, mut hurried, mut stopping) = (false, false, false);
        for served in &mut self.served {
            match &served.phase {
                Phase::Waiting(_) => hurried = true,
                Phase::Starting => hurried |= !served.cancel(),
                Phase::Live(_) => asked = true,
                Phase::Stopping => {
                    stopping = true;
                    hurried |= !hurry || served.hurry();
                }
                Phase::Gone(_) => {}
            }
        }
        if asked || hurried {
            let how = if again || (stopping && hurry) { ", by force" } else { "" };
            if asked || stopping {
                log(&format!("{}: detaching{how}", signal.name()));
            }
            if asked || (stopping && !hurry) {
                self.refused = Some(Deadline::after(SECOND_SIGNAL));
            }
            self.end(again);
        } else if stopping && !again {
            // The first signal of its kind while somebody else's stop is under way.
            log(&format!("{}: detaching already; another one ends the server at once", signal.name()));
            self.refused = Some(Deadline::after(SECOND_SIGNAL));
        } else if self.served.iter().any(|served| !matches!(served.phase, Phase::Gone(_))) {
            abandon(signal);
        } else {
            self.ending = true;
        }
    }
}

/// What keeps a job from being started.
enum Obstacle {
    None,
    /// Something that is about to go.
    Goes,
    /// Something that stays.
    Stays(String),
}

/// Ends the process where even a second wish to end has not helped.
fn abandon(signal: Signal) -> ! {
    log(&format!("{} once more: ending at once; `blockhaus gc` removes what is left", signal.name()));
    std::process::exit(i32::from(signal.exit_status()))
}

/// A flag that two threads share.
type Flag = Arc<AtomicBool>;

#[cfg(test)]
mod tests;
