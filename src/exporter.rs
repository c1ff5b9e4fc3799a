//! Statistics of all disks of this host for Prometheus: as text, and over HTTP.
//!
//! The process that answers is none of those that serve disks: it asks these over their control sockets, so
//! that whoever talks to it reaches no disk.

mod format;
mod http;
mod text;

pub use format::Format;
pub use http::Exporter;
pub use text::text;
