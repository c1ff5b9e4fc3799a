//! The ublk engine: a real block device, `/dev/ublkbN`, served by this process.
//!
//! [`Device::start`] walks the states added → queues parked → live; [`stop`](super::LiveDevice::stop) and
//! [`finish`](super::LiveDevice::finish) the way back. The kernel's side of all this is `Documentation/block/ublk.rst`
//! and `drivers/block/ublk_drv.c`.

pub mod availability;
pub mod control;
mod data_path;
mod descriptors;
mod device;
mod front;
mod params;
mod queue_thread;

pub use data_path::{DATA_PATHS, DataPath, Load, Wish};
pub use device::{Device, Options};

/// Requests in flight per queue, unless somebody says otherwise.
pub const DEFAULT_DEPTH: u16 = 128;

/// Longest read or write in bytes where slots have buffers: what each of them holds.
pub const MAX_IO_SIZE: u32 = 256 << 10;

/// Longest read or write in bytes where nothing is copied and buffers take no memory.
pub const MAX_HIDDEN_IO_SIZE: u32 = 1 << 20;
