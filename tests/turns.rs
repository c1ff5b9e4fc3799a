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

use blockhaus::backend::file::{self, Direct};
use blockhaus::backend::null::Null;
use blockhaus::backend::{Backend, Queue, QueueContext};
use blockhaus::error::{Error, Result};
use blockhaus::io::{Capabilities, Errno, Flags, Geometry, Io, IoResult, Op};
use blockhaus::metrics::{QueueMetrics, Stats};
use blockhaus::payload::Payload;
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

    fn chains(&self) -> bool {
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

/// Where a request takes its time on its way through the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slow {
    /// Its data is copied before the loop has it.
    Fetching,
    /// Its data is there only after another command.
    Preparing,
    /// The backend answers it at once, which takes a while.
    Serving,
}

const WHILE: Duration = Duration::from_millis(30);

/// A disk that may take its time over a request that it answers at once.
struct Lazy {
    null: Null,
    slow: bool,
}

impl Backend for Lazy {
    type Queue = Lazy;

    fn geometry(&self) -> Geometry {
        Backend::geometry(&self.null)
    }

    fn capabilities(&self) -> Capabilities {
        Backend::capabilities(&self.null)
    }

    fn open_queue(&self, _context: &QueueContext<'_>) -> Result<Lazy> {
        Ok(Lazy { null: Null::new(1 << 20, 4096, false), slow: self.slow })
    }
}

impl Queue for Lazy {
    fn serve_now(&self, _io: &Io, _payload: &mut Payload<'_>) -> Option<IoResult> {
        if self.slow {
            std::thread::sleep(WHILE);
        }
        Some(Ok(()))
    }

    async fn serve(&self, _io: Io, _payload: Payload<'_>) -> IoResult {
        unreachable!("it answers all at once")
    }
}

/// One read, which takes a while somewhere.
struct Slowly {
    null: FixedFile,
    slow: Slow,
    ended: bool,
}

impl Slowly {
    fn command(&self, ring: &Ring, number: u32) -> Result<()> {
        ring.command(self.null, 0, [0; 16], None, number).map_err(|error| Error::system("null", error))
    }
}

impl FrontEnd for Slowly {
    fn start(&mut self, ring: &Ring) -> Result<()> {
        self.command(ring, 0)
    }

    fn arrived(&mut self, ring: &Ring, number: u32, _completion: &Completion) -> Result<Arrival> {
        let io = Io { op: Op::Read, flags: Flags::empty(), offset: 0, len: BLOCK, slot: 0 };
        match (number, self.slow) {
            (0, Slow::Preparing) => {
                self.command(ring, 1)?;
                return Ok(Arrival::Coming(0));
            }
            (1, _) => return Ok(Arrival::Ready(io)),
            (2, _) => {
                self.ended = true;
                return Ok(Arrival::Nothing);
            }
            (_, Slow::Fetching) => std::thread::sleep(WHILE),
            _ => {}
        }
        Ok(Arrival::One(io))
    }

    fn complete(&mut self, ring: &Ring, _io: &Io, result: IoResult) -> Result<()> {
        assert_eq!(result, Ok(()));
        self.command(ring, 2)
    }

    fn end_turn(&mut self, _ring: &Ring, _full: bool) -> Result<bool> {
        if self.slow == Slow::Preparing {
            std::thread::sleep(WHILE);
        }
        Ok(false)
    }

    fn finished(&self) -> bool {
        self.ended
    }
}

#[test]
fn a_latency_begins_before_anything_is_done_for_a_request() {
    for slow in [Slow::Fetching, Slow::Preparing, Slow::Serving] {
        let stack: Arc<dyn Stack> =
            Arc::new(Lazy { null: Null::new(1 << 20, 4096, false), slow: slow == Slow::Serving });
        let buffers = Buffers::new(1, BLOCK as u32).unwrap();
        let ring = Ring::new(1, Remote::new(1).unwrap()).unwrap();
        let null = File::open("/dev/null").unwrap();
        let null = ring.register_file(null.as_raw_fd()).unwrap();
        let context = QueueContext { ring: &ring, index: 0, depth: 1, max_io_size: BLOCK as u32 };
        let metrics = Arc::new(QueueMetrics::new());
        let mut front = Slowly { null, slow, ended: false };
        stack.serve(&context, &buffers, &mut front, &metrics).unwrap();
        let stats = Stats::of(&[metrics]);
        let latency = stats.ops[Op::Read as usize].latency.unwrap();
        // The turn's end is slow as well where it prepares.
        let turns = if slow == Slow::Preparing { 2 } else { 1 };
        assert!(u128::from(latency.mean_ns) >= WHILE.as_nanos() * turns, "{slow:?}: {latency:?}");
        assert_eq!((latency.measured, stats.in_flight()), (1, 0));
    }
}

/// As many requests as it has slots, again and again, for as long as somebody looks on.
struct Loaded<'a> {
    free: Vec<u16>,
    seen: &'a AtomicBool,
}

const DEPTH: u16 = 8;

impl FrontEnd for Loaded<'_> {
    fn next(&mut self, _ring: &Ring) -> Result<Option<Io>> {
        if self.finished() {
            return Ok(None);
        }
        let io = |slot| Io { op: Op::Write, flags: Flags::empty(), offset: 0, len: BLOCK, slot };
        Ok(self.free.pop().map(io))
    }

    fn complete(&mut self, _ring: &Ring, io: &Io, _result: IoResult) -> Result<()> {
        self.free.push(io.slot);
        Ok(())
    }

    fn end_turn(&mut self, _ring: &Ring, _full: bool) -> Result<bool> {
        Ok(!self.finished())
    }

    fn finished(&self) -> bool {
        self.seen.load(Ordering::Acquire)
    }
}

/// However busy a queue is while it is looked at: what arrives meanwhile is not in flight.
#[test]
fn no_more_is_in_flight_than_there_are_slots_nor_measured_than_served() {
    let stack: Arc<dyn Stack> = Arc::new(Null::new(1 << 20, 4096, false));
    let (seen, metrics) = (AtomicBool::new(false), Arc::new(QueueMetrics::new()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let buffers = Buffers::new(DEPTH, BLOCK as u32).unwrap();
            let ring = Ring::new(DEPTH, Remote::new(DEPTH).unwrap()).unwrap();
            let context = QueueContext { ring: &ring, index: 0, depth: DEPTH, max_io_size: BLOCK as u32 };
            let mut front = Loaded { free: (0..DEPTH).collect(), seen: &seen };
            stack.serve(&context, &buffers, &mut front, &metrics).unwrap();
        });
        let (mut looks, mut served, mut wrong) = (0, 0, None);
        while wrong.is_none() && (looks < 200 || served < 20_000) {
            let stats = Stats::of(std::slice::from_ref(&metrics));
            let writes = &stats.ops[Op::Write as usize];
            let measured = writes.latency.map_or(0, |latency| latency.measured);
            (looks, served) = (looks + 1, writes.requests);
            let is_right = stats.in_flight() <= u64::from(DEPTH) && measured <= served;
            wrong = (!is_right).then(|| (stats.in_flight(), measured, served));
        }
        seen.store(true, Ordering::Release);
        assert_eq!(wrong, None, "in flight of {DEPTH} slots, measured, served");
    });
    let writes = &Stats::of(&[metrics]).ops[Op::Write as usize];
    assert_eq!(writes.latency.map(|latency| latency.measured), Some(writes.requests));
}

/// Has a request at any moment, until it is told that it is enough.
struct Endless<'a> {
    began: &'a AtomicBool,
    asked: u32,
    told: u32,
}

impl FrontEnd for Endless<'_> {
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
