//! What is said while a load runs, and how it is ended early.

use std::io::{IsTerminal, Write};

use super::figures;
use crate::cli::output;
use crate::engine::load::{Course, Load, Phase, Progress};
use crate::port::signal::{Signal, Signals};

/// Tells how far one load is, and hears of signals.
pub(super) struct Watcher<'a> {
    name: String,
    total_s: f64,
    signals: &'a mut Signals,
    /// What is to be done when the process ends with requests in flight.
    abandon: &'a dyn Fn(),
    is_terminal: bool,
    signal: Option<Signal>,
    before: Option<Progress>,
    iops: f64,
}

impl<'a> Watcher<'a> {
    /// On a terminal one line that changes, else a line at the start.
    pub fn new(load: &Load, course: &Course, signals: &'a mut Signals, abandon: &'a dyn Fn()) -> Watcher<'a> {
        let (name, total_s) = (figures::load(load), (course.warm_up + course.window).as_secs_f64());
        let is_terminal = std::io::stderr().is_terminal();
        if !is_terminal {
            output::note(&format!("measuring {name}, {total_s:.1} s"));
        }
        Watcher { name, total_s, signals, abandon, is_terminal, signal: None, before: None, iops: 0.0 }
    }

    /// Called every moment; false where it is to end.
    pub fn look(&mut self, progress: &Progress) -> bool {
        while let Some(signal) = self.signals.take() {
            if self.signal.replace(signal).is_some() {
                // Whoever asks twice does not want to wait for a disk that does not answer.
                self.clear();
                output::note("ended at once; requests were in flight");
                (self.abandon)();
                std::process::exit(signal.exit_status().into());
            }
        }
        if self.is_terminal {
            self.show(progress);
        }
        self.signal.is_none()
    }

    fn show(&mut self, progress: &Progress) {
        let before = *self.before.get_or_insert(*progress);
        let passed = progress.elapsed.saturating_sub(before.elapsed).as_secs_f64();
        // Not so often that nobody can read it.
        if passed >= 0.25 {
            self.iops = (progress.ended - before.ended) as f64 / passed;
            self.before = Some(*progress);
        }
        let elapsed = progress.elapsed.as_secs_f64();
        let state = match (progress.phase, self.signal) {
            (Phase::Ending, Some(_)) => "ending; once more leaves what is in flight".to_owned(),
            (Phase::Ending, None) => "waiting for what is in flight".to_owned(),
            (phase, _) => {
                let warming = if phase == Phase::WarmUp { ", warming up" } else { "" };
                format!("{elapsed:.1} of {:.1} s, {} IOPS{warming}", self.total_s, figures::rate(self.iops))
            }
        };
        let line = format!("{}: {state}", self.name);
        // A line that the terminal breaks could not be taken back.
        let line: String = line.chars().take(79).collect();
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    /// Takes its line away; yields the signal that came.
    pub fn finish(self) -> Option<Signal> {
        self.clear();
        self.signal
    }
}
