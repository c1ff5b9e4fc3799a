//! What a server is given, and what it says when it is ready.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::Node;
use super::entrance::Entrance;
use crate::engine::{DeviceName, DeviceOptions, Report, nbd};
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
    /// What serves it.
    pub engines: Engines,
    /// What a person should know that neither the backend nor the engine says.
    pub notes: Vec<String>,
}

/// What serves a disk, and what each engine is asked for.
#[derive(Clone, Debug)]
pub enum Engines {
    /// It is a device of this machine.
    Device(DeviceOptions),
    /// NBD clients can choose it.
    Export(Offering),
    /// It is a device, and as long as it is there clients can choose it too.
    Both(DeviceOptions, Offering),
}

impl Engines {
    /// What the device is asked for, where it is one.
    pub(super) fn device(&self) -> Option<&DeviceOptions> {
        match self {
            Engines::Device(options) | Engines::Both(options, _) => Some(options),
            Engines::Export(_) => None,
        }
    }

    /// How clients can choose it, where they can.
    pub(super) fn export(&self) -> Option<&Offering> {
        match self {
            Engines::Export(offering) | Engines::Both(_, offering) => Some(offering),
            Engines::Device(_) => None,
        }
    }
}

/// How a disk is offered to NBD clients.
#[derive(Clone, Debug)]
pub struct Offering {
    /// The name that they choose it by.
    pub name: String,
    /// What they are told about it.
    pub description: String,
    /// Queues and their depth.
    pub options: nbd::Options,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("spec", &self.spec)
            .field("engines", &self.engines)
            .finish_non_exhaustive()
    }
}

/// What a disk is called inside a server; chosen by whoever wants it, and never used again.
pub type Key = u64;

/// A device or an export that is wanted.
pub struct Job {
    /// Its name inside the server.
    pub key: Key,
    /// The spec, as people see it.
    pub spec: String,
    /// The name of the device that will be asked for, which others must not take before.
    pub device: Option<DeviceName>,
    /// The name that it will be offered to NBD clients under, where it will be.
    pub name: Option<String>,
    /// Disks that must be gone before it can be there, because they have its file. Whoever has one of
    /// its names must be gone as well, which the server sees for itself.
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

/// What can be read again to hear which disks are wanted.
pub trait Source: Send {
    /// Compares what is wanted now with the disks that are there. An error leaves everything as
    /// it is.
    fn reload(&mut self, served: &[Key]) -> Result<Change>;
}

/// What a server does from its start to its end.
pub struct Service {
    /// The file that names the disks, where one does.
    pub config: Option<PathBuf>,
    /// The disks at the start.
    pub jobs: Vec<Job>,
    /// Where NBD clients come to, where they can.
    pub entrance: Option<Entrance>,
    /// What SIGHUP reads again; without it SIGHUP means the end, like SIGTERM.
    pub source: Option<Box<dyn Source>>,
    /// Who hears of readiness, reloads and the end.
    pub notifier: Notifier,
}

impl Service {
    /// One device and nothing else.
    pub fn of(plan: Plan) -> Service {
        let device = plan.engines.device().and_then(DeviceOptions::name);
        let name = plan.engines.export().map(|offering| offering.name.clone());
        let spec = plan.spec.clone();
        let job = Job { key: 0, spec, device, name, after: Vec::new(), open: Box::new(|| Ok(plan)) };
        let notifier = Notifier::default();
        Service { config: None, jobs: vec![job], entrance: None, source: None, notifier }
    }
}

/// What is said about a disk when it is there.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// A device that can be opened.
    Device(Ready),
    /// An export that clients can choose.
    Export(nbd::Report),
}

/// What is said about a device when it can be opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Its name.
    pub name: DeviceName,
    /// Its number with its engine.
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
    /// What NBD clients are given to connect to the same disk, where they can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uris: Vec<String>,
    /// What was chosen, and why.
    pub notes: Vec<String>,
}

impl Ready {
    pub(super) fn new(node: &Node, report: &Report, uris: Vec<String>) -> Ready {
        Ready {
            name: node.name,
            id: node.name.id,
            device: node.path.display().to_string(),
            engine: report.engine.clone(),
            data_path: report.data_path.clone(),
            data_path_reason: report.data_path_reason.clone(),
            queues: report.queues,
            depth: report.depth,
            block_size: report.block_size,
            size: report.size,
            pid: process::own_pid(),
            uris,
            notes: report.notes.clone(),
        }
    }
}
