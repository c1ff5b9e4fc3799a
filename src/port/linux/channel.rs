//! Channels between threads, with a bound.

pub use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
