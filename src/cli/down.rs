//! `down`: takes away what an `up` serves.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{detach, output};
use crate::error::{Error, Kind, Result};
use crate::registry::{Registry, down};

/// Takes away all the disks and exports that an `up` serves, and returns when they and its process
/// are gone.
///
/// Everything written to them is on its backend then, and clients of an export have the replies to
/// what they asked. While one of the disks is mounted or otherwise part of something, none is touched,
/// and what uses it is named. The command answers within ten seconds, whatever the server does; what
/// could not be finished in that time goes on in the background.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The file that `up` was given.
    #[arg(value_name = "CONFIG.toml", required_unless_present = "all", conflicts_with = "all")]
    config: Option<PathBuf>,

    /// Every `up` of this machine.
    #[arg(long)]
    all: bool,

    /// Also disks that are in use: whoever uses them sees errors, and clients of an export are cut off.
    /// A server that does not answer is killed, and what it had not written yet is lost.
    #[arg(long)]
    force: bool,

    /// Print JSON: an array with an object for each disk that was detached.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let registry = Registry::of_host();
    let path = arguments.config.as_deref().map(whole);
    let devices = down::devices_of(&registry, path.as_deref());
    let servers = down::servers_of(&registry, path.as_deref());
    if let (Some(path), true) = (&path, devices.is_empty() && servers.is_empty()) {
        let what = format!("cannot take down {}", path.display());
        return Err(Error::new(Kind::NotFound, what, "nothing is up from this file")
            .cure("`blockhaus list` shows what there is, `blockhaus down --all` takes down what is up"));
    }
    let downed = down::down(&registry, devices, servers, arguments.force)?;
    let mut failed = false;
    for server in downed.servers {
        match server {
            Ok((server, how)) => {
                let (path, pid) = (server.config.display(), server.pid);
                output::note(&format!("{path} is down, process {pid} is gone ({how})"));
            }
            Err(error) => {
                output::error(&error);
                failed = true;
            }
        }
    }
    let code = detach::print(downed.devices, arguments.json)?;
    Ok(if failed { ExitCode::FAILURE } else { code })
}

/// The path as `up` knows it, also when the file is gone by now.
fn whole(config: &Path) -> PathBuf {
    let found = std::fs::canonicalize(config).or_else(|_| std::path::absolute(config));
    found.unwrap_or_else(|_| config.to_owned())
}
