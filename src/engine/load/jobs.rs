//! The life of a load: jobs seated → the word to begin → warm-up → window → what is in flight awaited → joined.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::measured::{CpuTime, Measured};
use super::seat::{Ring, Seat};
use super::tally::Tally;
use super::window::Window;
use super::{Disk, Load};
use crate::engine::Alarm;
use crate::engine::seating::{Seating, Thread};
use crate::error::{Error, Kind, Result};
use crate::port::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crate::port::clock::{self, Duration};
use crate::port::remote::Remote;
use crate::queue::Stack;

/// Between two words to whoever watches.
const TICK: Duration = Duration::from_millis(50);

/// How long, and from which numbers.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// Before anything counts.
    pub warm_up: Duration,
    /// How long requests count.
    pub window: Duration,
    /// Of the offsets and of what is written. One that was used before can find the same blocks in a cache.
    pub seed: u64,
}

/// Where a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing counts yet.
    WarmUp,
    /// Requests count.
    Window,
    /// No request is made any more; those in flight are waited for.
    Ending,
}

/// How far a load is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Where it is.
    pub phase: Phase,
    /// Time since the first request.
    pub elapsed: Duration,
    /// Requests that ended since then.
    pub ended: u64,
}

struct Job {
    thread: Thread,
    remote: Arc<Remote>,
    ended: Arc<AtomicU64>,
    word: Sender<()>,
}

struct Jobs {
    jobs: Vec<Job>,
    window: Arc<Window>,
    results: Receiver<Result<Tally>>,
}

/// Puts the disk under a load and measures it. `watch` hears every moment how far it is; false ends it early.
///
/// Fails where the disk cannot be put under this load ([`Load::check`]), or a job cannot be made or its queue fails.
/// Requests that fail are counted, and no failure of this.
pub fn measure(
    stack: &Arc<dyn Stack>,
    load: &Load,
    course: &Course,
    watch: &mut dyn FnMut(&Progress) -> bool,
) -> Result<Measured> {
    let disk = Disk::of(&**stack);
    load.check(&disk)?;
    let (mut jobs, seating) = Jobs::start(stack, load, &disk, course.seed)?;
    let seated = seating.wait("cannot measure");
    let followed = seated.and_then(|mut rings| match rings.pop() {
        Some(ring) => jobs.follow(load, course, ring, watch),
        None => Err(ended_by_itself()),
    });
    // Where it failed early: without the word they end by themselves.
    for Job { mut thread, word, .. } in jobs.jobs {
        drop(word);
        thread.join();
    }
    followed
}

impl Jobs {
    fn start(stack: &Arc<dyn Stack>, load: &Load, disk: &Disk, seed: u64) -> Result<(Jobs, Seating<Ring>)> {
        let count = usize::from(load.jobs);
        let mut seating = Seating::new(load.jobs, Alarm::default());
        let (tell, results) = bounded(count);
        let mut jobs = Jobs { jobs: Vec::with_capacity(count), window: Arc::new(Window::unknown()), results };
        for job in 0..load.jobs {
            let failed = |error| Error::system(format!("cannot make job {job}"), error);
            let remote = Remote::new(load.depth).map_err(failed)?;
            let ended = Arc::new(AtomicU64::new(0));
            let (word, told) = bounded(1);
            let seat = Seat {
                stack: stack.clone(),
                load: *load,
                disk: *disk,
                job,
                seed,
                remote: remote.clone(),
                window: jobs.window.clone(),
                ended: ended.clone(),
            };
            let tell = tell.clone();
            let thread = seating.start(format!("bh-load-{job}"), move |seated| {
                let mut is_seated = false;
                let result = seat.work(
                    |ring| {
                        is_seated = true;
                        seated(ring);
                    },
                    &told,
                );
                match result {
                    Err(error) if !is_seated => return Err(error),
                    // Who has stopped listening needs no word.
                    result => drop(tell.send(result)),
                }
                Ok(())
            })?;
            jobs.jobs.push(Job { thread, remote, ended, word });
        }
        Ok((jobs, seating))
    }

    /// From the word to begin to the last result.
    fn follow(
        &mut self,
        load: &Load,
        course: &Course,
        ring: Ring,
        watch: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<Measured> {
        let start_ns = clock::monotonic_nanoseconds();
        let begin_ns = start_ns + nanoseconds(course.warm_up);
        let end_ns = begin_ns + nanoseconds(course.window);
        self.window.set(begin_ns, end_ns);
        for job in &self.jobs {
            let _ = job.word.send(());
        }
        let mut tally = Tally::new()?;
        let mut failure = None;
        let mut interrupted = false;
        let mut running = self.jobs.len();
        while running != 0 {
            let now_ns = clock::monotonic_nanoseconds();
            let progress = self.progress(start_ns, begin_ns, now_ns);
            if !watch(&progress) && !interrupted {
                // Asked to end while only what is in flight was waited for, it has all that it wanted.
                interrupted = progress.phase != Phase::Ending;
                self.close(now_ns);
            }
            match self.results.recv_timeout(TICK) {
                Ok(Ok(one)) => {
                    tally.merge(&one)?;
                    running -= 1;
                }
                Ok(Err(error)) => {
                    // The others would go on without it, and be measured for something else.
                    self.close(clock::monotonic_nanoseconds());
                    failure.get_or_insert(error);
                    running -= 1;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(failure.unwrap_or_else(ended_by_itself)),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let window = Duration::from_nanos(self.window.end_ns().saturating_sub(begin_ns));
        Ok(Measured {
            load: *load,
            window,
            served: tally.served,
            cpu_time: cpu_time(&tally, window),
            starved: starved(&tally),
            latencies: tally.latencies,
            failures: tally.failures,
            warm_up_failures: tally.warm_up_failures,
            looked_at: tally.looked_at,
            zeros: tally.zeros,
            ring,
            interrupted,
        })
    }

    fn progress(&self, start_ns: u64, begin_ns: u64, now_ns: u64) -> Progress {
        let phase = match () {
            () if now_ns >= self.window.end_ns() => Phase::Ending,
            () if now_ns >= begin_ns => Phase::Window,
            () => Phase::WarmUp,
        };
        let ended = self.jobs.iter().map(|job| job.ended.load(Ordering::Relaxed)).sum();
        Progress { phase, elapsed: Duration::from_nanos(now_ns.saturating_sub(start_ns)), ended }
    }

    /// Ends the window, and wakes jobs that wait for their disk.
    fn close(&self, now_ns: u64) {
        self.window.close(now_ns);
        self.jobs.iter().for_each(|job| job.remote.notify_front());
    }
}

/// Processor time in the window, of which a job asked a moment after its begin and its end. Known where these moments
/// are near enough to them.
fn cpu_time(tally: &Tally, window: Duration) -> Option<CpuTime> {
    let (span_ns, used) = tally.cpu?;
    let factor = window.as_secs_f64() / Duration::from_nanos(span_ns).as_secs_f64();
    (0.5..=2.0).contains(&factor).then(|| used.times(factor))
}

/// The kernel counts waiting by another clock and from another moment, so that it can be a little more than all there was.
fn starved(tally: &Tally) -> f64 {
    let (waited, worked) = (tally.waited.as_secs_f64(), tally.worked.as_secs_f64());
    if worked == 0.0 { 0.0 } else { (waited / worked).min(1.0) }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

#[cold]
fn ended_by_itself() -> Error {
    Error::new(Kind::Failed, "cannot measure", "a job ended by itself")
}
