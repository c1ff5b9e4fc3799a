//! What a process of `up` is known by besides its devices: an entry, and a control socket that is
//! about everything it serves.

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::clients::{Clients, Question, Wish};
use super::log;
use crate::error::Result;
use crate::port::clock::{self, Deadline, Duration};
use crate::registry::Registry;
use crate::registry::control::{Reply, State};
use crate::registry::servers::Server;

/// How long clients have to take their last reply.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Between two tries to say it.
const PAUSE: Duration = Duration::from_millis(10);

/// An entry that is removed when this is dropped.
pub(super) struct Presence {
    registry: Registry,
    server: Server,
    clients: Clients,
}

impl Presence {
    /// Announces this process; Busy where another one has the same file.
    pub(super) fn new(registry: &Registry, config: &Path) -> Result<Presence> {
        let (server, listener) = registry.announce_server(config)?;
        let mut clients = Clients::default();
        clients.listen(listener);
        Ok(Presence { registry: registry.clone(), server, clients })
    }

    /// What to wait for.
    pub(super) fn polled(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.clients.polled()
    }

    /// Whether nobody is connected, who might have to be dropped.
    pub(super) fn is_quiet(&self) -> bool {
        !self.clients.are_there()
    }

    /// Answers whoever asks; yields whether everything is to end, and whether by force.
    pub(super) fn serve(&mut self, answer: &dyn Fn(Question) -> Vec<Reply>) -> Option<Wish> {
        self.clients.accept();
        let wishes = self.clients.serve(State::Live, answer);
        wishes.into_iter().reduce(|a, b| if a.force { a } else { b }).map(|wish| Wish { all: true, ..wish })
    }

    /// Tells those who wait for the end that it is not going to happen.
    pub(super) fn refuse(&mut self, error: &crate::error::Error) {
        self.clients.refuse(error);
    }

    /// Everything is gone: nobody finds this process any more, and who waits is told.
    pub(super) fn leave(mut self, result: &Result<()>) {
        self.remove();
        self.clients.say_goodbye(result);
        let deadline = Deadline::after(LAST_WORDS);
        while self.clients.are_there() && !deadline.passed() {
            clock::sleep(PAUSE);
            self.clients.flush();
        }
    }

    fn remove(&self) {
        if let Err(error) = self.registry.remove_server(&self.server) {
            log(&error.to_string());
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.remove();
    }
}
