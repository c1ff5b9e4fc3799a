//! The `blockhaus` command: the command line of the library with the spec types of blockhaus.

use std::process::ExitCode;

fn main() -> ExitCode {
    blockhaus::cli::run(blockhaus::stack::SpecTable::builtin())
}
