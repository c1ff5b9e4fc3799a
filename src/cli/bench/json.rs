//! The report as one JSON object. Names carry their units; what was not measured is null.

use serde::Serialize;

use super::report::{Host, Report};
use crate::engine::load::{Disk, Failures, Load, Measured, Ring};

#[derive(Debug, Serialize)]
pub(super) struct Json<'a> {
    /// The device, or the spec with its filters.
    name: &'a str,
    disk: Disk,
    notes: &'a [String],
    host: &'a Host,
    loads: Vec<Figures<'a>>,
    /// How many were asked for.
    loads_wanted: usize,
    interrupted: bool,
    remarks: &'a [String],
}

#[derive(Debug, Serialize)]
struct Figures<'a> {
    #[serde(flatten)]
    load: Load,
    seconds: f64,
    requests: u64,
    iops: f64,
    bytes_per_second: f64,
    latency_ns: LatencyNs,
    /// Processor time of this process, all of its threads.
    cpu_ns_per_request: Option<CpuNs>,
    /// From 0 to 1: the share of their time that the jobs waited for a processor.
    starved: f64,
    errors: u64,
    errors_by_errno: Vec<Errors>,
    /// Before the seconds of which all else tells.
    warm_up_errors: u64,
    warm_up_errors_by_errno: Vec<Errors>,
    ring: &'a Ring,
    interrupted: bool,
}

#[derive(Debug, Serialize)]
struct LatencyNs {
    count: u64,
    mean: Option<f64>,
    min: Option<u64>,
    p50: Option<u64>,
    p90: Option<u64>,
    p99: Option<u64>,
    #[serde(rename = "p99.9")]
    p99_9: Option<u64>,
    #[serde(rename = "p99.99")]
    p99_99: Option<u64>,
    max: Option<u64>,
    /// Pairs of a latency and how many requests had it; what differs by less than 0.1 % is one.
    histogram: Vec<(u64, u64)>,
}

#[derive(Debug, Serialize)]
struct CpuNs {
    user: u128,
    system: u128,
}

#[derive(Debug, Serialize)]
struct Errors {
    errno: i32,
    error: String,
    count: u64,
}

pub(super) fn of(report: &Report) -> Json<'_> {
    Json {
        name: &report.name,
        disk: report.disk,
        notes: &report.notes,
        host: &report.host,
        loads: report.results.iter().map(figures).collect(),
        loads_wanted: report.loads,
        interrupted: report.interrupted,
        remarks: &report.remarks,
    }
}

fn errors(failures: &Failures) -> Vec<Errors> {
    let kinds = failures.kinds();
    kinds.map(|(errno, count)| Errors { errno: errno.number(), error: errno.to_string(), count }).collect()
}

fn figures(measured: &Measured) -> Figures<'_> {
    let latencies = &measured.latencies;
    let cpu = measured.cpu_time_per_request();
    Figures {
        load: measured.load,
        seconds: measured.window.as_secs_f64(),
        requests: measured.served,
        iops: measured.iops(),
        bytes_per_second: measured.bandwidth(),
        latency_ns: LatencyNs {
            count: latencies.count(),
            mean: latencies.mean_ns(),
            min: latencies.shortest_ns(),
            p50: latencies.percentile_ns(50.0),
            p90: latencies.percentile_ns(90.0),
            p99: latencies.percentile_ns(99.0),
            p99_9: latencies.percentile_ns(99.9),
            p99_99: latencies.percentile_ns(99.99),
            max: latencies.longest_ns(),
            histogram: latencies.counts().collect(),
        },
        cpu_ns_per_request: cpu.map(|cpu| CpuNs { user: cpu.user.as_nanos(), system: cpu.system.as_nanos() }),
        starved: measured.starved,
        errors: measured.failures.count(),
        errors_by_errno: errors(&measured.failures),
        warm_up_errors: measured.warm_up_failures.count(),
        warm_up_errors_by_errno: errors(&measured.warm_up_failures),
        ring: &measured.ring,
        interrupted: measured.interrupted,
    }
}
