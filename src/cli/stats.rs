//! `stats`: what was done for a disk, and how long it took.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::output;
use crate::config::human_size;
use crate::error::Result;
use crate::metrics::{Latency, OpStats, Stats};
use crate::port::clock::{Duration, Instant, sleep};
use crate::registry::control::DiskStats;
use crate::registry::{Registry, statistics};

/// Shows what was done for a disk: requests, bytes, errors, how long requests took, and what is in
/// flight.
///
/// A latency begins in the turn of the queue's loop that sees a request and ends when the result is sent off; what
/// the kernel or the network take before and after is not in it. It is right to 3 %. By data path
/// auto-buf, requests that come one at a time go as one chain with their completion, whose end the server does
/// not see: of these every 32nd is measured and stands for the others. Of an export, requests are counted when its
/// queue takes them up, long ones (more than 256 KiB) as several.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The disk: an id such as 0, a path such as /dev/ublkb0, or the name of an export of `up`.
    #[arg(value_name = "ID|DEVICE|EXPORT")]
    disk: String,

    /// Show again and again what has come in so many seconds, until it is interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    every: Option<u32>,

    /// With --every: end after so many times.
    #[arg(long, value_name = "N", requires = "every")]
    count: Option<u64>,

    /// Print JSON: an array of one object for each engine that serves the disk, and with --every such an array a
    /// line.
    #[arg(long)]
    json: bool,
}

/// What has come between two looks.
#[derive(Debug, Serialize)]
struct Interval {
    engine: String,
    name: String,
    seconds: f64,
    in_flight: u64,
    ops: Vec<OpStats>,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let registry = Registry::of_host();
    let look = || statistics::of(&registry, &arguments.disk);
    let disks = look()?;
    let Some(seconds) = arguments.every else {
        match arguments.json {
            true => output::json(&disks)?,
            false => output::raw(disks.iter().map(since_start).collect::<Vec<_>>().join("\n").as_bytes())?,
        }
        return Ok(ExitCode::SUCCESS);
    };
    let every = Duration::from_secs(seconds.into());
    let (mut before, mut looked) = (disks, Instant::now());
    let mut next = looked + every;
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left != 0 {
        sleep(next.saturating_duration_since(Instant::now()));
        next += every;
        let (now, at) = (look()?, Instant::now());
        let seconds = at.saturating_duration_since(looked).as_secs_f64();
        let intervals: Vec<Interval> = now.iter().map(|disk| Interval::of(disk, &before, seconds)).collect();
        match arguments.json {
            true => output::json(&intervals)?,
            false => {
                output::line(&intervals.iter().map(Interval::text).collect::<Vec<_>>().join("\n"))?;
            }
        }
        (before, looked) = (now, at);
        left -= 1;
    }
    Ok(ExitCode::SUCCESS)
}

impl Interval {
    fn of(disk: &DiskStats, before: &[DiskStats], seconds: f64) -> Interval {
        let is_same = |other: &&DiskStats| (&other.engine, &other.name) == (&disk.engine, &disk.name);
        let ops = match before.iter().find(is_same) {
            Some(before) => disk.stats.since(&before.stats),
            None => disk.stats.ops.clone(),
        };
        // The latencies one by one are for who adds up more than this interval.
        let ops = ops.into_iter().map(|op| OpStats { buckets: Vec::new(), ..op }).collect();
        let (engine, name, in_flight) = (disk.engine.clone(), disk.name.clone(), disk.stats.in_flight());
        Interval { engine, name, seconds, in_flight, ops }
    }

    fn text(&self) -> String {
        let a_second = |count: u64| count as f64 / self.seconds;
        let rows: Vec<Vec<String>> = self
            .ops
            .iter()
            .filter(|op| op.requests != 0)
            .map(|op| {
                let mut row = vec![
                    op.op.clone(),
                    format!("{:.0}", a_second(op.requests)),
                    format!("{}/s", human_size(a_second(op.bytes) as u64)),
                    op.errors.to_string(),
                ];
                row.extend(latencies(op.latency.as_ref()));
                row
            })
            .collect();
        let table = match rows.is_empty() {
            true => "no requests\n".to_owned(),
            false => output::table(&headings("IOPS", "RATE"), &rows),
        };
        format!("{} by {}: {} in flight\n{table}", named(&self.name), self.engine, self.in_flight)
    }
}

/// The empty name is one, too, and seen as such.
fn named(name: &str) -> &str {
    if name.is_empty() { "\"\"" } else { name }
}

fn headings(count: &'static str, bytes: &'static str) -> [&'static str; 10] {
    ["OP", count, bytes, "ERRORS", "MEAN", "P50", "P90", "P99", "P99.9", "MAX"]
}

fn latencies(latency: Option<&Latency>) -> [String; 6] {
    latency.map_or_else(
        || [(); 6].map(|()| "-".to_owned()),
        |latency| {
            let Latency { mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns, .. } = *latency;
            [mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns].map(human_latency)
        },
    )
}

/// Nanoseconds for people, three digits: `812ns`, `8.12us`, `81.2ms`, `1.50s`.
fn human_latency(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1000 => return format!("{ns}ns"),
        1000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$}{unit}")
}

fn since_start(disk: &DiskStats) -> String {
    let path = disk.data_path.as_ref().map_or_else(String::new, |path| format!(" by {path}"));
    let mut text = format!("{} with {}{path}: {}\n\n", named(&disk.name), disk.engine, disk.spec);
    let row = |op: &OpStats| {
        let counts = [op.op.clone(), op.requests.to_string(), human_size(op.bytes), op.errors.to_string()];
        counts.into_iter().chain(latencies(op.latency.as_ref())).collect()
    };
    let rows: Vec<Vec<String>> = disk.stats.ops.iter().map(row).collect();
    text += &output::table(&headings("REQUESTS", "BYTES"), &rows);
    text += "\n";
    text += &output::table(
        &[
            "QUEUE",
            "IN FLIGHT",
            "READS",
            "WRITES",
            "OTHERS",
            "BYTES",
            "ERRORS",
            "READ P50",
            "READ P99",
            "WRITE P50",
            "WRITE P99",
        ],
        &queues(&disk.stats),
    );
    text
}

fn queues(stats: &Stats) -> Vec<Vec<String>> {
    let row = |queue: &crate::metrics::QueueStats| {
        let of = |name: &str| queue.ops.iter().find(|op| op.op == name);
        let requests = |name| of(name).map_or(0, |op| op.requests);
        let sum = |count: fn(&OpStats) -> u64| queue.ops.iter().map(count).sum::<u64>();
        let (reads, writes) = (requests("read"), requests("write"));
        let latency = |name, which: fn(&Latency) -> u64| {
            let latency = of(name).and_then(|op| op.latency.as_ref());
            latency.map_or_else(|| "-".to_owned(), |latency| human_latency(which(latency)))
        };
        vec![
            queue.queue.to_string(),
            queue.in_flight.to_string(),
            reads.to_string(),
            writes.to_string(),
            (sum(|op| op.requests) - reads - writes).to_string(),
            human_size(sum(|op| op.bytes)),
            sum(|op| op.errors).to_string(),
            latency("read", |latency| latency.p50_ns),
            latency("read", |latency| latency.p99_ns),
            latency("write", |latency| latency.p50_ns),
            latency("write", |latency| latency.p99_ns),
        ]
    };
    stats.queues.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_for_people() {
        for (ns, text) in [
            (0, "0ns"),
            (999, "999ns"),
            (8_120, "8.12us"),
            (9_999, "10.0us"),
            (81_240_000, "81.2ms"),
            (999_600, "1000us"),
            (1_500_000_000, "1.50s"),
            (1_000_000_000_000, "1000s"),
        ] {
            assert_eq!(human_latency(ns), text, "{ns}");
        }
    }
}
