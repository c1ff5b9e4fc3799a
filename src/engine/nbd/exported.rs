//! The life of an export: queues seated → in the catalogue → out of it → desks closed and drained →
//! threads joined → disk closed.

use std::sync::Arc;

use super::catalogue::{Catalogue, Choice};
use super::desk::{Desk, Guest, Place};
use super::export::{self, SLOTS_OF_LONGEST};
use super::front::Sizes;
use super::report::Report;
use super::seat::Seat;
use crate::engine::seating::{Queue, Seating, check_shape};
use crate::engine::{Alarm, QueueThread, Tell};
use crate::error::{Error, Kind, Result};
use crate::metrics::Stats;
use crate::nbd::transmission::Rules;
use crate::nbd::{Export, ExportFlags, Settled};
use crate::port::remote::Remote;
use crate::port::stream::Socket;
use crate::queue::Stack;

/// A disk and the name it is offered under.
pub struct Offer {
    /// The name that clients choose it by.
    pub name: String,
    /// What everybody who can connect reads about it, before anybody has shown who he is: nothing that is not for
    /// strangers.
    pub description: String,
    /// The disk.
    pub stack: Arc<dyn Stack>,
    /// Another engine serves the same disk, for longer than this one: that one tells it that it has
    /// started and closes it.
    pub is_shared: bool,
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a person may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Queues, at most one a processor.
    pub queues: u16,
    /// Requests that a queue has in service at once, 1 to 4096.
    pub depth: u16,
}

/// An export that clients can choose, served by threads of this process. When it is dropped, all of
/// it is undone.
pub struct Exported {
    export: Export,
    stack: Arc<dyn Stack>,
    is_shared: bool,
    options: Options,
    catalogue: Arc<Catalogue>,
    /// None before it can be chosen.
    choice: Option<Arc<Choice>>,
    queues: Vec<Queue<Arc<Desk>>>,
    seats: Vec<QueueThread>,
    alarm: Alarm,
    gone: bool,
}

impl std::fmt::Debug for Exported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exported").field("export", &self.export).finish_non_exhaustive()
    }
}

impl Exported {
    /// Seats the queues and puts the export in the catalogue. When it fails, nothing is left behind.
    pub fn start(catalogue: &Arc<Catalogue>, offer: Offer, options: &Options) -> Result<Exported> {
        check(options, catalogue.max_connections())?;
        let mut exported = Exported {
            export: export::describe(&offer.name, &offer.description, &*offer.stack)?,
            stack: offer.stack,
            is_shared: offer.is_shared,
            options: *options,
            catalogue: catalogue.clone(),
            choice: None,
            queues: Vec::new(),
            seats: Vec::new(),
            alarm: Alarm::default(),
            gone: false,
        };
        exported.seat()?;
        let desks = exported.queues.iter().map(|queue| queue.handle.clone()).collect();
        let choice = Arc::new(Choice { desks });
        catalogue.add(&exported.export, &choice)?;
        exported.choice = Some(choice);
        Ok(exported)
    }

    /// Tells the disk that it is there for everybody. Called once, when nothing keeps the export
    /// from being served any more.
    pub fn started(&self) {
        if !self.is_shared {
            self.stack.started();
        }
    }

    /// What clients are told.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// What it is, at this moment, for people of this machine; `spec` is what it was made of, and `uris` are its addresses.
    pub fn report(&self, spec: String, uris: Vec<String>) -> Report {
        Report {
            name: self.export.name.clone(),
            engine: "nbd".into(),
            spec,
            size: self.export.size,
            block_size: self.export.block.minimum,
            read_only: self.export.flags.contains(ExportFlags::READ_ONLY),
            queues: self.options.queues,
            depth: self.options.depth,
            connections: self.connections(),
            tls: self.catalogue.encryption().policy().name().to_owned(),
            uris,
            notes: [self.stack.notes(), self.encryption_notes()].concat(),
        }
    }

    /// What a person should know of TLS, where there is any.
    pub fn encryption_notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let encryption = self.catalogue.encryption();
        if let Some(config) = encryption.config() {
            let (tls, failures) = (encryption.policy().name(), config.failures());
            notes.push(match config.verifies_peer() {
                true => format!("TLS is {tls}, clients need a certificate"),
                false => format!("TLS is {tls}, clients need no certificate"),
            });
            if let Some(last) = failures.last() {
                notes.push(format!("TLS has ended {} connections, the last one: {last}", failures.count()));
            }
        }
        notes
    }

    /// What its queues have done. A client's request is as many of theirs as it has pieces of 256 KiB.
    pub fn stats(&self) -> Stats {
        Queue::stats(&self.queues)
    }

    /// The threads that serve it.
    pub fn threads(&self) -> &[QueueThread] {
        &self.seats
    }

    /// Bytes of the queues' buffers, which can never be swapped out.
    pub fn locked_buffers(&self) -> u64 {
        let slots = self.options.depth.max(SLOTS_OF_LONGEST);
        u64::from(self.options.queues) * u64::from(slots) * u64::from(export::SLOT_SIZE)
    }

    /// Has the queue with the fewest connections serve one more, whose other side needs no handshake: it knows
    /// what it gets. False where there are too many already. Not for an export that has a door.
    pub(super) fn connect(&self, socket: Socket) -> bool {
        let limit = usize::from(self.catalogue.max_connections());
        let (Some(place), Some(queue)) = (
            Place::take(self.catalogue.taken(), limit),
            self.queues.iter().min_by_key(|queue| queue.handle.connections()),
        ) else {
            return false;
        };
        let (received, settled) = (Vec::new(), Settled::default());
        queue.handle.leave(Guest { socket, received, place, settled, is_kernel: true });
        true
    }

    /// Connections at this moment.
    pub fn connections(&self) -> usize {
        self.queues.iter().map(|queue| queue.handle.connections()).sum()
    }

    /// Has `tell` called when a queue ends from now on, whatever the reason.
    pub fn on_end(&self, tell: Tell) {
        self.alarm.tell(tell);
    }

    /// Why a queue ended by itself, if one did.
    pub fn failure(&self) -> Option<String> {
        Queue::failure(&self.queues)
    }

    /// Takes nothing new: nobody can choose it, and no request is begun. What was begun is answered,
    /// unless it is to end at once. Who has all its replies sees the end of the stream, and is waited for
    /// a second at most: what it sends meanwhile is thrown away.
    pub fn close(&self, at_once: bool) {
        if let Some(choice) = &self.choice {
            self.catalogue.remove(choice);
        }
        for queue in &self.queues {
            queue.handle.close(at_once);
        }
    }

    /// Whether every queue has ended. Whoever waits for that asks again and again, and so lets the queues
    /// know that time has passed.
    pub fn has_ended(&self) -> bool {
        let mut all = true;
        for queue in &self.queues {
            if !queue.thread.has_ended() {
                queue.handle.nudge();
                all = false;
            }
        }
        all
    }

    /// Ends what has not ended, waits for the queues and closes the disk, which makes everything
    /// durable, unless it is another engine's as well.
    pub fn finish(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.gone, true) {
            return Ok(());
        }
        self.close(true);
        for queue in &mut self.queues {
            queue.thread.join();
        }
        if !self.is_shared {
            self.stack.close()?;
        }
        match self.failure() {
            Some(why) => {
                Err(Error::new(Kind::Failed, format!("a queue of export {:?} failed", self.export.name), why))
            }
            None => Ok(()),
        }
    }

    fn seat(&mut self) -> Result<()> {
        let sizes = Sizes {
            depth: self.options.depth,
            slots: self.options.depth.max(SLOTS_OF_LONGEST),
            connections: self.catalogue.max_connections(),
        };
        let mut seating = Seating::new(self.options.queues, self.alarm.clone());
        for queue in 0..self.options.queues {
            let remote = Remote::new(sizes.slots)
                .map_err(|error| Error::system(format!("cannot make queue {queue}"), error))?;
            let desk = Arc::new(Desk::new(remote.clone(), usize::from(sizes.connections)));
            let seat = Seat {
                name: self.export.name.clone(),
                stack: self.stack.clone(),
                rules: Rules::new(&self.export),
                queue,
                sizes,
                remote,
                metrics: Arc::default(),
                desk: desk.clone(),
            };
            let name = format!("{}-q{queue}", self.export.name).replace('\0', "");
            let (left, metrics) = (desk.clone(), seat.metrics.clone());
            let thread = seating.start(name, move |seated| {
                let served = seat.serve(seated);
                left.end();
                served
            })?;
            self.queues.push(Queue { thread, handle: desk, metrics });
        }
        self.seats = seating.wait_for_queues(format!("cannot export {:?}", self.export.name))?;
        Ok(())
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // Whoever drops it is on the way out with an error of its own.
        let _ = self.take_down();
    }
}

fn check(options: &Options, max_connections: u16) -> Result<()> {
    let what = "cannot serve";
    check_shape(what, options.queues, options.depth)?;
    if max_connections == 0 {
        return Err(Error::invalid(what, "nobody could connect").cure("allow at least one connection"));
    }
    Ok(())
}
