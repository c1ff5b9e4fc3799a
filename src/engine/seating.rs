//! The threads of a disk's queues, whatever engine they serve: each says once that it is ready, or why it never
//! was, and how it ended is kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Alarm, QueueThread};
use crate::error::{Error, Kind, Result};
use crate::metrics::{QueueMetrics, Stats};
use crate::port::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crate::port::clock::{Duration, Instant};
use crate::port::system::cpu_count;
use crate::port::thread::{self, JoinHandle};

/// Most requests that a queue has in service at once.
pub(super) const MAX_DEPTH: u16 = blockhaus_uapi::ublk::MAX_QUEUE_DEPTH;

/// Refuses, as why `what` fails, so many queues of this depth where they cannot be.
pub(super) fn check_shape(what: &str, queues: u16, depth: u16) -> Result<()> {
    if depth == 0 || depth > MAX_DEPTH {
        let why = format!("a depth of {depth} is outside 1 to {MAX_DEPTH}");
        return Err(Error::invalid(what, why).cure("give --depth 128"));
    }
    let cpus = cpu_count();
    if queues == 0 || queues > cpus {
        let why = format!("{queues} queues on a machine of {cpus} processors");
        return Err(Error::invalid(what, why).cure(format!("give --queues from 1 to {cpus}")));
    }
    Ok(())
}

/// How long a thread may take to make its buffers and its ring.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a thread ended, once it has.
type End = Option<Result<(), String>>;

/// A thread that serves a queue.
pub(super) struct Thread {
    handle: Option<JoinHandle<()>>,
    end: Arc<Mutex<End>>,
}

impl Thread {
    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        lock(&self.end).is_some()
    }

    /// Why it ended by itself, if it did.
    pub fn failure(&self) -> Option<String> {
        lock(&self.end).as_ref()?.clone().err()
    }

    /// Waits until it has ended.
    pub fn join(&mut self) {
        if let Some(handle) = self.handle.take() {
            // A panic aborts the process, so that there is none to report here.
            let _ = handle.join();
        }
    }
}

fn lock(end: &Mutex<End>) -> MutexGuard<'_, End> {
    end.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A queue of a disk: its thread, the handle by which others speak to it, and what it counts.
pub(super) struct Queue<H> {
    pub thread: Thread,
    pub handle: H,
    pub metrics: Arc<QueueMetrics>,
}

impl<H> Queue<H> {
    /// What these have done.
    pub fn stats(queues: &[Queue<H>]) -> Stats {
        let metrics: Vec<_> = queues.iter().map(|queue| queue.metrics.clone()).collect();
        Stats::of(&metrics)
    }

    /// Why one of these ended by itself, if one did.
    pub fn failure(queues: &[Queue<H>]) -> Option<String> {
        queues.iter().find_map(|queue| queue.thread.failure())
    }
}

/// The threads of a disk while they are started; each has a `T` to say when it is ready.
pub(super) struct Seating<T> {
    tell: Sender<Result<T, String>>,
    told: Receiver<Result<T, String>>,
    started: usize,
    alarm: Alarm,
}

impl<T: Send + 'static> Seating<T> {
    /// For so many threads; `alarm` rings when one of them has ended.
    pub fn new(queues: u16, alarm: Alarm) -> Seating<T> {
        let (tell, told) = bounded(usize::from(queues));
        Seating { tell, told, started: 0, alarm }
    }

    /// Starts a thread that does `serve`, which calls what it is given once it is ready.
    pub fn start(
        &mut self,
        name: String,
        serve: impl FnOnce(&mut dyn FnMut(T)) -> Result<()> + Send + 'static,
    ) -> Result<Thread> {
        let end = Arc::new(Mutex::new(None));
        let (tell, result, alarm) = (self.tell.clone(), end.clone(), self.alarm.clone());
        let body = move || {
            let mut is_seated = false;
            let mut seated = |ready| {
                is_seated = true;
                // Who has stopped waiting needs no word.
                let _ = tell.send(Ok(ready));
            };
            let served = serve(&mut seated).map_err(|error| error.to_string());
            if let (false, Err(why)) = (is_seated, &served) {
                // Said at once: the threads of the other queues live on until the disk goes.
                let _ = tell.send(Err(why.clone()));
            }
            *lock(&result) = Some(served);
            alarm.ring();
        };
        let handle = thread::spawn(name, body)
            .map_err(|error| Error::system("cannot start the thread of a queue", error))?;
        self.started += 1;
        Ok(Thread { handle: Some(handle), end })
    }

    /// Waits until all are ready; yields what they say, in any order. The first that never will be is why `what`
    /// fails.
    pub fn wait(self, what: impl Into<String>) -> Result<Vec<T>> {
        let Seating { tell, told, started, alarm: _ } = self;
        drop(tell);
        let until = Instant::now() + PATIENCE;
        let mut ready = Vec::with_capacity(started);
        while ready.len() < started {
            let (kind, why) = match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Ok(one)) => {
                    ready.push(one);
                    continue;
                }
                Ok(Err(why)) => (Kind::Failed, why),
                Err(RecvTimeoutError::Timeout) => {
                    (Kind::Deadline, format!("its queues were not ready within {} s", PATIENCE.as_secs()))
                }
                Err(RecvTimeoutError::Disconnected) => (Kind::Failed, "a queue ended".into()),
            };
            return Err(Error::new(kind, what, why));
        }
        Ok(ready)
    }
}

impl Seating<QueueThread> {
    /// As [`wait`](Self::wait), in the order of the queues.
    pub fn wait_for_queues(self, what: impl Into<String>) -> Result<Vec<QueueThread>> {
        let mut threads = self.wait(what)?;
        threads.sort_by_key(|thread| thread.queue);
        Ok(threads)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::port::clock::Deadline;

    /// One queue without memory, and one that is ready and waits for the device's end.
    #[test]
    fn a_queue_that_is_never_ready_is_heard_of_at_once_although_others_live_on() {
        let (end, ended) = bounded::<()>(1);
        let mut seating = Seating::new(2, Alarm::default());
        let mut good = seating
            .start("good".into(), move |seated| {
                seated(1);
                let _ = ended.recv();
                Ok(())
            })
            .unwrap();
        let mut bad =
            seating.start("bad".into(), |_| Err(Error::invalid("queue 1", "there is no memory"))).unwrap();
        let began = Instant::now();
        let error = seating.wait("cannot start it").unwrap_err();
        assert_eq!(error.kind(), Kind::Failed);
        assert_eq!(error.to_string(), "cannot start it: queue 1: there is no memory");
        assert!(began.elapsed() < PATIENCE / 2, "it waited for those that live on");
        bad.join();
        assert_eq!(bad.failure().as_deref(), Some("queue 1: there is no memory"));
        assert!(!good.has_ended());
        drop(end);
        good.join();
        assert!(good.has_ended() && good.failure().is_none());
    }

    #[test]
    fn all_that_are_ready_say_so_and_one_that_ends_without_a_word_is_no_queue() {
        let (alarm, rung) = (Alarm::default(), Arc::new(AtomicU32::new(0)));
        let bell = rung.clone();
        alarm.tell(Arc::new(move || {
            bell.fetch_add(1, Ordering::Relaxed);
        }));
        let mut seating = Seating::new(2, alarm);
        let mut threads: Vec<Thread> = (0..2)
            .map(|number| {
                let serve = move |seated: &mut dyn FnMut(u16)| {
                    seated(number);
                    Ok(())
                };
                seating.start(format!("q{number}"), serve).unwrap()
            })
            .collect();
        let mut ready = seating.wait("cannot start it").unwrap();
        ready.sort_unstable();
        assert_eq!(ready, [0, 1]);
        threads.iter_mut().for_each(Thread::join);
        assert_eq!(rung.load(Ordering::Relaxed), 2, "the ends that were told of");
        let mut silent = Seating::<u16>::new(1, Alarm::default());
        let thread = silent.start("silent".into(), |_| Ok(())).unwrap();
        let error = silent.wait("cannot start it").unwrap_err().to_string();
        assert_eq!(error, "cannot start it: a queue ended");
        assert!(Deadline::after(PATIENCE).wait_until(|| thread.has_ended()));
    }
}
