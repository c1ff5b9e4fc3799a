//! The thread of a disk: takes requests from its queues, has them served over its connections, makes new
//! connections where those are lost, and does again on a server what it may have lost.
//!
//! All connections are one session. A session is lost as a whole, whichever of its connections broke: nobody can tell
//! whether the server that the others still reach is the one that acknowledged what is not flushed.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::MOST_CONNECTIONS;
use super::connect::{Connected, Connector};
use super::journal::Journal;
use super::link::{Ended, Link, Lost};
use super::promise::Promise;
use super::shared::Shared;
use super::work::{Job, Owner, Work};
use crate::io::extents::{Answer, Extent, State};
use crate::io::{Errno, Flags, IoResult, Op};
use crate::nbd::client::SHUTTING_DOWN;
use crate::port::channel::Receiver;
use crate::port::clock::{Duration, Instant};
use crate::port::socket::{Interest, poll_for};
use crate::port::thread;

/// Whether a bug was planted in the simulated world, of which the tests are to find it.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(feature = "sim")]
        let is_planted = crate::port::sim::has(crate::port::sim::Bug::$bug);
        #[cfg(not(feature = "sim"))]
        let is_planted = false;
        is_planted
    }};
}

mod away;
mod changes;

use away::Away;
use changes::Replay;

/// Descriptors that the thread waits for at most: its bell and its connections.
const MOST_FDS: usize = 1 + MOST_CONNECTIONS as usize;

/// How long the thread sleeps while something is under way, and while nothing is.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK_SELDOM: Duration = Duration::from_secs(60);

/// How long it waits before it connects again, where that is not the first time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// After how long without what it is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// A connection that was asked something and says nothing.
    pub answer: Duration,
    /// A server that is away.
    pub dead: Duration,
}

pub(super) struct Session {
    shared: Arc<Shared>,
    connector: Connector,
    promise: Promise,
    patience: Patience,
    say: fn(&str),
    doors: Vec<Receiver<Job>>,
    links: Vec<Link>,
    away: Option<Away>,
    /// When the connections were made, and whether anything was served since.
    up_since: Instant,
    was_served: bool,
    /// How long to wait before the next attempt.
    pause: Duration,
    /// When it began that there is no server, or none that replies.
    silent_since: Option<Instant>,
    /// That it is too long was said.
    given_up: bool,
    /// Why nothing can be served any more, ever.
    dead: Option<String>,
    /// What is to be asked, the next first.
    waiting: VecDeque<Work>,
    /// Changes that the server has acknowledged and we have not, since the journal has no room for them; and how many
    /// flushes had been asked for then.
    held: VecDeque<(Work, u64)>,
    journal: Journal,
    replay: Option<Replay>,
    /// Changes of clients that are under way: which, and where. No two of them touch, so that they are acknowledged in
    /// the order in which they are done.
    changing: Vec<(u64, Range<u64>)>,
    /// Changes that are done again, waiting or under way. A client may have read what they left.
    again: usize,
    arrived: u64,
    flushes: u64,
    /// A flush of our own is waiting or under way.
    own_flush: bool,
    /// How a flush of our own has failed: the next flush of a client fails so.
    flush_error: Option<Errno>,
    ended: Vec<Ended>,
    /// When connections are looked at that may be silent.
    next_look: Instant,
    quits: bool,
}

impl Session {
    pub fn new(
        shared: Arc<Shared>,
        connector: Connector,
        promise: Promise,
        patience: Patience,
        replay: u64,
        say: fn(&str),
        connected: Vec<Connected>,
    ) -> Session {
        let now = Instant::now();
        let mut session = Session {
            shared,
            connector,
            promise,
            patience,
            say,
            doors: Vec::new(),
            links: Vec::new(),
            away: None,
            up_since: now,
            was_served: false,
            pause: FIRST_PAUSE,
            silent_since: None,
            given_up: false,
            dead: None,
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            journal: Journal::new(replay),
            replay: None,
            changing: Vec::new(),
            again: 0,
            arrived: 0,
            flushes: 0,
            own_flush: false,
            flush_error: None,
            ended: Vec::new(),
            next_look: now,
            quits: false,
        };
        session.link_up(connected, now);
        session
    }

    /// Serves until told to quit.
    pub fn run(mut self) {
        // Without the permission the disk works all the same; `status` says what queue threads have.
        let _ = thread::become_io_flusher();
        loop {
            self.take_orders();
            self.take_jobs();
            let now = Instant::now();
            self.look(now);
            self.ask(now);
            self.send(now);
            if self.quits {
                return self.quit();
            }
            self.shared.bell().will_sleep();
            // Whoever came before that has not rung.
            let has_news = self.take_orders() | self.take_jobs();
            let patience = if has_news { Duration::ZERO } else { self.patience(now) };
            self.wait(patience);
        }
    }

    fn take_orders(&mut self) -> bool {
        let Some(orders) = self.shared.orders() else { return false };
        self.doors.extend(orders.doors);
        self.quits |= orders.quit;
        for sender in orders.close {
            self.arrived += 1;
            let work = Work::flush(Owner::Close(sender), self.arrived, Instant::now());
            match self.journal.is_clean() && self.held.is_empty() {
                true => work.finish(self.flush_error.take().map_or(Ok(()), Err)),
                false => self.waiting.push_back(work),
            }
        }
        true
    }

    /// Takes what the queues have; false where that is nothing.
    fn take_jobs(&mut self) -> bool {
        let arrived = self.arrived;
        let now = Instant::now();
        let (waiting, counted, promise) = (&mut self.waiting, &mut self.arrived, &self.promise);
        self.doors.retain(|door| {
            loop {
                match door.try_recv() {
                    Ok(mut job) => {
                        *counted += 1;
                        match at_once(&mut job, promise) {
                            Some(result) => job.ticket.finish(result),
                            None => waiting.push_back(Work::of(job, *counted, now)),
                        }
                    }
                    Err(error) => return error.is_empty(),
                }
            }
        });
        arrived != self.arrived
    }

    /// For how long nothing has to be looked at unless somebody rings.
    fn patience(&self, now: Instant) -> Duration {
        let attempt = self.away.as_ref().filter(|away| away.attempt.is_none() && self.dead.is_none());
        if let Some(away) = attempt {
            return away.next_attempt.saturating_duration_since(now).min(LOOK_EVERY);
        }
        let is_idle = self.waiting.is_empty() && self.links.iter().all(|link| link.outstanding() == 0);
        if is_idle && self.away.is_none() { LOOK_SELDOM } else { LOOK_EVERY }
    }

    /// Waits until something can be done, and receives what there is.
    fn wait(&mut self, patience: Duration) {
        let readable = Interest { read: true, ..Interest::default() };
        let mut fds = [(self.shared.bell().as_fd(), None); MOST_FDS];
        fds[0].1 = Some(readable);
        for (fd, link) in fds[1..].iter_mut().zip(&self.links) {
            *fd = (link.as_fd(), Some(Interest { write: link.wants_to_send(), ..readable }));
        }
        // It fails for lack of memory, and then everything is looked at.
        let ready = poll_for(fds, patience).map(|ready| ready.map(|is| is.read || is.write));
        let ready = ready.unwrap_or([true; MOST_FDS]);
        self.shared.bell().awake(ready[0]);
        let now = Instant::now();
        let mut lost = None;
        for (link, _) in self.links.iter_mut().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            if let Err(why) = link.receive(now, &mut self.ended) {
                lost = Some(why);
                break;
            }
        }
        // What has ended before has ended, all of it: only then is it known what may be lost.
        let mut ended = std::mem::take(&mut self.ended);
        for ended in ended.drain(..) {
            if let Err(ending) = self.completed(ended) {
                lost.get_or_insert(ending);
            }
        }
        self.ended = ended;
        if let Some(lost) = lost {
            self.lose(lost, now);
        }
    }

    /// Looks at the clock.
    fn look(&mut self, now: Instant) {
        if self.dead.is_some() {
            return self.fail_all();
        }
        if self.links.is_empty() {
            self.connect(now);
        }
        if self.links.is_empty() && self.is_too_long_away(now) && !self.waiting.is_empty() {
            if !std::mem::replace(&mut self.given_up, true) {
                let dead = self.patience.dead.as_secs();
                self.say(&format!("no server for {dead} s: requests fail until there is one"));
            }
            self.fail_waiting();
        }
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK_EVERY;
        let age = |since: Instant| now.saturating_duration_since(since);
        let answer = self.patience.answer;
        if self.links.iter().any(|link| link.unanswered_since().is_some_and(|since| age(since) >= answer)) {
            return self.lose(Lost::because(format!("no reply for {} s", answer.as_secs())), now);
        }
        // One that an earlier session was asked already has its time anew.
        let is_endless = |since: Instant| age(since.max(self.up_since)) >= self.longest();
        if self.links.iter().any(|link| link.oldest().is_some_and(is_endless)) {
            self.lose(Lost::because("a request has no end"), now);
        }
    }

    /// How old a request becomes at most, where the server is not silent but does not serve it either.
    fn longest(&self) -> Duration {
        self.patience.answer + self.patience.dead
    }

    fn is_too_long_away(&self, now: Instant) -> bool {
        self.silent_since.is_some_and(|since| now.saturating_duration_since(since) >= self.patience.dead)
    }

    /// Nothing can be served any more.
    fn die(&mut self, why: String) {
        self.say(&format!("{why}: all requests fail from now on"));
        self.dead = Some(why);
        self.links.clear();
        self.replay = None;
    }

    fn fail_all(&mut self) {
        self.held.drain(..).for_each(|(work, _)| work.fail());
        self.fail_waiting();
    }

    fn fail_waiting(&mut self) {
        self.own_flush = false;
        for work in std::mem::take(&mut self.waiting) {
            self.give_up(work);
        }
    }

    fn give_up(&mut self, work: Work) {
        self.again -= usize::from(work.again);
        work.fail();
    }

    fn say(&self, text: &str) {
        (self.say)(&format!("{}: {text}", self.connector.address));
    }

    /// Asks the connections for what waits.
    fn ask(&mut self, now: Instant) {
        if self.links.is_empty() {
            return;
        }
        self.ask_again(now);
        while self.replay.is_none()
            && let Some(mut work) = self.waiting.pop_front()
        {
            if self.must_wait(&work) {
                return self.waiting.push_front(work);
            }
            if work.op == Op::Flush {
                if !self.promise.can_flush() {
                    work.finish(Ok(()));
                    continue;
                }
                self.flushes += 1;
                (work.covers, work.flush) = (self.journal.end(), self.flushes);
            }
            // The server that knew of holes is another now. To take all for data is always right.
            if work.op == Op::Extents && !self.links[0].knows_extents() {
                let data = Extent { len: work.len, state: State::empty() };
                let result = work.answer(&[data]);
                work.finish(result);
                continue;
            }
            let idlest = self.links.iter_mut().filter(|link| link.has_room());
            let Some(link) = idlest.min_by_key(|link| link.outstanding()) else {
                return self.waiting.push_front(work);
            };
            let (number, range) = (work.number, work.offset..work.offset + work.len);
            // The rest of one that is too long for one request is in there.
            let is_new_change = work.op.modifies() && work.done == 0;
            if let Err(work) = link.ask(work, now) {
                return self.waiting.push_front(work);
            }
            if is_new_change {
                self.changing.push((number, range));
            }
        }
    }

    fn send(&mut self, now: Instant) {
        let result = self.links.iter_mut().try_for_each(Link::send);
        if let Err(lost) = result {
            // What it replied before that, and nobody has received, is asked again.
            self.lose(lost, now);
        }
    }

    /// A request has come to its end; an error where that of its connection has come, too.
    fn completed(&mut self, ended: Ended) -> Result<(), Lost> {
        let Ended { mut work, len, result } = ended;
        if result != Err(SHUTTING_DOWN) {
            (self.was_served, self.silent_since, self.given_up) = (true, None, false);
        }
        match result {
            Err(SHUTTING_DOWN) => {
                if !matches!(work.owner, Owner::Replay(_) | Owner::Flush) {
                    self.again(work);
                }
                return Err(Lost::because("the server is ending"));
            }
            Err(errno) => {
                self.has_changed(&work);
                self.failed(work, errno);
            }
            Ok(()) => {
                work.done += len;
                match (work.done < work.len, self.links.is_empty()) {
                    (false, _) => self.succeeded(work),
                    (true, false) => self.waiting.push_front(work),
                    // Nothing is asked any more.
                    (true, true) => self.give_up(work),
                }
            }
        }
        Ok(())
    }

    fn failed(&mut self, work: Work, errno: Errno) {
        match work.owner {
            Owner::Replay(_) => {
                self.die(format!("what was acknowledged and lost cannot be done again: {errno}"));
            }
            Owner::Flush => {
                self.own_flush = false;
                self.flush_error = Some(errno);
                self.journal.forget();
                self.replay = None;
                self.let_go(0);
            }
            Owner::Request(_) | Owner::Close(_) => work.finish(Err(errno)),
        }
    }

    fn succeeded(&mut self, work: Work) {
        match work.op {
            Op::Read | Op::Extents => work.finish(Ok(())),
            Op::Flush => {
                let covers = if planted!(FlushCoversLaterChanges) { self.journal.end() } else { work.covers };
                self.journal.flushed(covers);
                let is_own = matches!(work.owner, Owner::Flush);
                let flush = work.flush;
                if is_own {
                    self.own_flush = false;
                    if let Some(replay) = self.replay.take_if(|replay| replay.flushing) {
                        self.say(&format!(
                            "connected again, {} changes done again",
                            replay.next - replay.first
                        ));
                    }
                    work.finish(Ok(()));
                } else {
                    work.finish(self.flush_error.take().map_or(Ok(()), Err));
                }
                self.let_go(flush);
            }
            Op::Write | Op::Discard | Op::WriteZeroes => self.changed(work),
        }
    }

    fn quit(mut self) {
        self.connector.stop.store(true, Ordering::SeqCst);
        self.links.iter_mut().for_each(Link::disconnect);
        if let Some(attempt) = self.away.take().and_then(|away| away.attempt) {
            let _ = attempt.thread.join();
        }
        self.fail_all();
    }
}

/// The end of a request that the server need not be asked for, or cannot.
fn at_once(job: &mut Job, promise: &Promise) -> Option<IoResult> {
    let Job { io, ticket } = job;
    match io.op {
        Op::Read | Op::Write if ticket.content().len() as u64 != io.len => Some(Err(Errno::EINVAL)),
        // There is room for an answer, or never any.
        Op::Extents => Answer::new(io, ticket.bytes()).err().map(Err),
        // Whether it is fast is the server's to say.
        Op::WriteZeroes if io.flags.contains(Flags::FAST_ZERO) && !promise.knows_fast_zero() => {
            Some(Err(Errno::EOPNOTSUPP))
        }
        Op::Flush => None,
        _ => (io.len == 0).then_some(Ok(())),
    }
}
