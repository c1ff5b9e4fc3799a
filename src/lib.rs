//! blockhaus: a block device server for Linux.
//!
//! Arrows point one way:
//!
//! ```text
//! cli → up → server → stack → engine → queue → backend (the trait) ← backend::{null, ram, file, …}
//!                                ↓                 ↓
//!                               nbd     port → payload → io → uapi
//! ```
//!
//! To plug in storage of your own, implement [`backend::blocking::BlockDevice`] (plain methods that
//! may block) or [`backend::Backend`] (asynchronous, on the queue's own io_uring).

pub mod backend;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod exporter;
pub mod filter;
pub mod holders;
pub mod io;
pub mod metrics;
pub mod nbd;
pub mod payload;
pub mod port;
pub mod queue;
pub mod random;
pub mod registry;
pub mod sandbox;
pub mod server;
pub mod stack;
pub mod tls;
pub mod up;
