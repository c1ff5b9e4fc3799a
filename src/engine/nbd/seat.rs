//! One thread a queue: its memory near, its ring its own, the connections that the door leaves at
//! its desk.

use std::sync::Arc;

use super::desk::Desk;
use super::export::SLOT_SIZE;
use super::front::{Front, Sizes};
use crate::backend::QueueContext;
use crate::engine::QueueThread;
use crate::error::{Error, Result};
use crate::metrics::QueueMetrics;
use crate::nbd::transmission::Rules;
use crate::port::remote::Remote;
use crate::port::ring::Ring;
use crate::port::thread::{self, Scheduling};
use crate::queue::{Buffers, Stack};

/// What a thread needs to serve a queue.
pub(super) struct Seat {
    pub name: String,
    pub stack: Arc<dyn Stack>,
    pub rules: Rules,
    pub queue: u16,
    pub sizes: Sizes,
    pub remote: Arc<Remote>,
    pub metrics: Arc<QueueMetrics>,
    pub desk: Arc<Desk>,
}

impl Seat {
    /// Serves connections until the desk is closed. Calls `seated` once its memory and its ring are
    /// there; it is only then that the backend opens its queue.
    pub fn serve(self, seated: impl FnOnce(QueueThread)) -> Result<()> {
        // The client may be this machine's kernel, which writes to its disk to find memory.
        let _ = thread::become_io_flusher();
        thread::touch_stack();
        let failed = |why: &'static str| {
            let what = format!("export {:?}, queue {}: {why}", self.name, self.queue);
            move |error| Error::system(what, error)
        };
        let slots = self.sizes.slots;
        // Declared in this order, so that the ring is dropped before the memory it works on.
        let buffers = Buffers::new(slots, SLOT_SIZE).map_err(failed("no memory for the buffers"))?;
        let ring = Ring::new(slots, self.remote.clone()).map_err(failed("cannot make an io_uring"))?;
        // SAFETY: the ring and all its clones are gone before the buffers, by the order above and
        // since the backend's queue, which has a clone, lives inside `Stack::serve`.
        let registered = unsafe { buffers.register(&ring) };
        let context = QueueContext { ring: &ring, index: self.queue, depth: slots, max_io_size: SLOT_SIZE };
        let capabilities = self.stack.capabilities();
        let mut front = Front::new(&self.desk, &buffers, self.rules, capabilities, self.sizes);
        let scheduling = ring.schedule(Scheduling::Adaptive);
        seated(QueueThread::current(self.queue, scheduling, &ring, registered));
        self.stack.serve(&context, &buffers, &mut front, &self.metrics)
    }
}
