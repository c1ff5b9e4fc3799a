//! The part of `list` about what is offered to NBD clients.

use serde::Serialize;

use super::list::{human_time, or_dash};
use super::output;
use crate::config::human_size;
use crate::engine::nbd::Report;
use crate::error::Result;
use crate::registry::Registry;
use crate::registry::control::ExportStatus;
use crate::registry::servers::{self, Server};

/// What is said about every export.
#[derive(Debug, Serialize)]
struct Summary {
    state: &'static str,
    pid: i32,
    /// The file of the `up` that serves it.
    config: String,
    uptime_s: u64,
    /// The disk of this machine that it shows, where it shows one.
    device: Option<String>,
    #[serde(flatten)]
    report: Report,
}

impl Summary {
    fn of(server: &Server, export: ExportStatus) -> Summary {
        Summary {
            state: export.state.name(),
            pid: server.pid,
            config: server.config.display().to_string(),
            uptime_s: server.uptime(),
            device: export.device,
            report: export.report,
        }
    }
}

/// Prints every export; with `says_none` it is said where there is none.
pub(super) fn list(registry: &Registry, json: bool, says_none: bool) -> Result<()> {
    let mut summaries = Vec::new();
    for (server, exports) in servers::exports(registry) {
        match exports {
            Ok(exports) => summaries.extend(exports.into_iter().map(|export| Summary::of(&server, export))),
            Err(error) => output::note(&error.to_string()),
        }
    }
    if json {
        return output::json(&summaries);
    }
    if summaries.is_empty() {
        if says_none {
            output::note("there are no exports of an `up`; docs/config.md says how to have some");
        }
        return Ok(());
    }
    let headings = ["EXPORT", "STATE", "SIZE", "CONNECTIONS", "PID", "UPTIME", "DEVICE", "SPEC"];
    let rows: Vec<Vec<String>> = summaries.iter().map(row).collect();
    output::raw(output::table(&headings, &rows).as_bytes())
}

fn row(export: &Summary) -> Vec<String> {
    let report = &export.report;
    vec![
        // The empty name is one too, and seen as such.
        if report.name.is_empty() { "\"\"".to_owned() } else { report.name.clone() },
        export.state.to_owned(),
        human_size(report.size),
        report.connections.to_string(),
        export.pid.to_string(),
        human_time(export.uptime_s),
        or_dash(export.device.clone()),
        report.spec.clone(),
    ]
}
