//! The NBD engine: disks for clients over sockets, served by this process.
//!
//! A thread at the door accepts connections and negotiates. One that goes into transmission is
//! handed to a queue's thread of the export that it chose; from there on its requests are [`Io`]s
//! like any others, and its bytes go through the queue's ring. One queue serves many connections.
//! What there is to choose from is the catalogue's, where exports come and go at any time. Neither the door nor the
//! queues see anything of TLS: [`tls`](crate::tls) gives the door a connection without it for one with.
//!
//! [`Io`]: crate::io::Io

mod catalogue;
mod connection;
mod desk;
mod door;
mod export;
mod exported;
mod front;
pub mod kernel;
mod pool;
mod report;
mod seat;
mod server;

pub use catalogue::{Catalogue, Encryption};
pub use export::SLOT_SIZE;
pub use exported::{Exported, Offer, Options};
pub use report::Report;
pub use server::Server;

/// Bytes that a request's offset and length are a multiple of: the protocol counts in bytes, and clients
/// that do not ask for block sizes expect no more than that.
pub const UNIT: u32 = 1;
