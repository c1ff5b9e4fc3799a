//! `status`: all that is known about one disk.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::list::{Summary, human_time, or_dash};
use super::output;
use crate::config::human_size;
use crate::engine::{QueueThread, Report};
use crate::error::{Error, Kind, Result};
use crate::holders::Holder;
use crate::port::process;
use crate::port::thread::Scheduling;
use crate::registry::control::State;
use crate::registry::survey::{Seen, survey};
use crate::registry::{Registry, devices};

/// Shows all that is known about one disk: how it is served and why that way, what memory it
/// takes, its queue threads, and who uses it.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The disk: its number, such as 0, its name, such as nbd0, or its path, such as /dev/ublkb0.
    #[arg(value_name = "ID|DEVICE")]
    device: String,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Bytes of memory.
#[derive(Debug, Serialize)]
struct Memory {
    /// Buffers of the queues, which can never be swapped out.
    locked_buffers: Option<u64>,
    /// All that the server has in memory.
    resident: Option<u64>,
    /// All that it has locked there.
    locked: Option<u64>,
    /// What the contents of the disk take, where they are in memory.
    backend: Option<u64>,
    /// Disks that the server serves, this one among them: what is resident and locked is of all of these, and where it is
    /// an `up`, of its exports.
    disks: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Status {
    #[serde(flatten)]
    summary: Summary,
    /// The folder that relative paths in the spec begin at.
    directory: Option<String>,
    /// Where the server writes what it has to say.
    log: Option<String>,
    /// The process that starts the server again when it is killed.
    keeper: Option<i32>,
    data_path: Option<String>,
    data_path_reason: Option<String>,
    block_size: Option<u32>,
    max_io_size: Option<u64>,
    features: Vec<String>,
    flags: Vec<String>,
    memory: Memory,
    queue_threads: Vec<QueueThread>,
    notes: Vec<String>,
    in_use_by: Vec<String>,
}

impl Status {
    fn of(seen: &Seen) -> Status {
        let summary = Summary::of(seen);
        let report = seen.report.as_ref();
        // What a dead server had in memory, and its threads, are gone.
        let running = report.filter(|_| seen.state != State::Dead);
        let pid = seen.pid().filter(|_| seen.entry.as_ref().is_some_and(|entry| entry.is_alive()));
        let process_memory = pid.and_then(process::memory);
        // Nothing here touches the disk itself, whose server may hang.
        let except: Vec<i32> = pid.into_iter().collect();
        let users = devices::users(seen.name, &seen.path(), &except);
        let text = |of: fn(&Report) -> &String| report.map(|report| of(report).clone());
        let mut notes: Vec<String> = report.map(|report| report.notes.clone()).unwrap_or_default();
        notes.extend(seen.why.clone());
        let registry = Registry::of_host();
        let log = Some(registry.log(seen.name)).filter(|log| seen.entry.is_some() && log.exists());
        Status {
            directory: seen.entry.as_ref().map(|entry| entry.directory.display().to_string()),
            log: log.map(|log| log.display().to_string()),
            keeper: registry.keeper(seen.name).map(|keeper| keeper.pid),
            data_path: text(|report| &report.data_path),
            data_path_reason: text(|report| &report.data_path_reason),
            block_size: report.map(|report| report.block_size),
            max_io_size: report.map(|report| u64::from(report.max_io_size)),
            features: report.map(|report| report.features.clone()).unwrap_or_default(),
            flags: report.map(|report| report.flags.clone()).unwrap_or_default(),
            memory: Memory {
                locked_buffers: running.map(|report| report.memory.locked_buffers),
                resident: process_memory.map(|(resident, _)| resident),
                locked: process_memory.map(|(_, locked)| locked),
                backend: running.and_then(|report| report.memory.backend),
                disks: pid.map(|pid| disks_of(&registry, pid)),
            },
            queue_threads: running.map(|report| report.queue_threads.clone()).unwrap_or_default(),
            notes,
            in_use_by: users.iter().map(Holder::to_string).collect(),
            summary,
        }
    }

    fn lines(&self) -> Vec<String> {
        let disk = &self.summary;
        let mut lines = Vec::new();
        let mut say = |name: &str, value: String| {
            if !value.is_empty() {
                lines.push(format!("{name:<16}{value}"));
            }
        };
        let size = |bytes: Option<u64>| or_dash(bytes.map(human_size));
        say("device", disk.device.clone());
        say("state", disk.state.to_owned());
        say("spec", or_dash(disk.spec.clone()));
        say("up from", disk.config.clone().unwrap_or_default());
        say(
            "size",
            disk.size.map_or_else(|| "-".into(), |bytes| format!("{} ({bytes} bytes)", human_size(bytes))),
        );
        say("block size", or_dash(self.block_size));
        say("queues", format!("{} x {} requests", or_dash(disk.queues), or_dash(disk.depth)));
        say("engine", disk.engine.to_string());
        if let (Some(path), Some(reason)) = (&self.data_path, &self.data_path_reason) {
            say("data path", format!("{path}: {reason}"));
        }
        say("features", self.features.join(" "));
        say("flags", self.flags.join(" "));
        say("server", disk.pid.map_or_else(|| "-".into(), |pid| format!("process {pid}")));
        say("keeper", self.keeper.map_or_else(String::new, |pid| format!("process {pid}")));
        say("directory", self.directory.clone().unwrap_or_default());
        say("log", self.log.clone().unwrap_or_default());
        say("uptime", or_dash(disk.uptime_s.map(human_time)));
        let memory = &self.memory;
        if memory.resident.is_some() || memory.locked_buffers.is_some() {
            let whose = match memory.disks {
                Some(disks) if disks > 1 || disk.config.is_some() => {
                    let plural = if disks == 1 { "disk" } else { "disks" };
                    format!(", both of the process, which serves {disks} {plural}; of this one")
                }
                _ => ",".to_owned(),
            };
            say(
                "memory",
                format!(
                    "{} resident, {} of that locked{whose} buffers {}, contents {}",
                    size(memory.resident),
                    size(memory.locked),
                    size(memory.locked_buffers),
                    size(memory.backend)
                ),
            );
        }
        for thread in &self.queue_threads {
            let flusher = if thread.io_flusher { "IO_FLUSHER" } else { "not an IO_FLUSHER (not permitted)" };
            say(
                &format!("queue {}", thread.queue),
                format!(
                    "thread {}{}, CPUs {}, {flusher}, ring {}",
                    thread.tid,
                    match thread.scheduling {
                        Scheduling::Ordinary | Scheduling::Adaptive => "",
                        Scheduling::RealTime => " with real-time priority",
                        Scheduling::Batch => " of SCHED_BATCH",
                    },
                    thread.cpus,
                    thread.ring_flags.join(" ")
                ),
            );
        }
        self.in_use_by.iter().for_each(|user| say("in use", user.clone()));
        self.notes.iter().for_each(|note| say("note", note.clone()));
        lines
    }
}

/// How many disks the living process serves.
fn disks_of(registry: &Registry, pid: i32) -> usize {
    let entries = registry.names().into_values().filter_map(|(_, entry)| entry);
    entries.filter(|entry| entry.pid == pid && entry.is_alive()).count()
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let registry = Registry::of_host();
    let name = devices::meant(&registry, &arguments.device)?;
    // A dead device of ours and a foreign one may share a name: the one that is there counts.
    let Some(seen) = survey(&registry, Some(name)).pop() else {
        let what = format!("no status of {}", name.path().display());
        return Err(Error::new(Kind::NotFound, what, "there is no such device")
            .cure("`blockhaus list` shows what there is"));
    };
    let status = Status::of(&seen);
    match arguments.json {
        true => output::json(&status)?,
        false => output::raw(format!("{}\n", status.lines().join("\n")).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}
