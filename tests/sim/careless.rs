//! A backend on the simulated disk that does everything right, unless it is told which mistake to make.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use blockhaus::backend::{Backend, Queue, QueueContext};
use blockhaus::error::{Error, Result};
use blockhaus::io::extents::{Answer, State};
use blockhaus::io::{Capabilities, Errno, Flags, Geometry, Io, IoResult, Op};
use blockhaus::payload::Payload;
use blockhaus::port::file::{self, How};
use blockhaus::port::ring::{AllocateMode, FixedFile, Ring};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carelessness {
    None,
    /// A flush flushes nothing.
    FlushNothing,
    /// A write that must be durable is not.
    FuaIgnored,
    /// A read that fails yields zeros.
    ErrorsAsZeros,
    /// Part of a write counts as all of it.
    TornWrite,
    /// Part of a read counts as all of it.
    ShortRead,
    /// A discard takes a block more than it was asked for.
    DiscardEatsNeighbour,
    /// Zeros are promised and nothing is done.
    ZeroesLeaveData,
    /// What this queue has read or written is remembered, whatever other queues do.
    StaleOnOtherQueue,
    /// A write that was interrupted counts as done.
    InterruptedIsDone,
    /// A write goes to the block behind.
    Misplaced,
    /// A write is forgotten while it is on its way, so that its failure is never seen.
    ForgottenWrite,
    /// What has contents is told to be a hole.
    HolesEverywhere,
}

#[derive(Debug)]
pub struct Careless {
    file: File,
    geometry: Geometry,
    how: Carelessness,
}

impl Careless {
    pub fn open(path: &Path, how: Carelessness) -> Result<Careless> {
        let failed = |error| Error::system("cannot open the test's disk", error);
        let file = file::open(path, How { write: true, ..How::default() }).map_err(failed)?;
        let block = file::direct_alignment(&file).map_err(failed)?.map_or(512, |needed| needed.offset);
        let size = file::size(&file).map_err(failed)?;
        let geometry = Geometry {
            logical_block_size: block,
            physical_block_size: block.max(4096),
            discard_granularity: if file::can_punch_holes(&file, size) { block } else { 0 },
            ..Geometry::plain(size)
        };
        Ok(Careless { file, geometry, how })
    }
}

impl Backend for Careless {
    type Queue = CarelessQueue;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::WRITE
            | Capabilities::VOLATILE_CACHE
            | Capabilities::FUA
            | Capabilities::WRITE_ZEROES;
        if self.geometry.discard_granularity != 0 {
            capabilities |= Capabilities::DISCARD | Capabilities::DISCARD_ZEROES;
        }
        capabilities.set(Capabilities::EXTENTS, self.how == Carelessness::HolesEverywhere);
        capabilities
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<CarelessQueue> {
        let failed = |error| Error::system("cannot register the test's disk", error);
        Ok(CarelessQueue {
            ring: context.ring.clone(),
            file: context.ring.register_file(self.file.as_raw_fd()).map_err(failed)?,
            block: u64::from(self.geometry.logical_block_size),
            size: self.geometry.size,
            how: self.how,
            remembered: RefCell::new(BTreeMap::new()),
        })
    }

    fn close(&self) -> Result<()> {
        file::sync_data(&self.file).map_err(|error| Error::system("cannot flush the test's disk", error))
    }
}

pub struct CarelessQueue {
    ring: Ring,
    file: FixedFile,
    block: u64,
    size: u64,
    how: Carelessness,
    remembered: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl Queue for CarelessQueue {
    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        use Carelessness::{FlushNothing, ZeroesLeaveData};
        match io.op {
            Op::Read => self.read(&io, &mut payload).await,
            Op::Write => self.write(&io, &mut payload).await,
            Op::Flush if self.how == FlushNothing => Ok(()),
            Op::Flush => self.flush(&payload).await,
            Op::Discard => self.discard(&io, &mut payload).await,
            Op::WriteZeroes if self.how == ZeroesLeaveData => Ok(()),
            Op::WriteZeroes => self.zero(&io, &mut payload).await,
            Op::Extents => {
                Answer::new(&io, payload.bytes_mut()?)?.add(io.len, State::HOLE | State::ZERO);
                Ok(())
            }
        }
    }
}

impl CarelessQueue {
    async fn flush(&self, payload: &Payload<'_>) -> IoResult {
        loop {
            match self.ring.sync_data(self.file, payload).await {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                result => return result.map(drop),
            }
        }
    }

    async fn read(&self, io: &Io, payload: &mut Payload<'_>) -> IoResult {
        if self.how == Carelessness::StaleOnOtherQueue
            && let Some(known) = self.remembered.borrow().get(&io.offset)
            && known.len() == payload.len()
        {
            payload.bytes_mut()?.copy_from_slice(known);
            return Ok(());
        }
        let mut done = 0;
        while done < payload.len() {
            let mut rest = payload.part(done..payload.len())?;
            match self.ring.read(self.file, &mut rest, io.offset + done as u64).await {
                Ok(_) if self.how == Carelessness::ShortRead => break,
                Ok(0) => return Err(Errno::EIO),
                Ok(read) => done += read as usize,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(_) if self.how == Carelessness::ErrorsAsZeros => {
                    payload.bytes_mut()?.fill(0);
                    break;
                }
                Err(errno) => return Err(errno),
            }
        }
        self.remember(io.offset, payload)
    }

    fn remember(&self, offset: u64, payload: &Payload<'_>) -> IoResult {
        if self.how == Carelessness::StaleOnOtherQueue {
            let mut remembered = self.remembered.borrow_mut();
            remembered.clear();
            remembered.insert(offset, payload.bytes()?.to_vec());
        }
        Ok(())
    }

    async fn write(&self, io: &Io, payload: &mut Payload<'_>) -> IoResult {
        let durable = io.flags.contains(Flags::FUA) && self.how != Carelessness::FuaIgnored;
        let behind = io.offset + io.len + self.block <= self.size;
        let misplaced = self.how == Carelessness::Misplaced && behind && io.len == self.block;
        let offset = if misplaced { io.offset + self.block } else { io.offset };
        if self.how == Carelessness::ForgottenWrite {
            let mut write = std::pin::pin!(self.ring.write(self.file, payload, offset, durable));
            let started = std::future::poll_fn(|context| {
                std::task::Poll::Ready(std::future::Future::poll(write.as_mut(), context))
            });
            return if started.await.is_pending() { Ok(()) } else { Err(Errno::EIO) };
        }
        let mut done = 0;
        while done < payload.len() {
            let rest = payload.part(done..payload.len())?;
            match self.ring.write(self.file, &rest, offset + done as u64, durable).await {
                Ok(_) if self.how == Carelessness::TornWrite => break,
                Ok(0) => return Err(Errno::EIO),
                Ok(written) => done += written as usize,
                Err(Errno::EINTR | Errno::EAGAIN) if self.how == Carelessness::InterruptedIsDone => break,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.remember(io.offset, payload)
    }

    async fn discard(&self, io: &Io, payload: &mut Payload<'_>) -> IoResult {
        let more = self.how == Carelessness::DiscardEatsNeighbour && io.offset + io.len < self.size;
        let len = if more { io.len + self.block } else { io.len };
        loop {
            match self.ring.allocate(self.file, payload, AllocateMode::PunchHole, io.offset, len).await {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                result => return result.map(drop),
            }
        }
    }

    async fn zero(&self, io: &Io, scratch: &mut Payload<'_>) -> IoResult {
        scratch.bytes_mut()?.fill(0);
        let mut done = 0;
        while done < io.len {
            let len = (io.len - done).min(scratch.len() as u64);
            let part = Io { offset: io.offset + done, len, ..*io };
            let mut zeros = scratch.part(0..len as usize)?;
            self.write(&part, &mut zeros).await?;
            done += len;
        }
        Ok(())
    }
}
