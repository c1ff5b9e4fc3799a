//! The simulated world: a seeded twin of what `port/linux` reaches.
//!
//! The code under test is the production code. Its threads are real threads, of which exactly one
//! runs at a time; whatever could block hands the baton to the scheduler, which takes the next of
//! all things that are to happen from one queue, ordered by a time of its own. The ublk driver, the
//! disk below the file backend and the kernel's side of the rings are state machines in that queue.
//! Everything that is left to chance comes from one seed, so that a seed replays bit for bit.
//!
//! A thread that runs outside of a [`World`] is in the real one, whatever was compiled.

use std::cell::RefCell;
use std::sync::Arc;

pub mod channel;
mod clock;
pub mod command;
mod disk;
pub mod file;
mod locked;
mod memory;
pub mod node;
mod processor;
mod random;
mod ring;
mod schedule;
pub mod system;
pub mod thread;
mod trace;
mod ublk;
mod world;

pub use clock::Instant;
pub(super) use clock::{monotonic_nanoseconds, sleep};
pub use disk::{DiskShape, Faults, PowerLoss};
pub use locked::in_the_world;
pub(super) use memory::mapping_offset;
pub use random::Random;
pub(super) use ring::{Driver, notify};
pub use ublk::{Client, Kernel, Next, Request, Shape};
pub use world::{Bug, Config, Failure, Outcome, Process, World};

use schedule::ThreadId;
use world::Inner;

/// Which world the running thread is in, and as whom.
#[derive(Clone)]
pub(crate) struct Handle {
    world: Arc<Inner>,
    thread: ThreadId,
}

thread_local! {
    static CURRENT: RefCell<Option<Handle>> = const { RefCell::new(None) };
}

/// The simulated world this thread is in, if it is in one.
pub(crate) fn current() -> Option<Handle> {
    CURRENT.with(|current| current.borrow().clone())
}

/// Whether this bug was planted in the world of this thread.
pub fn has(bug: Bug) -> bool {
    current().is_some_and(|handle| handle.state().config.bug == Some(bug))
}

fn enter(handle: Option<Handle>) {
    CURRENT.with(|current| *current.borrow_mut() = handle);
}

/// Another thread may run here: for places where the order of two steps must not matter.
pub(crate) fn point() {
    if let Some(handle) = current() {
        handle.point();
    }
}
