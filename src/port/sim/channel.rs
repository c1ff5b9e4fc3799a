//! Channels: the real ones, with waiting that the scheduler knows of.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel as real;

pub use real::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};

use super::world::Waiting;
use super::{clock::Instant, current};

/// Which channel of the world; dropped with the last end on one side.
#[derive(Debug)]
struct Number(Option<u64>);

impl Number {
    fn changed(&self) {
        if let (Some(number), Some(handle)) = (self.0, current())
            && let Some(mut state) = handle.alive()
        {
            state.wake_all(Waiting::Channel(number));
        }
    }
}

/// The sending end.
#[derive(Debug)]
pub struct Sender<T> {
    /// Dropped before the number, whose drop tells the other end.
    inner: Option<real::Sender<T>>,
    number: Arc<Number>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T> {
    inner: Option<real::Receiver<T>>,
    number: Arc<Number>,
}

/// A channel with room for so many.
pub fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = real::bounded(room);
    let number = current().map(|handle| {
        let mut state = handle.state();
        state.numbered += 1;
        state.numbered
    });
    let number = Arc::new(Number(number));
    (Sender { inner: Some(sender), number: number.clone() }, Receiver { inner: Some(receiver), number })
}

/// Tries until `attempt` yields something, or until the deadline.
fn wait<V>(
    number: &Number,
    why: &'static str,
    deadline: Option<Instant>,
    mut attempt: impl FnMut() -> Option<V>,
) -> Option<V> {
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return None;
        }
        let (Some(channel), Some(handle)) = (number.0, current()) else { return None };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut state = handle.state();
        let until = left.map(|left| state.schedule.now_ns + left.as_nanos() as u64);
        state.wait_for(Waiting::Channel(channel), handle.thread);
        drop(handle.block(state, why, until)?);
    }
}

impl<T> Sender<T> {
    fn inner(&self) -> &real::Sender<T> {
        self.inner.as_ref().expect("only drop takes it")
    }

    /// As crossbeam's.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let result = self.inner().try_send(value);
        self.number.changed();
        result
    }

    /// As crossbeam's.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.number.0.is_none() || current().is_none() {
            return self.inner().send(value);
        }
        let mut waiting = Some(value);
        wait(&self.number, "room in a channel", None, || match self.inner().try_send(waiting.take()?) {
            Ok(()) => Some(Ok(())),
            Err(TrySendError::Full(value)) => {
                waiting = Some(value);
                None
            }
            Err(TrySendError::Disconnected(value)) => Some(Err(SendError(value))),
        })
        .inspect(|_| self.number.changed())
        .unwrap_or(Ok(()))
    }
}

impl<T> Receiver<T> {
    fn inner(&self) -> &real::Receiver<T> {
        self.inner.as_ref().expect("only drop takes it")
    }

    /// As crossbeam's.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.inner().try_recv().inspect(|_| self.number.changed())
    }

    fn attempt(&self) -> Option<Result<T, RecvError>> {
        match self.try_recv() {
            Ok(value) => Some(Ok(value)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(RecvError)),
        }
    }

    /// As crossbeam's.
    pub fn recv(&self) -> Result<T, RecvError> {
        if self.number.0.is_none() || current().is_none() {
            return self.inner().recv();
        }
        wait(&self.number, "a channel", None, || self.attempt()).unwrap_or(Err(RecvError))
    }

    /// As crossbeam's.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        if self.number.0.is_none() || current().is_none() {
            return self.inner().recv_timeout(timeout);
        }
        let deadline = Instant::now() + timeout;
        match wait(&self.number, "a channel", Some(deadline), || self.attempt()) {
            Some(Ok(value)) => Ok(value),
            Some(Err(RecvError)) => Err(RecvTimeoutError::Disconnected),
            None => Err(RecvTimeoutError::Timeout),
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { inner: self.inner.clone(), number: self.number.clone() }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        Receiver { inner: self.inner.clone(), number: self.number.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.inner = None;
        self.number.changed();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.inner = None;
        self.number.changed();
    }
}
