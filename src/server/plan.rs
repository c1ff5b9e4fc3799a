//! What a server is given, and what it says when it is ready.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use crate::engine::ublk::{Options, Report};
use crate::error::Result;
use crate::port::notify::Notifier;
use crate::port::process;
use crate::queue::Stack;

/// What is to be served, and how.
pub struct Plan {
    /// The spec it came from, as people see it.
    pub spec: String,
    /// The backend.
    pub stack: Arc<dyn Stack>,
    /// What the engine is asked for.
    pub options: Options,
    /// What a person should know that neither the backend nor the engine says.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("spec", &self.spec)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What a device is called inside a server; chosen by whoever wants it, and never used again.
pub type Key = u64;

/// A device that is wanted.
pub struct Job {
    /// Its name inside the server.
    pub key: Key,
    /// The spec, as people see it.
    pub spec: String,
    /// The id that will be asked for, which others must not take before.
    pub id: Option<u32>,
    /// Devices that must be gone before it can be there, because they have its file. Whoever has its
    /// id must be gone as well, which the server sees for itself.
    pub after: Vec<Key>,
    /// Opens the backend, on a thread of its own.
    pub open: Box<dyn FnOnce() -> Result<Plan> + Send>,
}

/// What has to be done after the file was read again.
pub struct Change {
    /// What is no longer wanted.
    pub stop: Vec<Key>,
    /// What is wanted and not there.
    pub start: Vec<Job>,
}

/// What can be read again to hear which devices are wanted.
pub trait Source: Send {
    /// Compares what is wanted now with the devices that are there. An error leaves everything as
    /// it is.
    fn reload(&mut self, served: &[Key]) -> Result<Change>;
}

/// What a server does from its start to its end.
pub struct Service {
    /// The file that names the devices, where one does.
    pub config: Option<PathBuf>,
    /// The devices at the start.
    pub jobs: Vec<Job>,
    /// What SIGHUP reads again; without it SIGHUP means the end, like SIGTERM.
    pub source: Option<Box<dyn Source>>,
    /// Who hears of readiness, reloads and the end.
    pub notifier: Notifier,
}

impl Service {
    /// One device and nothing else.
    pub fn of(plan: Plan) -> Service {
        let (spec, id) = (plan.spec.clone(), plan.options.id);
        let job = Job { key: 0, spec, id, after: Vec::new(), open: Box::new(|| Ok(plan)) };
        Service { config: None, jobs: vec![job], source: None, notifier: Notifier::default() }
    }
}

/// What is said about a device when it can be opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// N of /dev/ublkbN.
    pub id: u32,
    /// The disk's path.
    pub device: String,
    /// The engine.
    pub engine: String,
    /// How data moves between the kernel and the server.
    pub data_path: String,
    /// Why that way.
    pub data_path_reason: String,
    /// Number of queues.
    pub queues: u16,
    /// Requests that a queue takes at once.
    pub depth: u16,
    /// Bytes in a logical block.
    pub block_size: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// The process that serves it.
    pub pid: i32,
    /// What was chosen, and why.
    pub notes: Vec<String>,
}

impl Ready {
    pub(super) fn new(device: &dyn Disk, report: &Report) -> Ready {
        Ready {
            id: device.id(),
            device: device.path().display().to_string(),
            engine: report.engine.clone(),
            data_path: report.data_path.clone(),
            data_path_reason: report.data_path_reason.clone(),
            queues: report.queues,
            depth: report.depth,
            block_size: report.block_size,
            size: report.size,
            pid: process::own_pid(),
            notes: report.notes.clone(),
        }
    }
}
