//! The NBD engine: disks for clients over sockets, served by this process.
//!
//! A thread at the [`door`] accepts connections and negotiates. One that goes into transmission is
//! handed to a queue's thread of the export that it chose; from there on its requests are [`Io`]s
//! like any others, and its bytes go through the queue's ring. One queue serves many connections.
//!
//! [`Io`]: crate::io::Io

mod connection;
mod desk;
mod door;
mod export;
mod front;
mod pool;
mod seat;
mod server;

pub use export::SLOT_SIZE;
pub use server::{MAX_DEPTH, Offer, Options, Server};

/// Bytes that a request's offset and length are a multiple of: the protocol counts in bytes, and clients
/// that do not ask for block sizes expect no more than that.
pub const UNIT: u32 = 1;
