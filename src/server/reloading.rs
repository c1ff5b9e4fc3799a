//! The file is read again: what was taken out of it is stopped, what is new is started, and the
//! rest is not touched.

use std::sync::{Arc, Mutex, PoisonError};

use super::plan::{Change, Key, Source};
use super::served::{Event, Phase, Served};
use super::{Server, log};
use crate::error::{Error, Result};
use crate::port::thread;

/// How far a reload has come.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Idle,
    /// The file is being read, on another thread.
    Reading,
    /// These are being stopped, and what is new is waiting or being started.
    Applying(Vec<Key>),
}

/// What is known about reloads.
pub(super) struct Reloading {
    /// Where there is none, there is no file.
    source: Option<Arc<Mutex<Box<dyn Source>>>>,
    step: Step,
    /// Somebody asked again meanwhile.
    again: bool,
}

impl Reloading {
    pub(super) fn new(source: Option<Box<dyn Source>>) -> Reloading {
        Reloading {
            source: source.map(|source| Arc::new(Mutex::new(source))),
            step: Step::Idle,
            again: false,
        }
    }

    pub(super) fn is_possible(&self) -> bool {
        self.source.is_some()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.step != Step::Idle
    }
}

impl Server {
    /// Begins a reload, or keeps in mind that one was asked for.
    pub(super) fn reload(&mut self) {
        let Some(source) = &self.reloading.source else { return };
        if self.ending {
            return log("SIGHUP: not reading the file again while everything is being taken away");
        }
        if self.reloading.is_busy() || !self.handed_over {
            self.reloading.again = true;
            return;
        }
        log("SIGHUP: reading the file again");
        self.notifier.reloading();
        self.reloading.step = Step::Reading;
        let present = self.served.iter().filter(|served| !matches!(served.phase, Phase::Gone(_)));
        let keys: Vec<Key> = present.map(|served| served.key).collect();
        let (source, teller) = (source.clone(), self.around.clone());
        let body = move || {
            let change = source.lock().unwrap_or_else(PoisonError::into_inner).reload(&keys);
            teller.tell(Event::Reloaded(change));
        };
        if let Err(error) = thread::spawn("reload".into(), body) {
            self.around.tell(Event::Reloaded(Err(Error::system("cannot make a thread", error))));
        }
    }

    /// The file was read.
    pub(super) fn reloaded(&mut self, change: Result<Change>) {
        self.reloading.step = Step::Applying(Vec::new());
        match change {
            _ if self.ending => {}
            Err(error) => log(&format!("{error} (everything goes on as before)")),
            Ok(change) => {
                let stays = |served: &&Served| !change.stop.contains(&served.key);
                let (stop, start) = (change.stop.len(), change.start.len());
                let keep = self.served.iter().filter(stays).count();
                log(&format!("the file was read: {stop} to stop, {start} to start, {keep} untouched"));
                for served in self.served.iter_mut().filter(|served| change.stop.contains(&served.key)) {
                    served.stop(false, &self.around);
                }
                self.served.extend(change.start.into_iter().map(Served::new));
                self.reloading.step = Step::Applying(change.stop);
            }
        }
    }

    /// Says so when a reload has come to its end, and begins the next one that was asked for.
    pub(super) fn settle_reload(&mut self) {
        if let Step::Applying(stopped) = &self.reloading.step {
            let is_under_way = |served: &Served| match served.phase {
                Phase::Waiting(_) | Phase::Starting => true,
                Phase::Stopping => stopped.contains(&served.key),
                Phase::Live(_) | Phase::Gone(_) => false,
            };
            if self.served.iter().any(is_under_way) {
                return;
            }
            self.reloading.step = Step::Idle;
            let serving = self.serving();
            log(&format!("{serving} now"));
            self.notifier.ready(&serving);
        }
        if self.handed_over && !self.reloading.is_busy() && std::mem::take(&mut self.reloading.again) {
            self.reload();
        }
    }
}
