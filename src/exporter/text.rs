//! The statistics in the OpenMetrics text format, which Prometheus reads.

use std::fmt::{self, Debug};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text as openmetrics};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry as Metrics, Unit};

use crate::error::{Error, Kind, Result};
use crate::metrics::{OpStats, bucket};
use crate::registry::control::DiskStats;
use crate::registry::statistics::Answer;

/// What the text is, as HTTP says it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the latency histogram as powers of two, in nanoseconds: 1 µs to 17 s.
const BOUNDS: std::ops::RangeInclusive<u32> = 10..=34;

/// What the servers of this host say, as text.
pub fn text(answers: Vec<Answer>) -> Result<String> {
    let mut metrics = Metrics::default();
    metrics.register_collector(Box::new(Disks(answers)));
    let mut text = String::new();
    openmetrics::encode(&mut text, &metrics).map_err(|fmt::Error| {
        Error::new(Kind::Failed, "cannot write the metrics", "they cannot be put into text")
    })?;
    Ok(text)
}

type Label = (&'static str, String);

#[derive(Debug)]
struct Disks(Vec<Answer>);

impl Disks {
    fn each(&self) -> impl Iterator<Item = (&Answer, &DiskStats)> {
        self.0.iter().flat_map(|answer| answer.disks.iter().flatten().map(move |disk| (answer, disk)))
    }

    /// A counter for each kind of request of each queue.
    fn count(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        unit: Option<&Unit>,
        count: impl Fn(&OpStats) -> u64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (_, disk) in self.each() {
            for queue in &disk.stats.queues {
                for op in &queue.ops {
                    let mut labels = labels(disk);
                    labels.push(("queue", queue.queue.to_string()));
                    labels.push(("op", op.op.clone()));
                    family
                        .encode_family(&labels)?
                        .encode_counter::<NoLabelSet, u64, f64>(&count(op), None)?;
                }
            }
        }
        Ok(())
    }
}

fn labels(disk: &DiskStats) -> Vec<Label> {
    vec![("disk", disk.name.clone()), ("engine", disk.engine.clone())]
}

impl Collector for Disks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "blockhaus_server_answers",
            "Whether a server says what it has done (1), or does not answer (0).",
            None,
            MetricType::Gauge,
        )?;
        for answer in &self.0 {
            let labels = [("about", answer.about.clone()), ("pid", answer.pid.to_string())];
            family.encode_family(&labels)?.encode_gauge(&i64::from(answer.disks.is_ok()))?;
        }
        let mut family = encoder.encode_descriptor(
            "blockhaus_disk",
            "A disk that is served: what it is made of and how its data travels.",
            None,
            MetricType::Gauge,
        )?;
        for (answer, disk) in self.each() {
            let mut labels = labels(disk);
            labels.push(("spec", disk.spec.clone()));
            labels.push(("data_path", disk.data_path.clone().unwrap_or_default()));
            labels.push(("pid", answer.pid.to_string()));
            family.encode_family(&labels)?.encode_gauge(&1i64)?;
        }
        let mut family = encoder.encode_descriptor(
            "blockhaus_requests_in_flight",
            "Requests that a queue has and has not completed.",
            None,
            MetricType::Gauge,
        )?;
        for (_, disk) in self.each() {
            for queue in &disk.stats.queues {
                let mut labels = labels(disk);
                labels.push(("queue", queue.queue.to_string()));
                family.encode_family(&labels)?.encode_gauge(&queue.in_flight)?;
            }
        }
        let requests = ("blockhaus_requests", "Requests completed, those that failed among them.");
        self.count(&mut encoder, requests, None, |op| op.requests)?;
        let bytes = ("blockhaus_request", "Bytes that completed requests were about.");
        self.count(&mut encoder, bytes, Some(&Unit::Bytes), |op| op.bytes)?;
        let errors = ("blockhaus_request_errors", "Requests that failed.");
        self.count(&mut encoder, errors, None, |op| op.errors)?;
        let mut family = encoder.encode_descriptor(
            "blockhaus_request_latency",
            "From when a server sees a request until it has sent its result off; of requests that go as one chain \
             with their completion every 32nd, which stands for the others.",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (_, disk) in self.each() {
            for op in disk.stats.ops.iter().filter(|op| !op.buckets.is_empty()) {
                let mut labels = labels(disk);
                labels.push(("op", op.op.clone()));
                histogram(family.encode_family(&labels)?, op)?;
            }
        }
        Ok(())
    }
}

fn histogram(mut encoder: MetricEncoder<'_>, op: &OpStats) -> fmt::Result {
    let bound = |power: u32| (1u64 << power) as f64 / 1e9;
    // The first of our buckets that is not below a bound; a bound begins one.
    let first_at = |power: u32| bucket(1 << power);
    let within = |from: usize, to: usize| {
        let inside = op.buckets.iter().filter(|(bucket, _)| (from..to).contains(&usize::from(*bucket)));
        inside.map(|(_, count)| count).sum::<u64>()
    };
    let mut buckets = Vec::new();
    let mut from = 0;
    for power in BOUNDS {
        buckets.push((bound(power), within(from, first_at(power))));
        from = first_at(power);
    }
    buckets.push((f64::INFINITY, within(from, usize::MAX)));
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder.encode_histogram::<NoLabelSet>(op.latency_sum_ns as f64 / 1e9, count, &buckets, None)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::io::Op;
    use crate::metrics::{QueueMetrics, Stats};

    fn served(latencies_ns: &[u64]) -> DiskStats {
        let queue = Arc::new(QueueMetrics::new());
        for latency_ns in latencies_ns {
            queue.take();
            queue.complete(Op::Read, 4096, false);
            queue.record(Op::Read, *latency_ns, 1);
        }
        queue.take();
        DiskStats {
            engine: "ublk".into(),
            name: "/dev/ublkb7".into(),
            spec: "file:/a \"b\"\n\\c".into(),
            data_path: Some("copy".into()),
            stats: Stats::of(&[queue]),
        }
    }

    #[test]
    fn the_text_says_what_was_counted() {
        let fine = Answer {
            about: "/dev/ublkb7".into(),
            pid: 12,
            disks: Ok(vec![served(&[1_500, 1_500, 3_000_000_000])]),
        };
        let why = Error::new(Kind::Deadline, "cannot ask", "it does not answer");
        let hung = Answer { about: "/etc/a.toml".into(), pid: 13, disks: Err(why) };
        let text = text(vec![fine, hung]).unwrap();
        for line in [
            "blockhaus_server_answers{about=\"/dev/ublkb7\",pid=\"12\"} 1",
            "blockhaus_server_answers{about=\"/etc/a.toml\",pid=\"13\"} 0",
            "# TYPE blockhaus_requests counter",
            "blockhaus_requests_total{disk=\"/dev/ublkb7\",engine=\"ublk\",queue=\"0\",op=\"read\"} 3",
            "blockhaus_request_bytes_total{disk=\"/dev/ublkb7\",engine=\"ublk\",queue=\"0\",op=\"read\"} 12288",
            "blockhaus_requests_in_flight{disk=\"/dev/ublkb7\",engine=\"ublk\",queue=\"0\"} 1",
            "blockhaus_request_latency_seconds_bucket{le=\"0.000001024\",disk=\"/dev/ublkb7\",engine=\"ublk\",op=\"read\"} 0",
            "blockhaus_request_latency_seconds_bucket{le=\"0.000002048\",disk=\"/dev/ublkb7\",engine=\"ublk\",op=\"read\"} 2",
            "blockhaus_request_latency_seconds_bucket{le=\"+Inf\",disk=\"/dev/ublkb7\",engine=\"ublk\",op=\"read\"} 3",
            "blockhaus_request_latency_seconds_count{disk=\"/dev/ublkb7\",engine=\"ublk\",op=\"read\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains(r#"spec="file:/a \"b\"\n\\c""#), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
