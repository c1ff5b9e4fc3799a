//! Storage of your own through the simple door: plain methods that may block.
//!
//! Registers the spec type `heap:SIZE`, a disk in ordinary memory that is allocated chunk by chunk,
//! and gets the whole command line for it:
//!
//! ```text
//! cargo run --example blocking_backend -- attach heap:64M
//! ```

use std::io;
use std::process::ExitCode;
use std::sync::{Arc, RwLock};

use blockhaus::backend::blocking::{BlockDevice, Blocking};
use blockhaus::io::extents::{Answer, State};
use blockhaus::stack::{SpecTable, SpecType};

/// Bytes in a chunk, the unit of allocation.
const CHUNK: u64 = 64 << 10;

/// A disk whose chunks exist once they are written to.
struct Heap {
    size: u64,
    chunks: Vec<RwLock<Option<Box<[u8]>>>>,
}

impl Heap {
    fn new(size: u64) -> Heap {
        Heap { size, chunks: (0..size.div_ceil(CHUNK)).map(|_| RwLock::new(None)).collect() }
    }

    /// Splits a range at the chunks' borders: chunk, first byte in it, and how many.
    fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (usize, usize, usize)> {
        let end = offset + len;
        (offset / CHUNK..end.div_ceil(CHUNK)).map(move |chunk| {
            let start = offset.max(chunk * CHUNK);
            let stop = end.min((chunk + 1) * CHUNK);
            (chunk as usize, (start - chunk * CHUNK) as usize, (stop - start) as usize)
        })
    }
}

fn poisoned<T>(_: T) -> io::Error {
    io::Error::other("another thread failed in the middle of a change")
}

impl BlockDevice for Heap {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, mut bytes: &mut [u8], offset: u64) -> io::Result<()> {
        for (chunk, start, len) in Heap::pieces(offset, bytes.len() as u64) {
            let (piece, rest) = bytes.split_at_mut(len);
            match &*self.chunks[chunk].read().map_err(poisoned)? {
                Some(chunk) => piece.copy_from_slice(&chunk[start..start + len]),
                None => piece.fill(0),
            }
            bytes = rest;
        }
        Ok(())
    }

    fn write_at(&self, mut bytes: &[u8], offset: u64) -> io::Result<()> {
        for (chunk, start, len) in Heap::pieces(offset, bytes.len() as u64) {
            let (piece, rest) = bytes.split_at(len);
            let mut chunk = self.chunks[chunk].write().map_err(poisoned)?;
            let chunk = chunk.get_or_insert_with(|| vec![0; CHUNK as usize].into());
            chunk[start..start + len].copy_from_slice(piece);
            bytes = rest;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        // Memory: what was written is as durable as it will ever be.
        Ok(())
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        for (chunk, start, len) in Heap::pieces(offset, len) {
            if (start, len as u64) == (0, CHUNK) {
                *self.chunks[chunk].write().map_err(poisoned)? = None;
            }
        }
        Ok(())
    }

    fn knows_extents(&self) -> bool {
        true
    }

    fn extents(&self, offset: u64, len: u64, answer: &mut Answer<'_>) -> io::Result<()> {
        for (chunk, _, len) in Heap::pieces(offset, len) {
            let is_there = self.chunks[chunk].read().map_err(poisoned)?.is_some();
            let state = if is_there { State::empty() } else { State::HOLE | State::ZERO };
            if !answer.add(len as u64, state) {
                break;
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let heap = SpecType {
        name: "heap",
        argument: "SIZE",
        about: "A disk in ordinary memory, allocated in chunks of 64 KiB.",
        keys: Vec::new(),
        open: Box::new(|spec, _options| Ok(Arc::new(Blocking::new(Heap::new(spec.size_arg("heap:64M")?))))),
    };
    blockhaus::cli::run(SpecTable::builtin().register(heap))
}
