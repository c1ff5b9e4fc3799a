//! A backend that may not be written to, whatever it can do.

use crate::backend::{Backend, QueueContext, pass_on};
use crate::error::Result;
use crate::io::{Capabilities, Geometry};

/// Takes from a backend every capability that changes it. The queue's choke point does the rest,
/// so requests pass to the queue below untouched.
#[derive(Debug)]
pub struct ReadOnly<B>(pub B);

impl<B: Backend> Backend for ReadOnly<B> {
    type Queue = B::Queue;

    fn geometry(&self) -> Geometry {
        Geometry { discard_granularity: 0, ..self.0.geometry() }
    }

    fn capabilities(&self) -> Capabilities {
        let changing = Capabilities::WRITE
            | Capabilities::DISCARD
            | Capabilities::DISCARD_ZEROES
            | Capabilities::WRITE_ZEROES
            | Capabilities::VOLATILE_CACHE
            | Capabilities::FUA;
        self.0.capabilities() - changing
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<B::Queue> {
        self.0.open_queue(context)
    }

    fn notes(&self) -> Vec<String> {
        self.0.notes()
    }

    pass_on!(0);
}
