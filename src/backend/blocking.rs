//! The simple door: a disk whose methods block. Each queue serves it with threads of its own.

use std::io;
use std::sync::Arc;

use crate::backend::{Backend, Queue, QueueContext};
use crate::error::{Error, Result};
use crate::io::extents::Answer;
use crate::io::{Capabilities, Errno, Flags, Geometry, Io, IoResult, Op};
use crate::payload::Payload;
use crate::port::channel::{Receiver, Sender, bounded};
use crate::port::remote::Ticket;
use crate::port::ring::Ring;
use crate::port::thread::{self, JoinHandle};

/// Threads that serve one queue of a blocking disk.
const WORKERS_PER_QUEUE: u16 = 8;

/// A disk that anyone can write: plain methods, called from several threads at once. Offsets and
/// lengths are in bytes, inside the disk, and multiples of [`block_size`](Self::block_size).
pub trait BlockDevice: Send + Sync + 'static {
    /// Size in bytes, a multiple of the block size. Constant.
    fn size(&self) -> u64;

    /// Smallest unit, a power of two from 512 to the page size.
    fn block_size(&self) -> u32 {
        512
    }

    /// Fills `bytes` from `offset`.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Stores `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes every write that has returned durable.
    fn flush(&self) -> io::Result<()>;

    /// Whether it refuses writes.
    fn read_only(&self) -> bool {
        false
    }

    /// Whether [`discard`](Self::discard) does something.
    fn can_discard(&self) -> bool {
        false
    }

    /// The range is no longer needed.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether [`extents`](Self::extents) does something.
    fn knows_extents(&self) -> bool {
        false
    }

    /// Says which runs of a range take space and which read as zeros, from `offset` on, each by
    /// [`Answer::add`], until that wants no more; it may end before the range does, but not before the first run.
    fn extents(&self, offset: u64, len: u64, answer: &mut Answer<'_>) -> io::Result<()> {
        let _ = (offset, len, answer);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Any [`BlockDevice`] as a backend.
#[derive(Debug)]
pub struct Blocking<D> {
    device: Arc<D>,
}

impl<D: BlockDevice> Blocking<D> {
    /// Makes a backend of it.
    pub fn new(device: D) -> Blocking<D> {
        Blocking { device: Arc::new(device) }
    }
}

impl<D: BlockDevice> Backend for Blocking<D> {
    type Queue = BlockingQueue;

    fn geometry(&self) -> Geometry {
        let block_size = self.device.block_size();
        Geometry {
            logical_block_size: block_size,
            physical_block_size: block_size.max(4096),
            discard_granularity: if self.device.can_discard() { block_size } else { 0 },
            ..Geometry::plain(self.device.size())
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::VOLATILE_CACHE;
        capabilities.set(Capabilities::EXTENTS, self.device.knows_extents());
        if !self.device.read_only() {
            capabilities |= Capabilities::WRITE | Capabilities::FUA;
            if self.device.can_discard() {
                capabilities |= Capabilities::DISCARD;
            }
        }
        capabilities
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<BlockingQueue> {
        // A slot hands over one job at a time, so the channel never fills.
        let (sender, receiver) = bounded(usize::from(context.depth));
        let worker = |number| {
            let (device, receiver) = (self.device.clone(), receiver.clone());
            thread::spawn(format!("bh-work-{}-{number}", context.index), move || work(&*device, &receiver))
        };
        let workers = (0..WORKERS_PER_QUEUE.min(context.depth))
            .map(worker)
            .collect::<io::Result<_>>()
            .map_err(|error| Error::system("cannot start the threads of a blocking backend", error))?;
        Ok(BlockingQueue { ring: context.ring.clone(), jobs: Some(sender), workers })
    }

    fn close(&self) -> Result<()> {
        self.device.flush().map_err(|error| Error::system("cannot flush the backend", error))
    }
}

#[derive(Debug)]
struct Job {
    io: Io,
    ticket: Ticket,
}

/// One queue's handle: a way to its threads.
#[derive(Debug)]
pub struct BlockingQueue {
    ring: Ring,
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Queue for BlockingQueue {
    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        let jobs = self.jobs.as_ref().ok_or(Errno::EIO)?;
        // A job that cannot be sent is dropped with its ticket, which ends the operation with EIO.
        self.ring.hand_off(&mut payload, move |ticket| drop(jobs.try_send(Job { io, ticket }))).await
    }
}

impl Drop for BlockingQueue {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // A panic aborts the process, so that there is none to report here.
            let _ = worker.join();
        }
    }
}

fn work(device: &impl BlockDevice, jobs: &Receiver<Job>) {
    // Without the permission the disk works all the same; `status` says what queue threads have.
    let _ = thread::become_io_flusher();
    while let Ok(Job { io, mut ticket }) = jobs.recv() {
        let result = serve(device, &io, ticket.bytes());
        ticket.finish(result.map_err(Errno::from));
    }
}

fn serve(device: &impl BlockDevice, io: &Io, bytes: &mut [u8]) -> io::Result<()> {
    match io.op {
        Op::Read => device.read_at(bytes, io.offset),
        Op::Write => {
            device.write_at(bytes, io.offset)?;
            if io.flags.contains(Flags::FUA) { device.flush() } else { Ok(()) }
        }
        Op::Flush => device.flush(),
        Op::Discard => device.discard(io.offset, io.len),
        Op::WriteZeroes => Err(io::ErrorKind::Unsupported.into()),
        Op::Extents => device.extents(io.offset, io.len, &mut Answer::new(io, bytes)?),
    }
}
