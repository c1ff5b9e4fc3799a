//! `metrics`: statistics of all disks of this host, for Prometheus.

use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::error::{Error, Result};
use crate::exporter::{self, Exporter};
use crate::registry::{Registry, statistics};
use crate::server::entrance::{Address, refused, resolve};

/// Prints what was done for all disks of this machine in the text format of Prometheus, or serves
/// that over HTTP.
///
/// Asks the servers of all devices, and of what processes of `up` offer to NBD clients, as `stats` does for one
/// of them. With --listen it goes on until it is ended, and http://HOST:PORT/metrics is what a scrape asks for.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Answer scrapes at this address, such as 127.0.0.1:9475 or [::1]:9475, instead of printing once.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,

    /// Listen on an address that other machines can reach, although nothing is encrypted and nobody is
    /// asked who they are.
    #[arg(long, requires = "listen")]
    insecure_listen: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let registry = Registry::of_host();
    let Some(listen) = &arguments.listen else {
        let answers = statistics::all(&registry);
        for answer in &answers {
            if let Err(error) = &answer.disks {
                output::note(&error.to_string());
            }
        }
        output::raw(exporter::text(answers)?.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    };
    let what = format!("cannot listen on {listen}");
    let parts = listen.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = parts.filter(|(host, _)| !host.is_empty()) else {
        return Err(Error::invalid(what, "it is not HOST:PORT").cure("write, for example, 127.0.0.1:9475"));
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address = resolve(host, port)
        .map_err(|error| Error::system(what, error).cure("write, for example, 127.0.0.1:9475"))?;
    let wanted = Address::Tcp(address);
    if wanted.is_reachable() && !arguments.insecure_listen {
        return Err(refused(&wanted, "give --insecure-listen"));
    }
    let exporter = Exporter::listen(address, registry)?;
    output::line(&format!("http://{}/metrics", exporter.address()?))?;
    exporter.run()
}
