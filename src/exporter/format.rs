//! The two text formats in which Prometheus takes metrics, and which of them somebody wants.

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, version 0.0.4, which everybody reads: node_exporter's textfile collector reads no other.
    Classic,
    /// OpenMetrics 1.0.0, for who asks for it.
    OpenMetrics,
}

const OPEN_METRICS: &str = "application/openmetrics-text";
const PLAIN: &str = "text/plain";

impl Format {
    /// What the text is, as HTTP says it.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What somebody wants who sends this as `Accept` (RFC 9110, section 12.5.1): OpenMetrics where it is named and nothing
    /// says that plain text is liked better.
    pub(super) fn accepted(accept: &str) -> Format {
        let quality = |wanted: &str| {
            let ranges = accept.split(',').map(|range| range.split(';').map(str::trim));
            let named = ranges.filter_map(|mut range| {
                let is_it = range.next()?.eq_ignore_ascii_case(wanted);
                let quality = range.find_map(|parameter| parameter.strip_prefix("q="));
                is_it.then(|| quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
            });
            named.fold(0.0, f32::max)
        };
        let open_metrics = quality(OPEN_METRICS);
        if open_metrics > 0.0 && open_metrics >= quality(PLAIN) {
            Format::OpenMetrics
        } else {
            Format::Classic
        }
    }
}

/// An OpenMetrics text in the classic format, which has no units and no end, and calls a counter's family as its samples
/// are called.
pub(super) fn classic(open_metrics: &str) -> String {
    let types = open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let counters: Vec<&str> = types.filter_map(|line| line.strip_suffix(" counter")).collect();
    let mut classic = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let described =
            ["# HELP ", "# TYPE "].iter().find_map(|kind| Some((*kind, line.strip_prefix(kind)?)));
        match described.and_then(|(kind, rest)| Some((kind, rest.split_once(' ')?))) {
            Some((kind, (name, rest))) if counters.contains(&name) => {
                classic.push_str(&format!("{kind}{name}_total {rest}"));
            }
            _ => classic.push_str(line),
        }
        classic.push('\n');
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_open_metrics_gets_it() {
        for (accept, format) in [
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("text/plain", Format::Classic),
            ("application/openmetrics-text; version=1.0.0", Format::OpenMetrics),
            // As Prometheus 3 asks.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            ("text/plain;version=0.0.4;q=0.9, Application/OpenMetrics-Text;q=0.5", Format::Classic),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("application/openmetrics-text;q=much,,;", Format::Classic),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn a_counters_family_is_called_as_its_samples() {
        let open_metrics = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{b=\"# EOF\"} 1\n\
                            # HELP a Gauge.\n# TYPE a gauge\na 2\n# EOF\n";
        let expected = "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\na_bytes_total{b=\"# EOF\"} 1\n\
                        # HELP a Gauge.\n# TYPE a gauge\na 2\n";
        assert_eq!(classic(open_metrics), expected);
    }
}
