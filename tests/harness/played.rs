//! Drives a stack on real rings without an engine: a front end whose requests come from a test.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use blockhaus::backend::QueueContext;
use blockhaus::error::Result;
use blockhaus::io::extents::ANSWER_LEN;
use blockhaus::io::{Flags, Io, IoResult, Op};
use blockhaus::metrics::QueueMetrics;
use blockhaus::port::remote::Remote;
use blockhaus::port::ring::Ring;
use blockhaus::queue::{Buffers, FrontEnd, Stack};

/// Longest request.
pub const MAX_IO: u32 = 256 << 10;

/// What a test asks for.
#[derive(Clone, Debug)]
pub struct Request {
    pub op: Op,
    pub flags: Flags,
    pub offset: u64,
    pub len: u64,
    /// What a write writes.
    pub data: Vec<u8>,
}

impl Request {
    pub fn new(op: Op, offset: u64, len: u64) -> Request {
        Request { op, flags: Flags::empty(), offset, len, data: Vec::new() }
    }

    pub fn write(offset: u64, data: Vec<u8>) -> Request {
        Request { data: data.clone(), ..Request::new(Op::Write, offset, data.len() as u64) }
    }
}

/// How a request ended, and what a read has read, or the answer about extents.
#[derive(Debug)]
pub struct Ended {
    pub number: usize,
    pub result: IoResult,
    pub data: Vec<u8>,
}

/// A stack that is served by as many threads as it has queues, until this is closed.
pub struct Disk {
    pub stack: Arc<dyn Stack>,
    queues: Vec<QueueHandle>,
    ended: Receiver<Ended>,
    asked: usize,
}

struct QueueHandle {
    inbox: Arc<Inbox>,
    remote: Arc<Remote>,
    thread: JoinHandle<Result<()>>,
}

#[derive(Default)]
struct Inbox {
    requests: Mutex<VecDeque<(usize, Request)>>,
    closed: AtomicBool,
}

impl Disk {
    pub fn open(stack: Arc<dyn Stack>, queues: u16, depth: u16) -> Disk {
        let (sender, ended) = channel();
        let queues = (0..queues)
            .map(|index| {
                let inbox = Arc::new(Inbox::default());
                let remote = Remote::new(depth).expect("an eventfd");
                let thread = {
                    let (stack, inbox, remote, sender) =
                        (stack.clone(), inbox.clone(), remote.clone(), sender.clone());
                    std::thread::spawn(move || serve(&*stack, index, depth, inbox, remote, sender))
                };
                QueueHandle { inbox, remote, thread }
            })
            .collect();
        Disk { stack, queues, ended, asked: 0 }
    }

    /// Hands a request to a queue; yields its number.
    pub fn ask(&mut self, queue: usize, request: Request) -> usize {
        let number = self.asked;
        self.asked += 1;
        let queue = &self.queues[queue % self.queues.len()];
        queue.inbox.requests.lock().expect("no panic").push_back((number, request));
        queue.remote.notify_front();
        number
    }

    /// The next request that ends, whichever it is.
    pub fn wait(&self) -> Ended {
        for _ in 0..300 {
            match self.ended.recv_timeout(std::time::Duration::from_millis(100)) {
                Ok(ended) => return ended,
                Err(_) => {
                    assert!(!self.queues.iter().any(|queue| queue.thread.is_finished()), "a queue ended")
                }
            }
        }
        panic!("a request did not end within 30 s")
    }

    /// Asks and waits for the answer; nothing else is on its way.
    pub fn call(&mut self, request: Request) -> (IoResult, Vec<u8>) {
        let number = self.ask(0, request);
        let ended = self.wait();
        assert_eq!(ended.number, number);
        (ended.result, ended.data)
    }

    pub fn close(self) {
        for queue in &self.queues {
            queue.inbox.closed.store(true, Ordering::SeqCst);
            queue.remote.notify_front();
        }
        for queue in self.queues {
            queue.thread.join().expect("no panic").expect("the queue served to its end");
        }
        self.stack.close().expect("closed");
    }
}

fn serve(
    stack: &dyn Stack,
    index: u16,
    depth: u16,
    inbox: Arc<Inbox>,
    remote: Arc<Remote>,
    ended: Sender<Ended>,
) -> Result<()> {
    let buffers = Buffers::new(depth, MAX_IO).expect("memory");
    let ring = Ring::new(depth, remote).expect("a ring");
    let context = QueueContext { ring: &ring, index, depth, max_io_size: MAX_IO };
    let free = (0..depth).rev().collect();
    let numbers = vec![0; usize::from(depth)];
    let mut front = TestFront { buffers: &buffers, inbox, ended, free, numbers };
    stack.serve(&context, &buffers, &mut front, &QueueMetrics::new())
}

struct TestFront<'a> {
    buffers: &'a Buffers,
    inbox: Arc<Inbox>,
    ended: Sender<Ended>,
    free: Vec<u16>,
    numbers: Vec<usize>,
}

/// The start of a slot's buffer, for the front end whose slot it is.
fn with_slot<T>(buffers: &Buffers, slot: u16, len: usize, body: impl FnOnce(&mut [u8]) -> T) -> T {
    assert!(len <= MAX_IO as usize);
    // SAFETY: the buffer has MAX_IO bytes, and the slot is the front end's: before its request is
    // begun, or after all of its operations have ended.
    body(unsafe { std::slice::from_raw_parts_mut(buffers.address(slot) as *mut u8, len) })
}

impl FrontEnd for TestFront<'_> {
    fn next(&mut self, _ring: &Ring) -> Result<Option<Io>> {
        let Some(slot) = self.free.pop() else { return Ok(None) };
        let Some((number, request)) = self.inbox.requests.lock().expect("no panic").pop_front() else {
            self.free.push(slot);
            return Ok(None);
        };
        self.numbers[usize::from(slot)] = number;
        match request.op {
            Op::Write => with_slot(self.buffers, slot, request.data.len(), |bytes| {
                bytes.copy_from_slice(&request.data);
            }),
            Op::Read => with_slot(self.buffers, slot, request.len as usize, |bytes| bytes.fill(0xee)),
            _ => {}
        }
        let Request { op, flags, offset, len, .. } = request;
        Ok(Some(Io { op, flags, offset, len, slot }))
    }

    fn complete(&mut self, _ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        let data = match io.op {
            Op::Read => with_slot(self.buffers, io.slot, io.len as usize, |bytes| bytes.to_vec()),
            Op::Extents => with_slot(self.buffers, io.slot, ANSWER_LEN, |bytes| bytes.to_vec()),
            _ => Vec::new(),
        };
        let number = self.numbers[usize::from(io.slot)];
        self.free.push(io.slot);
        // The test may be gone after a failure of its own.
        let _ = self.ended.send(Ended { number, result, data });
        Ok(())
    }

    fn end_turn(&mut self, _ring: &Ring, _full: bool) -> Result<bool> {
        Ok(!self.free.is_empty() && !self.inbox.requests.lock().expect("no panic").is_empty())
    }

    fn finished(&self) -> bool {
        self.inbox.closed.load(Ordering::SeqCst) && self.inbox.requests.lock().expect("no panic").is_empty()
    }
}
