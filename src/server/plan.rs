//! What a server is given, and what it says when it is ready.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::engine::ublk::{Device, Options, Report};
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
    pub(super) fn new(device: &Device, report: &Report) -> Ready {
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
