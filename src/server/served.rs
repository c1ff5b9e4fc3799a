//! One disk of a server, a device or an export, from the wish for it until nobody waits for an answer about it.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use super::clients::{Clients, Question, Wish};
use super::disk::{Disk, Make, Node};
use super::plan::{Change, Job, Key, Ready, Shown};
use super::stopping::{self, Stopped};
use super::{Flag, log};
use crate::engine::{DeviceName, DeviceOptions, Report, nbd};
use crate::error::{Error, Kind, Result};
use crate::port::clock::{Deadline, Duration};
use crate::port::{socket, thread};
use crate::registry::control::{DiskStats, ExportStatus, Reply, State};
use crate::registry::{Entry, Registry, devices};

/// How long the nodes of a deleted device may stay.
pub(super) const NODES_GONE: Duration = Duration::from_secs(1);

/// How long clients have to take their last reply.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the other threads tell the main one.
pub(super) enum Event {
    /// Something has become of a device.
    Of(Key, What),
    /// The file was read again.
    Reloaded(Result<Change>),
}

/// What has become of a device.
pub(super) enum What {
    Added(Box<Entry>, UnixListener),
    Started(Result<Begun>),
    Stopped(Stopped),
}

/// A disk that was just made.
pub(super) struct Begun {
    device: Box<dyn Disk>,
    /// What a person should know that neither backend nor engine says.
    notes: Vec<String>,
    /// It was somebody's before, and its server was killed.
    is_recovered: bool,
}

/// What all devices of a server have in common.
#[derive(Clone)]
pub(super) struct Around {
    pub(super) registry: Registry,
    config: Option<PathBuf>,
    make: Make,
    sender: Sender<Event>,
    waker: Arc<Mutex<File>>,
}

impl Around {
    pub(super) fn new(
        registry: Registry,
        config: Option<PathBuf>,
        make: Make,
        sender: Sender<Event>,
        waker: File,
    ) -> Around {
        Around { registry, config, make, sender, waker: Arc::new(Mutex::new(waker)) }
    }

    /// Hands an event to the main thread.
    pub(super) fn tell(&self, event: Event) {
        // The main thread lives as long as the process; a full pipe wakes it as well.
        let _ = self.sender.send(event);
        self.wake();
    }

    /// Has the main thread look at everything.
    fn wake(&self) {
        if let Ok(mut waker) = self.waker.lock() {
            let _ = waker.write(&[1]);
        }
    }

    /// Tells the world about a device that was just made, before anybody can use it.
    fn announce(&self, node: Node, spec: &str) -> Result<(Entry, UnixListener)> {
        let _lock = self.registry.lock()?;
        let entry = Entry { config: self.config.clone(), ..Entry::new(node.name, node.path, spec) };
        // The name was free, so whatever has it here is from a server that is gone.
        let path = self.registry.socket(entry.name);
        let listener = socket::listen(&path).map_err(|error| {
            Error::system(format!("cannot make the control socket {}", path.display()), error)
                .cure(format!("set {} to a folder with a short path", crate::registry::FOLDER_VARIABLE))
        })?;
        if let Err(error) = self.registry.write(&entry) {
            // Without an entry nobody would ever look for it. That error says more than this one would.
            let _ = socket::remove_if_there(&path);
            return Err(error);
        }
        Ok((entry, listener))
    }
}

pub(super) enum Phase {
    /// It is wanted, and something else comes first.
    Waiting(Box<Job>),
    Starting,
    Live(Box<dyn Disk>),
    Stopping,
    /// What is left are replies, for so long.
    Gone(Deadline),
}

impl Phase {
    fn state(&self) -> State {
        match self {
            Phase::Waiting(_) | Phase::Starting => State::Starting,
            Phase::Live(_) => State::Live,
            Phase::Stopping | Phase::Gone(_) => State::Stopping,
        }
    }
}

pub(super) struct Served {
    pub(super) key: Key,
    pub(super) spec: String,
    pub(super) phase: Phase,
    pub(super) clients: Clients,
    /// The name that NBD clients choose it by, or will.
    pub(super) export_name: Option<String>,
    entry: Option<Box<Entry>>,
    /// What a person calls it, once it has been there.
    called: Option<String>,
    notes: Vec<String>,
    /// The last that the engines said, for the time when they cannot be asked.
    report: Option<Report>,
    export: Option<nbd::Report>,
    /// Somebody wants it to end before it has begun.
    cancelled: Flag,
    /// The stop that is under way no longer asks who uses the disk.
    force: Flag,
    /// What made us stop, where it was not a wish.
    failure: Option<Error>,
}

impl Served {
    pub(super) fn new(job: Job) -> Served {
        Served {
            key: job.key,
            spec: job.spec.clone(),
            export_name: job.name.clone(),
            phase: Phase::Waiting(Box::new(job)),
            clients: Clients::default(),
            entry: None,
            called: None,
            notes: Vec::new(),
            report: None,
            export: None,
            cancelled: Flag::default(),
            force: Flag::default(),
            failure: None,
        }
    }

    /// The job, where it was not started yet.
    pub(super) fn waiting(&self) -> Option<&Job> {
        if let Phase::Waiting(job) = &self.phase { Some(job) } else { None }
    }

    /// Whether the kernel is just giving it a name, or its export its place in the list.
    pub(super) fn waits_for_place(&self) -> bool {
        matches!(self.phase, Phase::Starting) && self.entry.is_none()
    }

    /// The name of its device, once it has one and as long as it is known by it.
    pub(super) fn device(&self) -> Option<DeviceName> {
        self.entry.as_ref().map(|entry| entry.name)
    }

    /// What a person calls it.
    pub(super) fn name(&self) -> String {
        let device = self.entry.as_ref().map(|entry| entry.device.display().to_string());
        device.or_else(|| self.called.clone()).unwrap_or_else(|| self.spec.clone())
    }

    /// What is said about it when it is there.
    pub(super) fn shown(&self) -> Option<Shown> {
        let Phase::Live(disk) = &self.phase else { return None };
        match (disk.node(), &self.report, &self.export) {
            (Some(node), Some(report), export) => {
                let uris = export.as_ref().map_or_else(Vec::new, |export| export.uris.clone());
                Some(Shown::Device(Ready::new(&node, report, uris)))
            }
            (_, _, export) => export.clone().map(Shown::Export),
        }
    }

    /// Whether it is live as a device, and whether as an export.
    pub(super) fn live_as(&self) -> (bool, bool) {
        let is_live = matches!(self.phase, Phase::Live(_));
        (is_live && self.report.is_some(), is_live && self.export.is_some())
    }

    /// What NBD clients can choose, and how that is.
    pub(super) fn export_status(&self) -> Option<ExportStatus> {
        let report = match &self.phase {
            Phase::Live(disk) => disk.export(),
            Phase::Waiting(_) | Phase::Starting | Phase::Stopping => self.export.clone(),
            Phase::Gone(_) => None,
        };
        let device = self.entry.as_ref().map(|entry| entry.device.display().to_string());
        Some(ExportStatus { state: self.phase.state(), device, report: report? })
    }

    /// What was done for it, where it is live.
    pub(super) fn stats(&self) -> Vec<DiskStats> {
        let Phase::Live(disk) = &self.phase else { return Vec::new() };
        disk.stats().into_iter().map(|stats| DiskStats { spec: self.spec.clone(), ..stats }).collect()
    }

    /// Whether it is a device of this machine, or is to be.
    pub(super) fn is_device(&self) -> bool {
        self.entry.is_some()
    }

    /// Whether nothing becomes of it that nobody tells of.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Live(_)) && !self.clients.are_there()
    }

    /// Whether there is nothing more to do about it.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Gone(until) if !self.clients.are_there() || until.passed())
    }

    /// Begins to open and start what was waiting.
    pub(super) fn start(&mut self, around: &Around) {
        let job = match std::mem::replace(&mut self.phase, Phase::Starting) {
            Phase::Waiting(job) => job,
            other => return self.phase = other,
        };
        let (key, teller, cancelled) = (self.key, around.clone(), self.cancelled.clone());
        let body = move || {
            let started = start(*job, &teller, &cancelled);
            teller.tell(Event::Of(key, What::Started(started)));
        };
        if let Err(error) = thread::spawn("start".into(), body) {
            around.tell(Event::Of(key, What::Started(Err(no_thread(error)))));
        }
    }

    pub(super) fn added(&mut self, entry: Box<Entry>, listener: UnixListener) {
        self.entry = Some(entry);
        self.clients.listen(listener);
    }

    pub(super) fn started(&mut self, begun: Begun, around: &Around) {
        let Begun { device, notes, is_recovered } = begun;
        self.notes = notes;
        self.called = Some(device.name());
        (self.report, self.export) = look(&*device, &self.notes);
        // What has ended before is seen in this turn.
        let waker = around.clone();
        device.on_end(Arc::new(move || waker.wake()));
        self.phase = Phase::Live(device);
        let is_cancelled = self.cancelled.load(Ordering::Relaxed);
        let result =
            if is_cancelled && !is_recovered { Err(interrupted()) } else { self.keep_report(around) };
        match result {
            // Nobody loses a disk that he uses over what is only written down.
            Err(error) if is_recovered => log(&error.to_string()),
            Err(error) => {
                self.failure = Some(error);
                return self.stop(true, around);
            }
            Ok(()) => {}
        }
        if is_cancelled {
            self.stop(false, around);
        }
    }

    /// Adds to the entry what is known since the device is ready.
    fn keep_report(&mut self, around: &Around) -> Result<()> {
        let Some(entry) = &mut self.entry else { return Ok(()) };
        entry.report = self.report.clone();
        if let Phase::Live(disk) = &self.phase
            && let Some(node) = disk.node()
        {
            // By FUSE it is known only now.
            entry.device = node.path;
        }
        let _lock = around.registry.lock()?;
        around.registry.write(entry)
    }

    /// Takes a device away that has failed by itself.
    pub(super) fn look_for_failure(&mut self, around: &Around) {
        let Phase::Live(device) = &self.phase else { return };
        let Some(failure) = device.failure() else { return };
        let what = format!("{} has failed", device.name());
        log(&format!("{what}: {failure}"));
        self.failure = Some(Error::new(Kind::Failed, what, failure));
        self.stop(true, around);
    }

    /// Answers whoever asks, and yields what was wished for that is not about this device alone.
    pub(super) fn serve_clients(&mut self, around: &Around) -> Vec<Wish> {
        if let Phase::Gone(_) = self.phase {
            self.clients.flush();
            return Vec::new();
        }
        // Before the look, so that who has just come hears of this moment and not of an earlier one.
        self.clients.accept();
        if let Phase::Live(device) = &self.phase
            && self.clients.are_there()
        {
            (self.report, self.export) = look(&**device, &self.notes);
        }
        let state = self.phase.state();
        // Taken out for the time, so that what answers can look at everything else.
        let mut clients = std::mem::take(&mut self.clients);
        let wishes = clients.serve(state, &|question| match question {
            Question::State => vec![Reply::Status { state, report: self.report.clone().map(Box::new) }],
            Question::Stats => Reply::stats(self.stats()),
        });
        self.clients = clients;
        for wish in wishes.iter().filter(|wish| !wish.all) {
            self.stop(wish.force, around);
        }
        wishes.into_iter().filter(|wish| wish.all).collect()
    }

    /// Keeps it from coming to life; whether somebody has done so before.
    pub(super) fn cancel(&self) -> bool {
        self.cancelled.swap(true, Ordering::Relaxed)
    }

    /// Lets the stop that is under way go by force; false where it does already.
    pub(super) fn hurry(&self) -> bool {
        !self.force.swap(true, Ordering::Relaxed)
    }

    /// Begins to take the device away, or lets the stop that is under way go by force.
    pub(super) fn stop(&mut self, force: bool, around: &Around) {
        self.force.fetch_or(force, Ordering::Relaxed);
        match std::mem::replace(&mut self.phase, Phase::Stopping) {
            Phase::Live(device) => {
                self.force.store(force, Ordering::Relaxed);
                (self.report, self.export) = look(&*device, &self.notes);
                let must_go = self.failure.is_some();
                let (key, teller, force) = (self.key, around.clone(), self.force.clone());
                let body = move || {
                    let stopped = stopping::stop(device, &force, must_go);
                    teller.tell(Event::Of(key, What::Stopped(stopped)));
                };
                if let Err(error) = thread::spawn("stop".into(), body) {
                    // The device went with the closure, and its drop has taken it down, by force, on
                    // this thread; what it could not remove is for `gc`.
                    let gone = Stopped::Gone(Err(no_thread(error)));
                    around.tell(Event::Of(key, What::Stopped(gone)));
                }
            }
            other => self.phase = other,
        }
    }

    /// Has it go, whatever it is doing.
    pub(super) fn end(&mut self, force: bool, around: &Around) {
        match &self.phase {
            Phase::Waiting(_) => drop(self.gone(Ok(()), false, around)),
            Phase::Starting => drop(self.cancel()),
            Phase::Live(_) | Phase::Stopping => self.stop(force, around),
            Phase::Gone(_) => {}
        }
    }

    /// Goes on as before with a device that is not to be taken away.
    pub(super) fn refused(&mut self, device: Box<dyn Disk>, error: &Error) {
        self.phase = Phase::Live(device);
        self.clients.refuse(error);
    }

    /// Removes what it has in the registry, and tells whoever waits. With `keep_log` the log of a
    /// failure stays for those who knew the disk. Returns how it ended.
    pub(super) fn gone(&mut self, result: Result<()>, keep_log: bool, around: &Around) -> Result<()> {
        let result = self.failure.take().map_or(result, Err);
        if let Some(entry) = self.entry.take()
            && let Err(error) = leave(*entry, &result, keep_log, around)
        {
            log(&error.to_string());
        }
        // Who wanted it gone before it was there has got what they wanted.
        let is_as_wished = self.cancelled.load(Ordering::Relaxed);
        self.clients.say_goodbye(if is_as_wished { &Ok(()) } else { &result });
        self.phase = Phase::Gone(Deadline::after(LAST_WORDS));
        result
    }
}

/// Removes the entry of a device that has ended like this. One that is still there could not be removed, and stays
/// known, so that `gc` finds it and no keeper takes its server for one that was killed.
fn leave(entry: Entry, result: &Result<()>, keep_log: bool, around: &Around) -> Result<()> {
    if is_gone(&entry, result) || !entry.owns_device() {
        return around.registry.remove(&entry, keep_log && result.is_err()).map(drop);
    }
    let _lock = around.registry.lock()?;
    around.registry.write(&Entry { ended: true, ..entry })
}

/// Whether nothing of a device is left that somebody would have to remove.
fn is_gone(entry: &Entry, result: &Result<()>) -> bool {
    !devices::exists(entry.name) || (devices::stays_with_its_users(entry.name) && result.is_ok())
}

/// Opens a backend and makes a device of it. When it fails, nothing is left behind.
fn start(job: Job, around: &Around, cancelled: &Flag) -> Result<Begun> {
    if cancelled.load(Ordering::Relaxed) {
        return Err(interrupted());
    }
    let plan = (job.open)()?;
    let mut made = None;
    let mut added = |node: Node| {
        made = Some(node.name);
        if cancelled.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        let (entry, listener) = around.announce(node, &plan.spec)?;
        around.tell(Event::Of(job.key, What::Added(Box::new(entry), listener)));
        Ok(())
    };
    let started = (around.make)(&plan, &mut added);
    if let (Err(_), Some(name)) = (&started, made) {
        devices::gone_by(name, Deadline::after(NODES_GONE));
    }
    let is_recovered = plan.engines.device().is_some_and(DeviceOptions::is_recovery);
    Ok(Begun { device: started?, notes: plan.notes, is_recovered })
}

/// What is to be said about a disk at this moment, with the notes that neither backend nor engine has.
fn look(disk: &dyn Disk, notes: &[String]) -> (Option<Report>, Option<nbd::Report>) {
    let (mut report, mut export) = (disk.report(), disk.export());
    match (&mut report, &mut export) {
        (Some(report), _) => report.notes.extend_from_slice(notes),
        (None, Some(export)) => export.notes.extend_from_slice(notes),
        (None, None) => {}
    }
    (report, export)
}

fn no_thread(error: std::io::Error) -> Error {
    Error::system("cannot make a thread", error)
}

fn interrupted() -> Error {
    Error::new(Kind::Failed, "cannot attach", "it was interrupted by a signal")
}
