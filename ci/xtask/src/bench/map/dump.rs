//! What the plug-in counted, and what an I/O cost by it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::symbols::Symbols;
use super::table::{PROGRAMS, of_server};

/// Where the kernel's half of the addresses begins.
const KERNEL: u64 = 1 << 63;

/// Instructions of an I/O by symbol.
pub type Costs = BTreeMap<String, f64>;

/// What one load took, by address: address, and instructions.
pub type Dump = Vec<(u64, u64)>;

/// Those in the plug-in's file.
pub fn dumps(text: &str) -> Result<Vec<Dump>> {
    let mut dumps = Vec::new();
    for line in text.lines() {
        if line == "dump" {
            dumps.push(Dump::new());
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let [address, instructions, count] = words[..] else { bail!("the plug-in wrote {line:?}") };
        let address = u64::from_str_radix(address, 16)?;
        let instructions = instructions.parse::<u64>()? * count.parse::<u64>()?;
        dumps.last_mut().context("the plug-in's file begins in the middle")?.push((address, instructions));
    }
    Ok(dumps)
}

/// The cost of an I/O, from dumps of loads with so many I/Os each.
pub fn costs(dumps: [&Dump; 2], counts: [u32; 2], kernel: &Symbols, server: Option<&Symbols>) -> Costs {
    let mut costs = Costs::new();
    for (dump, sign) in dumps.into_iter().zip([-1.0, 1.0]) {
        for &(address, instructions) in dump {
            let name = match server {
                _ if address >= KERNEL => kernel.of(address).map(str::to_owned),
                Some(server) if server.covers(address) => server.of(address).map(of_server),
                _ => Some(PROGRAMS.to_owned()),
            };
            let share = sign * instructions as f64 / f64::from(counts[1] - counts[0]);
            *costs.entry(name.unwrap_or_else(|| "somewhere".to_owned())).or_default() += share;
        }
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_few_belongs_to_the_ios() {
        let text = "dump\nffffffff81000010 3 100\n401000 2 50\ndump\nffffffff81000010 3 400\n401000 2 150\n";
        let both = dumps(text).unwrap();
        let (mut kernel, mut server) = (Symbols::default(), Symbols::default());
        ["ffffffff81000000 submit [module]", "ffffffff82000000 other"]
            .iter()
            .for_each(|line| kernel.add(line));
        ["400000 main", "500000 end"].iter().for_each(|line| server.add(line));
        let costs = costs([&both[0], &both[1]], [10, 110], &kernel, Some(&server));
        assert_eq!(costs["submit [module]"], 9.0);
        assert_eq!(costs["main [server]"], 2.0);
        assert!(dumps("401000 2 50\n").is_err());
    }
}
