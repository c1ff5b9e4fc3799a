//! What a server does with a disk that is there, so that its tests can have one where the kernel has
//! none, and so that it is one thing whether this machine sees it, NBD clients do, or both.

use std::path::PathBuf;
use std::sync::Arc;

use super::plan::Plan;
use crate::engine::{DeviceName, LiveDevice, Report, Tell, nbd};
use crate::error::Result;
use crate::holders::{self, Holder};
use crate::registry::control::DiskStats;

/// A device of this machine.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its name.
    pub(super) name: DeviceName,
    /// Its path.
    pub(super) path: PathBuf,
}

impl Node {
    /// One that the kernel gave a node in /dev.
    pub(super) fn of_kernel(name: DeviceName) -> Node {
        Node { name, path: name.path() }
    }
}

/// A disk that is live.
pub(super) trait Disk: Send {
    /// The device that it is, if it is one.
    fn node(&self) -> Option<Node>;

    /// What a person calls it.
    fn name(&self) -> String;

    /// Who uses the device, but for this process.
    fn users(&self) -> Vec<Holder> {
        self.node().map_or_else(Vec::new, |node| holders::holders(&node.path))
    }

    /// What the device is, at this moment.
    fn report(&self) -> Option<Report>;

    /// What NBD clients can choose, if they can choose it.
    fn export(&self) -> Option<nbd::Report>;

    /// What its engines have done for it.
    fn stats(&self) -> Vec<DiskStats>;

    /// Why it is of no use any more, if it is not.
    fn failure(&self) -> Option<String>;

    /// Has `tell` called when there may be such a reason, from now on.
    fn on_end(&self, tell: Tell);

    /// Takes it away; with `only_if_idle` it is refused (Busy) while somebody has the device open. NBD
    /// clients keep nothing from going: they are told nothing new, and have what they asked for.
    fn stop(&self, only_if_idle: bool) -> Result<()>;

    /// After a stop: waits a while for clients to take their replies, until `at_once` says that they
    /// are not to be waited for.
    fn drain(&self, at_once: &dyn Fn() -> bool) {
        let _ = at_once;
    }

    /// After that: makes everything durable and removes what is left.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What is told about a device as soon as there is one.
pub(super) type Added<'a> = &'a mut dyn FnMut(Node) -> Result<()>;

/// Makes a disk.
pub(super) type Make = Arc<dyn Fn(&Plan, Added<'_>) -> Result<Box<dyn Disk>> + Send + Sync>;

/// A disk that an engine shows this machine.
pub(super) struct Shown(pub(super) Box<dyn LiveDevice>);

impl Disk for Shown {
    fn node(&self) -> Option<Node> {
        Some(Node { name: self.0.name(), path: self.0.path() })
    }

    fn name(&self) -> String {
        self.0.path().display().to_string()
    }

    fn users(&self) -> Vec<Holder> {
        match self.0.file() {
            Some(file) => holders::of_file(&file, &self.0.path(), &[]),
            None => holders::holders(&self.0.path()),
        }
    }

    fn report(&self) -> Option<Report> {
        Some(self.0.report())
    }

    fn export(&self) -> Option<nbd::Report> {
        None
    }

    fn stats(&self) -> Vec<DiskStats> {
        let report = self.0.report();
        vec![DiskStats {
            engine: report.engine,
            name: Disk::name(self),
            spec: String::new(),
            data_path: Some(report.data_path),
            stats: self.0.stats(),
        }]
    }

    fn failure(&self) -> Option<String> {
        self.0.failure()
    }

    fn on_end(&self, tell: Tell) {
        self.0.on_end(tell);
    }

    fn stop(&self, only_if_idle: bool) -> Result<()> {
        self.0.stop(only_if_idle)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.0.finish()
    }
}
