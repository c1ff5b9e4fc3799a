//! The protocol of network block devices, without I/O: bytes in, events and bytes out.
//!
//! What is said here is said in the protocol's own document, `doc/proto.md` of the NBD project:
//! its names, its numbers, its rules. A connection first negotiates ([`handshake`], the fixed newstyle)
//! and then transmits ([`transmission`], and [`replies`] the other way). Whoever has the socket drives both; the
//! server, tests and fuzzers use the same ones. [`client`] is the other side.
//!
//! Nothing that a peer sends makes memory grow: every length is bounded before it is used, and what
//! is longer is refused or skipped.

use bitflags::bitflags;

pub mod client;
pub mod handshake;
pub mod replies;
pub mod transmission;
pub mod uri;
mod wire;

pub use wire::{Headers, Request, SimpleReply, chunk, meta, status};

/// Longest name of an export in bytes, which the protocol limits all strings to.
pub const MAX_NAME: usize = 4096;

/// Longest read or write in bytes that every server must take, and the longest that we take.
pub const MAX_PAYLOAD: u32 = 32 << 20;

bitflags! {
    /// What an export can do, as the handshake tells it (transmission flags).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExportFlags: u16 {
        /// Always set: the other flags mean something.
        const HAS_FLAGS = 1 << 0;
        /// Nothing may be written.
        const READ_ONLY = 1 << 1;
        /// Takes FLUSH.
        const SEND_FLUSH = 1 << 2;
        /// Takes the command flag FUA.
        const SEND_FUA = 1 << 3;
        /// Seeks cost time.
        const ROTATIONAL = 1 << 4;
        /// Takes TRIM.
        const SEND_TRIM = 1 << 5;
        /// Takes WRITE_ZEROES, and its flag NO_HOLE.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// Takes the command flag DF; told where replies are chunks.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers what any other was told is written.
        const CAN_MULTI_CONN = 1 << 8;
        /// Takes CACHE.
        const SEND_CACHE = 1 << 10;
        /// Takes the command flag FAST_ZERO.
        const SEND_FAST_ZERO = 1 << 11;
        /// Takes BLOCK_STATUS with a payload; told where headers are extended.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }
}

/// The lengths that an export takes, in bytes (NBD_INFO_BLOCK_SIZE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of it: a power of two up to 64 KiB.
    pub minimum: u32,
    /// What is served best: a power of two, at least the minimum.
    pub preferred: u32,
    /// Longest read or write.
    pub maximum: u32,
}

/// What a server offers under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name: any string of up to [`MAX_NAME`] bytes, the empty one too.
    pub name: String,
    /// A text for people, up to [`MAX_NAME`] bytes; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: ExportFlags,
    /// The lengths it takes.
    pub block: BlockSizes,
}

/// What the two sides of a connection have agreed on beside the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// How requests and replies begin.
    pub headers: Headers,
    /// BLOCK_STATUS may be asked, and tells `base:allocation`.
    pub allocation: bool,
}

/// What this server calls the context `base:allocation` in replies.
pub const ALLOCATION_CONTEXT: u32 = 1;

/// The peer does not speak the protocol, or not by its rules: the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Something else than the number that begins every message.
    #[error("a message does not begin with the protocol's number")]
    Magic,
    /// Client flags that we did not offer.
    #[error("the client sets flags that were not offered")]
    ClientFlags,
    /// An option's data are so long that not even skipping them makes sense.
    #[error("an option carries {0} bytes")]
    OptionLength(u32),
    /// A client that does not know the fixed newstyle asks for more than a name.
    #[error("a client without the fixed newstyle sends an option other than the name of an export")]
    OldClient,
    /// EXPORT_NAME, which cannot be answered with an error, names what is not there.
    #[error("there is no export of the name that was asked for")]
    NoSuchExport,
    /// EXPORT_NAME behind EXTENDED_HEADERS, which the protocol forbids: it has no answer that says how requests look.
    #[error("the client names an export without GO after it has agreed on extended headers")]
    ExtendedHeaders,
    /// A request's payload is so long that not even skipping it makes sense.
    #[error("a request carries {0} bytes")]
    PayloadLength(u64),
    /// EXPORT_NAME before STARTTLS, where there is nothing without TLS.
    #[error("the client names an export without TLS, which this server requires")]
    TlsRequired,
    /// Bytes that somebody put behind STARTTLS without waiting for its acknowledgement.
    #[error("there are bytes behind STARTTLS that are not encrypted")]
    BehindStartTls,
    /// More options than any client has a use for.
    #[error("the handshake has too many options")]
    TooManyOptions,
}
