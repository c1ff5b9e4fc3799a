//! `attach`: a disk, now.

use std::process::ExitCode;

use clap::Args;

use super::{background, disk, output};
use crate::config::Spec;
use crate::engine::ublk::Options;
use crate::error::{Error, Result};
use crate::port::signal::Signals;
use crate::registry::Registry;
use crate::sandbox;
use crate::server::{self, Engines, Plan, Ready};
use crate::stack::{OpenOptions, SpecTable};
use crate::up;

/// Makes a disk and prints its path.
///
/// The path alone goes to standard output; what was chosen, and why, goes to standard error. The
/// command returns when the disk can be opened. A server process of its own goes on serving the
/// disk in the background until `blockhaus detach`; what it has to say later is in
/// /run/blockhaus/ID.log.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What the disk is made of: a type, an argument, and keys with values, as listed below.
    spec: String,

    /// Put a filter on the disk, as listed below. Given several times, the first is nearest to the
    /// client and the last nearest to the disk.
    #[arg(long = "filter", value_name = "NAME,KEY=VALUE")]
    filters: Vec<String>,

    /// Ask for this id, N of /dev/ublkbN. Without it the kernel takes the lowest free one.
    #[arg(long, value_name = "N")]
    id: Option<u32>,

    /// Number of queues, each served by a thread of its own; at most the number of CPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u32,

    /// Requests that a queue takes at once, 1 to 4096.
    #[arg(long, value_name = "N", default_value_t = 128)]
    depth: u32,

    /// Logical block size in bytes: a power of two from 512 up to the page size. Without it the
    /// backend chooses.
    #[arg(long, value_name = "SIZE")]
    block_size: Option<String>,

    /// Refuse everything that would change the disk.
    #[arg(long)]
    read_only: bool,

    /// Do not look for partitions on the disk.
    #[arg(long)]
    no_partition_scan: bool,

    /// How the bytes travel between the kernel and the server: auto, copy, user-copy, get-data,
    /// zero-copy, auto-buf, batch-copy or batch-auto-buf. auto takes what is best for this kernel and this
    /// disk, and status says why.
    #[arg(long, value_name = "PATH", default_value = "auto")]
    data_path: String,

    /// What the load will be: latency (few requests at once, each of which somebody waits for: the queues' threads
    /// get real-time priority), throughput (many at once: auto takes batches where the kernel has them, and the threads
    /// are SCHED_BATCH), or any.
    #[arg(long = "for", value_name = "LOAD", default_value = "any")]
    load: String,

    /// Look for work for so long before a queue's thread sleeps, at most: 0 to 1000 microseconds. It saves the time
    /// that a wake-up takes and costs as much of a processor as it looks; a queue that is idle for longer sleeps at
    /// once.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    spin_us: u32,

    /// Leave only so many tags a place in the table of buffers (for tests of the fallback).
    #[arg(long, value_name = "N", hide = true)]
    test_registered_tags: Option<u16>,

    /// Serve the disk in this process, until it is detached or gets SIGTERM or SIGINT. The signal
    /// is refused while the disk is in use; a second one forces.
    #[arg(long)]
    foreground: bool,

    /// Print one JSON object instead of the path.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments, table: &SpecTable, background: bool) -> Result<ExitCode> {
    if background {
        return background::serve(|| plan(&arguments, table));
    }
    // Blocked before a backend can make a thread.
    let signals = Signals::block().map_err(|error| Error::system("cannot block signals", error))?;
    if arguments.foreground {
        let plan = plan(&arguments, table)?;
        server::run(plan, signals, Registry::of_host(), &mut |ready| print(ready, arguments.json))?;
        return Ok(ExitCode::SUCCESS);
    }
    // What is wrong with the command line is found before a process is started for it.
    options(&arguments)?;
    table.check(&arguments.spec.parse()?)?;
    disk::filters(&arguments.filters)?.iter().try_for_each(|filter| table.check_filter(filter).map(drop))?;
    match background::start(signals)? {
        background::Outcome::Ready(ready) => print(&ready, arguments.json).map(|()| ExitCode::SUCCESS),
        background::Outcome::Interrupted(signal) => Ok(ExitCode::from(signal.exit_status())),
    }
}

/// Remarks on what was chosen for a disk, and why.
pub(super) fn describe(ready: &Ready) {
    output::note(&format!(
        "{} with {} by {}, {} x {} requests, blocks of {} bytes: {}",
        ready.device,
        ready.engine,
        ready.data_path,
        ready.queues,
        ready.depth,
        ready.block_size,
        ready.data_path_reason
    ));
    for note in &ready.notes {
        output::note(note);
    }
}

fn print(ready: &Ready, json: bool) -> Result<()> {
    describe(ready);
    match json {
        true => output::json(ready),
        false => output::line(&ready.device),
    }
}

fn plan(arguments: &Arguments, table: &SpecTable) -> Result<Plan> {
    let (open, options) = options(arguments)?;
    let spec: Spec = arguments.spec.parse()?;
    let notes = sandbox::prepare();
    let filters = disk::filters(&arguments.filters)?;
    let stack = table.open_with(&spec, &filters, &open)?;
    let spec = up::with_filters(&spec, &filters);
    Ok(Plan { spec, stack, engines: Engines::Ublk(options), notes })
}

/// What the numbers of the command line mean, all of them checked.
fn options(arguments: &Arguments) -> Result<(OpenOptions, Options)> {
    let id = arguments.id.map(disk::id).transpose()?;
    let block_size = arguments.block_size.as_deref().map(disk::block_size).transpose()?;
    let open = OpenOptions { read_only: arguments.read_only, block_size, engine_unit: None };
    let options = Options {
        id,
        queues: disk::queues(arguments.queues)?,
        depth: disk::depth(arguments.depth)?,
        partition_scan: !arguments.no_partition_scan,
        data_path: arguments.data_path.parse()?,
        load: arguments.load.parse()?,
        spin: disk::spin(arguments.spin_us)?,
        registered_tags: arguments.test_registered_tags,
    };
    Ok((open, options))
}
