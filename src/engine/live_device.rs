//! What can be done with a disk that an engine shows this machine, whichever it is.

use std::path::PathBuf;

use super::{DeviceName, Report, Tell};
use crate::error::Result;
use crate::metrics::Stats;

/// A disk that can be opened, served by threads of this process.
pub trait LiveDevice: Send {
    /// Its name.
    fn name(&self) -> DeviceName;

    /// The disk.
    fn path(&self) -> PathBuf;

    /// The file that a block device at `path` stands on, or that is all there is, where this process serves that file:
    /// to open either would have it wait for itself.
    fn file(&self) -> Option<PathBuf> {
        None
    }

    /// What it is, at this moment.
    fn report(&self) -> Report;

    /// What its queues have done.
    fn stats(&self) -> Stats;

    /// Has `tell` called when a thread of it ends from now on, whatever the reason.
    fn on_end(&self, tell: Tell);

    /// Why it is of no use any more, if it is not.
    fn failure(&self) -> Option<String>;

    /// Takes the disk away; the queues go on serving meanwhile, and dirty pages reach the backend. With `only_if_idle`
    /// it is refused (Busy) while somebody has the disk open, by the kernel where it can, else by whoever looked before.
    fn stop(&self, only_if_idle: bool) -> Result<()>;

    /// After [`stop`](Self::stop): waits for the threads, closes the backend, which makes everything durable, and
    /// removes what is left.
    fn finish(self: Box<Self>) -> Result<()>;
}
