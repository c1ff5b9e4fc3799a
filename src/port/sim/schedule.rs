//! Who runs, and what happens next: one queue of events in virtual time, one thread at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError};

use super::Handle;
use super::locked::Locked;
use super::world::{Killed, State};
use crate::port::ring::Token;

pub(super) type ThreadId = usize;

/// Events after which a run is taken for one without an end.
const EVENTS_MAX: u64 = 3_000_000;
/// Virtual time after which it is taken for one: longer than every deadline of the control plane
/// that ends a healthy run.
const TIME_MAX_NS: u64 = 1800 * 1_000_000_000;

/// Something that is to happen at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A thread goes on, unless it has gone on since (its ticket is another then).
    Wake { thread: ThreadId, ticket: u64 },
    /// An operation of a file changes the disk or the memory.
    DiskEffect(u64),
    /// And its completion is there.
    DiskDone(u64),
    /// The driver hands a request to the server.
    Deliver { device: u32, queue: u16, tag: u16 },
    /// A request's client hears of its end.
    Answer(u64),
    /// The driver takes up a control command.
    Control(u64),
    /// A control command's sender gets its answer.
    ControlAnswer(u64),
    /// The disk that is being stopped takes no new requests any more.
    StopDrains(u32),
    /// A fetch comes back without a request.
    Abort { device: u32, queue: u16, tag: u16 },
    /// The fetch of a queue in batches comes back for good.
    AbortFetch { device: u32, queue: u16 },
    /// The driver brings what has come for a queue in batches.
    Bring { device: u32, queue: u16 },
    /// The client wanted to be asked again.
    Client(u32),
    /// A transfer over a socket gets on.
    Transfer(u64),
    /// A timer in a ring has run out.
    Timer { ring: usize, token: Token },
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It has the baton.
    Running,
    /// It waits for something, which is named.
    Blocked(&'static str),
    /// It has ended.
    Finished,
}

pub(super) struct Thread {
    pub name: String,
    pub process: usize,
    pub status: Status,
    ticket: u64,
    /// Who is to be unparked, from its first turn on.
    parked: Arc<OnceLock<std::thread::Thread>>,
}

/// What is to happen, and when it is.
#[derive(Default)]
pub(super) struct Schedule {
    pub now_ns: u64,
    events: BTreeMap<(u64, u64), Event>,
    numbered: u64,
    happened: u64,
    pub threads: Vec<Thread>,
    running: ThreadId,
}

impl Schedule {
    /// `event` is to happen `after_ns` from now.
    pub fn after(&mut self, after_ns: u64, event: Event) {
        self.numbered += 1;
        self.events.insert((self.now_ns.saturating_add(after_ns), self.numbered), event);
    }

    /// A thread that has not run yet, waiting for its first turn.
    pub fn thread(&mut self, name: String, process: usize) -> ThreadId {
        self.threads.push(Thread {
            name,
            process,
            status: Status::Blocked("its start"),
            ticket: 0,
            parked: Arc::default(),
        });
        self.threads.len() - 1
    }

    /// The first thread of a world has the baton.
    pub fn first(&mut self, thread: ThreadId) {
        self.threads[thread].status = Status::Running;
        self.running = thread;
    }

    /// A blocked thread goes on `after_ns` from now; one that is not blocked has no need to.
    pub fn wake(&mut self, thread: ThreadId, after_ns: u64) {
        let woken = &self.threads[thread];
        if let Status::Blocked(_) = woken.status {
            let ticket = woken.ticket;
            self.after(after_ns, Event::Wake { thread, ticket });
        }
    }

    pub fn running(&self) -> ThreadId {
        self.running
    }

    fn next(&mut self) -> Option<Event> {
        let ((time, _), event) = self.events.pop_first()?;
        self.now_ns = self.now_ns.max(time);
        self.happened += 1;
        Some(event)
    }

    fn signal_all(&self) {
        self.threads.iter().filter_map(|thread| thread.parked.get()).for_each(std::thread::Thread::unpark);
    }
}

impl State {
    /// A short while, as a wake-up or a command takes: mostly microseconds, rarely milliseconds.
    pub fn latency(&mut self) -> u64 {
        match self.random.below(100) {
            0 => self.random.between(100_000, 5_000_000),
            1..10 => self.random.between(10_000, 200_000),
            _ => self.random.between(200, 10_000),
        }
    }

    /// Wakes a thread after such a while.
    pub fn wake(&mut self, thread: ThreadId) {
        let after = self.latency();
        self.schedule.wake(thread, after);
    }

    /// Lets things happen until it is a thread's turn, which is returned. None when the world has ended.
    fn dispatch(&mut self) -> Option<ThreadId> {
        while !self.over() {
            if self.schedule.happened > EVENTS_MAX || self.schedule.now_ns > TIME_MAX_NS {
                let waits = self.waits();
                self.fail(format!("the run has no end; {waits}"));
                break;
            }
            let Some(event) = self.schedule.next() else {
                let waits = self.waits();
                self.fail(format!("everybody waits for ever; {waits}"));
                break;
            };
            if let Event::Wake { thread, ticket } = event {
                let woken = &mut self.schedule.threads[thread];
                let waits = matches!(woken.status, Status::Blocked(_)) && woken.ticket == ticket;
                if waits && !self.dead(thread) {
                    self.schedule.threads[thread].status = Status::Running;
                    self.schedule.running = thread;
                    self.note("runs", [thread as u64, 0, 0, 0]);
                    return Some(thread);
                }
            } else {
                self.happen(event);
            }
        }
        self.schedule.signal_all();
        None
    }

    fn waits(&self) -> String {
        let waiting = self.schedule.threads.iter().filter_map(|thread| match thread.status {
            Status::Blocked(why) => Some(format!("{} waits for {why}", thread.name)),
            _ => None,
        });
        waiting.collect::<Vec<_>>().join(", ")
    }

    /// Ends all threads of a process, or of the world, at their next step.
    pub fn signal_the_dead(&self) {
        self.schedule.signal_all();
    }
}

impl Handle {
    /// The state of the world. A thread that panicked while it had it has failed the run, so that
    /// what it left is only looked at to report that.
    pub(super) fn state(&self) -> Locked<'_> {
        Locked::new(self.world.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The state, to do something with; `None` for a thread of a process that is dead, to which
    /// nothing happens any more and which does nothing.
    pub(super) fn alive(&self) -> Option<Locked<'_>> {
        let state = self.state();
        (!state.dead(self.thread)).then_some(state)
    }

    /// Waits until somebody wakes this thread, or until `deadline_ns`. May return for no reason.
    /// `None` for a thread that is dead and already unwinding; one that is dead unwinds here.
    pub(super) fn block<'a>(
        &'a self,
        mut state: Locked<'a>,
        why: &'static str,
        deadline_ns: Option<u64>,
    ) -> Option<Locked<'a>> {
        if !state.dead(self.thread) {
            let me = &mut state.schedule.threads[self.thread];
            me.status = Status::Blocked(why);
            me.ticket += 1;
            let ticket = me.ticket;
            if let Some(deadline) = deadline_ns {
                let after = deadline.saturating_sub(state.schedule.now_ns);
                state.schedule.after(after, Event::Wake { thread: self.thread, ticket });
            }
            state = self.hand_over(state);
        }
        self.resume(state)
    }

    /// Gives the baton to whose turn it is, perhaps this thread again.
    fn hand_over<'a>(&'a self, mut state: Locked<'a>) -> Locked<'a> {
        let Some(next) = state.dispatch().filter(|next| *next != self.thread) else { return state };
        let parked = state.schedule.threads[next].parked.clone();
        // Not while the state is held, which it would have to wait for at once. One that has not had
        // its first turn looks by itself.
        drop(state);
        if let Some(thread) = parked.get() {
            thread.unpark();
        }
        self.state()
    }

    /// Waits for the baton.
    fn resume<'a>(&'a self, mut state: Locked<'a>) -> Option<Locked<'a>> {
        loop {
            if state.dead(self.thread) {
                drop(state);
                if !std::thread::panicking() {
                    std::panic::resume_unwind(Box::new(Killed));
                }
                return None;
            }
            let mine = state.schedule.running == self.thread;
            if mine && state.schedule.threads[self.thread].status == Status::Running {
                return Some(state);
            }
            drop(state);
            std::thread::park();
            state = self.state();
        }
    }

    /// Tells who is behind a thread's number.
    pub(super) fn introduce(&self) {
        let parked = self.state().schedule.threads[self.thread].parked.clone();
        // Told once a thread.
        let _ = parked.set(std::thread::current());
    }

    /// A new thread's first turn; false when it was killed before it.
    pub(super) fn first_turn(&self) -> bool {
        self.introduce();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.resume(self.state()).is_some()))
            .unwrap_or(false)
    }

    /// The end of a thread: whoever joins it goes on, and so does somebody else.
    pub(super) fn last_turn(&self) {
        let mut state = self.state();
        let was_dead = state.dead(self.thread);
        state.schedule.threads[self.thread].status = Status::Finished;
        state.thread_ended(self.thread);
        if !was_dead {
            state.note("thread ends", [self.thread as u64, 0, 0, 0]);
            state.wake_all(super::world::Waiting::Thread(self.thread));
            state = self.hand_over(state);
        }
        drop(state);
        self.world.quiet.notify_all();
    }

    /// Now and then lets others run here.
    pub(super) fn point(&self) {
        let Some(mut state) = self.alive() else { return };
        let often = state.config.points_per_thousand;
        if state.point_random.chance(often) {
            let until = state.schedule.now_ns + state.point_random.between(100, 20_000);
            drop(self.block(state, "its turn", Some(until)));
        }
    }
}
