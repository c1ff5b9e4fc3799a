//! The client's side, without I/O: the handshake up to transmission, requests out, replies in.
//!
//! A server is as foreign as a client is. Each length that it tells is bounded before it is used, what it says of
//! a request is held against what was asked, and a read counts as served only when each of its bytes was told
//! exactly once. Where the stream can no longer be trusted the connection is over.

use super::wire::Headers;
use super::{BlockSizes, ExportFlags};
use crate::io::Errno;

mod coverage;
pub mod handshake;
pub mod replies;
mod runs;

pub use handshake::Handshake;
pub use replies::Replies;

/// What the handshake has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Size of the export in bytes.
    pub size: u64,
    /// What it can do, as far as this house knows of it.
    pub flags: ExportFlags,
    /// The lengths it takes, where it tells.
    pub block: Option<BlockSizes>,
    /// How requests and replies look.
    pub headers: Headers,
    /// What the server calls the context `base:allocation` in replies to BLOCK_STATUS, which may be asked then.
    pub allocation: Option<u32>,
}

impl Negotiated {
    /// Whether two connections have the same of an export. What a context is called is each connection's own affair.
    pub fn is_like(&self, other: &Negotiated) -> bool {
        let same_name = Negotiated { allocation: other.allocation, ..*self };
        self.allocation.is_some() == other.allocation.is_some() && same_name == *other
    }
}

/// The number of an error on the wire as an errno. The protocol has those of Linux; one that it does not have is
/// EINVAL there, and none at all, where there must be one, EIO.
pub(super) fn errno(number: u32) -> Errno {
    match number {
        0 => Errno::EIO,
        1 | 5 | 12 | 22 | 28 | 75 | 95 | 108 => Errno::new(number as i32),
        _ => Errno::EINVAL,
    }
}

/// The server is ending, and serves nothing more on this connection (ESHUTDOWN, in the protocol's list of errors).
pub const SHUTTING_DOWN: Errno = Errno::new(108);
