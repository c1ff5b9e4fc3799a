//! `bench`: how fast a disk answers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::output;
use crate::engine::load::{Course, Disk, Load, Measured, Pattern, measure};
use crate::error::{Error, Result};
use crate::port::clock;
use crate::port::process;
use crate::port::signal::{Signal, Signals};
use crate::stack::{OpenOptions, SpecTable};

mod axis;
mod ending;
mod figures;
mod histogram;
mod json;
mod loads;
mod picture;
mod progress;
mod remarks;
mod report;
mod svg;
mod target;
mod text;

use ending::A_MOMENT;
use progress::Watcher;
use report::{Host, Report};
use target::Target;

/// Measures how fast a disk answers: a block device, or what a spec describes.
///
/// Reads only, unless --write is given. Without --op these loads are run one after the other: 4K random reads one
/// at a time and 64 at a time, and 128K sequential reads 16 at a time, or what is nearest to that on this disk; with
/// --write also writes of the same shapes. Progress goes to standard error, the report to standard output. Ctrl-C
/// ends it early and prints what was measured so far.
///
/// The status is 1 where requests failed, also while warming up, and that of the signal where it was interrupted.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The disk: the path of a block device such as /dev/nvme0n1, the id of a ublk disk such as 0, or a spec, as
    /// listed below, which is opened in this process.
    #[arg(value_name = "DEVICE|SPEC")]
    disk: String,

    /// Put a filter on the disk, as `attach` takes it. Given several times, the first is nearest to the client and
    /// the last nearest to the disk.
    #[arg(long = "filter", value_name = "NAME,KEY=VALUE")]
    filters: Vec<String>,

    /// Write to the disk as well. This DESTROYS what is on it. It is refused while somebody else is seen using the
    /// device or the file: a mount, another device, swap, a process that has it open. A file that a spec makes is removed
    /// again at the end.
    #[arg(long)]
    write: bool,

    /// Put the disk under this load, and no other. May be given several times. randwrite and write need --write.
    #[arg(long = "op", visible_alias = "rw", value_name = "OP", value_enum)]
    ops: Vec<Op>,

    /// Bytes of each request of --op, a whole number of the disk's blocks (4K at random, else 128K, or what is nearest
    /// to that).
    #[arg(long, value_name = "SIZE", requires = "ops")]
    block_size: Option<String>,

    /// Requests that each job of --op has in flight, 1 to 4096 (64 at random, else 16).
    #[arg(long, value_name = "N", requires = "ops")]
    depth: Option<u32>,

    /// Threads that make requests, 1 to 256, each with a queue of the disk and a depth of its own.
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: u32,

    /// How long each load is measured, after a warm-up of half a second at most: 0.1 to 3600.
    #[arg(long, value_name = "N", default_value_t = 3.0)]
    seconds: f64,

    /// Print one JSON object instead of the report.
    #[arg(long)]
    json: bool,

    /// Draw the histograms into this file too, as SVG. An SVG or an empty file that is there is replaced, anything
    /// else is not.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// What requests do, as fio calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    /// Reads anywhere
    Randread,
    /// Writes anywhere
    Randwrite,
    /// Reads one behind the other
    Read,
    /// Writes one behind the other
    Write,
}

impl Op {
    fn pattern(self) -> Pattern {
        match self {
            Op::Randread => Pattern::RandRead,
            Op::Randwrite => Pattern::RandWrite,
            Op::Read => Pattern::Read,
            Op::Write => Pattern::Write,
        }
    }
}

pub(super) fn run(arguments: Arguments, table: &SpecTable) -> Result<ExitCode> {
    // Blocked before a backend can make a thread.
    let mut signals = Signals::block().map_err(|error| Error::system("cannot block signals", error))?;
    let wishes = loads::wishes(&arguments)?;
    let picture = arguments.svg.as_deref().map(picture::check).transpose()?;
    let target = Target::parse(&arguments.disk, &arguments.filters, table)?;
    if arguments.write {
        target.check_alone()?;
    }
    let mut remarks = remarks::before(&target, arguments.write);
    let options = OpenOptions { read_only: !arguments.write, ..OpenOptions::default() };
    let stack = table
        .open_with(&target.spec, &target.filters, &options)
        .map_err(|error| target.explain(error, arguments.write))?;
    let disk = Disk::of(&*stack);
    let loads = wishes.iter().map(|wish| wish.on(&disk)).collect::<Result<Vec<Load>>>()?;
    if loads.iter().any(|load| load.pattern.writes())
        && let Some(lost) = target.loss(&disk)
    {
        output::note(&format!("writing {lost}: what is on it is lost"));
        remarks.push(format!("Written {lost}: what was on it is lost."));
    }
    let abandon = || {
        let stack = stack.clone();
        // What was made for this goes, unless its file system does not answer either.
        let _ = ending::bounded(A_MOMENT, "bench-abandon", move || stack.abandoned());
    };
    let mut results: Vec<Measured> = Vec::new();
    let (mut signal, mut failure) = (None, None);
    for (number, load) in loads.iter().enumerate() {
        // Not a seed of an earlier run, whose blocks may be in a cache somewhere.
        let seed = clock::monotonic_nanoseconds() ^ (process::own_pid() as u64) << 40 ^ number as u64;
        let course = Course { seed, ..wishes[number].course };
        let mut watcher = Watcher::new(load, &course, &mut signals, &abandon);
        let measured = measure(&stack, load, &course, &mut |progress| watcher.look(progress));
        signal = watcher.finish();
        match measured {
            Ok(measured) => results.push(measured),
            Err(error) if results.is_empty() => return Err(error),
            Err(error) => {
                remarks.push(format!("Load {} of {} failed: {error}.", number + 1, loads.len()));
                failure = Some(error);
            }
        }
        if signal.is_some() || failure.is_some() {
            break;
        }
    }
    // Whoever asked for the end when everything had been measured has it all.
    let is_all = results.len() == loads.len() && results.last().is_none_or(|last| !last.interrupted);
    let interrupted = signal.filter(|_| failure.is_none() && !is_all);
    remarks.extend(remarks::after(&target, &Disk::of(&*stack), &results));
    let report = Report {
        name: target.name.clone(),
        write: arguments.write,
        disk,
        notes: stack.notes(),
        host: Host::this(),
        loads: loads.len(),
        results,
        interrupted: interrupted.is_some(),
        remarks,
    };
    // Before whatever may fail or take long, so that what was measured is there.
    let drawn = picture.map_or(Ok(()), |picture| picture.write(&svg::of(&report)));
    let printed = match arguments.json {
        true => output::json(&json::of(&report)),
        false => output::raw(text::of(&report).as_bytes()),
    };
    // What is removed again need not be durable.
    let closed = match target.is_new {
        true => Ok(None),
        false => {
            let stack = stack.clone();
            ending::close(move || stack.close(), &mut signals)
        }
    };
    drop(stack);
    failure.map_or(Ok(()), Err)?;
    drawn.and(printed)?;
    Ok(status(&report, closed?.or(interrupted)))
}

fn status(report: &Report, interrupted: Option<Signal>) -> ExitCode {
    match interrupted {
        Some(signal) => ExitCode::from(signal.exit_status()),
        None if report.results.iter().any(Measured::has_failures) => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    }
}
