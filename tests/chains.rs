//! Requests that are one operation, and chains of an operation and its commit, on a real ring.
//!
//! `/dev/null` answers every URING_CMD with 0, so that a command to it stands for a commit that brings
//! the slot's next request.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use blockhaus::backend::QueueContext;
use blockhaus::backend::file::{self, Direct};
use blockhaus::error::{Error, Result};
use blockhaus::io::{Errno, Flags, Io, IoResult, Op};
use blockhaus::port::remote::Remote;
use blockhaus::port::ring::{FixedFile, Ring};
use blockhaus::queue::{Arrival, Buffers, FrontEnd, Stack};

const BLOCK: u64 = 4096;

/// Asks for one read after the other, each when the commit of the one before has come back.
struct Front {
    null: FixedFile,
    reads: VecDeque<u64>,
    chains: bool,
    /// What was committed: offsets and results, in their order.
    committed: Vec<(u64, IoResult)>,
    /// Commits that came back.
    ended: usize,
    wanted: usize,
}

impl Front {
    fn request(&mut self) -> Option<Io> {
        let offset = self.reads.pop_front()?;
        Some(Io { op: Op::Read, flags: Flags::empty(), offset, len: BLOCK, slot: 0 })
    }
}

impl FrontEnd for Front {
    fn start(&mut self, ring: &Ring) -> Result<()> {
        ring.command(self.null, 0, [0; 16], None, 0).map_err(|error| Error::system("null", error))
    }

    fn arrived(&mut self, _ring: &Ring, number: u32, result: i32) -> Result<Arrival> {
        assert_eq!((number, result), (0, 0), "a cancelled commit must not come back");
        self.ended += usize::from(!self.committed.is_empty());
        Ok(self.request().map_or(Arrival::Nothing, Arrival::One))
    }

    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        // A chain that fails is committed twice, and carried out once.
        self.committed.retain(|(offset, _)| *offset != io.offset);
        self.committed.push((io.offset, result));
        ring.command(self.null, 0, [0; 16], None, 0).map_err(|error| Error::system("null", error))
    }

    /// Although nothing is hidden: this queue does not fail, and so nobody's memory goes too early.
    fn can_chain(&self, _io: &Io) -> bool {
        self.chains
    }

    fn finished(&self) -> bool {
        self.ended == self.wanted
    }
}

/// A disk of four blocks whose file ends in the middle of the third.
fn run(chains: bool, reads: &[u64]) -> (Result<()>, Vec<(u64, IoResult)>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let options =
        file::Options { path: path.clone(), size: Some(4 * BLOCK), direct: Direct::No, ..Default::default() };
    let disk: Arc<dyn Stack> = Arc::new(file::File::open(&options).unwrap());
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2 * BLOCK + 100).unwrap();
    let buffers = Buffers::new(1, BLOCK as u32).unwrap();
    let ring = Ring::new(1, Remote::new(1).unwrap()).unwrap();
    let null = File::open("/dev/null").unwrap();
    let reads: VecDeque<u64> = reads.iter().map(|block| block * BLOCK).collect();
    let mut front = Front {
        null: ring.register_file(null.as_raw_fd()).unwrap(),
        wanted: reads.len(),
        reads,
        chains,
        committed: Vec::new(),
        ended: 0,
    };
    let context = QueueContext { ring: &ring, index: 0, depth: 1, max_io_size: BLOCK as u32 };
    let result = disk.serve(&context, &buffers, &mut front);
    (result, front.committed)
}

/// Short, and then nothing at all: an error, never half a block, and the queue goes on.
#[test]
fn what_one_operation_does_not_serve_whole_is_served_again() {
    for chains in [false, true] {
        let (result, committed) = run(chains, &[0, 2, 1, 3, 0]);
        result.unwrap();
        let errors = [(2 * BLOCK, Err(Errno::EIO)), (3 * BLOCK, Err(Errno::EIO))];
        let expected = [errors[0], (BLOCK, Ok(())), errors[1], (0, Ok(()))];
        assert_eq!(committed, expected, "chains: {chains}");
    }
}
