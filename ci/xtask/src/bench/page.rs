//! What a run leaves for others: a JSON file, charts, and its section of the page that has them all.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::about::About;
use super::bars::{Verdict, summary};
use super::chart::{Bar, Chart, Panel};
use super::mode::{Metric, Mode};
use super::plan::Plan;
use super::results::Results;
use super::table::{all_ratios, tables};
use crate::{paths, say};

/// A page that has no sections yet.
const NEW_PAGE: &str = include_str!("page.md");

/// All that is known of one run.
pub struct Report<'a> {
    /// What was measured.
    pub plan: &'a Plan,
    /// What came of it.
    pub results: &'a Results,
    /// How.
    pub about: &'a About,
    /// Bars.
    pub verdicts: &'a [Verdict],
}

impl Report<'_> {
    /// For a terminal.
    pub fn text(&self) -> String {
        format!("{}, {}: {}\n", self.plan.mode.title(), self.runs(), self.about.versions()) + &self.body("")
    }

    /// The tables, `heading` before their titles, and what they are.
    fn body(&self, heading: &str) -> String {
        let tables = tables(self.plan, self.results).into_iter();
        let tables = tables.map(|(title, table)| format!("\n{heading}{title}\n\n{table}"));
        tables.chain(self.plan.mode.notes().iter().map(|note| format!("\n{note}\n"))).collect()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let (plan, results) = (self.plan, self.results);
        let mut cells = Vec::new();
        for device in &plan.devices {
            for column in plan.columns_of(device) {
                let metrics = plan.mode.metrics().iter().filter_map(|metric| {
                    let median = results.median(device.name, column, metric.name)?;
                    let values = results.values(device.name, column, metric.name);
                    Some((metric.name.to_string(), json!({"median": median, "values": values})))
                });
                let metrics: serde_json::Map<String, Value> = metrics.collect();
                cells.push(json!({"device": device.name, "column": column, "metrics": metrics}));
            }
        }
        let pair = |(name, text): &(String, String)| (name.clone(), json!(text));
        let versions: serde_json::Map<String, Value> = self.about.versions.iter().map(pair).collect();
        let missing: serde_json::Map<String, Value> = results.missing.iter().map(pair).collect();
        let titles = plan.mode.metrics().iter().map(|metric| (metric.name.to_string(), json!(metric.title)));
        let ratios = all_ratios(plan, results).into_iter().map(|ratio| {
            json!({"device": ratio.ours, "peer": ratio.theirs, "column": ratio.column, "ratio": ratio.value})
        });
        json!({
            "mode": plan.mode.name(),
            "command": self.about.command,
            "date": self.about.date,
            "machine": self.about.machine,
            "versions": versions,
            "runs": plan.runs,
            "metrics": titles.collect::<serde_json::Map<_, _>>(),
            "cells": cells,
            "missing": missing,
            "ratios": ratios.collect::<Vec<_>>(),
            "bars": self.verdicts.iter().map(|bar| json!({"met": bar.met, "words": bar.words})).collect::<Vec<_>>(),
        })
    }

    /// Write the run's files to `folder`, and its section into the page there.
    pub fn publish(&self, folder: &Path) -> Result<()> {
        paths::make_dir(folder)?;
        let json = serde_json::to_string_pretty(&self.json())? + "\n";
        paths::write_whole(&folder.join(format!("{}.json", self.plan.mode.name())), json.as_bytes())?;
        let charts = self.charts();
        for (name, chart) in &charts {
            paths::write_whole(&folder.join(name), chart.svg().as_bytes())?;
        }
        let page = folder.join("README.md");
        let before = if page.exists() { paths::read(&page)? } else { NEW_PAGE.to_string() };
        let names: Vec<&str> = charts.iter().map(|(name, _)| name.as_str()).collect();
        let after = with_section(&before, self.plan.mode.name(), &self.section(&names))
            .with_context(|| format!("cannot put the section into {}", page.display()))?;
        paths::write_whole(&page, after.as_bytes())?;
        say::step(format!("wrote {} and its charts", page.display()));
        Ok(())
    }

    fn runs(&self) -> String {
        match self.plan.runs {
            1 => "one run".to_string(),
            runs => format!("median of {runs} runs"),
        }
    }

    fn section(&self, charts: &[&str]) -> String {
        let About { command, date, machine, .. } = self.about;
        let mut text = format!(
            "## {}\n\n    {command}\n\n{date}, {}. Machine: {machine}. Versions: {}.\n",
            self.plan.mode.title(),
            self.runs(),
            self.about.versions()
        );
        for chart in charts {
            text += &format!("\n![{}]({chart})\n", self.plan.mode.title());
        }
        text += &self.body("### ");
        if !self.results.missing.is_empty() {
            text += "\nNot measured:\n\n";
        }
        for (device, why) in &self.results.missing {
            text += &format!("- {device}: {}\n", why.replace('`', "'"));
        }
        if !self.verdicts.is_empty() {
            text += &format!("\n### Bars\n\nOf the {}.\n\n", summary(self.verdicts));
        }
        for verdict in self.verdicts {
            text += &format!("- {}\n", verdict.words);
        }
        text
    }

    /// A chart for each main figure and backing.
    fn charts(&self) -> Vec<(String, Chart)> {
        let mode = self.plan.mode;
        let metrics = mode.metrics().iter().filter(|metric| mode.charted().contains(&metric.name));
        let mut charts = Vec::new();
        for metric in metrics {
            for (backing, about) in [("null", "nothing behind them"), ("file", "a file behind them")] {
                let panels =
                    if mode.scales() { self.shapes(metric, backing) } else { self.loads(metric, backing) };
                if panels.is_empty() {
                    continue;
                }
                let better = if metric.lower_is_better { "less is better" } else { "more is better" };
                let chart = Chart {
                    title: format!("{}, devices with {about} ({better})", metric.title),
                    notes: vec![
                        format!(
                            "{}, {}; kernel {}; {}",
                            self.about.date,
                            self.runs(),
                            self.about.kernel(),
                            self.about.machine
                        ),
                        self.about.versions(),
                        self.about.command.clone(),
                    ],
                    panels,
                };
                charts.push((
                    format!("{}-{}-{backing}.svg", mode.name(), metric.name.replace('_', "-")),
                    chart,
                ));
            }
        }
        charts
    }

    /// A panel a load, a bar a device.
    fn loads(&self, metric: &Metric, backing: &str) -> Vec<Panel> {
        // Memory is as good as nothing beside a server that only passes on.
        let of_backing = |name: &str| if name == "memory" { "null" } else { name } == backing;
        let devices: Vec<_> =
            self.plan.devices.iter().filter(|device| of_backing(device.backing())).collect();
        let panel = |column: &&'static str| {
            let bars: Vec<Bar> = devices
                .iter()
                .filter_map(|device| {
                    let value = self.results.median(device.name, column, metric.name)?;
                    Some(Bar { label: device.name.to_string(), value, owner: device.owner })
                })
                .collect();
            (!bars.is_empty()).then(|| Panel { title: column.replace('-', " "), bars })
        };
        self.plan.columns.iter().filter_map(panel).collect()
    }

    /// A panel a device, a bar a shape of load.
    fn shapes(&self, metric: &Metric, backing: &str) -> Vec<Panel> {
        let devices = self.plan.devices.iter().filter(|device| device.backing() == backing);
        let panel = |device: &&'static super::device::Device| {
            let bars: Vec<Bar> = self
                .plan
                .columns_of(device)
                .filter_map(|column| {
                    let value = self.results.median(device.name, column, metric.name)?;
                    Some(Bar { label: column.replace('/', " "), value, owner: device.owner })
                })
                .collect();
            (!bars.is_empty()).then(|| Panel { title: device.name.to_string(), bars })
        };
        devices.filter_map(panel).collect()
    }
}

/// `page` with this section in place of the one of the same name; all else stays as it was written.
/// Whether a run's section can be put into the page in `folder`: to be asked before it is measured, which takes long.
pub fn has_place(folder: &Path, mode: Mode) -> Result<()> {
    let page = folder.join("README.md");
    match page.exists() {
        true => with_section(&paths::read(&page)?, mode.name(), "")
            .map(drop)
            .with_context(|| format!("cannot put the section into {}", page.display())),
        false => Ok(()),
    }
}

fn with_section(page: &str, name: &str, section: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- begin: {name} -->"), format!("<!-- end: {name} -->"));
    let (Some(from), Some(to)) = (page.find(&begin), page.find(&end)) else {
        bail!("it has no place for it; write the lines `{begin}` and `{end}` where it shall stand");
    };
    if to < from {
        bail!("`{end}` stands before `{begin}`");
    }
    Ok(format!("{}\n{}{}", &page[..from + begin.len()], section, &page[to..]))
}

#[cfg(test)]
mod tests {
    use super::super::bars::verdicts;
    use super::super::device::named;
    use super::*;

    const ALL: [Mode; 5] = [Mode::Count, Mode::CountScale, Mode::Clock, Mode::ClockScale, Mode::Nbd];

    fn about() -> About {
        About {
            command: "cargo xtask bench --out docs/benchmarks".into(),
            date: "2026-11-21".into(),
            machine: "QEMU 7.2.22".into(),
            versions: vec![("kernel".into(), "7.2.12".into())],
        }
    }

    fn measured(mode: Mode) -> (Plan, Results) {
        let plan = Plan::new(mode, mode.devices(false), true, None);
        let mut results = Results::default();
        for device in &plan.devices {
            for column in plan.columns_of(device) {
                let figures = mode.metrics().iter().map(|metric| format!(" {}=12345", metric.name));
                let line = format!("@cell {} {column}{}", device.name, figures.collect::<String>());
                results.take(&line).unwrap();
            }
        }
        (plan, results)
    }

    #[test]
    fn the_page_keeps_what_was_written_by_hand() {
        let old = NEW_PAGE.replace("Not written yet.", "Loop is faster, because.");
        assert_ne!(old, NEW_PAGE);
        let once = with_section(&old, "count", "## One\n").unwrap();
        let twice = with_section(&once, "count", "## Two\n").unwrap();
        assert!(twice.contains("because.") && twice.contains("## Two") && !twice.contains("## One"));
        assert!(with_section("# Nothing\n", "count", "").unwrap_err().to_string().contains("begin: count"));
        assert!(with_section("<!-- end: a --><!-- begin: a -->", "a", "").is_err());
    }

    #[test]
    fn every_mode_has_a_place_charts_and_json() {
        let folder = tempfile::tempdir().unwrap();
        for mode in ALL {
            let (plan, results) = measured(mode);
            let verdicts = verdicts(&plan, &results, true);
            let (about, verdicts) = (about(), &verdicts[..]);
            let report = Report { plan: &plan, results: &results, about: &about, verdicts };
            report.publish(folder.path()).unwrap();
            let json: Value = serde_json::from_str(
                &paths::read(&folder.path().join(format!("{}.json", mode.name()))).unwrap(),
            )
            .unwrap();
            assert_eq!(json["cells"].as_array().unwrap().len(), plan.cells() / plan.runs as usize);
            assert_eq!(json["versions"]["kernel"], "7.2.12");
            assert_eq!(json["bars"].as_array().unwrap().len(), verdicts.len());
            assert!(report.text().contains("12,345"), "{}", report.text());
        }
        let page = paths::read(&folder.path().join("README.md")).unwrap();
        for mode in ALL {
            assert!(page.contains(&format!("## {}", mode.title())), "{page}");
        }
        // Every picture that the page shows is there.
        let shown: Vec<&str> = page.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        assert!(shown.len() >= 9, "{shown:?}");
        assert!(
            shown.iter().filter(|name| name.ends_with("svg")).all(|name| folder.path().join(name).is_file())
        );
    }

    #[test]
    fn what_could_not_be_had_is_said() {
        let plan = Plan::new(Mode::Count, vec![named("loop-file").unwrap()], true, None);
        let mut results = Results::default();
        results.take("@missing loop-file `losetup` failed").unwrap();
        let about = about();
        let report = Report { plan: &plan, results: &results, about: &about, verdicts: &[] };
        assert!(report.section(&[]).contains("- loop-file: 'losetup' failed"));
        assert_eq!(report.json()["missing"]["loop-file"], "`losetup` failed");
    }
}
