//! The figures for people, for programs, and for a bar.

use serde_json::{Value, json};

use super::plan::{COLUMNS, Plan};
use super::results::{Results, thousands};
use crate::say;

/// Whom we are compared with.
const PEERS: [&str; 3] = ["rublk", "kublk", "loop"];

const NOTES: &str = "\
Instructions of the whole guest: fio, block layer, driver and server together; one CPU, lower is
better. They do not show waiting, several CPUs or memory bandwidth. A peer has its own defaults.";

/// A ratio of one column.
struct Ratio {
    ours: String,
    theirs: String,
    column: &'static str,
    value: f64,
}

fn ratios(plan: &Plan, results: &Results, peer: &str) -> Vec<Ratio> {
    let mut found = Vec::new();
    for (ours, theirs) in plan.compared(peer).map(|(ours, theirs)| (ours.name(), theirs.name())) {
        for column in COLUMNS {
            if let (Some(a), Some(b)) = (results.median(&ours, column), results.median(&theirs, column)) {
                found.push(Ratio { ours: ours.clone(), theirs: theirs.clone(), column, value: a / b });
            }
        }
    }
    found
}

/// The table, with what it means.
pub fn table(plan: &Plan, results: &Results) -> String {
    let versions: Vec<_> =
        results.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let [a, b, c] = plan.counts;
    let mut text = format!(
        "Instructions per I/O, median of {}: {}\n\n",
        match plan.runs {
            1 => "one run".to_string(),
            runs => format!("{runs} runs"),
        },
        versions.join(", ")
    );
    row(&mut text, "", COLUMNS.map(|column| column.replace('-', " ")));
    for name in plan.devices.iter().map(|device| device.name()) {
        row(
            &mut text,
            &name,
            COLUMNS.map(|column| results.median(&name, column).map_or("-".into(), thousands)),
        );
    }
    for peer in PEERS {
        let found = ratios(plan, results, peer);
        if !found.is_empty() {
            text += "\n";
        }
        for ratios in found.chunks(COLUMNS.len()) {
            let name = format!("{} / {}", ratios[0].ours, ratios[0].theirs);
            let cells = COLUMNS.map(|column| {
                let ratio = ratios.iter().find(|ratio| ratio.column == column);
                ratio.map_or("-".into(), |ratio| format!("{:.3}", ratio.value))
            });
            row(&mut text, &name, cells);
        }
    }
    text + &format!("\n{NOTES}\n{a} I/Os of 4k at depth 64, {b} at depth 1, {c} of 128k a cell.\n")
}

fn row(text: &mut String, name: &str, cells: [String; COLUMNS.len()]) {
    let mut line = format!("{name:35}");
    for cell in cells {
        line += &format!("{cell:>19}");
    }
    *text += line.trim_end();
    *text += "\n";
}

/// All of it for programs.
pub fn json(plan: &Plan, results: &Results) -> Value {
    let versions: serde_json::Map<String, Value> =
        results.versions.iter().map(|(name, version)| (name.clone(), json!(version))).collect();
    let mut cells = Vec::new();
    for name in plan.devices.iter().map(|device| device.name()) {
        for column in COLUMNS {
            cells.push(json!({
                "device": name,
                "column": column,
                "median": results.median(&name, column),
                "values": results.values(&name, column),
            }));
        }
    }
    let ratios = PEERS.iter().flat_map(|peer| ratios(plan, results, peer));
    let ratios = ratios.map(|ratio| {
        json!({"device": ratio.ours, "peer": ratio.theirs, "column": ratio.column, "ratio": ratio.value})
    });
    json!({
        "unit": "instructions of the whole guest per I/O",
        "versions": versions,
        "runs": plan.runs,
        "ios": {"4k": plan.counts[0], "4k-qd1": plan.counts[1], "128k": plan.counts[2]},
        "cells": cells,
        "ratios": ratios.collect::<Vec<_>>(),
    })
}

/// Whether we stay within `bar` times the instructions of `peer`, on devices that are alike, saying where
/// we do not.
pub fn verdict(plan: &Plan, results: &Results, peer: &str, bar: f64) -> bool {
    let alike = |ratio: &Ratio| ratio.ours.replace("blockhaus", peer) == ratio.theirs;
    let ratios: Vec<_> = ratios(plan, results, peer).into_iter().filter(alike).collect();
    if ratios.is_empty() {
        say::step(format!("no device of {peer} is like one of ours: there is nothing to compare"));
        return false;
    }
    let over: Vec<_> = ratios.iter().filter(|ratio| !within(ratio.value, bar)).collect();
    for Ratio { ours, theirs, column, value } in &over {
        say::step(format!("{ours}, {column}: {value:.4} times {theirs}, more than {bar}"));
    }
    if over.is_empty() {
        let worst = ratios.iter().map(|ratio| ratio.value).fold(0.0, f64::max);
        say::step(format!("within {bar} times {peer} in every column; the highest is {worst:.4}"));
    } else {
        say::step(format!("{} of {} columns are over {bar} times {peer}", over.len(), ratios.len()));
    }
    over.is_empty()
}

/// Not a number is not within any bar.
fn within(value: f64, bar: f64) -> bool {
    value <= bar
}

#[cfg(test)]
mod tests {
    use super::super::plan::Device;
    use super::*;

    fn measured(ours: u32, theirs: u32) -> (Plan, Results) {
        let plan = Plan::new(false, 1, &[Device::BlockhausNull, Device::RublkNull]);
        let mut results = Results::default();
        results.take("@version kernel 7.2.12").unwrap();
        for column in COLUMNS {
            results.take(&format!("@cell blockhaus-null {column} 40000 {ours}")).unwrap();
            results.take(&format!("@cell rublk-null {column} 40000 {theirs}")).unwrap();
        }
        (plan, results)
    }

    #[test]
    fn the_table_has_figures_ratios_and_what_they_are() {
        let (plan, results) = measured(594, 600);
        let table = table(&plan, &results);
        for words in ["kernel 7.2.12", "4k randread qd64", "14,850", "15,000", "0.990", "whole guest"] {
            assert!(table.contains(words), "{words}:\n{table}");
        }
        assert!(!table.contains("loop"), "{table}");
    }

    #[test]
    fn the_bar_is_met_or_not() {
        for (ours, met) in [(606, true), (607, false)] {
            let (plan, results) = measured(ours, 600);
            assert_eq!(verdict(&plan, &results, "rublk", 1.01), met, "{ours}");
            assert!(!verdict(&plan, &results, "kublk", 1.01), "nobody to compare with");
        }
        assert!(!within(f64::NAN, 1.01));
    }

    #[test]
    fn json_has_every_cell_and_ratio() {
        let (plan, results) = measured(594, 600);
        let json = json(&plan, &results);
        assert_eq!(json["cells"].as_array().unwrap().len(), 10);
        assert_eq!(json["ratios"][0]["ratio"], 0.99);
        assert_eq!(json["versions"]["kernel"], "7.2.12");
    }
}
