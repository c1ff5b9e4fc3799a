//! `serve`: disks for NBD clients.

use std::process::ExitCode;

use clap::Args;

use super::{disk, entrance, output};
use crate::config::Spec;
use crate::engine::nbd::{Offer, Options, Report, UNIT};
use crate::error::{Error, Result};
use crate::port::notify::Notifier;
use crate::port::signal::Signals;
use crate::sandbox;
use crate::server::exports::{self, Plan, Ready};
use crate::stack::{OpenOptions, SpecTable};
use crate::up;

/// Serves disks to NBD clients, until it is ended.
///
/// Prints what a client is given to connect, an NBD URI for each export and address, when clients can.
/// With --stdio, and for sockets that a service manager has passed on, it prints nothing.
/// Serves in this process until SIGTERM or SIGINT; then it takes nothing new, answers what was asked,
/// makes everything durable and exits. A second signal ends it at once.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A disk and the name that clients choose it by; the first is the default. A SPEC alone has the
    /// empty name.
    #[arg(required = true, value_name = "NAME=SPEC")]
    exports: Vec<String>,

    /// Put a filter on every disk, as `attach` takes it. Given several times, the first is nearest to the
    /// client and the last nearest to the disk.
    #[arg(long = "filter", value_name = "NAME,KEY=VALUE")]
    filters: Vec<String>,

    #[command(flatten)]
    entrance: entrance::Arguments,

    /// What clients are told about every export, and so is everybody else who can connect, before anybody has shown who
    /// he is. Without it nothing.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,

    /// Number of queues of each export, each served by a thread of its own; at most the number of CPUs.
    /// Connections are spread over them. Without it there are as many as CPUs, but at most 4.
    #[arg(long, value_name = "N")]
    queues: Option<u32>,

    /// Requests that a queue has in service at once, 1 to 4096.
    #[arg(long, value_name = "N", default_value_t = 128)]
    depth: u32,

    /// Logical block size in bytes: a power of two from 512 up to the page size. Without it clients
    /// address single bytes, whatever blocks the disk has.
    #[arg(long, value_name = "SIZE")]
    block_size: Option<String>,

    /// Refuse everything that would change the disks.
    #[arg(long)]
    read_only: bool,

    /// Print one JSON object instead of the URIs.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments, table: &SpecTable) -> Result<ExitCode> {
    // Before anything else is opened, which could be taken for one of them.
    let inherited = entrance::inherited()?;
    // Blocked before a backend can make a thread.
    let signals = Signals::block().map_err(|error| Error::system("cannot block signals", error))?;
    let queues = arguments.queues.map_or_else(|| Ok(up::limits().export_queues()), disk::queues)?;
    let options = Options { queues, depth: disk::depth(arguments.depth)? };
    let open = OpenOptions {
        read_only: arguments.read_only,
        block_size: arguments.block_size.as_deref().map(disk::block_size).transpose()?,
        engine_unit: Some(UNIT),
        again: false,
    };
    let filters = disk::filters(&arguments.filters)?;
    filters.iter().try_for_each(|filter| table.check_filter(filter).map(drop))?;
    let named = arguments.exports.iter().map(|text| named(text, table)).collect::<Result<Vec<_>>>()?;
    let entrance = arguments.entrance.entrance(inherited)?;
    for note in sandbox::prepare() {
        output::note(&note);
    }
    let offer = |(name, spec): (String, Spec)| {
        let stack = table.open_with(&spec, &filters, &open)?;
        let description = arguments.description.clone();
        Ok((Offer { name, description, stack, is_shared: false }, up::with_filters(&spec, &filters)))
    };
    let offers = named.into_iter().map(offer).collect::<Result<Vec<_>>>()?;
    let plan = Plan { offers, entrance, options };
    let notifier = Notifier::of_environment();
    let shows_uris = !arguments.entrance.is_known();
    exports::run(plan, signals, &mut |ready| {
        print(ready, arguments.json, shows_uris)?;
        notifier.ready("serving NBD clients");
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Remarks on what was chosen for an export, and why.
pub(super) fn describe(export: &Report) {
    let (name, spec, block) = (&export.name, &export.spec, export.block_size);
    let (queues, depth) = (export.queues, export.depth);
    output::note(&format!("export {name:?} of {spec}, {queues} x {depth} requests, blocks of {block} bytes"));
    export.notes.iter().for_each(|note| output::note(note));
}

fn print(ready: &Ready, json: bool, shows_uris: bool) -> Result<()> {
    ready.exports.iter().flat_map(|export| &export.notes).for_each(|note| output::note(note));
    if json {
        return output::json(ready);
    }
    // Whoever passed on the sockets knows where they are, and may use standard output for something else.
    if !shows_uris {
        return Ok(());
    }
    ready.exports.iter().flat_map(|export| &export.uris).try_for_each(|uri| output::line(uri))
}

/// `NAME=SPEC`, or a spec alone. A name has no colon, so that what stands before the first `=` is one
/// only where no spec type has begun.
fn named(text: &str, table: &SpecTable) -> Result<(String, Spec)> {
    let (name, spec) = match text.split_once('=') {
        Some((name, spec)) if !name.contains([':', ',']) => (name, spec),
        _ => ("", text),
    };
    let spec: Spec = spec.parse()?;
    table.check(&spec)?;
    Ok((name.to_owned(), spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_specs_are_told_apart() {
        let table = SpecTable::builtin();
        let named = |text: &str| named(text, &table).map(|(name, spec)| (name, spec.to_string()));
        for (text, name, spec) in [
            ("disk=ram:1G", "disk", "ram:1G"),
            ("ram:1G", "", "ram:1G"),
            ("file:/x,size=1G", "", "file:/x,size=1G"),
            ("a b=file:/x=y,size=1G", "a b", "file:/x=y,size=1G"),
            ("=ram:1G", "", "ram:1G"),
        ] {
            assert_eq!(named(text).unwrap(), (name.to_owned(), spec.to_owned()), "{text}");
        }
        assert!(named("disk=rma:1G").unwrap_err().to_string().contains("did you mean ram?"));
    }
}
