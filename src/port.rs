//! The seam to the world: rings, files, memory, threads, processes, signals, the clock.
//!
//! Nothing above this module names `libc`, `io_uring`, `nix`, `std::thread` or `std::time`; a test
//! keeps it so. The simulated twin of what is here will stand in `port/sim`.

pub mod arena;
mod linux;
pub mod ring;
pub mod scratch;
pub mod stream;

pub use linux::{clock, command, file, memory, notify, process, remote, signal, socket, system, thread};
