//! The seam to the world: rings, files, memory, threads, processes, signals, the clock.
//!
//! Nothing above this module names `libc`, `io_uring`, `nix`, `std::thread` or `std::time`; a test
//! keeps it so. The simulated twin of what is here is `port/sim`, compiled for tests alone.

pub mod arena;
mod linux;
mod patience;
pub mod ring;
pub mod scratch;
#[cfg(feature = "sim")]
pub mod sim;
mod spin;
pub mod stream;

pub use linux::{
    bell, clock, fuse, inherited, loop_device, memory, nbd, netlink, notify, outgoing, process, remote,
    signal,
};
#[cfg(not(feature = "sim"))]
pub use linux::{channel, command, file, node, socket, system, thread};
#[cfg(feature = "sim")]
pub use sim::{channel, command, file, node, socket, system, thread};

#[cfg(not(feature = "sim"))]
use linux::uring::Uring as Driver;
#[cfg(feature = "sim")]
use sim::Driver;
