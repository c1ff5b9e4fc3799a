//! `gc`: puts right what a crash left.

use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::error::Result;
use crate::registry::Registry;
use crate::registry::collect::collect;

/// Removes what crashed servers left: devices that nobody serves any more, and files in
/// /run/blockhaus. Prints a line for each thing that it removes.
///
/// What lives is never touched, and neither is a server that only does not answer: for that there
/// is `blockhaus detach --force`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also remove devices that other programs left: those whose server is gone, that are older
    /// than a few seconds, and that no process has open.
    #[arg(long)]
    foreign: bool,

    /// Print a JSON array with an object for each thing that was removed.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let collected = collect(&Registry::of_host(), arguments.foreign);
    if arguments.json {
        output::json(&collected.removed)?;
    } else {
        for removed in &collected.removed {
            output::line(&format!("removed {} ({})", removed.path, removed.what))?;
        }
    }
    collected.failed.iter().for_each(output::error);
    Ok(if collected.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
