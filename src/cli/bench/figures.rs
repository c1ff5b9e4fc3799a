//! Figures as people read them.

use crate::config::human_size;
use crate::engine::load::{Load, Measured};

/// `4K random read, depth 64`.
pub(super) fn load(load: &Load) -> String {
    let jobs = if load.jobs == 1 { String::new() } else { format!(", {} jobs", load.jobs) };
    format!("{} {}, depth {}{jobs}", human_size(load.block_size.into()), load.pattern.words(), load.depth)
}

/// A number with its thousands apart: `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

/// A number a second.
pub(super) fn rate(number: f64) -> String {
    if number >= 100.0 { count(number.round() as u64) } else { format!("{number:.1}") }
}

/// Three digits of a number below 1000.
fn three_digits(number: f64) -> String {
    match number {
        _ if number >= 99.95 => format!("{number:.0}"),
        _ if number >= 9.995 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// Nanoseconds, in a unit that leaves three digits: `85.2 µs`.
pub(super) fn time(nanoseconds: f64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "µs")];
    // What would be rounded to 1000 of a unit is one of the next.
    match units.into_iter().find(|(unit, _)| nanoseconds >= unit * 0.9995) {
        Some((unit, name)) if nanoseconds / unit < 999.5 => {
            format!("{} {name}", three_digits(nanoseconds / unit))
        }
        Some((unit, name)) => format!("{} {name}", count((nanoseconds / unit).round() as u64)),
        None => format!("{nanoseconds:.0} ns"),
    }
}

/// The same of a round number: `50 µs`.
pub(super) fn round_time(nanoseconds: u64) -> String {
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1000, "µs"), (1, "ns")];
    let (unit, name) = units.into_iter().find(|(unit, _)| nanoseconds >= *unit).unwrap_or((1, "ns"));
    format!("{} {name}", nanoseconds / unit)
}

/// Bytes a second.
pub(super) fn bandwidth(bytes: f64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit as f64) {
        Some((unit, name)) => format!("{} {name}/s", three_digits(bytes / unit as f64)),
        None => format!("{bytes:.0} B/s"),
    }
}

/// IOPS, bandwidth, processor time and errors of a load.
pub(super) fn rates(measured: &Measured) -> Vec<String> {
    let cpu = match measured.cpu_time_per_request() {
        Some(cpu) => {
            let [user, system] = [cpu.user, cpu.system].map(|time| time.as_nanos() as f64);
            format!("CPU {} a request ({} system)", time(user + system), time(system))
        }
        None => "CPU -".into(),
    };
    let iops = format!("{} IOPS", rate(measured.iops()));
    let errors = errors(measured.failures.count(), measured.warm_up_failures.count());
    vec![iops, bandwidth(measured.bandwidth()), cpu, errors]
}

/// `no errors`, or how many there were.
fn errors(number: u64, while_warming_up: u64) -> String {
    let errors = |number| match number {
        1 => "1 error".to_owned(),
        _ => format!("{} errors", count(number)),
    };
    match (number, while_warming_up) {
        (0, 0) => "no errors".into(),
        (0, _) => format!("{} while warming up", errors(while_warming_up)),
        _ => errors(number),
    }
}

/// Percentiles that are told of, and what they are called.
pub(super) const PERCENTILES: [(f64, &str); 3] = [(50.0, "p50"), (99.0, "p99"), (99.9, "p99.9")];

/// The latencies of a load.
pub(super) fn latencies(measured: &Measured) -> Vec<String> {
    let latencies = &measured.latencies;
    let shown = |value: Option<f64>| value.map_or_else(|| "-".into(), time);
    let mut parts = vec![format!("mean {}", shown(latencies.mean_ns()))];
    for (percent, name) in PERCENTILES {
        parts.push(format!("{name} {}", shown(latencies.percentile_ns(percent).map(|value| value as f64))));
    }
    parts.push(format!("max {}", shown(latencies.longest_ns().map(|value| value as f64))));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        for (nanoseconds, text) in [
            (0.0, "0 ns"),
            (850.4, "850 ns"),
            (999.7, "1.00 µs"),
            (85_230.0, "85.2 µs"),
            (999_700.0, "1.00 ms"),
            (9_996.0, "10.0 µs"),
            (99_960.0, "100 µs"),
            (12.3e9, "12.3 s"),
            (3600e9, "3,600 s"),
        ] {
            assert_eq!(time(nanoseconds), text, "{nanoseconds}");
        }
        assert_eq!((round_time(50_000), round_time(1)), ("50 µs".into(), "1 ns".into()));
        assert_eq!(
            (count(0), count(1000), count(1_234_567)),
            ("0".into(), "1,000".into(), "1,234,567".into())
        );
        assert_eq!(
            (rate(9.96), rate(99.99), rate(12_345.6)),
            ("10.0".into(), "100.0".into(), "12,346".into())
        );
        assert_eq!((errors(0, 0), errors(1, 7)), ("no errors".into(), "1 error".into()));
        assert_eq!(errors(0, 1000), "1,000 errors while warming up");
        assert_eq!((bandwidth(0.0), bandwidth(1.5 * 1_048_576.0)), ("0 B/s".into(), "1.50 MiB/s".into()));
    }
}
