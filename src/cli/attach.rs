//! `attach`: a disk, now.

use std::process::ExitCode;

use clap::Args;

use super::background::Background;
use super::{background, disk, output};
use crate::config::Spec;
use crate::engine::{self, Choices, DeviceName, DeviceOptions, Engine, EngineWish, NbdChoices};
use crate::error::{Error, Kind, Result};
use crate::port::signal::Signals;
use crate::queue::Stack;
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
/// /run/blockhaus/NAME.log, as in nbd0.log.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What the disk is made of: a type, an argument, and keys with values, as listed below.
    spec: String,

    /// Put a filter on the disk, as listed below. Given several times, the first is nearest to the
    /// client and the last nearest to the disk.
    #[arg(long = "filter", value_name = "NAME,KEY=VALUE")]
    filters: Vec<String>,

    /// What shows the disk: ublk (/dev/ublkbN), nbd (/dev/nbdN, slower, and in most kernels), fuse (a file, and for root
    /// a loop device on it; also for ordinary users), or auto, the first of them that this machine has.
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    engine: String,

    /// Ask for this number, N of /dev/ublkbN or /dev/nbdN, or of the folder fuseN. Without it the lowest free one is
    /// taken.
    #[arg(long, value_name = "N")]
    id: Option<u32>,

    /// With nbd: connections between the kernel and the server, 1 to 16, each with 128 requests at once. With fuse:
    /// threads that take requests from the kernel. Without it, one for each queue.
    #[arg(long, value_name = "N")]
    connections: Option<u32>,

    /// With nbd: how long a request may take, 1 to 3600 seconds, before its connection counts as dead and it is sent
    /// again. Requests that a server had when it was killed wait as long. Without it, 30.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,

    /// With nbd: how long requests wait for a server while there is none, 0 to 86400 seconds, before they fail.
    /// Without it, 120.
    #[arg(long, value_name = "SECONDS")]
    dead_connection_timeout: Option<u32>,

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

    /// With fuse: leave it at the file, without a loop device on it.
    #[arg(long)]
    no_loop_device: bool,

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

pub(super) fn run(
    arguments: Arguments,
    table: &SpecTable,
    background: Option<Background>,
) -> Result<ExitCode> {
    if let Some(background) = background {
        return background::serve(background, || plan(&arguments, table, background.again));
    }
    // Blocked before a backend can make a thread.
    let signals = Signals::block().map_err(|error| Error::system("cannot block signals", error))?;
    if arguments.foreground {
        let plan = plan(&arguments, table, None)?;
        server::run(plan, signals, Registry::of_host(), &mut |ready| print(ready, arguments.json))?;
        return Ok(ExitCode::SUCCESS);
    }
    // What is wrong with the command line is found before a process is started for it.
    choices(&arguments)?;
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

/// What is to be served. A server that takes the place of one that was killed serves the same, as that device.
fn plan(arguments: &Arguments, table: &SpecTable, again: Option<DeviceName>) -> Result<Plan> {
    let (wish, mut open, choices) = choices(arguments)?;
    open.again = again.is_some();
    let spec: Spec = arguments.spec.parse()?;
    let mut notes = sandbox::prepare();
    let filters = disk::filters(&arguments.filters)?;
    let stack = table.open_with(&spec, &filters, &open)?;
    let spec = up::with_filters(&spec, &filters);
    let wish = again.map_or(wish, |name| EngineWish::Only(name.engine));
    let chosen = engine::choose(wish, &engine::available)?;
    let (mut options, unused) = choices.with(chosen.engine);
    notes.splice(0..0, std::iter::once(chosen.why).chain(unused));
    if let (DeviceOptions::Nbd(options), Some(name)) = (&mut options, again) {
        let identity = Registry::of_host().read(name).and_then(|entry| entry.identity);
        let missing =
            || Error::new(Kind::NotFound, format!("cannot serve {name} again"), "nothing is known of it");
        (options.id, options.recover) = (Some(name.id), Some(identity.ok_or_else(missing)?));
    }
    if chosen.engine == Engine::Nbd {
        notes.extend(
            unkept(arguments, &*stack)
                .map(|why| format!("nobody starts its server again when it is killed: {why}")),
        );
    }
    let (stack, engines) = up::fit(stack, Engines::Device(options))?;
    Ok(Plan { spec, stack, engines, notes })
}

/// Why nobody would start the server of a disk again by himself, where nobody would.
fn unkept(arguments: &Arguments, stack: &dyn Stack) -> Option<&'static str> {
    match (arguments.foreground, stack.outlives_process()) {
        (_, false) => Some("its backend does not promise that what was written outlives its server"),
        (true, true) => Some("it is in the foreground, and whoever started it may do so"),
        (false, true) => None,
    }
}

/// What the numbers of the command line mean, all of them checked.
fn choices(arguments: &Arguments) -> Result<(EngineWish, OpenOptions, Choices)> {
    let wish = arguments.engine.parse()?;
    let id = arguments.id.map(disk::id).transpose()?;
    let block_size = arguments.block_size.as_deref().map(disk::block_size).transpose()?;
    let open = OpenOptions { read_only: arguments.read_only, block_size, ..OpenOptions::default() };
    let nbd = NbdChoices {
        connections: arguments.connections.map(disk::connections).transpose()?,
        timeout: arguments.timeout.map(disk::timeout).transpose()?,
        dead_connection: arguments.dead_connection_timeout.map(disk::dead_connection).transpose()?,
    };
    let choices = Choices {
        id,
        queues: disk::queues(arguments.queues)?,
        depth: disk::depth(arguments.depth)?,
        partition_scan: !arguments.no_partition_scan,
        data_path: arguments.data_path.parse()?,
        load: arguments.load.parse()?,
        spin: disk::spin(arguments.spin_us)?,
        registered_tags: arguments.test_registered_tags,
        loop_device: !arguments.no_loop_device,
        nbd,
    };
    Ok((wish, open, choices))
}
