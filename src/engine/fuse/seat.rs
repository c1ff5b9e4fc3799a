//! One thread a queue: its memory near, its ring its own, requests from its line.

use std::sync::Arc;

use super::front::Front;
use super::line::Counter;
use crate::backend::QueueContext;
use crate::engine::QueueThread;
use crate::error::{Error, Result};
use crate::metrics::QueueMetrics;
use crate::port::clock::Duration;
use crate::port::remote::Remote;
use crate::port::ring::Ring;
use crate::port::thread::{self, Scheduling};
use crate::queue::{Buffers, Stack};

/// What a thread needs to serve a queue.
pub(super) struct Seat {
    pub stack: Arc<dyn Stack>,
    pub queue: u16,
    pub depth: u16,
    pub io_size: u32,
    pub counter: Counter,
    pub remote: Arc<Remote>,
    pub metrics: Arc<QueueMetrics>,
    pub spin: Duration,
    pub scheduling: Scheduling,
}

impl Seat {
    /// Serves the queue until it is told to stop. Calls `seated` once all is ready.
    pub fn serve(self, seated: impl FnOnce(QueueThread)) -> Result<()> {
        // Before the ring is made, so that the ring's kernel threads inherit it.
        let _ = thread::become_io_flusher();
        thread::touch_stack();
        let failed =
            |why: &'static str| move |error| Error::system(format!("queue {}: {why}", self.queue), error);
        // Declared in this order, so that the ring is dropped before the memory it works on.
        let buffers = Buffers::new(self.depth, self.io_size).map_err(failed("no memory for the buffers"))?;
        let ring = Ring::with_spin(self.depth, self.remote.clone(), self.spin)
            .map_err(failed("cannot make an io_uring"))?;
        // SAFETY: the ring and all its clones are gone before the buffers, by the order above and
        // since the backend's queue, which has a clone, lives inside `Stack::serve`.
        let registered_buffers = unsafe { buffers.register(&ring) };
        let scheduling = ring.schedule(self.scheduling);
        let mut front = Front::new(self.counter, &buffers, self.depth, self.stack.capabilities());
        seated(QueueThread::current(self.queue, scheduling, &ring, registered_buffers));
        let context =
            QueueContext { ring: &ring, index: self.queue, depth: self.depth, max_io_size: self.io_size };
        self.stack.serve(&context, &buffers, &mut front, &self.metrics)
    }
}
