//! What a server does with a device, so that its tests can have one where the kernel has none.

use std::path::PathBuf;
use std::sync::Arc;

use super::plan::Plan;
use crate::engine::ublk::{Device, Report};
use crate::error::Result;

/// A disk that is live.
pub(super) trait Disk: Send {
    /// Its number.
    fn id(&self) -> u32;

    /// Its path.
    fn path(&self) -> PathBuf;

    /// What it is, at this moment.
    fn report(&self) -> Report;

    /// Why it is of no use any more, if it is not.
    fn failure(&self) -> Option<String>;

    /// Takes it away; with `only_if_idle` it is refused (Busy) while somebody has it open.
    fn stop(&self, only_if_idle: bool) -> Result<()>;

    /// After a stop: makes everything durable and removes what is left.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What is told the id of a disk as soon as there is one.
pub(super) type Added<'a> = &'a mut dyn FnMut(u32) -> Result<()>;

/// Makes a disk.
pub(super) type Make = Arc<dyn Fn(&Plan, Added<'_>) -> Result<Box<dyn Disk>> + Send + Sync>;

/// Makes a ublk device.
pub(super) fn ublk(plan: &Plan, added: Added<'_>) -> Result<Box<dyn Disk>> {
    Ok(Box::new(Device::start(plan.stack.clone(), &plan.options, added)?))
}

impl Disk for Device {
    fn id(&self) -> u32 {
        self.id()
    }

    fn path(&self) -> PathBuf {
        self.path()
    }

    fn report(&self) -> Report {
        self.report()
    }

    fn failure(&self) -> Option<String> {
        self.failure()
    }

    fn stop(&self, only_if_idle: bool) -> Result<()> {
        self.stop(only_if_idle)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Device::finish(*self)
    }
}
