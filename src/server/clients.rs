//! The connections on the control socket: few, short, and none of them trusted to behave.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::error::{Error, Kind, Result};
use crate::port::clock::{self, Deadline, Duration};
use crate::port::socket::Lines;
use crate::registry::control::{MAX_REQUEST, Reply, Request, State};

/// Connections at once; for what comes on top the oldest that waits for nothing is closed.
const MAX_CLIENTS: usize = 32;

/// How long a connection may say nothing, or not take what it asked for.
const IDLE: Duration = Duration::from_secs(10);

/// Pause after an accept that failed, so that a lack of descriptors does not make us spin.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Somebody wants the device to be taken away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) force: bool,
    /// And everything else that this process serves.
    pub(super) all: bool,
}

/// What is asked about what the socket stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// How it is: a device's status, a process's exports.
    State,
    /// What was done for it.
    Stats,
}

struct Client {
    lines: Lines<UnixStream>,
    until: Deadline,
    /// Has asked for a stop and is told how it ends.
    waits: bool,
}

#[derive(Default)]
pub(super) struct Clients {
    listener: Option<UnixListener>,
    clients: Vec<Client>,
}

impl Clients {
    pub(super) fn listen(&mut self, listener: UnixListener) {
        self.listener = Some(listener);
    }

    /// What to wait for.
    pub(super) fn polled(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let listener = self.listener.iter().map(|listener| (listener.as_fd(), false));
        listener.chain(self.clients.iter().map(|client| (client.lines.as_fd(), client.lines.wants_to_send())))
    }

    /// Whether somebody is connected.
    pub(super) fn are_there(&self) -> bool {
        !self.clients.is_empty()
    }

    /// Reads, answers, and drops whoever has gone or takes too long. `answer` is what is said to a
    /// question.
    pub(super) fn serve(&mut self, state: State, answer: &dyn Fn(Question) -> Vec<Reply>) -> Vec<Wish> {
        let mut wishes = Vec::new();
        self.clients.retain_mut(|client| match client.serve(state, answer) {
            Ok(wish) => {
                wishes.extend(wish);
                !client.lines.ended() && (client.waits || !client.until.passed())
            }
            Err(_) => false,
        });
        wishes
    }

    /// Takes one connection a turn, so that each is served before others can push it out.
    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match listener.accept() {
            Ok((stream, _)) => {
                if self.clients.len() >= MAX_CLIENTS {
                    let Some(idle) = self.clients.iter().position(|client| !client.waits) else { return };
                    self.clients.remove(idle);
                }
                if stream.set_nonblocking(true).is_ok() {
                    let lines = Lines::new(stream, MAX_REQUEST);
                    self.clients.push(Client { lines, until: Deadline::after(IDLE), waits: false });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => clock::sleep(AFTER_FAILURE),
        }
    }

    /// Tells those who wait for the stop that it is not going to happen.
    pub(super) fn refuse(&mut self, error: &Error) {
        for client in self.clients.iter_mut().filter(|client| client.waits) {
            client.waits = false;
            client.until = Deadline::after(IDLE);
            // Whoever does not listen any more is dropped in the next turn.
            let _ = client.say(&Reply::failed(error));
        }
    }

    /// Tells those who wait how it ended. Who has not taken it by then is still there afterwards.
    pub(super) fn say_goodbye(&mut self, result: &Result<()>) {
        self.listener = None;
        let reply = result.as_ref().map_or_else(Reply::failed, |()| Reply::Stopped);
        self.clients.retain_mut(|client| client.waits && client.say(&reply).is_ok());
        self.clients.retain(|client| client.lines.wants_to_send());
    }

    /// After the goodbye: goes on sending it, and drops who has it.
    pub(super) fn flush(&mut self) {
        self.clients.retain_mut(|client| client.lines.flush().is_ok() && client.lines.wants_to_send());
    }
}

impl Client {
    fn serve(
        &mut self,
        state: State,
        answer: &dyn Fn(Question) -> Vec<Reply>,
    ) -> std::io::Result<Option<Wish>> {
        self.lines.flush()?;
        // One request a turn, and none before the last reply is taken: nobody gets more than
        // their share.
        if self.lines.wants_to_send() {
            return Ok(None);
        }
        let Some(line) = self.lines.receive()? else { return Ok(None) };
        self.until = Deadline::after(IDLE);
        match serde_json::from_str(&line) {
            // Each socket has one answer: a device's is its status, a process's are its exports.
            Ok(Request::Status | Request::Exports) => {
                self.say_all(&answer(Question::State))?;
                Ok(None)
            }
            Ok(Request::Stats) => {
                self.say_all(&answer(Question::Stats))?;
                Ok(None)
            }
            Ok(Request::Stop { .. }) if state == State::Starting => {
                let error = Error::new(Kind::Busy, "cannot detach", "the device is still being made");
                self.say(&Reply::failed(&error.cure("try again in a moment")))?;
                Ok(None)
            }
            // Who has gone before hearing that it was understood was told that it failed, and may
            // have changed plans: then it must not happen.
            Ok(Request::Stop { force }) => {
                self.say(&Reply::Accepted)?;
                self.waits = true;
                Ok(Some(Wish { force, all: false }))
            }
            Ok(Request::End { force }) => {
                self.say(&Reply::Accepted)?;
                self.waits = true;
                Ok(Some(Wish { force, all: true }))
            }
            Err(error) => {
                self.say(&Reply::failed(&Error::invalid("bad request", error.to_string())))?;
                Ok(None)
            }
        }
    }

    fn say_all(&mut self, replies: &[Reply]) -> std::io::Result<()> {
        replies.iter().try_for_each(|reply| self.say(reply))
    }

    fn say(&mut self, reply: &Reply) -> std::io::Result<()> {
        self.lines.send(&serde_json::to_string(reply)?)
    }
}
