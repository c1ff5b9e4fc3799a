//! `up`: all the disks of a file, from one process.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::{attach, entrance, output, serve};
use crate::error::{Error, Result};
use crate::port::notify::Notifier;
use crate::port::process;
use crate::port::signal::Signals;
use crate::registry::{Registry, servers};
use crate::sandbox;
use crate::server::{self, Service, Shown};
use crate::stack::SpecTable;
use crate::up::{self, Wanted};

/// Serves all the disks of a file from one process, devices of this machine and exports for NBD
/// clients. Prints the paths of the devices and the URIs of the exports when all of them can be opened.
///
/// It stays in the foreground, as service managers want it, and tells systemd when it is ready.
/// When one disk cannot be had, there is none. SIGHUP reads the file again: what was taken out of
/// it is stopped, what is new or has changed is started, the rest is not touched, and a file that
/// is not right changes nothing. SIGTERM and SIGINT take the disks away; those that are in use are
/// left, and a second signal within a minute forces. NBD clients have the replies to what they asked
/// before their export goes. `list`, `status` and `detach` know each of the devices, `list` the exports
/// too; `down` takes away all of them.
#[derive(Debug, Args)]
#[command(after_help = "What the file may say is in docs/config.md. The least there can be:\n\n  \
                        [[device]]\n  spec = \"ram:1G\"\n\n\
                        Relative paths in the file begin at the folder it is in.")]
pub(super) struct Arguments {
    /// The file.
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,

    /// Only say whether the file is right, as far as can be seen without opening a disk.
    #[arg(long)]
    check: bool,

    /// Print one JSON array with an object for each disk instead of the paths and URIs: `engine` says
    /// which is which.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments, table: &Arc<SpecTable>) -> Result<ExitCode> {
    // Before anything else is opened, which could be taken for one of them.
    let inherited = entrance::inherited()?;
    // Before anything leaves the folder that a relative name of it begins at.
    let registry = Registry::of_host();
    let path = enter_folder(&arguments.config)?;
    let config = up::check(&path, table)?;
    if arguments.check {
        up::entrance(&path, &config, Vec::new())?;
        let (devices, exports) = (config.devices.len(), config.exports.len());
        output::note(&format!("{} is right: {devices} devices, {exports} exports", path.display()));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(server) = registry.server_of(&path) {
        return Err(servers::is_up_already(&server));
    }
    // Blocked before a backend can make a thread.
    let signals =
        Signals::block_with_hangup().map_err(|error| Error::system("cannot block signals", error))?;
    process::set_name(c"blockhaus");
    let mut wanted = Wanted::new(path.clone(), table.clone(), sandbox::prepare());
    let (jobs, entrance) = wanted.start(inherited)?;
    let service = Service {
        config: Some(path),
        jobs,
        entrance,
        source: Some(Box::new(wanted)),
        notifier: Notifier::of_environment(),
    };
    server::run_all(service, signals, registry, &mut |disks| print(disks, arguments.json))?;
    Ok(ExitCode::SUCCESS)
}

/// Goes to the folder of the file, where its relative paths begin, also when it is read again.
/// Returns the file's whole path, by which `down` knows it.
fn enter_folder(config: &Path) -> Result<PathBuf> {
    let path = std::fs::canonicalize(config).map_err(|error| {
        let error = Error::system(format!("cannot read {}", config.display()), error);
        error.cure("name a file such as /etc/blockhaus/blockhaus.toml; docs/config.md says what is in it")
    })?;
    if let Some(folder) = path.parent() {
        std::env::set_current_dir(folder)
            .map_err(|error| Error::system(format!("cannot enter {}", folder.display()), error))?;
    }
    Ok(path)
}

fn print(disks: &[Shown], json: bool) -> Result<()> {
    for disk in disks {
        match disk {
            Shown::Device(device) => attach::describe(device),
            Shown::Export(export) => serve::describe(export),
        }
    }
    if json {
        return output::json(&disks);
    }
    for disk in disks {
        let uris = match disk {
            Shown::Device(device) => {
                output::line(&device.device)?;
                &device.uris
            }
            Shown::Export(export) => &export.uris,
        };
        uris.iter().try_for_each(|uri| output::line(uri))?;
    }
    Ok(())
}
