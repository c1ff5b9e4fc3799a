//! What a backend is: the control plane ([`Backend`]) and one thread's handle on it ([`Queue`]).
//!
//! There are two doors. This one is asynchronous and runs on the queue's own ring; the simple
//! blocking one is [`blocking::BlockDevice`], which runs on a pool of threads.

use std::future::Future;

use crate::error::Result;
use crate::io::{Capabilities, Geometry, Io, IoResult};
use crate::payload::Payload;
use crate::port::ring::{Ring, Single};

pub mod blocking;
pub mod dynamic;
pub mod file;
pub mod nbd;
pub mod null;
pub mod ram;

/// Where the data is. Made once a device, shared by its queues; asked rarely, so its errors are
/// for people.
pub trait Backend: Send + Sync + 'static {
    /// What one queue thread works with.
    type Queue: Queue;

    /// The disk's shape. Constant while it is open.
    fn geometry(&self) -> Geometry;

    /// What the disk can do. Constant while it is open.
    fn capabilities(&self) -> Capabilities;

    /// Opens this thread's handle. Called on the queue's thread, once a queue. Two engines may serve
    /// one backend at the same time, each with queues of its own.
    fn open_queue(&self, context: &QueueContext<'_>) -> Result<Self::Queue>;

    /// The disk can be opened by everybody: what opening the backend has made now stays, and was to
    /// be taken away again before. Called once, whatever number of engines serves it.
    fn started(&self) {}

    /// Makes everything durable; called once, after the last queue is gone.
    fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Bytes of memory that the contents take at this moment, where they are in memory.
    fn memory_used(&self) -> Option<u64> {
        None
    }

    /// What was chosen when it was opened, and why, a line each, for the person who attached it.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The methods of [`Backend`] that a backend on top of another passes on as they are, and that concern
/// what is below alone.
macro_rules! pass_on {
    ($below:tt) => {
        fn started(&self) {
            self.$below.started();
        }

        fn close(&self) -> Result<()> {
            self.$below.close()
        }

        fn memory_used(&self) -> Option<u64> {
            self.$below.memory_used()
        }
    };
}
pub(crate) use pass_on;

/// What a backend gets to open a queue with.
#[derive(Debug)]
pub struct QueueContext<'a> {
    /// The queue's ring; clones are cheap handles on the same one.
    pub ring: &'a Ring,
    /// Which queue of its engine this is, from 0: where two engines serve one backend, each has a
    /// queue 0.
    pub index: u16,
    /// How many requests can be in service at once.
    pub depth: u16,
    /// Longest read or write that will come.
    pub max_io_size: u32,
}

/// One thread's handle on a backend; serves requests, never shared.
///
/// The queue checked range, alignment and capability before a request arrives here.
pub trait Queue {
    /// Answers at once what can be answered at once, or declines with `None` and leaves the
    /// payload as it was. Must not block.
    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        let _ = (io, payload);
        None
    }

    /// Whether a read or write is, as it is, one operation on one file. Then the queue starts that without
    /// a future, and takes it for served when all its bytes were moved; when they were not, it calls
    /// [`serve`](Self::serve) as if nothing had happened. Asked before
    /// [`serve_now`](Self::serve_now), and never for a request without bytes.
    #[inline]
    fn single(&self, io: &Io) -> Option<Single> {
        let _ = io;
        None
    }

    /// Serves one request. For a write the payload holds the data; a read fills all of it.
    /// Operations with no data have an empty payload, except [`Op::WriteZeroes`], whose payload
    /// is scratch memory of the slot for a backend that must write zeros itself, and [`Op::Extents`], whose
    /// payload gets the [`Answer`]. That one comes only where the backend says [`EXTENTS`].
    ///
    /// May be dropped at any await: what is in flight belongs to the slot.
    ///
    /// [`Op::WriteZeroes`]: crate::io::Op::WriteZeroes
    /// [`Op::Extents`]: crate::io::Op::Extents
    /// [`Answer`]: crate::io::extents::Answer
    /// [`EXTENTS`]: crate::io::Capabilities::EXTENTS
    fn serve(&self, io: Io, payload: Payload<'_>) -> impl Future<Output = IoResult>;
}
