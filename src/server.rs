//! The main thread of a process that serves one device.
//!
//! It never blocks for long: what can take its time (start, stop) runs on a thread of its own,
//! while this one answers signals and the control socket.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use crate::engine::ublk::{Device, Report};
use crate::error::{Error, Kind, Result};
use crate::port::clock::{self, Deadline, Duration};
use crate::port::signal::{Signal, Signals};
use crate::port::{socket, thread};
use crate::registry::control::State;
use crate::registry::{Entry, Registry, devices};

mod clients;
pub mod exports;
mod plan;
mod stopping;

pub use plan::{Plan, Ready};

use clients::Clients;
use stopping::Stopped;

/// How often the main thread looks whether a queue has failed.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// For how long after a refused signal the next one forces.
const SECOND_SIGNAL: Duration = Duration::from_secs(60);

/// How long the nodes of a deleted device may stay.
const NODES_GONE: Duration = Duration::from_secs(1);

/// How long clients have to take their last reply.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Says something to whoever reads the log. Losing it is better than ending a disk over it, which
/// is what `eprintln` would do when nobody reads any more.
pub fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "blockhaus: {} {text}", clock::utc_now());
}

/// What the other threads tell the main one.
enum Event {
    Added(Box<Entry>, UnixListener),
    Started(Result<Box<Device>>),
    Stopped(Stopped),
}

enum Phase {
    Starting,
    Live(Box<Device>),
    Stopping,
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
    let _guard = thread::AbortOnPanic;
    registry.create()?;
    let mut server = Server::new(registry, signals)?;
    server.start(plan)?;
    let result = loop {
        if let Some(result) = server.turn(ready)? {
            break result;
        }
    };
    server.end(&result);
    result
}

struct Server {
    registry: Registry,
    signals: Signals,
    clients: Clients,
    phase: Phase,
    entry: Option<Box<Entry>>,
    notes: Vec<String>,
    /// The last that the engine said, for the time when it cannot be asked.
    report: Option<Report>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    woken: std::fs::File,
    waker: Arc<Mutex<std::fs::File>>,
    /// Somebody wants to end before it has begun.
    cancelled: Arc<AtomicBool>,
    /// The stop that is under way no longer asks who uses the disk.
    force: Arc<AtomicBool>,
    /// The last signal was refused; until then another one forces.
    refused: Option<Deadline>,
    /// Whoever waited for the disk has it.
    handed_over: bool,
    /// What made us stop, where it was not a wish.
    failure: Option<Error>,
}

impl Server {
    fn new(registry: Registry, signals: Signals) -> Result<Server> {
        let (woken, waker) =
            socket::wake_pipe().map_err(|error| Error::system("cannot make the server's pipe", error))?;
        let (sender, events) = channel();
        Ok(Server {
            registry,
            signals,
            clients: Clients::default(),
            phase: Phase::Starting,
            entry: None,
            notes: Vec::new(),
            report: None,
            events,
            sender,
            woken,
            waker: Arc::new(Mutex::new(waker)),
            cancelled: Arc::default(),
            force: Arc::default(),
            refused: None,
            handed_over: false,
            failure: None,
        })
    }

    /// What a thread calls to hand an event to the main one.
    fn teller(&self) -> impl Fn(Event) + Send + use<> {
        let (sender, waker) = (self.sender.clone(), self.waker.clone());
        move |event| {
            // The main thread lives as long as the process; a full pipe wakes it as well.
            let _ = sender.send(event);
            if let Ok(mut waker) = waker.lock() {
                let _ = waker.write(&[1]);
            }
        }
    }

    fn start(&mut self, mut plan: Plan) -> Result<()> {
        self.notes = std::mem::take(&mut plan.notes);
        let (tell, registry, cancelled) = (self.teller(), self.registry.clone(), self.cancelled.clone());
        let body = move || {
            let mut added = |id| {
                if cancelled.load(Ordering::Relaxed) {
                    return Err(interrupted());
                }
                let (entry, listener) = announce(&registry, id, &plan.spec)?;
                tell(Event::Added(Box::new(entry), listener));
                Ok(())
            };
            let started = Device::start(plan.stack, &plan.options, &mut added);
            tell(Event::Started(started.map(Box::new)));
        };
        let thread = thread::spawn("start".into(), body);
        thread.map(drop).map_err(|error| Error::system("cannot make a thread", error))
    }

    /// Waits for something to happen and deals with it. A value ends the server.
    fn turn(&mut self, ready: &mut dyn FnMut(&Ready) -> Result<()>) -> Result<Option<Result<()>>> {
        let mut polled = vec![(self.signals.as_fd(), false), (self.woken.as_fd(), false)];
        polled.extend(self.clients.polled());
        socket::poll(&polled, LOOK_EVERY).map_err(|error| Error::system("cannot wait for events", error))?;
        drop(polled);
        while let Some(signal) = self.signals.take() {
            self.signalled(signal);
        }
        let _ = std::io::Read::read(&mut self.woken, &mut [0; 64]);
        while let Ok(event) = self.events.try_recv() {
            if let Some(result) = self.happened(event, ready) {
                return Ok(Some(result));
            }
        }
        if let Phase::Live(device) = &self.phase
            && let Some(failure) = device.failure()
        {
            log(&format!("{} has failed: {failure}", device.path().display()));
            let what = format!("{} has failed", device.path().display());
            self.failure = Some(Error::new(Kind::Failed, what, failure));
            self.stop(true);
        }
        // Before the look, so that who has just come hears of this moment and not of an earlier one.
        self.clients.accept();
        if let Phase::Live(device) = &self.phase
            && self.clients.are_there()
        {
            self.report = Some(self.look(device));
        }
        for wish in self.clients.serve(self.phase.state(), self.report.as_ref()) {
            self.stop(wish.force);
        }
        Ok(None)
    }

    fn happened(&mut self, event: Event, ready: &mut dyn FnMut(&Ready) -> Result<()>) -> Option<Result<()>> {
        match event {
            Event::Added(entry, listener) => {
                self.entry = Some(entry);
                self.clients.listen(listener);
                None
            }
            Event::Started(Err(error)) => Some(Err(error)),
            Event::Started(Ok(device)) => {
                self.started(device, ready);
                None
            }
            Event::Stopped(Stopped::Refused(device, error)) => {
                log(&error.to_string());
                if self.refused.is_some_and(|until| !until.passed()) {
                    log("another signal within a minute detaches it all the same");
                }
                self.phase = Phase::Live(device);
                self.clients.refuse(&error);
                // Where there is no going on, ending is what is left; `gc` does the rest.
                self.failure.take().map(Err)
            }
            Event::Stopped(Stopped::Gone(result)) => match self.failure.take() {
                Some(failure) => Some(Err(failure)),
                None => Some(result),
            },
        }
    }

    fn started(&mut self, device: Box<Device>, ready: &mut dyn FnMut(&Ready) -> Result<()>) {
        let report = self.look(&device);
        let said = Ready::new(&device, &report);
        self.report = Some(report);
        self.phase = Phase::Live(device);
        let result = match self.cancelled.load(Ordering::Relaxed) {
            true => Err(interrupted()),
            false => self.keep_report().and_then(|()| ready(&said)),
        };
        self.handed_over = result.is_ok();
        if let Err(error) = result {
            self.failure = Some(error);
            self.stop(true);
        }
    }

    /// What is to be said about the device at this moment.
    fn look(&self, device: &Device) -> Report {
        let mut report = device.report();
        report.notes.extend_from_slice(&self.notes);
        report
    }

    /// Adds to the entry what is known since the device is ready.
    fn keep_report(&mut self) -> Result<()> {
        let Some(entry) = &mut self.entry else { return Ok(()) };
        entry.report = self.report.clone();
        let _lock = self.registry.lock()?;
        self.registry.write(entry)
    }

    fn signalled(&mut self, signal: Signal) {
        match &self.phase {
            Phase::Starting if !self.cancelled.swap(true, Ordering::Relaxed) => {}
            Phase::Starting => abandon(signal),
            Phase::Live(_) => {
                let force = self.refused.is_some_and(|until| !until.passed());
                let how = if force { ", by force" } else { "" };
                log(&format!("{}: detaching{how}", signal.name()));
                self.refused = Some(Deadline::after(SECOND_SIGNAL));
                self.stop(force);
            }
            Phase::Stopping if !self.force.swap(true, Ordering::Relaxed) => {
                log(&format!("{}: detaching, by force", signal.name()));
            }
            // The first signal of its kind while somebody else's stop is under way.
            Phase::Stopping if self.refused.is_none_or(Deadline::passed) => {
                log(&format!("{}: detaching already; another one ends the server at once", signal.name()));
                self.refused = Some(Deadline::after(SECOND_SIGNAL));
            }
            Phase::Stopping => abandon(signal),
        }
    }

    /// Begins to take the device away, or lets the stop that is under way go by force.
    fn stop(&mut self, force: bool) {
        self.force.fetch_or(force, Ordering::Relaxed);
        match std::mem::replace(&mut self.phase, Phase::Stopping) {
            Phase::Live(device) => {
                self.force.store(force, Ordering::Relaxed);
                self.report = Some(self.look(&device));
                let (tell, force) = (self.teller(), self.force.clone());
                let body = move || tell(Event::Stopped(stopping::stop(device, &force)));
                if let Err(error) = thread::spawn("stop".into(), body) {
                    // The device went with the closure; its drop leaves things to `gc`.
                    log(&format!("cannot make a thread: {error}"));
                    self.teller()(Event::Stopped(Stopped::Gone(Err(Error::system(
                        "cannot make a thread",
                        error,
                    )))));
                }
            }
            Phase::Starting => self.phase = Phase::Starting,
            Phase::Stopping => {}
        }
    }

    /// Removes what the server has in the registry, and tells whoever waits.
    fn end(&mut self, result: &Result<()>) {
        // The log is for those who knew the disk, where there is something to read in it.
        let keep_log = result.is_err() && self.handed_over;
        // A device that could not be removed stays known, so that `gc` finds it.
        if let Some(entry) = self.entry.take()
            && (devices::gone_by(entry.id, Deadline::after(NODES_GONE)) || !entry.owns_device())
            && let Err(error) = self.registry.remove(&entry, keep_log)
        {
            log(&error.to_string());
        }
        self.clients.say_goodbye(result, Deadline::after(LAST_WORDS));
    }
}

/// Tells the world about a device that was just made, before anybody can use it.
fn announce(registry: &Registry, id: u32, spec: &str) -> Result<(Entry, UnixListener)> {
    let _lock = registry.lock()?;
    let entry = Entry::new(id, spec);
    // The id was free, so whatever has its name here is from a server that is gone.
    let path = registry.socket(id);
    let listener = socket::listen(&path).map_err(|error| {
        Error::system(format!("cannot make the control socket {}", path.display()), error)
            .cure(format!("set {} to a folder with a short path", crate::registry::FOLDER_VARIABLE))
    })?;
    registry.write(&entry)?;
    Ok((entry, listener))
}

fn interrupted() -> Error {
    Error::new(Kind::Failed, "cannot attach", "it was interrupted by a signal")
}

/// Ends the process where even a second wish to end has not helped.
fn abandon(signal: Signal) -> ! {
    log(&format!("{} once more: ending at once; `blockhaus gc` removes what is left", signal.name()));
    std::process::exit(i32::from(signal.exit_status()))
}

impl Phase {
    fn state(&self) -> State {
        match self {
            Phase::Starting => State::Starting,
            Phase::Live(_) => State::Live,
            Phase::Stopping => State::Stopping,
        }
    }
}
