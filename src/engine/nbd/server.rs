//! The life of a server: queues seated → listening → closing → drained → closed.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::desk::Desk;
use super::door::{Choice, Door};
use super::export::{self, SLOTS_OF_LONGEST};
use super::front::Sizes;
use super::seat::Seat;
use crate::error::{Error, Kind, Result};
use crate::nbd::Export;
use crate::nbd::transmission::Rules;
use crate::port::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crate::port::clock::{Duration, Instant};
use crate::port::remote::Remote;
use crate::port::stream::Listener;
use crate::port::thread::{self, JoinHandle};
use crate::port::{socket, system};
use crate::queue::Stack;

/// How long a queue thread may take to make its buffers and its ring.
const SEAT_WAIT: Duration = Duration::from_secs(60);

/// Most requests that a queue has in service at once.
pub const MAX_DEPTH: u16 = 4096;

/// A disk and the name it is offered under.
pub struct Offer {
    /// The name that clients choose it by.
    pub name: String,
    /// What people read about it.
    pub description: String,
    /// The disk.
    pub stack: Arc<dyn Stack>,
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a person may choose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Queues of each export, at most one a processor.
    pub queues: u16,
    /// Requests that a queue has in service at once, 1 to 4096.
    pub depth: u16,
    /// Connections at once, to all exports together.
    pub max_connections: u16,
}

struct Queue {
    thread: Option<JoinHandle<()>>,
    desk: Arc<Desk>,
    /// Why it ended, once it has.
    ended: Arc<Mutex<Option<Result<(), String>>>>,
}

/// Exports that clients can connect to, served by threads of this process.
pub struct Server {
    exports: Vec<Export>,
    stacks: Vec<Arc<dyn Stack>>,
    queues: Vec<Queue>,
    door: Option<JoinHandle<()>>,
    waker: Option<File>,
    closing: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("exports", &self.exports).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `offers`, of which the first is the default, to whoever comes to `listeners`. Returns
    /// when clients can connect.
    pub fn start(offers: Vec<Offer>, listeners: Vec<Listener>, options: &Options) -> Result<Server> {
        check(options)?;
        let mut server = Server {
            exports: Vec::new(),
            stacks: Vec::new(),
            queues: Vec::new(),
            door: None,
            waker: None,
            closing: Arc::default(),
            connections: Arc::default(),
        };
        for offer in &offers {
            if server.exports.iter().any(|export| export.name == offer.name) {
                let what = format!("cannot export {:?} twice", offer.name);
                return Err(Error::invalid(what, "a client could not choose").cure("give another name"));
            }
            server.exports.push(export::describe(&offer.name, &offer.description, &*offer.stack)?);
        }
        server.stacks.extend(offers.into_iter().map(|offer| offer.stack));
        let result = server.seat(options).and_then(|()| server.open_door(listeners, options));
        match result {
            Ok(()) => {
                server.stacks.iter().for_each(|stack| stack.started());
                Ok(server)
            }
            Err(error) => {
                // The error that is told is the one that came first.
                let _ = server.finish();
                Err(error)
            }
        }
    }

    /// What clients are told.
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// Connections at this moment, those in the handshake too.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// Why a queue ended by itself, if one did.
    pub fn failure(&self) -> Option<String> {
        self.queues.iter().find_map(|queue| {
            let ended = queue.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.as_ref().and_then(|end| end.clone().err())
        })
    }

    /// Takes nothing new: nobody listens, and no connection is read from. What was asked for is
    /// answered, unless it is to end at once.
    pub fn close(&mut self, at_once: bool) {
        self.closing.store(true, Ordering::Release);
        if let Some(waker) = &mut self.waker {
            // A full pipe wakes as well.
            let _ = waker.write(&[1]);
        }
        if let Some(door) = self.door.take() {
            // A panic aborts the process, so that there is none to report here.
            let _ = door.join();
        }
        for queue in &self.queues {
            queue.desk.close(at_once);
        }
    }

    /// Whether every queue has ended.
    pub fn has_ended(&self) -> bool {
        let ended = |queue: &Queue| queue.ended.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        self.queues.iter().all(ended)
    }

    /// Ends what has not ended, waits for the queues and closes the disks, which makes everything
    /// durable. The first error is told, the rest is done all the same.
    pub fn finish(mut self) -> Result<()> {
        self.close(true);
        for queue in &mut self.queues {
            if let Some(thread) = queue.thread.take() {
                let _ = thread.join();
            }
        }
        let failed = self.failure();
        let mut result = Ok(());
        for stack in &self.stacks {
            result = result.and(stack.close());
        }
        result?;
        match failed {
            Some(why) => Err(Error::new(Kind::Failed, "a queue has failed", why)),
            None => Ok(()),
        }
    }

    fn seat(&mut self, options: &Options) -> Result<()> {
        let sizes = Sizes {
            depth: options.depth,
            slots: options.depth.max(SLOTS_OF_LONGEST),
            connections: options.max_connections,
        };
        let (tell, told) = bounded(self.exports.len() * usize::from(options.queues));
        for (export, stack) in self.exports.iter().zip(&self.stacks) {
            for queue in 0..options.queues {
                let remote = Remote::new(sizes.slots)
                    .map_err(|error| Error::system(format!("cannot make queue {queue}"), error))?;
                let desk = Arc::new(Desk::new(remote.clone(), usize::from(sizes.connections)));
                let seat = Seat {
                    name: export.name.clone(),
                    stack: stack.clone(),
                    rules: Rules::new(export),
                    queue,
                    sizes,
                    remote,
                    desk: desk.clone(),
                };
                self.queues.push(start_thread(seat, desk, tell.clone())?);
            }
        }
        drop(tell);
        self.wait_for_seats(&told)
    }

    fn wait_for_seats(&self, told: &Receiver<()>) -> Result<()> {
        let until = Instant::now() + SEAT_WAIT;
        for _ in &self.queues {
            match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let why = format!("the queues were not ready within {} s", SEAT_WAIT.as_secs());
                    return Err(Error::new(Kind::Deadline, "cannot serve", why));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let why = self.failure().unwrap_or_else(|| "a queue ended".into());
                    return Err(Error::new(Kind::Failed, "cannot serve", why));
                }
            }
        }
        Ok(())
    }

    fn open_door(&mut self, listeners: Vec<Listener>, options: &Options) -> Result<()> {
        let (woken, waker) =
            socket::wake_pipe().map_err(|error| Error::system("cannot make the server's pipe", error))?;
        let queues = usize::from(options.queues);
        let desks = self.queues.chunks(queues);
        let door = Door {
            listeners,
            exports: self.exports.clone(),
            choices: desks
                .map(|queues| Choice { desks: queues.iter().map(|queue| queue.desk.clone()).collect() })
                .collect(),
            max_connections: usize::from(options.max_connections),
            taken: self.connections.clone(),
            woken,
            closing: self.closing.clone(),
        };
        let door = thread::spawn("door".into(), move || door.attend())
            .map_err(|error| Error::system("cannot start the thread that accepts connections", error))?;
        self.door = Some(door);
        self.waker = Some(waker);
        Ok(())
    }
}

fn check(options: &Options) -> Result<()> {
    let what = "cannot serve";
    if options.depth == 0 || options.depth > MAX_DEPTH {
        let why = format!("a depth of {} is outside 1 to {MAX_DEPTH}", options.depth);
        return Err(Error::invalid(what, why).cure("give --depth 128"));
    }
    let cpus = system::cpu_count();
    if options.queues == 0 || options.queues > cpus {
        let why = format!("{} queues on a machine of {cpus} processors", options.queues);
        return Err(Error::invalid(what, why).cure(format!("give --queues from 1 to {cpus}")));
    }
    if options.max_connections == 0 {
        return Err(Error::invalid(what, "nobody could connect").cure("allow at least one connection"));
    }
    Ok(())
}

fn start_thread(seat: Seat, desk: Arc<Desk>, tell: Sender<()>) -> Result<Queue> {
    let ended = Arc::new(Mutex::new(None));
    let (name, end) = (format!("{}-q{}", seat.name, seat.queue), ended.clone());
    let body = move || {
        let seated = || {
            // Who has stopped waiting needs no word.
            let _ = tell.send(());
        };
        let result = seat.serve(seated).map_err(|error| error.to_string());
        *end.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    };
    let thread = thread::spawn(name.replace('\0', ""), body)
        .map_err(|error| Error::system("cannot start the thread of a queue", error))?;
    Ok(Queue { thread: Some(thread), desk, ended })
}
