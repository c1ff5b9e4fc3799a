//! The loss of a session, and the way to the next one.

use super::super::connect::Connected;
use super::super::link::{Link, Lost};
use super::super::work::{Owner, Work};
use super::changes::Replay;
use super::{FIRST_PAUSE, Session};
use crate::error::Result;
use crate::port::channel::{Receiver, bounded};
use crate::port::clock::{Duration, Instant};
use crate::port::thread::{self, JoinHandle};

/// How long it waits at most before it connects again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// While there is no connection.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) next_attempt: Instant,
    pub(super) attempt: Option<Attempt>,
    /// What was said last about why there is none.
    pub(super) said: String,
}

/// A thread that connects.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) thread: JoinHandle<()>,
    pub(super) connected: Receiver<Result<Vec<Connected>>>,
}

impl Session {
    /// The session is over.
    pub(super) fn lose(&mut self, lost: Lost, now: Instant) {
        if self.links.is_empty() {
            return;
        }
        self.say(&format!("connection lost: {}", lost.why));
        let was_asked = self.links.iter().any(|link| link.outstanding() > 0);
        // Sessions that come and go without a reply are one absence.
        if self.silent_since.is_none() || self.was_served || !was_asked {
            self.silent_since = Some(now);
        }
        if let Some(work) = lost.blame {
            match work.owner {
                Owner::Request(_) | Owner::Close(_) => self.give_up(*work),
                Owner::Replay(_) | Owner::Flush => {}
            }
        }
        (self.replay, self.own_flush) = (None, false);
        self.changing.clear();
        let under_way: Vec<Work> = self.links.drain(..).flat_map(Link::into_works).collect();
        let held = std::mem::take(&mut self.held).into_iter().map(|(work, _)| work);
        let waiting = std::mem::take(&mut self.waiting);
        let begun = under_way.into_iter().chain(held).map(|work| (work, true));
        let longest = self.longest();
        for (work, begun) in begun.chain(waiting.into_iter().map(|work| (work, false))) {
            match work.owner {
                Owner::Replay(_) | Owner::Flush => {}
                _ if now.saturating_duration_since(work.since) >= longest => self.give_up(work),
                _ if begun || work.done > 0 => self.again(work),
                _ => self.waiting.push_back(work),
            }
        }
        self.waiting.make_contiguous().sort_by_key(|work| (!work.again, work.number));
        if !self.journal.can_replay() {
            return self
                .die("acknowledged changes were not flushed, and are not kept here to be done again".into());
        }
        // At once, unless sessions come and go, and less and less often where nothing comes of them.
        if self.was_served {
            self.pause = FIRST_PAUSE;
        }
        let next_attempt = (self.up_since + self.pause).max(now);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.away = Some(Away { next_attempt, attempt: None, said: String::new() });
    }

    /// A work waits again as if it had not been asked.
    pub(super) fn again(&mut self, mut work: Work) {
        work.done = 0;
        if work.op.modifies() && !std::mem::replace(&mut work.again, true) {
            self.again += 1;
        }
        self.waiting.push_back(work);
    }

    /// Connects again, when it is time, on a thread of its own: that can take long, and requests are to fail meanwhile.
    pub(super) fn connect(&mut self, now: Instant) {
        let Some(away) = &mut self.away else { return };
        if let Some(attempt) = &away.attempt {
            let Ok(result) = attempt.connected.try_recv() else { return };
            if let Some(attempt) = away.attempt.take() {
                let _ = attempt.thread.join();
            }
            let result = result.map_err(|error| error.to_string());
            match result.and_then(|connected| self.promise.check(&connected).map(|()| connected)) {
                Ok(connected) => return self.link_up(connected, now),
                Err(why) => self.not_connected(why, now),
            }
            return;
        }
        if now < away.next_attempt {
            return;
        }
        let (sender, connected) = bounded(1);
        let (connector, shared) = (self.connector.clone(), self.shared.clone());
        let started = thread::spawn("bh-nbd-connect".into(), move || {
            let _ = sender.try_send(connector.connect());
            shared.bell().ring();
        });
        match started {
            Ok(thread) => away.attempt = Some(Attempt { thread, connected }),
            Err(error) => self.not_connected(format!("cannot start a thread: {error}"), now),
        }
    }

    pub(super) fn not_connected(&mut self, why: String, now: Instant) {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        let Some(away) = &mut self.away else { return };
        away.next_attempt = now + pause;
        if away.said != why {
            away.said = why.clone();
            self.say(&why);
        }
    }

    pub(super) fn link_up(&mut self, connected: Vec<Connected>, now: Instant) {
        (self.up_since, self.was_served) = (now, false);
        let is_again = self.away.take().is_some();
        if let Some(Connected { told, .. }) = connected.first()
            && is_again
            && self.promise.has_grown(told)
        {
            self.say(&format!(
                "the export has {} bytes now; the disk keeps its size until it is attached anew",
                told.size
            ));
        }
        let link = |Connected { socket, told }| {
            let most = self.promise.longest_payload(&told);
            Link::new(socket, &told, most, now)
        };
        self.links = connected.into_iter().map(link).collect();
        if is_again && (self.journal.is_clean() || planted!(ReplayLeftOut)) {
            self.say("connected again");
        } else if is_again {
            let first = self.journal.first();
            self.replay = Some(Replay { first, next: first, under_way: Vec::new(), flushing: false });
        }
    }
}
