//! The way back to a queue thread: completions and wake-ups from other threads.
//!
//! Messages go through a bounded queue that cannot overflow (each operation ends once, each slot
//! has at most one wake-up waiting); a thread that sleeps in its ring is woken by an eventfd.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use crossbeam::queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::io::{Errno, IoResult};
use crate::payload::OPERATIONS_PER_SLOT;

/// What another thread has to say to a queue thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An operation handed out as a [`Ticket`] ended.
    Finished {
        /// Slot that it belongs to.
        slot: u16,
        /// Its entry in the slot.
        entry: u8,
        /// 0 or a negative errno.
        result: i32,
    },
    /// The task of this slot wants to be polled.
    Wake(u16),
    /// Somebody has something for the front end.
    Front,
    /// Stop as soon as nothing is in service.
    Stop,
}

/// The receiving end's shared half.
#[derive(Debug)]
pub struct Remote {
    messages: ArrayQueue<Message>,
    asleep: AtomicBool,
    stop: AtomicBool,
    front: AtomicBool,
    event: OwnedFd,
}

impl Remote {
    /// For a queue with this many slots.
    pub fn new(slots: u16) -> io::Result<Arc<Remote>> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Remote {
            messages: ArrayQueue::new(usize::from(slots.max(1)) * (OPERATIONS_PER_SLOT + 1)),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            front: AtomicBool::new(false),
            event: event.into(),
        }))
    }

    fn send(&self, message: Message) {
        let taken = self.messages.push(message).is_ok();
        debug_assert!(taken, "the capacity covers every message that can exist");
        self.notify();
    }

    /// Asks the thread to stop once nothing is in service.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.notify();
    }

    /// Tells the front end that there is something for it; what it is lies where the two agreed.
    pub fn notify_front(&self) {
        self.front.store(true, Ordering::SeqCst);
        self.notify();
    }

    fn notify(&self) {
        #[cfg(feature = "sim")]
        crate::port::sim::point();
        if self.asleep.swap(false, Ordering::SeqCst) {
            #[cfg(feature = "sim")]
            if crate::port::sim::notify(self.event_fd()) {
                return;
            }
            // An eventfd write fails only when its counter is full, and then the reader wakes anyway.
            let _ = nix::unistd::write(self.event.as_fd(), &1u64.to_ne_bytes());
        }
    }

    /// The thread is about to sleep; false when there is something to do first.
    #[inline]
    pub fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        #[cfg(feature = "sim")]
        crate::port::sim::point();
        let waiting = self.stop.load(Ordering::SeqCst) || self.front.load(Ordering::SeqCst);
        if self.messages.is_empty() && !waiting {
            return true;
        }
        self.asleep.store(false, Ordering::SeqCst);
        false
    }

    /// Whether somebody has left something for the thread.
    #[inline]
    pub fn is_called(&self) -> bool {
        !self.messages.is_empty() || self.stop.load(Ordering::Relaxed) || self.front.load(Ordering::Relaxed)
    }

    /// The thread is awake; others need not wake it.
    #[inline]
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// The next message, oldest first.
    #[inline]
    pub fn receive(&self) -> Option<Message> {
        if let Some(message) = self.messages.pop() {
            return Some(message);
        }
        if self.front.load(Ordering::SeqCst) && self.front.swap(false, Ordering::SeqCst) {
            return Some(Message::Front);
        }
        if self.stop.load(Ordering::SeqCst) && self.stop.swap(false, Ordering::SeqCst) {
            return Some(Message::Stop);
        }
        None
    }

    /// The eventfd that the ring reads.
    pub fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// A waker for the task of `slot`, made once at start.
    pub fn waker(self: &Arc<Remote>, slot: u16) -> (Waker, Arc<SlotWaker>) {
        let waker = Arc::new(SlotWaker { remote: self.clone(), slot, waiting: AtomicBool::new(false) });
        (Waker::from(waker.clone()), waker)
    }
}

/// Wakes one slot's task, from any thread.
#[derive(Debug)]
pub struct SlotWaker {
    remote: Arc<Remote>,
    slot: u16,
    waiting: AtomicBool,
}

impl SlotWaker {
    /// The wake-up was received; the next one counts again.
    pub fn received(&self) {
        self.waiting.store(false, Ordering::SeqCst);
    }
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.waiting.swap(true, Ordering::SeqCst) {
            self.remote.send(Message::Wake(self.slot));
        }
    }
}

/// An operation that was handed to another thread, with access to its bytes. It ends exactly once:
/// by [`finish`](Ticket::finish), or with EIO when it is dropped.
#[derive(Debug)]
pub struct Ticket {
    remote: Arc<Remote>,
    slot: u16,
    entry: u8,
    start: *mut u8,
    len: usize,
    result: i32,
}

// SAFETY: the bytes belong to the operation until it ends, whatever thread holds the ticket: the
// slot refuses access to them meanwhile and is not reused.
unsafe impl Send for Ticket {}

impl Ticket {
    /// # Safety
    /// `entry` of `slot` is in flight over exactly these bytes, which are initialised, and no
    /// second ticket for it exists.
    pub(in crate::port) unsafe fn new(
        remote: Arc<Remote>,
        slot: u16,
        entry: u8,
        start: *mut u8,
        len: usize,
    ) -> Ticket {
        Ticket { remote, slot, entry, start, len, result: -Errno::EIO.number() }
    }

    /// The bytes of the operation.
    pub fn bytes(&mut self) -> &mut [u8] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: `new` promised initialised memory that is this ticket's alone until it ends,
        // which takes the ticket away.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// The bytes of the operation, to read.
    pub fn content(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: as in `bytes`; writing to them takes the ticket exclusively.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    /// Ends the operation.
    pub fn finish(mut self, result: IoResult) {
        self.result = match result {
            Ok(()) => 0,
            Err(errno) => -errno.number(),
        };
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.remote.send(Message::Finished { slot: self.slot, entry: self.entry, result: self.result });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_that_is_dropped_ends_with_an_error() {
        let remote = Remote::new(4).unwrap();
        // SAFETY: a ticket over no bytes.
        drop(unsafe { Ticket::new(remote.clone(), 2, 1, std::ptr::null_mut(), 0) });
        assert_eq!(remote.receive(), Some(Message::Finished { slot: 2, entry: 1, result: -5 }));
        // SAFETY: as above.
        unsafe { Ticket::new(remote.clone(), 2, 1, std::ptr::null_mut(), 0) }.finish(Ok(()));
        assert_eq!(remote.receive(), Some(Message::Finished { slot: 2, entry: 1, result: 0 }));
        assert_eq!(remote.receive(), None);
    }

    #[test]
    fn a_slot_that_is_woken_often_has_one_message() {
        let remote = Remote::new(1).unwrap();
        let (waker, slot) = remote.waker(0);
        (0..100).for_each(|_| waker.wake_by_ref());
        assert!(!remote.may_sleep());
        assert_eq!(remote.receive(), Some(Message::Wake(0)));
        slot.received();
        assert!(remote.may_sleep());
        waker.wake_by_ref();
        assert_eq!(remote.receive(), Some(Message::Wake(0)));
    }
}
