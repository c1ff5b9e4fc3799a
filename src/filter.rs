//! Filters: each is a backend on top of any other, and changes one thing about it.
//!
//! A filter is generic over what is below it, so that a stack that is known when it is compiled is
//! one state machine; in a stack that is put together at run time each filter stands on a
//! [`Dynamic`](crate::backend::dynamic::Dynamic) backend.
//!
//! Every filter folds the capabilities and the shape of what is below into its own: what it cannot
//! keep, it takes away. `docs/durability.md` says what becomes of what a write means.

pub mod blocksize;
pub mod fault;
pub mod log;
pub mod offset;
pub mod stripe;
pub mod throttle;

/// A filter's own note, and then those from below.
fn notes(own: String, below: Vec<String>) -> Vec<String> {
    std::iter::once(own).chain(below).collect()
}
