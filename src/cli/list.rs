//! `list`: which disks there are.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{exports, output};
use crate::config::human_size;
use crate::engine::{DeviceName, Engine};
use crate::error::Result;
use crate::registry::Registry;
use crate::registry::control::State;
use crate::registry::survey::{Seen, survey};

/// Lists the disks of this machine and how they are, and what processes of `up` offer to NBD
/// clients.
///
/// The state is `starting`, `live`, `stopping`, `hung` (the server does not answer), `recovering` (the server was
/// killed, and its keeper is starting another one), `dead` (the
/// server is gone; `blockhaus gc` cleans up) or `foreign` (made by another program).
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print a JSON array with an object for each disk.
    #[arg(long)]
    json: bool,

    /// Only exports, and no disks.
    #[arg(long)]
    exports: bool,
}

/// What is said about every disk.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    name: DeviceName,
    id: u32,
    pub(super) engine: Engine,
    pub(super) device: String,
    pub(super) spec: Option<String>,
    /// The file of the `up` that serves it.
    pub(super) config: Option<String>,
    pub(super) state: &'static str,
    pub(super) pid: Option<i32>,
    pub(super) size: Option<u64>,
    pub(super) queues: Option<u16>,
    pub(super) depth: Option<u16>,
    pub(super) uptime_s: Option<u64>,
}

impl Summary {
    pub(super) fn of(seen: &Seen) -> Summary {
        Summary {
            name: seen.name,
            id: seen.name.id,
            engine: seen.name.engine,
            device: seen.path().display().to_string(),
            spec: seen.entry.as_ref().map(|entry| entry.spec.clone()),
            config: seen
                .entry
                .as_ref()
                .and_then(|entry| entry.config.as_ref())
                .map(|config| config.display().to_string()),
            state: seen.state.name(),
            pid: seen.pid(),
            size: seen.size(),
            queues: seen.queues(),
            depth: seen.depth(),
            // That of a server, and a dead one has none.
            uptime_s: seen.entry.as_ref().filter(|_| seen.state != State::Dead).map(|entry| entry.uptime()),
        }
    }
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let registry = Registry::of_host();
    if arguments.exports {
        exports::list(&registry, arguments.json, true)?;
        return Ok(ExitCode::SUCCESS);
    }
    let seen = survey(&registry, None);
    let summaries: Vec<Summary> = seen.iter().map(Summary::of).collect();
    if arguments.json {
        output::json(&summaries)?;
        return Ok(ExitCode::SUCCESS);
    }
    if summaries.is_empty() {
        output::note("there are no disks; `blockhaus attach ram:1G` makes one");
    } else {
        let headings = ["ID", "DEVICE", "STATE", "SIZE", "QUEUES", "DEPTH", "PID", "UPTIME", "SPEC"];
        let rows: Vec<Vec<String>> = summaries.iter().map(row).collect();
        output::raw(output::table(&headings, &rows).as_bytes())?;
    }
    for (seen, summary) in seen.iter().zip(&summaries) {
        if let Some(why) = &seen.why {
            output::note(&format!("{}: {why}", summary.device));
        }
    }
    exports::list(&registry, false, false)?;
    Ok(ExitCode::SUCCESS)
}

fn row(disk: &Summary) -> Vec<String> {
    vec![
        disk.id.to_string(),
        disk.device.clone(),
        disk.state.to_owned(),
        or_dash(disk.size.map(human_size)),
        or_dash(disk.queues),
        or_dash(disk.depth),
        or_dash(disk.pid),
        or_dash(disk.uptime_s.map(human_time)),
        or_dash(disk.spec.clone()),
    ]
}

/// What is known, or a dash.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Seconds for people: `42s`, `3m07s`, `5h02m`, `12d4h`.
pub(super) fn human_time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_for_people() {
        for (seconds, text) in [(0, "0s"), (187, "3m07s"), (18_120, "5h02m"), (1_051_200, "12d4h")] {
            assert_eq!(human_time(seconds), text);
        }
    }
}
