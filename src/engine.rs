//! Engines: each turns the outside's requests into [`Io`](crate::io::Io)s for a stack. None names
//! a backend.

use std::sync::{Arc, OnceLock};

pub mod load;
pub mod nbd;
mod seating;
pub mod ublk;

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
