//! Where the door leaves connections for a queue's thread.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::queue::ArrayQueue;

use crate::nbd::Settled;
use crate::port::remote::Remote;
use crate::port::stream::Socket;

/// A place among the connections that there may be at once; free again when all who have it, the queue and what
/// carries the connection under TLS, have dropped it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    _taken: Arc<Taken>,
}

#[derive(Debug)]
struct Taken(Arc<AtomicUsize>);

impl Place {
    /// Takes one of `limit` places, if one is free. Only the door takes any.
    pub fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Place> {
        if taken.load(Ordering::Acquire) >= limit {
            return None;
        }
        taken.fetch_add(1, Ordering::AcqRel);
        Some(Place { _taken: Arc::new(Taken(taken.clone())) })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection that has chosen an export.
#[derive(Debug)]
pub(super) struct Guest {
    pub socket: Socket,
    /// What it sent right behind its choice.
    pub received: Vec<u8>,
    pub place: Place,
    /// What was settled with it.
    pub settled: Settled,
    /// Its other side is this machine's kernel, which writes to its disk to find memory.
    pub is_kernel: bool,
}

/// One queue's desk.
#[derive(Debug)]
pub(super) struct Desk {
    remote: Arc<Remote>,
    guests: ArrayQueue<Guest>,
    connections: AtomicUsize,
    closing: AtomicU8,
    look: AtomicBool,
    /// Nobody sits here any more. Locked while a guest is left, so that none comes behind the last look.
    ended: Mutex<bool>,
}

impl Desk {
    /// For a queue that has at most `limit` connections.
    pub fn new(remote: Arc<Remote>, limit: usize) -> Desk {
        let guests = ArrayQueue::new(limit.max(1));
        Desk {
            remote,
            guests,
            connections: AtomicUsize::new(0),
            closing: AtomicU8::new(0),
            look: AtomicBool::new(false),
            ended: Mutex::new(false),
        }
    }

    /// Hands a connection over. One that comes when the queue has ended is dropped.
    pub fn leave(&self, guest: Guest) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *ended {
            return;
        }
        self.connections.fetch_add(1, Ordering::AcqRel);
        // There are as many places as the queue has room, so that none is refused.
        let left = self.guests.push(guest).is_ok();
        debug_assert!(left, "more guests than places");
        drop(ended);
        self.remote.notify_front();
    }

    /// The queue has ended, in order or not: who waits here is sent away, and so is whoever still comes.
    pub fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        while self.guests.pop().is_some() {}
        self.connections.store(0, Ordering::Release);
    }

    /// Whether [`end`](Self::end) was called.
    pub fn has_ended(&self) -> bool {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next connection that waits.
    pub fn receive(&self) -> Option<Guest> {
        self.guests.pop()
    }

    /// A connection that was left here has ended.
    pub fn gone(&self) {
        self.connections.fetch_sub(1, Ordering::AcqRel);
    }

    /// Connections that were left here and have not ended.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// Has the queue look at its connections, if it has any: time has passed.
    pub fn look(&self) {
        if self.connections() > 0 {
            self.look.store(true, Ordering::Release);
            self.remote.notify_front();
        }
    }

    /// Has the queue look at the clock, for those that it waits for only a moment.
    pub fn nudge(&self) {
        self.remote.notify_front();
    }

    /// Whether [`look`](Self::look) was called since the last time.
    pub fn is_to_look(&self) -> bool {
        self.look.swap(false, Ordering::AcqRel)
    }

    /// Nothing new is to be begun; with `at_once` nobody is answered any more either.
    pub fn close(&self, at_once: bool) {
        self.closing.fetch_max(1 + u8::from(at_once), Ordering::AcqRel);
        self.remote.notify_front();
    }

    /// Whether [`close`](Self::close) was called, and with what.
    pub fn closing(&self) -> Option<bool> {
        match self.closing.load(Ordering::Acquire) {
            0 => None,
            how => Some(how > 1),
        }
    }
}
