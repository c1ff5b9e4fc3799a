//! What a queue's loop has for each slot: the request that is in it, and the future that serves it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Waker;

use super::meter::Came;
use crate::io::{Io, IoResult};
use crate::port::remote::SlotWaker;
use crate::port::ring::Ring;

/// A request in its slot, with the future that serves it, where it needs one.
pub(super) struct Slot<F> {
    pub(super) task: Pin<Box<Option<F>>>,
    pub(super) io: Option<Io>,
    /// When the request came. Where it has not all come yet, when its beginning did.
    pub(super) came: Came,
    /// The request is served by a chain, whose end says how it went.
    pub(super) chained: bool,
    /// Set when the task has ended before all its operations have.
    pub(super) result: Option<IoResult>,
    pub(super) waker: Waker,
    pub(super) woken: Arc<SlotWaker>,
}

/// All slots of a queue; everything they will ever need is allocated here.
pub(super) struct Slots<F> {
    pub(super) slots: Box<[Slot<F>]>,
    /// Those that a task or one operation serves.
    pub(super) in_service: usize,
    /// Those of them that one operation serves.
    pub(super) single: usize,
    /// Those that a chain serves, which are not counted as in service: they are the driver's, and the end
    /// of a chain may come only with the slot's next request.
    pub(super) chained: usize,
}

impl<F: Future<Output = IoResult>> Slots<F> {
    /// `_task` only names the type of the future.
    pub(super) fn new(ring: &Ring, depth: u16, _task: &impl Fn(Io) -> F) -> Slots<F> {
        let slot = |number| {
            let (waker, woken) = ring.remote().waker(number);
            Slot {
                task: Box::pin(None),
                io: None,
                came: Came::default(),
                chained: false,
                result: None,
                waker,
                woken,
            }
        };
        Slots { slots: (0..depth).map(slot).collect(), in_service: 0, single: 0, chained: 0 }
    }
}
