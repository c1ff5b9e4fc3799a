//! The histogram in a terminal of 80 columns.

use super::axis::Axis;
use super::figures::{self, PERCENTILES};
use crate::engine::load::Latencies;

/// Columns of the histogram itself; the figures at its left take the rest.
const COLUMNS: usize = 68;
const ROWS: usize = 6;
const MARGIN: usize = 9;
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Lines of the histogram; none where there is nothing to show. A column that has a request shows something, however
/// few there are.
pub(super) fn lines(latencies: &Latencies) -> Vec<String> {
    let Some(axis) = Axis::of(latencies) else { return Vec::new() };
    let shares = axis.shares(latencies, COLUMNS);
    let peak = shares.iter().copied().fold(0.0, f64::max);
    let heights: Vec<usize> =
        shares.iter().map(|share| (share / peak * (ROWS * 8) as f64).ceil() as usize).collect();
    let mut lines = Vec::new();
    for row in (0..ROWS).rev() {
        let label = match row {
            _ if row == ROWS - 1 => percent(peak),
            _ if row == ROWS / 2 - 1 => percent(peak / 2.0),
            _ => String::new(),
        };
        let cells: String =
            heights.iter().map(|height| BLOCKS[height.saturating_sub(row * 8).min(8)]).collect();
        lines.push(format!("{label:>7} │{cells}"));
    }
    lines.extend(scale(&axis));
    lines.extend(marks(latencies, &axis));
    lines.into_iter().map(|line| line.trim_end().to_owned()).collect()
}

fn percent(share: f64) -> String {
    if share >= 0.0995 { format!("{:.0} %", share * 100.0) } else { format!("{:.1} %", share * 100.0) }
}

/// The axis and the round numbers along it, as many as there is room for.
fn scale(axis: &Axis) -> [String; 2] {
    let mut line = vec!['─'; COLUMNS];
    let mut labels = vec![' '; MARGIN + COLUMNS + 2];
    for tick in axis.ticks() {
        let column = axis.column(tick, COLUMNS);
        let text: Vec<char> = figures::round_time(tick).chars().collect();
        let start = (MARGIN + column).saturating_sub(text.len() / 2).min(labels.len() - text.len());
        let around = start.saturating_sub(1)..(start + text.len() + 1).min(labels.len());
        if labels[around].iter().all(|&letter| letter == ' ') {
            labels[start..start + text.len()].copy_from_slice(&text);
            line[column] = '┬';
        }
    }
    [format!("{:>7} └{}", "", line.iter().collect::<String>()), labels.into_iter().collect()]
}

/// Where the percentiles lie, in as many lines as they need.
fn marks(latencies: &Latencies, axis: &Axis) -> Vec<String> {
    let percentiles = PERCENTILES.iter().map(|&(percent, name)| (latencies.percentile_ns(percent), name));
    let all = percentiles.chain([(latencies.longest_ns(), "max")]);
    let mut lines: Vec<String> = Vec::new();
    for (value, name) in all.filter_map(|(value, name)| Some((value?, name))) {
        let start = MARGIN + axis.column(value, COLUMNS);
        // At the right end it stands before its place.
        let (start, text) = match start + 1 + name.len() <= MARGIN + COLUMNS + 2 {
            true => (start, format!("^{name}")),
            false => (start - name.len(), format!("{name}^")),
        };
        let line = match lines.iter().position(|line| line.chars().count() < start) {
            Some(line) => line,
            None => {
                lines.push(String::new());
                lines.len() - 1
            }
        };
        let gap = start - lines[line].chars().count();
        lines[line].push_str(&format!("{}{text}", " ".repeat(gap)));
    }
    lines
}
