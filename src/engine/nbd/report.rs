//! What an export says of itself, for readiness, `list` and scripts.

use serde::{Deserialize, Serialize};

/// An export that clients can choose.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The name that clients choose it by.
    pub name: String,
    /// `nbd`.
    pub engine: String,
    /// What people read about it: what it is made of.
    pub spec: String,
    /// Bytes.
    pub size: u64,
    /// Smallest unit in bytes.
    pub block_size: u32,
    /// Nothing can be written.
    pub read_only: bool,
    /// Queues.
    pub queues: u16,
    /// Requests that a queue has in service at once.
    pub depth: u16,
    /// Connections at this moment.
    pub connections: usize,
    /// Whether connections are encrypted: off, on (where the client asks for it) or required.
    #[serde(default)]
    pub tls: String,
    /// What a client is given to connect to it, one for each address.
    pub uris: Vec<String>,
    /// What was chosen when it was opened, and why.
    pub notes: Vec<String>,
}
