//! `log`: a line for each request, written by a thread that no request waits for.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::queue::ArrayQueue;

use crate::backend::{Backend, Queue, QueueContext};
use crate::error::{Error, Result};
use crate::filter::notes;
use crate::io::{Capabilities, Flags, Geometry, Io, IoResult, Op};
use crate::payload::Payload;
use crate::port::channel::{Receiver, Sender, bounded};
use crate::port::clock::{Duration, utc_now};
use crate::port::ring::Ring;
use crate::port::thread::{self, JoinHandle};

/// Requests of one queue that can wait to be written.
const WAITING: usize = 8192;

/// After how many requests the writer is woken before its time.
const A_BATCH: u64 = WAITING as u64 / 4;

/// How long a request may wait to be written.
const PAUSE: Duration = Duration::from_millis(100);

/// Where lines go.
pub type Sink = Box<dyn Write + Send>;

/// Writes down what is asked for and how it ends.
#[derive(Debug)]
pub struct Log<B> {
    below: B,
    to: String,
    shared: Arc<Shared>,
    writer: Mutex<Option<Writer>>,
}

#[derive(Debug)]
struct Writer {
    thread: JoinHandle<()>,
    /// There is much to write, or the end has come.
    wake: Sender<()>,
}

/// What queues and the writer have in common.
#[derive(Debug, Default)]
struct Shared {
    queues: Mutex<Vec<Arc<Waiting>>>,
    /// Lines that could not be written, since there were too many or the file would not take them.
    lost: AtomicU64,
    /// No more requests come: write what there is, and end.
    ending: AtomicBool,
}

/// One queue's requests that are not written yet.
#[derive(Debug)]
struct Waiting {
    number: u16,
    requests: ArrayQueue<Record>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// When it came, on the ring's clock.
    at: u64,
    took_ns: u64,
    io: Io,
    result: IoResult,
}

impl<B: Backend> Log<B> {
    /// Writes to `sink`, which people know as `to`.
    pub fn new(below: B, sink: Sink, to: impl Into<String>) -> Result<Log<B>> {
        let shared = Arc::new(Shared::default());
        let (wake, woken) = bounded(1);
        let thread = {
            let shared = shared.clone();
            thread::spawn("bh-log".into(), move || write_all(&shared, &woken, sink))
        };
        let thread =
            thread.map_err(|error| Error::system("cannot start the thread of the log filter", error))?;
        Ok(Log { below, to: to.into(), shared, writer: Mutex::new(Some(Writer { thread, wake })) })
    }
}

impl<B> Log<B> {
    /// Ends the writer, after all that came was written.
    fn finish(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Writer { thread, wake }) = writer {
            self.shared.ending.store(true, Ordering::SeqCst);
            // Full when it is about to look anyway.
            let _ = wake.try_send(());
            // A panic in it would have ended the process.
            let _ = thread.join();
        }
    }
}

impl<B> Drop for Log<B> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<B: Backend> Backend for Log<B> {
    type Queue = LogQueue<B::Queue>;

    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn capabilities(&self) -> Capabilities {
        self.below.capabilities()
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<LogQueue<B::Queue>> {
        let below = self.below.open_queue(context)?;
        let waiting = Arc::new(Waiting { number: context.index, requests: ArrayQueue::new(WAITING) });
        self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner).push(waiting.clone());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(LogQueue {
            below,
            ring: context.ring.clone(),
            waiting,
            shared: self.shared.clone(),
            wake: writer.as_ref().map(|writer| writer.wake.clone()),
            written: std::cell::Cell::new(0),
        })
    }

    fn started(&self) {
        self.below.started();
    }

    fn abandoned(&self) {
        self.below.abandoned();
    }

    fn close(&self) -> Result<()> {
        let result = self.below.close();
        self.finish();
        result
    }

    fn memory_used(&self) -> Option<u64> {
        self.below.memory_used()
    }

    fn outlives_process(&self) -> bool {
        self.below.outlives_process()
    }

    fn notes(&self) -> Vec<String> {
        notes(format!("log: a line for each request to {}", self.to), self.below.notes())
    }
}

/// One queue's handle.
#[derive(Debug)]
pub struct LogQueue<Q> {
    below: Q,
    ring: Ring,
    waiting: Arc<Waiting>,
    shared: Arc<Shared>,
    wake: Option<Sender<()>>,
    written: std::cell::Cell<u64>,
}

impl<Q> LogQueue<Q> {
    #[inline]
    fn note(&self, at: u64, io: &Io, result: IoResult) {
        let took_ns = self.ring.now().saturating_sub(at);
        if self.waiting.requests.push(Record { at, took_ns, io: *io, result }).is_err() {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.written.set(self.written.get() + 1);
        if self.written.get().is_multiple_of(A_BATCH)
            && let Some(wake) = &self.wake
        {
            // Full when it was woken already.
            let _ = wake.try_send(());
        }
    }
}

impl<Q: Queue> Queue for LogQueue<Q> {
    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        let at = self.ring.now();
        let result = self.below.serve_now(io, payload)?;
        self.note(at, io, result);
        Some(result)
    }

    #[inline]
    async fn serve(&self, io: Io, payload: Payload<'_>) -> IoResult {
        let at = self.ring.now();
        let result = self.below.serve(io, payload).await;
        self.note(at, &io, result);
        result
    }
}

/// The writer's life.
fn write_all(shared: &Shared, woken: &Receiver<()>, mut sink: Sink) {
    // It writes to a disk that may wait for this one.
    let _ = thread::become_io_flusher();
    let mut text = String::new();
    let mut told = 0;
    let _ = writeln!(text, "# {} seconds since this machine started, queue.slot, request, result", utc_now());
    loop {
        // Woken, or the time is over.
        let _ = woken.recv_timeout(PAUSE);
        let ended = shared.ending.load(Ordering::SeqCst);
        let queues: Vec<Arc<Waiting>> = shared.queues.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut lines = 0;
        for waiting in &queues {
            // No more than there can be at once, so that a fast queue does not keep the others away.
            for record in (0..WAITING).map_while(|_| waiting.requests.pop()) {
                line(&mut text, waiting.number, &record);
                lines += 1;
            }
        }
        let lost = shared.lost.load(Ordering::Relaxed);
        if lost != told {
            let _ = writeln!(text, "# {} lines were lost", lost - told);
            told = lost;
        }
        if !text.is_empty() && (sink.write_all(text.as_bytes()).is_err() || sink.flush().is_err()) {
            shared.lost.fetch_add(lines, Ordering::Relaxed);
        }
        text.clear();
        if ended {
            return;
        }
    }
}

fn line(text: &mut String, queue: u16, record: &Record) {
    let io = &record.io;
    let op = io.op.name();
    let (seconds, micros) = (record.at / 1_000_000_000, record.at / 1000 % 1_000_000);
    let _ = write!(text, "{seconds}.{micros:06} {queue}.{} {op}", io.slot);
    if io.op != Op::Flush {
        let _ = write!(text, " offset={} len={}", io.offset, io.len);
    }
    for (flag, name) in
        [(Flags::FUA, " fua"), (Flags::NO_UNMAP, " no-unmap"), (Flags::FAST_ZERO, " fast-zero")]
    {
        if io.flags.contains(flag) {
            text.push_str(name);
        }
    }
    let result = record.result.map_or_else(|errno| format!("errno={}", errno.number()), |()| "ok".into());
    let _ = writeln!(text, " {result} {}us", record.took_ns / 1000);
}
