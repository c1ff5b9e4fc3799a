//! What queues and the thread of a disk have in common.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::work::Job;
use crate::io::IoResult;
use crate::port::bell::Bell;
use crate::port::channel::{Receiver, Sender};

/// What is asked of the thread besides requests, and rarely.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Queues that have been opened.
    pub doors: Vec<Receiver<Job>>,
    /// Whoever wants everything to be durable.
    pub close: Vec<Sender<IoResult>>,
    /// End, whatever there is.
    pub quit: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    bell: Bell,
    orders: Mutex<Orders>,
    ordered: AtomicBool,
}

impl Shared {
    pub fn new(bell: Bell) -> Shared {
        Shared { bell, orders: Mutex::default(), ordered: AtomicBool::new(false) }
    }

    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    pub fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        self.ordered.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    /// What was asked for since this was looked at last.
    pub fn orders(&self) -> Option<Orders> {
        if !self.ordered.load(Ordering::SeqCst) {
            return None;
        }
        self.ordered.store(false, Ordering::SeqCst);
        Some(std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}
