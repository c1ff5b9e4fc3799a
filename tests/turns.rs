//! The loop of a queue on a real ring: requests that are one operation, chains of an operation and its
//! commit, turns that would never end, failures in the middle of one.
//!
//! `/dev/null` answers every URING_CMD with 0, so that a command to it stands for a commit that brings
//! the slot's next request.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use blockhaus::backend::QueueContext;
use blockhaus::backend::file::{self, Direct};
use blockhaus::backend::null::Null;
use blockhaus::error::{Error, Result};
use blockhaus::io::{Errno, Flags, Io, IoResult, Op};
use blockhaus::metrics::{QueueMetrics, Stats};
use blockhaus::port::remote::Remote;
use blockhaus::port::ring::{Completion, FixedFile, Ring};
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

    fn arrived(&mut self, _ring: &Ring, number: u32, completion: &Completion) -> Result<Arrival> {
        assert_eq!((number, completion.result), (0, 0), "a cancelled commit must not come back");
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
fn run(chains: bool, reads: &[u64]) -> (Result<()>, Vec<(u64, IoResult)>, Stats) {
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
    let metrics = Arc::new(QueueMetrics::new());
    let result = disk.serve(&context, &buffers, &mut front, &metrics);
    (result, front.committed, Stats::of(&[metrics]))
}

/// Short, and then nothing at all: an error, never half a block, and the queue goes on.
#[test]
fn what_one_operation_does_not_serve_whole_is_served_again() {
    for chains in [false, true] {
        let (result, committed, stats) = run(chains, &[0, 2, 1, 3, 0]);
        result.unwrap();
        // Each once, whether its chain went through or came back.
        let reads = &stats.ops[Op::Read as usize];
        assert_eq!((reads.requests, reads.bytes, reads.errors), (5, 5 * BLOCK, 2), "chains: {chains}");
        assert_eq!(stats.in_flight(), 0, "chains: {chains}");
        let measured = reads.latency.map_or(0, |latency| latency.measured);
        assert_eq!(measured, if chains { 1 } else { 5 });
        let errors = [(2 * BLOCK, Err(Errno::EIO)), (3 * BLOCK, Err(Errno::EIO))];
        let expected = [errors[0], (BLOCK, Ok(())), errors[1], (0, Ok(()))];
        assert_eq!(committed, expected, "chains: {chains}");
    }
}

/// Has a request at any moment, until it is told that it is enough.
struct Endless<'a> {
    began: &'a AtomicBool,
    asked: u32,
    told: u32,
}

impl FrontEnd for Endless<'_> {
    fn start(&mut self, ring: &Ring) -> Result<()> {
        ring.remote().notify_front();
        Ok(())
    }

    fn arrived(&mut self, _ring: &Ring, number: u32, _completion: &Completion) -> Result<Arrival> {
        panic!("this front end sends no commands, and {number} came back")
    }

    fn next(&mut self, _ring: &Ring) -> Result<Option<Io>> {
        self.asked += 1;
        assert!(self.asked < 20_000_000, "nobody listens any more");
        self.began.store(true, Ordering::Release);
        let io = Io { op: Op::Write, flags: Flags::empty(), offset: 0, len: BLOCK, slot: 0 };
        Ok((self.told < 2).then_some(io))
    }

    fn complete(&mut self, _ring: &Ring, _io: &Io, result: IoResult) -> Result<()> {
        assert_eq!(result, Ok(()));
        Ok(())
    }

    fn notified(&mut self, _ring: &Ring) -> Result<()> {
        self.told += 1;
        Ok(())
    }

    fn end_turn(&mut self, _ring: &Ring, _full: bool) -> Result<bool> {
        Ok(self.told < 2)
    }

    fn finished(&self) -> bool {
        self.told == 2
    }
}

#[test]
fn a_front_end_that_never_runs_out_of_requests_is_still_spoken_to() {
    let stack: Arc<dyn Stack> = Arc::new(Null::new(1 << 20, 4096, false));
    let buffers = Buffers::new(1, BLOCK as u32).unwrap();
    let remote = Remote::new(1).unwrap();
    let ring = Ring::new(1, remote.clone()).unwrap();
    let began = AtomicBool::new(false);
    let context = QueueContext { ring: &ring, index: 0, depth: 1, max_io_size: BLOCK as u32 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !began.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            remote.notify_front();
        });
        let mut front = Endless { began: &began, asked: 0, told: 0 };
        stack.serve(&context, &buffers, &mut front, &QueueMetrics::new()).unwrap();
    });
}

/// Fails over its own command, in a turn in which a read has ended as well.
struct Failing {
    null: FixedFile,
}

impl FrontEnd for Failing {
    fn start(&mut self, ring: &Ring) -> Result<()> {
        ring.command(self.null, 0, [0; 16], None, 0).map_err(|error| Error::system("null", error))
    }

    fn arrived(&mut self, ring: &Ring, number: u32, _completion: &Completion) -> Result<Arrival> {
        if number == 1 {
            return Err(Error::invalid("this front end", "it has failed"));
        }
        // In the ring before the read, and so back before it.
        ring.command(self.null, 0, [0; 16], None, 1).map_err(|error| Error::system("null", error))?;
        Ok(Arrival::One(Io { op: Op::Read, flags: Flags::empty(), offset: 0, len: BLOCK, slot: 0 }))
    }

    fn complete(&mut self, _ring: &Ring, _io: &Io, _result: IoResult) -> Result<()> {
        panic!("the queue has failed before")
    }

    fn finished(&self) -> bool {
        false
    }
}

#[test]
fn a_failure_waits_for_what_is_in_flight_and_not_for_what_has_ended() {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, vec![1; 4 * BLOCK as usize]).unwrap();
        let options = file::Options { path, direct: Direct::No, ..Default::default() };
        let disk: Arc<dyn Stack> = Arc::new(file::File::open(&options).unwrap());
        let buffers = Buffers::new(1, BLOCK as u32).unwrap();
        let ring = Ring::new(1, Remote::new(1).unwrap()).unwrap();
        let null = File::open("/dev/null").unwrap();
        let mut front = Failing { null: ring.register_file(null.as_raw_fd()).unwrap() };
        let context = QueueContext { ring: &ring, index: 0, depth: 1, max_io_size: BLOCK as u32 };
        sender
            .send(disk.serve(&context, &buffers, &mut front, &QueueMetrics::new()).unwrap_err().to_string())
            .unwrap();
    });
    let said = receiver.recv_timeout(Duration::from_secs(20)).expect("the queue waits for ever");
    assert!(said.contains("it has failed"), "{said}");
}
