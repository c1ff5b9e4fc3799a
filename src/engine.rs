//! Engines: each turns the outside's requests into [`Io`](crate::io::Io)s for a stack. None names
//! a backend.

pub mod nbd;
mod seating;
pub mod ublk;
