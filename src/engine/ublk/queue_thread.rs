//! One thread a queue: pinned, its memory near, its ring its own.

use std::fs::File;
use std::sync::Arc;

use super::data_path::{DataPath, Load};
use super::descriptors::Descriptors;
use super::front::{self, Batch, Elements, PerTag};
use crate::backend::QueueContext;
use crate::engine::QueueThread;
use crate::error::{Error, Result};
use crate::metrics::QueueMetrics;
use crate::port::clock::Duration;
use crate::port::remote::Remote;
use crate::port::ring::Ring;
use crate::port::thread::{self, CpuMask};
use crate::queue::{Buffers, FrontEnd, Stack};

/// What a thread needs to serve a queue.
pub(super) struct Seat {
    pub device: Arc<File>,
    pub stack: Arc<dyn Stack>,
    pub queue: u16,
    pub depth: u16,
    pub max_io_size: u32,
    pub descriptor_size: usize,
    pub affinity: CpuMask,
    pub remote: Arc<Remote>,
    pub metrics: Arc<QueueMetrics>,
    pub spin: Duration,
    pub data_path: DataPath,
    pub load: Load,
    /// Tags whose pages the driver can register.
    pub registered_tags: u16,
    /// Keep a kernel that cannot be asked not to (before 7.0) from looking for partitions.
    pub prevent_partition_scan: bool,
}

impl Seat {
    /// Serves the queue until its device is stopped. Calls `seated` once all is ready, before the
    /// first request is asked for.
    pub fn serve(self, seated: impl FnOnce(QueueThread)) -> Result<()> {
        // Before the ring is made, so that the ring's kernel threads inherit it. Where it is not
        // permitted, the flag read back below says so.
        let _ = thread::become_io_flusher();
        let what = |what: &str| format!("queue {}: {what}", self.queue);
        self.pin().map_err(|error| Error::system(what("cannot be pinned"), error))?;
        thread::touch_stack();
        let failed =
            |why: &'static str| move |error| Error::system(format!("queue {}: {why}", self.queue), error);
        // Declared in this order, so that the ring is dropped before the memory it works on.
        let descriptors = Descriptors::map(&self.device, self.queue, self.depth, self.descriptor_size)
            .map_err(failed("cannot map the descriptors"))?;
        let buffers = match self.data_path.hides() {
            true => Buffers::hidden(self.depth, self.max_io_size),
            false => Buffers::new(self.depth, self.max_io_size),
        }
        .map_err(failed("no memory for the buffers"))?;
        let elements = match self.data_path.is_batch() {
            true => Some(Elements::new(self.depth, self.data_path).map_err(failed("no memory for batches"))?),
            false => None,
        };
        let ring = Ring::with_spin(self.depth, self.remote.clone(), self.spin)
            .map_err(failed("cannot make an io_uring"))?;
        let seat = front::Seat {
            device: &self.device,
            queue: self.queue,
            depth: self.depth,
            path: self.data_path,
            registered_tags: self.registered_tags,
            descriptors: &descriptors,
            buffers: &buffers,
            metrics: &self.metrics,
        };
        let why = "cannot register with its io_uring";
        let (mut per_tag, mut batch);
        let front: &mut dyn FrontEnd = match &elements {
            Some(elements) => {
                batch = Batch::new(seat, elements, &ring).map_err(failed(why))?;
                &mut batch
            }
            None => {
                per_tag = PerTag::new(seat, &ring).map_err(failed(why))?;
                &mut per_tag
            }
        };
        // SAFETY: the ring and all its clones are gone before the buffers, by the order above and
        // since the backend's queue, which has a clone, lives inside `Stack::serve`.
        let registered = self.data_path.hides() || unsafe { buffers.register(&ring) };
        // Not before: touching gigabytes of buffers with real-time priority keeps everybody else from this processor.
        let scheduling = ring.schedule(self.load.scheduling());
        seated(QueueThread::current(self.queue, scheduling, &ring, registered));
        if self.prevent_partition_scan {
            // The driver does not trust a disk with a queue that a thread without CAP_SYS_ADMIN serves
            // so far as to parse what is on it.
            thread::give_up_administration().map_err(failed("cannot give up CAP_SYS_ADMIN"))?;
        }
        let context =
            QueueContext { ring: &ring, index: self.queue, depth: self.depth, max_io_size: self.max_io_size };
        let served = self.stack.serve(&context, &buffers, front, &self.metrics);
        if served.is_err() {
            // A chain that nobody waited for may still have its commit read from there.
            std::mem::forget(elements);
        }
        served
    }

    /// Inside the mask that the kernel names for this queue, as far as this process may run there.
    fn pin(&self) -> std::io::Result<()> {
        let allowed = CpuMask::current()?;
        let both = self.affinity.and(&allowed);
        let cpus = if both.is_empty() { allowed } else { both };
        cpus.pin()
    }
}
