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
use crate::tls;

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
    pub listeners: Vec<Listener>,
    pub catalogue: Arc<Catalogue>,
    /// Becomes readable when the thread is to look at `closing`.
    pub woken: File,
    pub closing: Arc<AtomicBool>,
}

/// A connection in the handshake.
pub(super) struct Visitor {
    socket: Socket,
    place: Place,
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
    /// Accepts and negotiates until `closing`. Then nobody listens any more.
    pub fn attend(mut self, mut visitors: Vec<Visitor>) {
        let mut next_look = Deadline::after(QUEUES_LOOK_EVERY);
        while !self.closing.load(Ordering::Acquire) {
            let mut polled: Vec<(BorrowedFd<'_>, bool)> = vec![(self.woken.as_fd(), false)];
            polled.extend(self.listeners.iter().map(|listener| (listener.as_fd(), false)));
            let waits =
                if visitors.iter().any(|visitor| visitor.has_more) { Duration::ZERO } else { LOOK_EVERY };
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

    fn accept(&self, visitors: &mut Vec<Visitor>) -> bool {
        let mut moved = false;
        for listener in &self.listeners {
            for _ in 0..ACCEPTED_A_TURN {
                let Ok(socket) = listener.accept() else { break };
                moved = true;
                // Who only says that it will come keeps out nobody who does.
                let is_full = self.catalogue.connections() >= usize::from(self.catalogue.max_connections());
                let pushes_out = !visitors.is_empty() && (is_full || visitors.len() >= MAX_HANDSHAKES);
                // What carries it under TLS has its place for a moment more.
                let left = pushes_out.then(|| visitors.remove(0).place);
                visitors.extend(self.welcome(socket, left));
            }
        }
        moved
    }

    /// Begins the handshake with a client. One too many is closed at once: to wait in vain would be worse.
    /// `left` is the place of somebody who has just gone.
    pub fn welcome(&self, socket: Socket, left: Option<Place>) -> Option<Visitor> {
        let limit = usize::from(self.catalogue.max_connections());
        Some(Visitor {
            place: left.or_else(|| Place::take(self.catalogue.taken(), limit))?,
            socket,
            handshake: Handshake::with_tls(self.catalogue.encryption().policy()),
            received: Vec::new(),
            until: Deadline::after(HANDSHAKE),
            has_more: false,
            leaves: None,
            settled: Settled::default(),
        })
    }

    fn visit(&self, visitors: &mut Vec<Visitor>, listing: &Listing) -> bool {
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
                    visitors.remove(at);
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
                    hand_over(&choice, Guest { socket, received, place, settled });
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
        let socket = tls::server(visitor.socket, config, visitor.until, visitor.place.clone()).ok()?;
        Some(Visitor { socket, leaves: None, ..visitor })
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
