//! A block device server with two spec types of its own, one through each door, and the whole
//! command line of blockhaus for them:
//!
//! - `veil:PATH,key=TEXT` ([`veil`]): plain methods that may block;
//! - `window:PATH,start=SIZE,size=SIZE` ([`window`]): asynchronous, on the queue's own io_uring.

use std::process::ExitCode;

use blockhaus::stack::SpecTable;

mod veil;
mod window;

fn main() -> ExitCode {
    blockhaus::cli::run(SpecTable::builtin().register(veil::spec_type()).register(window::spec_type()))
}
