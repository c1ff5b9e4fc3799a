//! A world: what is in it, its processes, and one run of it.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};

use super::disk::{Disk, DiskShape, Faults, Operation, PowerLoss};
use super::file::Files;
use super::processor::Kept;
use super::random::Random;
use super::ring::RingState;
use super::schedule::{Event, Schedule, Status, ThreadId};
use super::stream::Transfer;
use super::trace::Trace;
use super::ublk::{Client, Driver, Kernel};
use super::{Handle, enter};

/// What a world is made of, besides its seed.
#[derive(Clone, Debug)]
pub struct Config {
    /// What all chance comes from.
    pub seed: u64,
    /// What the ublk driver is like.
    pub kernel: Kernel,
    /// How badly disks behave.
    pub faults: Faults,
    /// Processors of the machine.
    pub cpus: u16,
    /// How often, of a thousand times, another thread runs in the middle of a wake-up.
    pub points_per_thousand: u32,
    /// A bug of the world's own, to see whether it is found.
    pub bug: Option<Bug>,
}

/// What can be wrong below the backend, planted by a test of the tests. Where the server's own code
/// cannot be made wrong from outside, the driver's side of the ring acts as if it were, or the code
/// asks [`has`](super::has).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A commit goes into the ring a second time.
    CommitTwice,
    /// A commit names the neighbour's tag.
    CommitForAnother,
    /// A commit is lost on its way.
    CommitLost,
    /// A commit counts one sector less than was read.
    CommitShort,
    /// An operation is taken for complete when it is submitted, and its slot used again.
    SlotReusedEarly,
    /// Descriptors are mapped as if queues lay as far apart as their own depth needs.
    StrideOfOwnDepth,
    /// A message to a sleeping queue thread does not wake it.
    WakeUpLost,
    /// Requests that came are not answered once a stop has begun.
    DeafWhileStopping,
    /// Nobody looks whether the driver could register a request's pages.
    FallbackLost,
    /// What was read is not copied to the request's pages.
    UserCopyLost,
    /// Each queue has a range lock of its own.
    RangeLockOfOneQueue,
    /// Of a batch that was carried out in part, the rest is forgotten.
    PartOfBatchTakenForWhole,
    /// A fetch that ended for want of a buffer is not sent again.
    FetchNotRenewed,
    /// A buffer is given back before the tags in it were read.
    TagsReadTooLate,
    /// A result of a batch goes to the tag beside it.
    BatchShifted,
    /// Changes that a lost server may have forgotten are not done again.
    ReplayLeftOut,
    /// They are all done again at the same time.
    ReplayAtOnce,
    /// A flush is taken to cover what was acknowledged after it was sent.
    FlushCoversLaterChanges,
}

/// How a run failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What went wrong, first.
    pub what: String,
    /// The last that happened, a line each.
    pub trace: String,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hash of all that happened: equal for two runs of one seed.
    pub hash: u64,
    /// How much happened.
    pub lines: u64,
    /// How often each thing happened, by its name in the trace.
    pub counts: BTreeMap<&'static str, u64>,
    /// How long it took in the world's own time.
    pub took_ns: u64,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

/// Thrown through a thread whose process was killed; nothing catches it but the thread's own end.
pub(super) struct Killed;

/// What threads can wait for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiting {
    Thread(ThreadId),
    Channel(u64),
    Client,
}

pub(super) struct ProcessState {
    dead: bool,
    threads: usize,
}

pub(super) struct State {
    pub config: Config,
    pub random: Random,
    pub point_random: Random,
    pub schedule: Schedule,
    trace: Trace,
    failure: Option<Failure>,
    /// The world has ended: every thread unwinds.
    ended: bool,
    processes: Vec<ProcessState>,
    waiting: BTreeMap<Waiting, Vec<ThreadId>>,
    /// Channels and operations that there have been.
    pub numbered: u64,
    pub files: Files,
    pub rings: Vec<RingState>,
    /// Which ring an eventfd wakes.
    pub wakes: BTreeMap<i32, usize>,
    pub disks: Vec<Disk>,
    pub operations: BTreeMap<u64, Operation>,
    pub transfers: BTreeMap<u64, Transfer>,
    pub driver: Driver,
    pub client: Option<Box<dyn Client>>,
}

pub(super) struct Inner {
    pub state: Mutex<State>,
    /// A thread of a dead process has ended.
    pub quiet: Condvar,
}

impl State {
    /// Writes something into the history.
    pub fn note(&mut self, what: &'static str, numbers: [u64; 4]) {
        let thread = self.schedule.running();
        self.trace.note(self.schedule.now_ns, thread, what, numbers);
    }

    pub fn note_bytes(&mut self, bytes: &[u8]) {
        self.trace.bytes(bytes);
    }

    /// The run has failed: the first reason stays, and everybody stops at the next step.
    pub fn fail(&mut self, what: String) {
        if self.failure.is_none() && !self.ended {
            let name = |thread: ThreadId| {
                self.schedule.threads.get(thread).map_or_else(String::new, |thread| thread.name.clone())
            };
            self.failure = Some(Failure { what, trace: self.trace.text(name) });
        }
        self.ended = true;
        self.signal_the_dead();
    }

    pub fn over(&self) -> bool {
        self.ended
    }

    /// Whether a thread is to do nothing any more.
    pub fn dead(&self, thread: ThreadId) -> bool {
        self.ended || self.processes[self.schedule.threads[thread].process].dead
    }

    pub fn process_dead(&self, process: usize) -> bool {
        self.processes[process].dead
    }

    pub fn thread_ended(&mut self, thread: ThreadId) {
        let process = self.schedule.threads[thread].process;
        self.processes[process].threads -= 1;
    }

    pub fn new_thread(&mut self, name: String, process: usize) -> ThreadId {
        self.processes[process].threads += 1;
        self.schedule.thread(name, process)
    }

    /// The thread will be woken when that happens.
    pub fn wait_for(&mut self, what: Waiting, thread: ThreadId) {
        let waiting = self.waiting.entry(what).or_default();
        if !waiting.contains(&thread) {
            waiting.push(thread);
        }
    }

    pub fn wake_all(&mut self, what: Waiting) {
        for thread in self.waiting.remove(&what).unwrap_or_default() {
            self.wake(thread);
        }
    }

    /// Carries out an event that is not a thread's.
    pub fn happen(&mut self, event: Event) {
        match event {
            Event::Wake { .. } => {}
            Event::DiskEffect(number) => self.disk_effect(number),
            Event::DiskDone(number) => self.disk_done(number),
            Event::Deliver { device, queue, tag } => self.deliver(device, queue, tag),
            Event::Answer(request) => self.answer(request),
            Event::Control(number) => self.control(number),
            Event::ControlAnswer(number) => self.control_answer(number),
            Event::StopDrains(device) => self.stop_drains(device),
            Event::Abort { device, queue, tag } => self.abort(device, queue, tag),
            Event::AbortFetch { device, queue } => self.abort_fetch(device, queue),
            Event::Bring { device, queue } => self.bring_tags(device, queue),
            Event::Client(device) => self.ask_client(device),
            Event::Transfer(number) => self.get_on(number),
            Event::Timer { ring, token } => self.timer_expired(ring, token),
        }
    }
}

/// A simulated world, as the test that made it sees it. Its methods are for the thread that runs the
/// test, which is a thread of this world that belongs to none of its processes.
pub struct World {
    handle: Handle,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

/// A process of the world.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    number: usize,
    main: ThreadId,
}

impl World {
    /// Runs `scenario` in a new world.
    pub fn run(config: Config, scenario: impl FnOnce(&World)) -> Outcome {
        let _kept = Kept::here();
        let mut random = Random::new(config.seed);
        let (point_random, kernel) = (random.fork(), config.kernel);
        let mut state = State {
            point_random,
            random,
            schedule: Schedule::default(),
            trace: Trace::new(),
            failure: None,
            ended: false,
            processes: vec![ProcessState { dead: false, threads: 0 }],
            waiting: BTreeMap::new(),
            numbered: 0,
            files: Files::default(),
            rings: Vec::new(),
            wakes: BTreeMap::new(),
            disks: Vec::new(),
            operations: BTreeMap::new(),
            transfers: BTreeMap::new(),
            driver: Driver::new(kernel),
            client: None,
            config,
        };
        let thread = state.new_thread("test".into(), 0);
        if let Err(error) = state.make_control_node() {
            state.fail(format!("the world cannot make a file: {error}"));
        }
        state.schedule.first(thread);
        let world = Arc::new(Inner { state: Mutex::new(state), quiet: Condvar::new() });
        let handle = Handle { world: world.clone(), thread };
        handle.introduce();
        enter(Some(handle.clone()));
        let result = catch_unwind(AssertUnwindSafe(|| scenario(&World { handle: handle.clone() })));
        enter(None);
        let mut state = handle.state();
        if let Err(panic) = result
            && !panic.is::<Killed>()
        {
            let what = words_of(&*panic);
            state.fail(what);
        }
        // What the test left behind ends now.
        state.ended = true;
        state.thread_ended(thread);
        state.signal_the_dead();
        while state.processes.iter().any(|process| process.threads > 0) {
            state = state.wait(&world.quiet);
        }
        Outcome {
            hash: state.trace.hash(),
            lines: state.trace.lines(),
            counts: state.trace.counts().clone(),
            took_ns: state.schedule.now_ns,
            failure: state.failure.take(),
        }
    }

    /// Starts a process; `main` is its first thread.
    pub fn start(&self, main: impl FnOnce() + Send + 'static) -> Process {
        let number = {
            let mut state = self.handle.state();
            state.processes.push(ProcessState { dead: false, threads: 0 });
            state.processes.len() - 1
        };
        let started = self.handle.spawn(number, "main".into(), 1 << 20, main);
        let Ok((thread, _)) = started else {
            self.fail("the test cannot start a thread".into());
            unreachable!("a failed world unwinds");
        };
        Process { number, main: thread }
    }

    /// Waits until the process's first thread has ended; true when `deadline_ns` from now came first.
    pub fn join(&self, process: Process, deadline_ns: u64) -> bool {
        let until = self.now_ns() + deadline_ns;
        self.wait_until(Waiting::Thread(process.main), "a process", until, |state| {
            state.schedule.threads[process.main].status == Status::Finished
        })
    }

    /// Ends a process as SIGKILL does: its threads are gone, what it had open is closed, and what it
    /// had begun may have happened or not.
    pub fn kill(&self, process: Process) {
        let mut state = self.handle.state();
        state.note("kill", [process.number as u64, 0, 0, 0]);
        state.forget_memory_of(process.number);
        state.processes[process.number].dead = true;
        state.signal_the_dead();
        while state.processes[process.number].threads > 0 {
            state = state.wait(&self.handle.world.quiet);
        }
        state.server_died(process.number);
    }

    /// Waits until `predicate` holds, asked after every answer that the client gets; true when
    /// `deadline_ns` from now came first.
    pub fn wait_for_client(&self, deadline_ns: u64, mut predicate: impl FnMut() -> bool) -> bool {
        let until = self.now_ns() + deadline_ns;
        self.wait_until(Waiting::Client, "the client", until, |_| predicate())
    }

    fn wait_until(
        &self,
        what: Waiting,
        why: &'static str,
        until: u64,
        mut predicate: impl FnMut(&State) -> bool,
    ) -> bool {
        let mut state = self.handle.state();
        loop {
            if predicate(&state) {
                return false;
            }
            if state.schedule.now_ns >= until {
                return true;
            }
            state.wait_for(what, self.handle.thread);
            match self.handle.block(state, why, Some(until)) {
                Some(next) => state = next,
                None => return true,
            }
        }
    }

    /// Virtual time since the world began, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.handle.state().schedule.now_ns
    }

    /// Adds a disk that stands under the path `/sim/disk/N`, which is returned.
    pub fn add_disk(&self, shape: DiskShape) -> std::path::PathBuf {
        let added = self.handle.state().add_disk(shape);
        match added {
            Ok(path) => path,
            Err(error) => {
                self.fail(format!("the test cannot make a disk: {error}"));
                unreachable!("a failed world unwinds");
            }
        }
    }

    /// Takes the power from a disk: of each write that was not flushed, any part may be left. To be
    /// called when no process has it open.
    pub fn lose_power(&self, disk: usize, how: PowerLoss) {
        self.handle.state().lose_power(disk, how);
    }

    /// Hard errors that disks have answered so far.
    pub fn disk_errors(&self) -> u64 {
        self.handle.state().disks.iter().map(Disk::errors).sum()
    }

    /// Who uses the disks that the driver shows from now on.
    pub fn set_client(&self, client: Box<dyn Client>) {
        self.handle.state().client = Some(client);
    }

    /// Whether the driver has no device and nobody holds one any more; what is left is named.
    pub fn leftovers(&self) -> Option<String> {
        self.handle.state().leftovers()
    }

    /// Ends the run with a failure.
    pub fn fail(&self, what: String) {
        self.handle.state().fail(what);
        std::panic::resume_unwind(Box::new(Killed));
    }
}

/// What a panic says.
pub(super) fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().cloned();
    let words = words.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
    format!("a thread panicked: {}", words.unwrap_or_else(|| "without words".into()))
}
