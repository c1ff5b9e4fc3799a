//! What the guest says while it measures.

use std::collections::HashMap;

use super::mode::Metric;
use super::number::shown;
use super::plan::Plan;

/// The figures so far.
#[derive(Debug, Default)]
pub struct Results {
    /// What took part, in the order it was said: name and version.
    pub versions: Vec<(String, String)>,
    /// Devices that could not be had, and why.
    pub missing: Vec<(String, String)>,
    cells: HashMap<(String, String), Vec<Figures>>,
}

/// What one measurement of a cell found, by the names of the metrics.
type Figures = Vec<(String, f64)>;

impl Results {
    /// Take one line of the guest's. `Ok` has progress to show, if any; `Err`
    /// has a line that is no result.
    pub fn take(&mut self, line: &str) -> Result<Option<String>, String> {
        let line = line.trim_end_matches('\r');
        if let Some((name, text)) = line.strip_prefix("@version ").and_then(|rest| rest.split_once(' ')) {
            // `fio-3.39`, `rublk 0.2.15`: the name is said already.
            let version = text.strip_prefix(name).unwrap_or(text).trim_start_matches(['-', ' ']);
            self.add_version(name, version);
            return Ok(None);
        }
        if let Some((device, why)) = line.strip_prefix("@missing ").and_then(|rest| rest.split_once(' ')) {
            if !self.missing.iter().any(|(known, _)| known == device) {
                self.missing.push((device.to_string(), why.to_string()));
            }
            return Ok(Some(format!("{device}: not measured: {why}")));
        }
        let (device, column, figures) = cell(line).ok_or_else(|| line.to_string())?;
        let words: Vec<_> = figures.iter().map(|(name, value)| format!("{name} {}", shown(*value))).collect();
        let progress = format!("{device:30}{column:28}{}", words.join("  "));
        self.cells.entry((device.to_string(), column.to_string())).or_default().push(figures);
        Ok(Some(progress))
    }

    /// What took part, once.
    pub fn add_version(&mut self, name: &str, version: &str) {
        if !self.versions.iter().any(|(known, _)| known == name) {
            self.versions.push((name.to_string(), version.to_string()));
        }
    }

    /// Add another machine's.
    pub fn append(&mut self, other: Results) {
        other.versions.iter().for_each(|(name, version)| self.add_version(name, version));
        for missing in other.missing {
            if !self.missing.iter().any(|(known, _)| *known == missing.0) {
                self.missing.push(missing);
            }
        }
        for (cell, figures) in other.cells {
            self.cells.entry(cell).or_default().extend(figures);
        }
    }

    /// How many cells were measured, each as often as it was.
    pub fn taken(&self) -> usize {
        self.cells.values().map(Vec::len).sum()
    }

    /// All figures of a cell.
    pub fn values(&self, device: &str, column: &str, metric: &str) -> Vec<f64> {
        let figures = self.cells.get(&(device.to_string(), column.to_string()));
        let all = figures.into_iter().flatten().flatten();
        all.filter(|(name, _)| name == metric).map(|(_, value)| *value).collect()
    }

    /// The median of a cell.
    pub fn median(&self, device: &str, column: &str, metric: &str) -> Option<f64> {
        let mut values = self.values(device, column, metric);
        values.sort_by(f64::total_cmp);
        let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
        Some((low + high) / 2.0)
    }

    /// The first cell of `plan` that was not measured `runs` times, leaving out devices that were missing.
    pub fn lacking(&self, plan: &Plan, runs: u32) -> Option<String> {
        for device in &plan.devices {
            if self.missing.iter().any(|(name, _)| name == device.name) {
                continue;
            }
            for column in plan.columns_of(device) {
                let cell = self.cells.get(&(device.name.to_string(), column.to_string()));
                let count = cell.map_or(0, Vec::len);
                if count != runs as usize {
                    return Some(format!("{}, {column}: measured {count} times of {runs}", device.name));
                }
            }
        }
        None
    }

    /// Whether any device has this figure.
    pub fn has(&self, metric: &Metric) -> bool {
        self.cells.values().flatten().flatten().any(|(name, _)| name == metric.name)
    }
}

/// `@cell DEVICE COLUMN NAME=VALUE…`: what is no number that can be measured is no cell.
fn cell(line: &str) -> Option<(&str, &str, Figures)> {
    let mut words = line.strip_prefix("@cell ")?.split_whitespace();
    let (device, column) = (words.next()?, words.next()?);
    let figures: Option<Figures> = words
        .map(|word| {
            let (name, value) = word.split_once('=')?;
            let value = value.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0)?;
            Some((name.to_string(), value))
        })
        .collect();
    figures.filter(|figures| !figures.is_empty()).map(|figures| (device, column, figures))
}

#[cfg(test)]
mod tests {
    use super::super::device::named;
    use super::super::mode::Mode;
    use super::*;

    const COLUMN: &str = "4k-randread-qd64";

    #[test]
    fn figures_become_medians() {
        let mut results = Results::default();
        for instructions in ["15200", "15000.5", "15100"] {
            let line = format!("@cell rublk-null {COLUMN} instructions={instructions}\r");
            assert!(results.take(&line).unwrap().unwrap().contains("rublk-null"));
        }
        assert_eq!(results.taken(), 3);
        assert_eq!(results.median("rublk-null", COLUMN, "instructions"), Some(15_100.0));
        assert_eq!(results.median("rublk-null", COLUMN, "iops"), None);
        assert_eq!(results.median("rublk-null", "128k-read-qd16", "instructions"), None);
        results.take(&format!("@cell rublk-null {COLUMN} instructions=15300 iops=7")).unwrap();
        assert_eq!(results.median("rublk-null", COLUMN, "instructions"), Some(15_150.0));
        assert_eq!(results.median("rublk-null", COLUMN, "iops"), Some(7.0));
    }

    #[test]
    fn what_is_no_result_is_handed_back() {
        let mut results = Results::default();
        for line in [
            "bench: fio failed",
            "@cell a b",
            "@cell a b c",
            "@cell a b c=NaN",
            "@cell a b c=-1",
            "@missing a",
            "",
        ] {
            assert_eq!(results.take(line), Err(line.to_string()));
        }
        assert_eq!(results.taken(), 0);
    }

    #[test]
    fn versions_lose_the_name_that_is_said_already_and_are_said_once() {
        let mut results = Results::default();
        for line in ["@version kernel 7.2.12", "@version fio fio-3.39", "@version rublk rublk 0.2.15"] {
            assert_eq!(results.take(line), Ok(None));
        }
        let mut other = Results::default();
        other.take("@version kernel 7.2.12").unwrap();
        results.append(other);
        let versions: Vec<_> = results.versions.iter().map(|(_, version)| version.as_str()).collect();
        assert_eq!(versions, ["7.2.12", "3.39", "0.2.15"]);
    }

    #[test]
    fn every_cell_is_wanted_but_those_of_missing_devices() {
        let devices = vec![named("loop-file").unwrap(), named("kublk-file").unwrap()];
        let plan = Plan::new(Mode::Count, devices, true, None);
        let mut results = Results::default();
        assert!(results.lacking(&plan, 1).unwrap().contains("measured 0 times of 1"));
        for column in plan.columns.clone() {
            results.take(&format!("@cell loop-file {column} instructions=1")).unwrap();
        }
        assert!(results.lacking(&plan, 1).unwrap().starts_with("kublk-file"));
        assert!(results.take("@missing kublk-file no such flag").unwrap().unwrap().contains("no such flag"));
        assert_eq!(results.lacking(&plan, 1), None);
        assert!(results.lacking(&plan, 2).is_some());
    }
}
