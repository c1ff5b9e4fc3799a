//! The map as people read it: first whose the instructions are, then symbol by symbol.

use std::collections::{BTreeMap, BTreeSet};

use super::super::about::About;
use super::super::number::thousands;
use super::dump::Costs;

/// What is neither the kernel's nor the server's.
pub const PROGRAMS: &str = "fio, and other programs";

const SERVER: &str = " [server]";

/// A symbol that takes fewer instructions an I/O than this on every device is in the last line but one.
const LEAST: f64 = 8.0;

/// Width of a symbol's name.
const NAME: usize = 52;

/// The server's symbol of this name, without the modules that lead to it.
pub fn of_server(name: &str) -> String {
    let mut short = String::new();
    for part in name.split_inclusive("::") {
        let is_module = part.ends_with("::")
            && part
                .trim_end_matches(':')
                .rsplit(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .is_some_and(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
        let word = part.rfind(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').map_or(0, |at| at + 1);
        short += if is_module { &part[..word] } else { part };
    }
    short.chars().take(NAME - SERVER.len() - 1).collect::<String>() + SERVER
}

/// Whose a symbol is.
fn owner(name: &str) -> &str {
    match name.rsplit_once(" [") {
        _ if name == PROGRAMS => PROGRAMS,
        Some((_, owner)) => owner.trim_end_matches(']'),
        None => "the kernel itself",
    }
}

/// A line an owner and a line a symbol, the dearest first.
pub fn text(column: &str, names: &[String], costs: &[Costs]) -> String {
    let mut owners = vec![Costs::new(); costs.len()];
    for (owners, costs) in owners.iter_mut().zip(costs) {
        costs.iter().for_each(|(name, cost)| *owners.entry(owner(name).to_owned()).or_default() += cost);
    }
    let head = names.iter().map(|name| format!("{name:>26}")).collect::<String>();
    format!(
        "Instructions per I/O, {column}\n\n{:NAME$}{head}\n{}\n{:NAME$}{head}\n{}",
        "whose",
        rows(&owners, 0.5),
        "symbol",
        rows(costs, LEAST)
    )
}

fn rows(costs: &[Costs], least: f64) -> String {
    let all: BTreeSet<&String> = costs.iter().flat_map(BTreeMap::keys).collect();
    let mut rows: Vec<(&String, Vec<f64>)> = all
        .into_iter()
        .map(|name| (name, costs.iter().map(|costs| costs.get(name).copied().unwrap_or(0.0)).collect()))
        .collect();
    let dearest = |cells: &[f64]| cells.iter().copied().fold(0.0, f64::max);
    rows.sort_by(|a, b| dearest(&b.1).total_cmp(&dearest(&a.1)));
    let (shown, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, cells)| dearest(cells) >= least);
    let sum = |rows: &[(&String, Vec<f64>)]| -> Vec<f64> {
        (0..costs.len()).map(|at| rows.iter().map(|(_, cells)| cells[at]).sum()).collect()
    };
    let (first, second) = (sum(&shown), sum(&rest));
    let mut text: String = shown.iter().map(|(name, cells)| row(name, cells)).collect();
    if !rest.is_empty() {
        text += &row("everything else", &second);
    }
    text + &row("all", &first.iter().zip(&second).map(|(a, b)| a + b).collect::<Vec<_>>())
}

fn row(name: &str, cells: &[f64]) -> String {
    let name: String = name.chars().take(NAME - 1).collect();
    let cells: String = cells.iter().map(|cell| format!("{:>26}", thousands(*cell))).collect();
    format!("{name:NAME$}{cells}\n")
}

/// A page of it.
pub fn page(column: &str, about: &About, text: &str) -> String {
    format!(
        "# Where the instructions of an I/O go: {column}\n\nWritten by `{}` on {}, {}; {}. What it means says the \
         [page](README.md).\n\n```text\n{text}```\n",
        about.command,
        about.date,
        about.versions(),
        about.machine,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_summed_by_owner() {
        let costs: Costs =
            [("submit [ublk_drv]", 9.0), ("serve [server]", 2.0), ("small", 1.0), (PROGRAMS, 20.0)]
                .map(|(name, cost)| (name.to_owned(), cost))
                .into();
        let text = text("4k", &["a".into()], &[costs]);
        let cost = |start: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with(start))
                .unwrap_or_else(|| panic!("{start}: {text}"));
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(cost("ublk_drv "), "9");
        assert_eq!(cost("server "), "2");
        assert_eq!(cost("the kernel itself"), "1");
        assert_eq!(cost("submit [ublk_drv]"), "9");
        assert_eq!(cost("everything else"), "3");
        assert_eq!(cost("all"), "32");
    }

    #[test]
    fn a_servers_symbol_is_told_without_its_modules() {
        let name = "<blockhaus::engine::ublk::front::per_tag::PerTag as blockhaus::queue::FrontEnd>::arrived";
        assert_eq!(of_server(name), "<PerTag as FrontEnd>::arrived [server]");
        assert_eq!(of_server("ublk_loop_queue_io"), "ublk_loop_queue_io [server]");
    }
}
