//! The figures in tables, for a terminal and for a page alike.

use super::mode::Metric;
use super::number::shown;
use super::plan::Plan;
use super::results::Results;

/// Whom we are compared with.
const PEERS: [&str; 6] = ["rublk", "kublk", "loop", "nbd", "nbdkit", "qemu"];

/// Rows of cells, the first of them the head.
#[derive(Debug, Default)]
struct Table(Vec<Vec<String>>);

impl Table {
    /// In Markdown, its columns aligned, which a terminal shows as well.
    fn text(&self) -> String {
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |at: usize| self.0.iter().map(|row| row[at].chars().count()).max().unwrap_or(0).max(3);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (number, row) in self.0.iter().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(
                    |(at, (cell, width))| {
                        if at == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
                    },
                )
                .collect();
            text += &format!("| {} |\n", cells.join(" | "));
            if number == 0 {
                let rules: Vec<String> = widths
                    .iter()
                    .enumerate()
                    .map(|(at, width)| if at == 0 { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" })
                    .collect();
                text += &format!("| {} |\n", rules.join(" | "));
            }
        }
        text
    }

    /// With rows for columns.
    fn turned(self) -> Self {
        let columns = self.0.first().map_or(0, Vec::len);
        Self((0..columns).map(|at| self.0.iter().map(|row| row[at].clone()).collect()).collect())
    }
}

/// A ratio of one column.
pub struct Ratio {
    /// Our device.
    pub ours: &'static str,
    /// The peer's.
    pub theirs: &'static str,
    /// The load.
    pub column: &'static str,
    /// Ours by theirs.
    pub value: f64,
}

/// Ours beside `peer`'s, by the mode's main figure.
pub fn ratios(plan: &Plan, results: &Results, peer: &str) -> Vec<Ratio> {
    let metric = plan.mode.metrics()[0].name;
    let mut found = Vec::new();
    if plan.mode.scales() {
        return found;
    }
    for (ours, theirs) in plan.compared(peer).map(|(ours, theirs)| (ours.name, theirs.name)) {
        for column in plan.columns.iter().copied() {
            let medians = [ours, theirs].map(|device| results.median(device, column, metric));
            if let [Some(a), Some(b)] = medians {
                found.push(Ratio { ours, theirs, column, value: a / b });
            }
        }
    }
    found
}

/// [`ratios`] with all peers.
pub fn all_ratios(plan: &Plan, results: &Results) -> Vec<Ratio> {
    PEERS.iter().flat_map(|peer| ratios(plan, results, peer)).collect()
}

/// A table for each figure, and one of ratios, each with its title.
pub fn tables(plan: &Plan, results: &Results) -> Vec<(String, String)> {
    let mut tables: Vec<(String, String)> = plan
        .mode
        .metrics()
        .iter()
        .filter(|metric| results.has(metric))
        .map(|metric| (metric.title.to_string(), figures(plan, results, metric).text()))
        .collect();
    if !plan.mode.counts() && plan.runs > 1 {
        let main = &plan.mode.metrics()[0];
        let title = format!("{}, lowest to highest of the runs", main.title);
        tables.push((title, spreads(plan, results, main).text()));
    }
    let ratios = all_ratios(plan, results);
    if !ratios.is_empty() {
        let less = plan.mode.metrics()[0].lower_is_better;
        let better = if less { "below 1 we take fewer" } else { "above 1 we do more" };
        let title = format!("{} as a ratio: {better}", plan.mode.metrics()[0].title);
        tables.push((title, pairs(plan, &ratios).text()));
    }
    tables
}

/// One figure, a row a device.
fn figures(plan: &Plan, results: &Results, metric: &Metric) -> Table {
    cells(plan, |device, column| results.median(device, column, metric.name).map(shown))
}

/// How far the runs are apart.
fn spreads(plan: &Plan, results: &Results, metric: &Metric) -> Table {
    cells(plan, |device, column| {
        let mut values = results.values(device, column, metric.name);
        values.sort_by(f64::total_cmp);
        Some(format!("{} to {}", shown(*values.first()?), shown(*values.last()?)))
    })
}

/// A row a device, without columns that nobody has; what was not measured is a dash.
fn cells(plan: &Plan, cell: impl Fn(&str, &str) -> Option<String>) -> Table {
    let measured = |column: &&&str| plan.devices.iter().any(|device| cell(device.name, column).is_some());
    let columns: Vec<&str> = plan.columns.iter().filter(measured).copied().collect();
    let mut rows = vec![head(&columns)];
    for name in plan.devices.iter().map(|device| device.name) {
        let cells = columns.iter().map(|column| cell(name, column).unwrap_or_else(|| "-".to_string()));
        rows.push([name.to_string()].into_iter().chain(cells).collect());
    }
    let table = Table(rows);
    if plan.mode.scales() { table.turned() } else { table }
}

fn pairs(plan: &Plan, ratios: &[Ratio]) -> Table {
    let mut rows = vec![head(&plan.columns)];
    for pair in ratios.chunk_by(|a, b| (a.ours, a.theirs) == (b.ours, b.theirs)) {
        let cells = plan.columns.iter().map(|column| {
            let ratio = pair.iter().find(|ratio| ratio.column == *column);
            ratio.map_or("-".to_string(), |ratio| format!("{:.3}", ratio.value))
        });
        rows.push([format!("{} / {}", pair[0].ours, pair[0].theirs)].into_iter().chain(cells).collect());
    }
    Table(rows)
}

fn head(columns: &[&str]) -> Vec<String> {
    [String::new()].into_iter().chain(columns.iter().map(|column| column.replace('/', " "))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::device::named;
    use super::super::mode::Mode;
    use super::*;

    fn plan(mode: Mode, names: &[&str]) -> Plan {
        Plan::new(mode, names.iter().map(|name| named(name).unwrap()).collect(), false, Some(1))
    }

    #[test]
    fn tables_have_figures_and_ratios() {
        let plan = plan(Mode::Count, &["blockhaus-null", "rublk-null"]);
        let mut results = Results::default();
        for column in &plan.columns {
            results.take(&format!("@cell blockhaus-null {column} instructions=14850")).unwrap();
            results.take(&format!("@cell rublk-null {column} instructions=15000")).unwrap();
        }
        let tables = tables(&plan, &results);
        assert_eq!(tables.len(), 2);
        let (title, figures) = &tables[0];
        assert_eq!(title, "Instructions per I/O");
        for words in ["| blockhaus-null |", "4k-randread-qd64", "14,850", "15,000"] {
            assert!(figures.contains(words), "{words}:\n{figures}");
        }
        assert!(tables[1].1.contains("blockhaus-null / rublk-null"), "{}", tables[1].1);
        assert!(tables[1].1.contains("0.990") && !tables[1].1.contains("loop"), "{}", tables[1].1);
        let widths: Vec<usize> = figures.lines().map(|line| line.chars().count()).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{figures}");
    }

    #[test]
    fn by_the_clock_it_is_said_how_far_runs_are_apart() {
        let mut plan = plan(Mode::Clock, &["loop-file", "blockhaus-file"]);
        plan.runs = 3;
        let mut results = Results::default();
        for iops in [30_000, 10_000, 20_000] {
            results.take(&format!("@cell loop-file 4k-randread-qd64 iops={iops}")).unwrap();
        }
        let tables = tables(&plan, &results);
        let (_, spread) = tables.iter().find(|(title, _)| title.contains("lowest to highest")).unwrap();
        assert!(spread.contains("10,000 to 30,000"), "{spread}");
        assert!(spread.lines().last().unwrap().ends_with("- |"), "{spread}");
    }

    #[test]
    fn shapes_are_rows_and_what_was_not_measured_is_a_dash() {
        let plan = plan(Mode::ClockScale, &["loop-file", "blockhaus-file"]);
        let mut results = Results::default();
        results.take("@cell loop-file 4k-randread-qd64/jobs-1 iops=1000").unwrap();
        results.take("@cell blockhaus-file 4k-randread-qd64/queues-2 iops=2000").unwrap();
        let tables = tables(&plan, &results);
        assert_eq!(tables.len(), 1, "no other figure, and no ratios");
        let lines: Vec<&str> = tables[0].1.lines().collect();
        assert!(
            lines[2].starts_with("| 4k-randread-qd64 jobs-1") && lines[2].ends_with("- |"),
            "{}",
            tables[0].1
        );
        assert_eq!(lines.len(), 4);
    }
}
