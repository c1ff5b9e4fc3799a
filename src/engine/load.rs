//! The load engine: nobody sends it requests, its front end makes them, on the same queues that serve disks, and
//! measures how long each takes. One thread and one ring a job.
//!
//! **A latency** runs from just before a request is handed to the queue's loop, which submits it with whatever else
//! is waiting, to the moment at which the loop has seen its completion and calls the front end. So it includes the
//! filters and the backend of the stack, system calls, the kernel's block layer, the disk, the interrupt, and the time
//! the completion waited behind others of the same turn.
//!
//! **A request counts** for IOPS and bandwidth if it ended inside the window, and for the latencies if it ended
//! inside the window or was in flight at its end: one that the disk sits on is waited for, and seen.

mod disk;
mod failures;
mod front;
mod jobs;
mod latencies;
mod measured;
mod offsets;
mod pattern;
mod seat;
mod tally;
mod window;

pub use disk::Disk;
pub use failures::Failures;
pub use jobs::{Course, Phase, Progress, measure};
pub use latencies::Latencies;
pub use measured::{CpuTime, Measured};
pub use pattern::{Load, Pattern};
pub use seat::Ring;
