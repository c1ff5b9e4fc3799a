//! Engines: each turns the outside's requests into [`Io`](crate::io::Io)s for a stack. None names
//! a backend.

use std::sync::{Arc, OnceLock};

mod choice;
mod driver;
pub mod fuse;
mod live_device;
pub mod load;
mod name;
pub mod nbd;
mod options;
mod report;
mod seating;
pub mod ublk;

pub use choice::{Chosen, EngineWish, available, choose};
pub use live_device::LiveDevice;
pub use name::{DeviceName, Engine, NoDevice};
pub use options::{Choices, DeviceOptions, NbdChoices};
pub use report::{Memory, QueueThread, Report};

/// What is called when a queue of a disk has ended, so that nobody has to look again and again.
pub type Tell = Arc<dyn Fn() + Send + Sync>;

/// Where a disk's queues find whom they tell of their end, once somebody wants to know.
#[derive(Clone, Default)]
struct Alarm(Arc<OnceLock<Tell>>);

impl Alarm {
    /// The first who asks for it is told.
    fn tell(&self, tell: Tell) {
        let _ = self.0.set(tell);
    }

    fn ring(&self) {
        if let Some(tell) = self.0.get() {
            tell();
        }
    }
}
