//! `file:PATH`: a disk in a regular file or a block device, on the queue's own ring.

use std::cell::Cell;
use std::fs::File as StdFile;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{Backend, Queue, QueueContext};
use crate::error::{Error, Result};
use crate::io::{Capabilities, Errno, Flags, Geometry, Io, IoResult, Op};
use crate::payload::Payload;
use crate::port::file;
use crate::port::ring::{AllocateMode, FixedFile, Ring, Single};

mod created;
mod holes;
mod open;

use created::Created;
use holes::Holes;

/// Whether the page cache is passed by (O_DIRECT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Where the file can, else through the page cache, which is said.
    #[default]
    Auto,
    /// Or fail.
    Yes,
    /// Through the page cache.
    No,
}

/// How a file becomes a disk.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file or block device.
    pub path: PathBuf,
    /// Creates the file with this many bytes, or makes an existing one larger; never smaller.
    pub size: Option<u64>,
    /// Past the page cache or not.
    pub direct: Direct,
    /// Serve reads only; others may read it at the same time.
    pub read_only: bool,
    /// Logical block size; by default what direct I/O on the file demands, at least 512.
    pub block_size: Option<u32>,
    /// Smallest block where the page cache is between: a sector for a kernel's block layer, a byte for
    /// clients who count in bytes. A file that is a whole number of these and not of the blocks that
    /// direct I/O needs is served through the page cache.
    pub unit: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            path: PathBuf::new(),
            size: None,
            direct: Direct::Auto,
            read_only: false,
            block_size: None,
            unit: 512,
        }
    }
}

/// A disk in a file.
#[derive(Debug)]
pub struct File {
    /// What `size=` made, until the disk is there for everybody. Before the file, so that it is removed
    /// while it is still locked: later it may be somebody else's disk.
    created: Mutex<Option<Created>>,
    file: Arc<StdFile>,
    holes: Arc<Holes>,
    path: PathBuf,
    geometry: Geometry,
    capabilities: Capabilities,
    notes: Vec<String>,
}

impl File {
    /// Opens (or creates) and locks the file. When it fails, or the disk never starts, a file that
    /// it made is removed again.
    pub fn open(options: &Options) -> Result<File> {
        open::open(options)
    }
}

impl Backend for File {
    type Queue = FileQueue;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<FileQueue> {
        let file = context.ring.register_file(self.file.as_raw_fd()).map_err(|error| {
            Error::system(format!("cannot register {} with a queue's io_uring", self.path.display()), error)
        })?;
        Ok(FileQueue {
            ring: context.ring.clone(),
            file,
            holes: self.holes.clone(),
            can_zero: Cell::new(true),
            can_punch: Cell::new(self.capabilities.contains(Capabilities::DISCARD)),
        })
    }

    fn started(&self) {
        if let Some(created) = self.created.lock().unwrap_or_else(PoisonError::into_inner).take() {
            created.keep();
        }
    }

    fn abandoned(&self) {
        drop(self.created.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn close(&self) -> Result<()> {
        if !self.capabilities.contains(Capabilities::WRITE) {
            return Ok(());
        }
        file::sync_data(&self.file)
            .map_err(|error| Error::system(format!("cannot flush {}", self.path.display()), error))
    }

    fn outlives_process(&self) -> bool {
        true
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// One queue's handle on the file.
#[derive(Debug)]
pub struct FileQueue {
    ring: Ring,
    file: FixedFile,
    holes: Arc<Holes>,
    /// Cleared when the file system has no FALLOC_FL_ZERO_RANGE.
    can_zero: Cell<bool>,
    /// Cleared when it cannot punch holes.
    can_punch: Cell<bool>,
}

impl Queue for FileQueue {
    #[inline]
    fn single(&self, io: &Io) -> Option<Single> {
        let durable = io.flags.contains(Flags::FUA);
        matches!(io.op, Op::Read | Op::Write).then_some(Single {
            file: self.file,
            offset: io.offset,
            durable,
        })
    }

    #[inline]
    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        match io.op {
            Op::Read => self.read(io.offset, &mut payload).await,
            Op::Write => self.write(io.offset, &mut payload, io.flags.contains(Flags::FUA)).await,
            Op::Flush => self.flush(&payload).await,
            Op::Discard => self.discard(&io, &mut payload).await,
            Op::WriteZeroes => self.write_zeroes(&io, &mut payload).await,
            Op::Extents => self.holes.find(&self.ring, io, payload).await,
        }
    }
}

impl FileQueue {
    #[inline]
    async fn read(&self, offset: u64, payload: &mut Payload<'_>) -> IoResult {
        let mut done = 0;
        while done < payload.len() {
            let mut rest = payload.part(done..payload.len())?;
            match self.ring.read(self.file, &mut rest, offset + done as u64).await {
                // The file became shorter under us: an error, never stale bytes of the buffer.
                Ok(0) => return Err(Errno::EIO),
                Ok(read) => done += read as usize,
                Err(errno) if again(errno) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    #[inline]
    async fn write(&self, offset: u64, payload: &mut Payload<'_>, durable: bool) -> IoResult {
        let mut done = 0;
        while done < payload.len() {
            let rest = payload.part(done..payload.len())?;
            match self.ring.write(self.file, &rest, offset + done as u64, durable).await {
                Ok(0) => return Err(Errno::EIO),
                Ok(written) => done += written as usize,
                Err(errno) if again(errno) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    async fn flush(&self, payload: &Payload<'_>) -> IoResult {
        loop {
            match self.ring.sync_data(self.file, payload).await {
                Err(errno) if again(errno) => {}
                result => return result.map(drop),
            }
        }
    }

    async fn allocate(&self, mode: AllocateMode, io: &Io, payload: &mut Payload<'_>) -> IoResult {
        loop {
            match self.ring.allocate(self.file, payload, mode, io.offset, io.len).await {
                Err(errno) if again(errno) => {}
                result => return result.map(drop),
            }
        }
    }

    async fn discard(&self, io: &Io, payload: &mut Payload<'_>) -> IoResult {
        self.allocate(AllocateMode::PunchHole, io, payload).await
    }

    /// Zeros by the file system where it can, by holes where they are allowed, else by writing.
    async fn write_zeroes(&self, io: &Io, payload: &mut Payload<'_>) -> IoResult {
        let may_punch = !io.flags.contains(Flags::NO_UNMAP);
        let ways = [
            (may_punch, &self.can_punch, AllocateMode::PunchHole),
            (true, &self.can_zero, AllocateMode::ZeroRange),
        ];
        for (allowed, can, mode) in ways {
            if allowed && can.get() {
                match self.allocate(mode, io, payload).await {
                    Err(Errno::EOPNOTSUPP) => can.set(false),
                    Ok(()) if io.flags.contains(Flags::FUA) => {
                        return self.flush(payload).await;
                    }
                    result => return result,
                }
            }
        }
        if io.flags.contains(Flags::FAST_ZERO) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.write_zero_bytes(io, payload).await
    }

    /// The slot's buffer carries no data of this request and serves as the source of zeros.
    async fn write_zero_bytes(&self, io: &Io, scratch: &mut Payload<'_>) -> IoResult {
        scratch.bytes_mut()?.fill(0);
        let mut done = 0;
        while done < io.len {
            let len = (io.len - done).min(scratch.len() as u64);
            let mut zeros = scratch.part(0..len as usize)?;
            self.write(io.offset + done, &mut zeros, io.flags.contains(Flags::FUA)).await?;
            done += len;
        }
        Ok(())
    }
}

/// Interrupted before anything happened: to be asked again.
fn again(errno: Errno) -> bool {
    errno == Errno::EINTR || errno == Errno::EAGAIN
}
