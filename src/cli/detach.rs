//! `detach`: takes a disk away.

use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::error::{Error, Result};
use crate::registry::detach::{Detached, detach, detach_all};
use crate::registry::{Registry, devices};

/// Takes a disk away, and returns when it is gone.
///
/// Everything written to it is on its backend then. A disk that is in use is left alone, and what
/// uses it is named. The command answers within ten seconds, whatever the server does; what could
/// not be finished in that time goes on in the background.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The disk: its number, such as 0, its name, such as nbd0, or its path, such as /dev/ublkb0.
    #[arg(value_name = "ID|DEVICE", required_unless_present = "all", conflicts_with = "all")]
    device: Option<String>,

    /// All disks of blockhaus.
    #[arg(long)]
    all: bool,

    /// Also while the disk is in use: whoever uses it sees errors. A server that does not answer
    /// is killed, and what it had not written yet is lost.
    #[arg(long)]
    force: bool,

    /// Print JSON: an array with an object for each disk that was detached.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let registry = Registry::of_host();
    let results = match &arguments.device {
        Some(device) => vec![detach(&registry, devices::meant(&registry, device)?, arguments.force)],
        None => detach_all(&registry, arguments.force),
    };
    print(results, arguments.json)
}

/// Prints what was detached, and what could not be.
pub(super) fn print(results: Vec<Result<Detached>>, json: bool) -> Result<ExitCode> {
    let (detached, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let detached: Vec<Detached> = detached.into_iter().flatten().collect();
    let failed: Vec<Error> = failed.into_iter().filter_map(Result::err).collect();
    if json {
        output::json(&detached)?;
    } else {
        for detached in &detached {
            let (path, how) = (detached.device.display(), detached.how);
            output::note(&format!("{path} is gone ({how})"));
        }
    }
    failed.iter().for_each(output::error);
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
