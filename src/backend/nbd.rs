//! `nbd://HOST/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`: an export of an NBD server, over several connections where
//! it can have them.
//!
//! A thread of the disk's own has the connections; queues hand it requests, and their bytes, as
//! [`Ticket`](crate::port::remote::Ticket)s, which outlive a connection. How a lost server is dealt with is told in
//! `docs/decisions`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{Backend, Queue, QueueContext};
use crate::error::{Error, Kind, Result};
use crate::io::{Capabilities, Errno, Geometry, Io, IoResult, Op};
use crate::nbd::uri::Address;
use crate::nbd::{BlockSizes, Headers};
use crate::payload::Payload;
use crate::port::bell::Bell;
use crate::port::channel::{Sender, bounded};
use crate::port::clock::Duration;
use crate::port::ring::Ring;
use crate::port::thread::{self, JoinHandle};

mod connect;
mod journal;
mod link;
mod promise;
mod session;
mod shared;
mod work;

use connect::Connector;
use promise::Promise;
use session::{Patience, Session};
use shared::Shared;
use work::Job;

/// Most connections of one disk.
pub const MOST_CONNECTIONS: u16 = 16;

/// How an export is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is.
    pub address: Address,
    /// Connections, 1 to [`MOST_CONNECTIONS`]; one alone where the server does not promise that a flush on one covers
    /// the others (NBD_FLAG_CAN_MULTI_CONN).
    pub connections: u16,
    /// After how long without a word from a server that was asked the connection is given up.
    pub answer: Duration,
    /// After how long without a server requests fail.
    pub dead: Duration,
    /// Bytes of memory for what was acknowledged and not flushed; 0 to keep none, and to end the disk where a
    /// server may have lost something.
    pub replay: u64,
    /// The smallest unit in bytes that the disk's clients count in, if the server's is not larger.
    pub unit: u32,
    /// Tells a person what becomes of the connections.
    pub say: fn(&str),
}

/// An export of an NBD server.
#[derive(Debug)]
pub struct Nbd {
    promise: Promise,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stop: Arc<AtomicBool>,
    notes: Vec<String>,
}

impl Nbd {
    /// Connects, and starts the thread that has the connections.
    pub fn open(options: &Options) -> Result<Nbd> {
        let stop = Arc::new(AtomicBool::new(false));
        let connections = options.connections.clamp(1, MOST_CONNECTIONS);
        let connector = Connector { address: options.address.clone(), connections, stop: stop.clone() };
        let connected = connector.connect()?;
        let told = connected[0].told;
        let promise = Promise::new(told, options.unit);
        if promise.geometry().size == 0 {
            let why = format!("the export has {} bytes, less than a block", told.size);
            return Err(Error::new(Kind::Invalid, format!("cannot use {}", options.address), why)
                .cure("have the server offer a larger one"));
        }
        let notes = notes(options, &promise, connected.len());
        let failed = |error| Error::system("cannot start the thread of an NBD disk", error);
        let shared = Arc::new(Shared::new(Bell::new().map_err(failed)?));
        let patience = Patience { answer: options.answer, dead: options.dead };
        let session = Session::new(
            shared.clone(),
            connector,
            promise,
            patience,
            options.replay,
            options.say,
            connected,
        );
        let thread = thread::spawn("bh-nbd".into(), move || session.run()).map_err(failed)?;
        Ok(Nbd { promise, shared, thread: Mutex::new(Some(thread)), stop, notes })
    }
}

fn notes(options: &Options, promise: &Promise, connections: usize) -> Vec<String> {
    let told = promise.told();
    let headers = match told.headers {
        Headers::Simple => "simple replies",
        Headers::Structured => "structured replies",
        Headers::Extended => "extended headers",
    };
    let plural = if connections == 1 { "" } else { "s" };
    let block = match told.block {
        Some(BlockSizes { minimum, preferred, maximum }) => {
            format!("blocks of {minimum} to {maximum} bytes, best {preferred}")
        }
        None => "block sizes not told".into(),
    };
    let mut notes =
        vec![format!("{}: {connections} connection{plural}, {headers}, {block}", options.address)];
    if connections < usize::from(options.connections) {
        notes.push("nbd: the server does not offer as many connections as were asked for".into());
    }
    if promise.left_over() != 0 {
        notes.push(format!(
            "nbd: {} bytes at the end are less than a block, and not shown",
            promise.left_over()
        ));
    }
    notes
}

impl Backend for Nbd {
    type Queue = NbdQueue;

    fn geometry(&self) -> Geometry {
        self.promise.geometry()
    }

    fn capabilities(&self) -> Capabilities {
        self.promise.capabilities()
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<NbdQueue> {
        // A slot hands over one request at a time; the room is for twice as many.
        let (jobs, door) = bounded(2 * usize::from(context.depth));
        self.shared.order(|orders| orders.doors.push(door));
        let can_flush = self.promise.can_flush();
        Ok(NbdQueue { ring: context.ring.clone(), shared: self.shared.clone(), jobs, can_flush })
    }

    /// A flush, unless there is nothing to flush.
    fn close(&self) -> Result<()> {
        let (sender, receiver) = bounded(1);
        self.shared.order(|orders| orders.close.push(sender));
        let result = receiver.recv().unwrap_or(Err(Errno::EIO));
        result.map_err(|errno| Error::system("cannot flush what was written to the NBD server", errno))
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.shared.order(|orders| orders.quit = true);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic aborts the process, so that there is none to report here.
            let _ = thread.join();
        }
    }
}

/// One queue's handle: a way to the thread that has the connections.
#[derive(Debug)]
pub struct NbdQueue {
    ring: Ring,
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    can_flush: bool,
}

impl Queue for NbdQueue {
    #[inline]
    fn serve_now(&self, io: &Io, _payload: &mut Payload<'_>) -> Option<IoResult> {
        // A server without a flush has nothing that could be lost.
        (io.op == Op::Flush && !self.can_flush).then_some(Ok(()))
    }

    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        let pass_on = |ticket| {
            // A request that cannot be sent is dropped with its ticket, which ends the operation with EIO.
            if self.jobs.try_send(Job { io, ticket }).is_ok() {
                self.shared.bell().ring();
            }
        };
        self.ring.hand_off(&mut payload, pass_on).await
    }
}
