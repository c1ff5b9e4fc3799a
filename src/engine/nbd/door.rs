//! The door: a thread that accepts connections and negotiates with each, all at once and none for
//! long, and hands those that go into transmission to a queue.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::catalogue::{Catalogue, Choice, Listing};
use super::desk::{Guest, Place};
use crate::nbd::Settled;
use crate::nbd::handshake::{Handshake, Progress};
use crate::port::clock::{self, Deadline, Duration};
use crate::port::socket::poll;
use crate::port::stream::{Listener, Socket};
use crate::tls::{self, Leash};

/// How long a client may take to choose an export.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Connections in the handshake at once; for one more the oldest is closed.
const MAX_HANDSHAKES: usize = 32;

/// Bytes of a handshake that wait to be looked at: the longest option fits.
const MAX_RECEIVED: usize = 16 << 10;

/// How often the deadlines are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often the queues look at their connections.
const QUEUES_LOOK_EVERY: Duration = Duration::from_secs(1);

/// Pause after a turn that got nowhere, so that a lack of descriptors, or a client that sends and
/// does not listen, does not make us spin.
const AFTER_NOTHING: Duration = Duration::from_millis(5);

/// Messages of a connection that are looked at in one turn, and bytes that are received: whoever sends
/// without end has its turn, as the others have.
const MESSAGES_A_TURN: usize = 16;
const BYTES_A_TURN: usize = 64 << 10;

/// Connections taken in one turn, so that each is served before others can push it out.
const ACCEPTED_A_TURN: usize = 8;

/// What the thread at the door needs.
pub(super) struct Door {
    listeners: Vec<Listener>,
    catalogue: Arc<Catalogue>,
    /// Becomes readable when the thread is to look at `closing`.
    woken: File,
    closing: Arc<AtomicBool>,
    /// Who has come, and waits for the place of somebody who is about to go. While one waits nobody else is let in.
    newcomer: Option<Socket>,
    /// Those that left the handshake without an export, or had to, while what carries them under TLS has their place.
    leaving: Vec<Leaving>,
}

struct Leaving {
    leash: Leash,
    /// It ends at once.
    was_cut: bool,
}

/// Whether there will be a place for one more.
enum Room {
    Now,
    Soon,
    Never,
}

/// A connection in the handshake.
pub(super) struct Visitor {
    socket: Socket,
    place: Place,
    /// Of what carries it, where it has come back under TLS.
    leash: Option<Leash>,
    handshake: Handshake,
    received: Vec<u8>,
    until: Deadline,
    /// Its turn ended before all was looked at that has come.
    has_more: bool,
    /// Where it goes when it has heard everything.
    leaves: Option<Leaves>,
    /// What was settled for there.
    settled: Settled,
}

enum Leaves {
    For(Arc<Choice>),
    /// To come back without TLS.
    ForTls,
    ForGood,
}

/// What a turn brought a visitor.
enum Visit {
    Stays { moved: bool },
    Chose(Arc<Choice>),
    StartsTls,
    Gone,
}

impl Door {
    pub fn new(
        listeners: Vec<Listener>,
        catalogue: Arc<Catalogue>,
        woken: File,
        closing: Arc<AtomicBool>,
    ) -> Door {
        Door { listeners, catalogue, woken, closing, newcomer: None, leaving: Vec::new() }
    }

    /// Accepts and negotiates until `closing`. Then nobody listens any more.
    pub fn attend(mut self, mut visitors: Vec<Visitor>) {
        let mut next_look = Deadline::after(QUEUES_LOOK_EVERY);
        while !self.closing.load(Ordering::Acquire) {
            let mut polled: Vec<(BorrowedFd<'_>, bool)> = vec![(self.woken.as_fd(), false)];
            let waits = match &self.newcomer {
                _ if visitors.iter().any(|visitor| visitor.has_more) => Duration::ZERO,
                Some(_) => AFTER_NOTHING,
                None => LOOK_EVERY,
            };
            if self.newcomer.is_none() {
                polled.extend(self.listeners.iter().map(|listener| (listener.as_fd(), false)));
            }
            polled.extend(visitors.iter_mut().map(|visitor| {
                let wants_to_send = !visitor.handshake.to_send().is_empty();
                (visitor.socket.as_fd(), wants_to_send)
            }));
            let polling = poll(&polled, waits);
            drop(polled);
            let Ok(ready) = polling else {
                // For want of memory, say: no reason to let nobody in ever again.
                clock::sleep(AFTER_NOTHING);
                continue;
            };
            let _ = self.woken.read(&mut [0; 64]);
            let listing = self.catalogue.listing();
            if next_look.passed() {
                next_look = Deadline::after(QUEUES_LOOK_EVERY);
                listing.choices.iter().flat_map(|choice| &choice.desks).for_each(|desk| desk.look());
            }
            let mut moved = ready[0] || !ready.iter().any(|&ready| ready);
            // First, so that who has just come is greeted at once.
            moved |= self.accept(&mut visitors);
            moved |= self.visit(&mut visitors, &listing);
            if !moved {
                clock::sleep(AFTER_NOTHING);
            }
        }
    }

    fn accept(&mut self, visitors: &mut Vec<Visitor>) -> bool {
        let mut moved = false;
        // Each is the first now and then: who comes there may have to wait, and then nobody comes in elsewhere.
        if !self.listeners.is_empty() {
            self.listeners.rotate_left(1);
        }
        for at in 0..self.listeners.len() {
            for _ in 0..ACCEPTED_A_TURN {
                moved |= self.let_in(visitors);
                if self.newcomer.is_some() {
                    return moved;
                }
                let Ok(socket) = self.listeners[at].accept() else { break };
                moved = true;
                self.newcomer = Some(socket);
            }
        }
        moved | self.let_in(visitors)
    }

    /// Begins the handshake with the newcomer, if there is one and a place for it. One too many is closed at once: to wait
    /// in vain would be worse. Whether it waits no longer.
    fn let_in(&mut self, visitors: &mut Vec<Visitor>) -> bool {
        let Some(socket) = self.newcomer.take() else { return false };
        if visitors.len() >= MAX_HANDSHAKES {
            self.push_out(visitors.remove(0));
        }
        loop {
            if let Some(place) = self.place() {
                visitors.push(self.welcome(socket, place));
                return true;
            }
            match self.make_room(visitors) {
                Room::Now => {}
                Room::Soon => {
                    self.newcomer = Some(socket);
                    return false;
                }
                Room::Never => return true,
            }
        }
    }

    /// Who only says that it will come keeps out nobody who does. One goes at a time.
    fn make_room(&mut self, visitors: &mut Vec<Visitor>) -> Room {
        let before = self.leaving.len();
        self.leaving.retain(|leaving| !leaving.leash.is_over());
        if self.leaving.len() < before || self.leaving.iter().any(|leaving| leaving.was_cut) {
            return Room::Soon;
        }
        if let Some(first) = self.leaving.first_mut() {
            first.leash.cut();
            first.was_cut = true;
            return Room::Soon;
        }
        if visitors.is_empty() {
            return Room::Never;
        }
        match self.push_out(visitors.remove(0)) {
            true => Room::Now,
            false => Room::Soon,
        }
    }

    /// Whether its place is free at once. What carries a connection under TLS has its place until it has ended, and so
    /// there are never more of these than places.
    fn push_out(&mut self, visitor: Visitor) -> bool {
        let Visitor { socket, place, leash, .. } = visitor;
        drop((socket, place));
        let Some(leash) = leash else { return true };
        leash.cut();
        self.leaving.push(Leaving { leash, was_cut: true });
        false
    }

    /// It ends by itself, in ten seconds at most, since its peer is to get what was said to it.
    fn left(&mut self, visitor: Visitor) {
        self.leaving.retain(|leaving| !leaving.leash.is_over());
        self.leaving.extend(visitor.leash.map(|leash| Leaving { leash, was_cut: false }));
    }

    fn place(&self) -> Option<Place> {
        Place::take(self.catalogue.taken(), usize::from(self.catalogue.max_connections()))
    }

    /// Begins the handshake with a client that is there already, if there is a place for it.
    pub fn receive(&self, socket: Socket) -> Option<Visitor> {
        self.place().map(|place| self.welcome(socket, place))
    }

    fn welcome(&self, socket: Socket, place: Place) -> Visitor {
        Visitor {
            socket,
            place,
            leash: None,
            handshake: Handshake::with_tls(self.catalogue.encryption().policy()),
            received: Vec::new(),
            until: Deadline::after(HANDSHAKE),
            has_more: false,
            leaves: None,
            settled: Settled::default(),
        }
    }

    fn visit(&mut self, visitors: &mut Vec<Visitor>, listing: &Listing) -> bool {
        let mut moved = false;
        let mut at = 0;
        while at < visitors.len() {
            match visitors[at].visit(listing) {
                Visit::Stays { moved: this } => {
                    moved |= this;
                    at += 1;
                }
                Visit::Gone => {
                    moved = true;
                    self.left(visitors.remove(at));
                }
                Visit::StartsTls => {
                    moved = true;
                    // Where it was, since the oldest is the first to be pushed out.
                    match self.encrypt(visitors.remove(at)) {
                        Some(visitor) => visitors.insert(at, visitor),
                        None => continue,
                    }
                    at += 1;
                }
                Visit::Chose(choice) => {
                    moved = true;
                    let Visitor { socket, place, received, settled, .. } = visitors.remove(at);
                    hand_over(&choice, Guest { socket, received, place, settled, is_kernel: false });
                }
            }
        }
        moved
    }

    /// Has the connection carried under TLS from here on. What it may take is what is left of the time for the whole
    /// handshake.
    fn encrypt(&self, visitor: Visitor) -> Option<Visitor> {
        let config = self.catalogue.encryption().config()?;
        // What was received in the clear would be taken for something that was not.
        if !visitor.received.is_empty() {
            return None;
        }
        let (socket, leash) =
            tls::server(visitor.socket, config, visitor.until, visitor.place.clone()).ok()?;
        Some(Visitor { socket, leash: Some(leash), leaves: None, ..visitor })
    }
}

/// To the queue with the fewest connections, of those that have not ended. If the export has gone
/// meanwhile, so does the guest.
fn hand_over(choice: &Choice, guest: Guest) {
    let desks = choice.desks.iter().filter(|desk| !desk.has_ended());
    if let Some(desk) = desks.min_by_key(|desk| desk.connections()) {
        desk.leave(guest);
    }
}

impl Visitor {
    fn visit(&mut self, listing: &Listing) -> Visit {
        let mut moved = false;
        let (mut messages, mut bytes) = (0, 0);
        self.has_more = false;
        loop {
            let all_sent = match self.send() {
                Ok(all_sent) => all_sent,
                Err(_) => return Visit::Gone,
            };
            // Looked at in each round: it passes for whoever goes on sending, too.
            if self.until.passed() {
                return Visit::Gone;
            }
            if !all_sent {
                return Visit::Stays { moved };
            }
            match &self.leaves {
                Some(Leaves::For(choice)) => return Visit::Chose(choice.clone()),
                Some(Leaves::ForTls) => return Visit::StartsTls,
                Some(Leaves::ForGood) => return Visit::Gone,
                None => {}
            }
            if messages == MESSAGES_A_TURN || bytes >= BYTES_A_TURN {
                self.has_more = true;
                return Visit::Stays { moved: true };
            }
            match self.handshake.receive(&self.received, &listing.exports) {
                Err(_) => return Visit::Gone,
                Ok((used, progress)) => {
                    self.received.drain(..used);
                    match progress {
                        Progress::Incomplete => match self.receive() {
                            Ok(0) => return Visit::Gone,
                            Ok(count) => {
                                bytes += count;
                                moved = true;
                            }
                            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                                return Visit::Stays { moved };
                            }
                            Err(_) => return Visit::Gone,
                        },
                        Progress::Answered => messages += 1,
                        Progress::Transmission(number) => {
                            let chosen = listing.exports.get(number).zip(listing.choices.get(number));
                            let Some((export, choice)) = chosen else { return Visit::Gone };
                            self.settled = self.handshake.settled(export);
                            self.leaves = Some(Leaves::For(choice.clone()));
                        }
                        Progress::StartTls => self.leaves = Some(Leaves::ForTls),
                        Progress::Ended => self.leaves = Some(Leaves::ForGood),
                    }
                }
            }
        }
    }

    /// Sends what is to be said; whether that was all.
    fn send(&mut self) -> std::io::Result<bool> {
        let to_send = self.handshake.to_send();
        while !to_send.is_empty() {
            match (&self.socket).write(to_send) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => drop(to_send.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn receive(&mut self) -> std::io::Result<usize> {
        let mut chunk = [0; 4096];
        let room = MAX_RECEIVED.saturating_sub(self.received.len()).min(chunk.len());
        let count = (&self.socket).read(&mut chunk[..room])?;
        self.received.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}
