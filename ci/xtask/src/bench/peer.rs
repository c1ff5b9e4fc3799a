//! The servers beside ours, built for the guest.

mod kublk;
mod rublk;

pub use kublk::kublk;
pub use rublk::rublk;
