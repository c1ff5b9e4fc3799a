//! What is fuzzed: the protocol without I/O, out of the very files that blockhaus is made of, and nothing else of it. So a
//! build takes seconds, and not minutes for rings, ciphers and command lines that no decoder needs.
//!
//! It goes without AddressSanitizer, since there is nothing for it to find:
#![forbid(unsafe_code)]

#[path = "../../src"]
mod blockhaus {
    pub mod io;
    pub mod nbd;
}

pub use blockhaus::{io, nbd};
