//! What a device says of itself, for `status` and scripts.

use serde::{Deserialize, Serialize};

use crate::port::ring::Ring;
use crate::port::thread::{self, CpuMask, Scheduling};

/// A running device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Which engine shows it: `ublk`, `nbd` or `fuse`.
    pub engine: String,
    /// How a request's bytes travel.
    pub data_path: String,
    /// Why that way.
    pub data_path_reason: String,
    /// Queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Size in bytes.
    pub size: u64,
    /// Longest read or write in one request, in bytes.
    pub max_io_size: u32,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// What this kernel's driver offers.
    pub features: Vec<String>,
    /// What the driver granted this device.
    pub flags: Vec<String>,
    /// Memory.
    pub memory: Memory,
    /// The threads that serve it.
    pub queue_threads: Vec<QueueThread>,
    /// What was chosen and why, a line each.
    pub notes: Vec<String>,
}

/// Memory of a device, in bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The queues' buffers: queues × depth × longest request, touched and locked; none where the
    /// data path works on the client's own pages.
    pub locked_buffers: u64,
    /// The contents, where they are in memory.
    pub backend: Option<u64>,
}

/// A thread that serves a queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueueThread {
    /// Which queue.
    pub queue: u16,
    /// The kernel's number of the thread.
    pub tid: i32,
    /// Where it may run.
    pub cpus: String,
    /// Whether the kernel treats it as an IO_FLUSHER, read back from /proc.
    pub io_flusher: bool,
    /// When it runs.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Its ring's set-up.
    pub ring_flags: Vec<String>,
    /// Whether its buffers are registered with the ring.
    pub registered_buffers: bool,
}

impl QueueThread {
    /// The calling thread, which serves `queue` by this ring.
    pub(super) fn current(
        queue: u16,
        scheduling: Scheduling,
        ring: &Ring,
        registered_buffers: bool,
    ) -> QueueThread {
        let tid = thread::current_id();
        QueueThread {
            queue,
            tid,
            cpus: CpuMask::current().map_or_else(|_| "?".to_owned(), |cpus| cpus.to_string()),
            io_flusher: thread::is_io_flusher(tid).unwrap_or(false),
            scheduling,
            ring_flags: ring.setup().split(' ').map(str::to_owned).collect(),
            registered_buffers,
        }
    }
}
