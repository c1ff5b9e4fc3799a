//! Where the instructions of an I/O go, symbol by symbol, of the kernel and of the server.
//!
//! A plug-in of QEMU's counts by address, for few I/Os and for many; the difference belongs to the I/Os,
//! without what a load takes to begin and to end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::about::About;
use super::device::Device;
use super::measure::TIMEOUT;
use super::mode::{LOADS, Mode};
use super::peer;
use super::plan::{Place, Plan};
use super::results::Results;
use crate::guest_build::{self, Target};
use crate::host::{self, Need};
use crate::vm::{Machine, Payload};
use crate::{paths, run, say};

mod table;

const PLUGIN: &str = include_str!("map/plugin.c");
const MARK: &str = include_str!("map/mark.c");
const NEEDS: &[Need] =
    &[Need::new("cc", "gcc"), Need::new("nm", "binutils"), Need::new("/usr/include/stdio.h", "libc6-dev")];

/// Where the kernel's half of the addresses begins.
const KERNEL: u64 = 1 << 63;

/// Instructions of an I/O by symbol.
type Costs = BTreeMap<String, f64>;

/// Names of addresses.
#[derive(Debug, Default)]
struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// `ADDRESS NAME` lines, the address in hexadecimal digits; what else stands in a line belongs to the name.
    fn add(&mut self, line: &str) {
        let mut words = line.splitn(2, ' ');
        if let (Some(address), Some(name)) = (words.next(), words.next())
            && let Ok(address) = u64::from_str_radix(address, 16)
        {
            self.0.entry(address).or_insert_with(|| name.to_owned());
        }
    }

    fn of(&self, address: u64) -> Option<&str> {
        self.0.range(..=address).next_back().map(|(_, name)| name.as_str())
    }

    fn covers(&self, address: u64) -> bool {
        let (Some((first, _)), Some((last, _))) = (self.0.first_key_value(), self.0.last_key_value()) else {
            return false;
        };
        (*first..=*last).contains(&address)
    }

    /// Those of a program's code.
    fn of_program(binary: &Path) -> Result<Symbols> {
        let mut symbols = Symbols::default();
        for line in run::output(run::command("nm").args(["-C", "--defined-only"]).arg(binary))?.lines() {
            let mut words = line.splitn(3, ' ');
            if let (Some(address), Some("t" | "T" | "w" | "W"), Some(name)) =
                (words.next(), words.next(), words.next())
            {
                symbols.add(&format!("{address} {name}"));
            }
        }
        Ok(symbols)
    }
}

/// What one load took, by address: address, and instructions.
type Dump = Vec<(u64, u64)>;

/// The plug-in's file.
fn dumps(text: &str) -> Result<Vec<Dump>> {
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
fn costs(dumps: [&Dump; 2], counts: [u32; 2], kernel: &Symbols, server: Option<&Symbols>) -> Costs {
    let mut costs = Costs::new();
    for (dump, sign) in dumps.into_iter().zip([-1.0, 1.0]) {
        for &(address, instructions) in dump {
            let name = match server {
                _ if address >= KERNEL => kernel.of(address).map(str::to_owned),
                Some(server) if server.covers(address) => server.of(address).map(table::of_server),
                _ => Some(table::PROGRAMS.to_owned()),
            };
            let share = sign * instructions as f64 / f64::from(counts[1] - counts[0]);
            *costs.entry(name.unwrap_or_else(|| "somewhere".to_owned())).or_default() += share;
        }
    }
    costs
}

/// Measures `devices` under one load, and prints the table; writes it to the folder `out`, too.
pub fn main(kernel: &str, column: &str, only: &[&'static Device], out: Option<&Path>) -> Result<()> {
    host::ensure(NEEDS)?;
    let Some(column) = LOADS.into_iter().find(|known| *known == column) else {
        bail!("there is no load {column}; there are {}", LOADS.join(", "));
    };
    let counts = if column.starts_with("128k") { [2_000, 12_000] } else { [10_000, 60_000] };
    let devices = if only.is_empty() { Mode::Count.devices(false) } else { only.to_vec() };
    let mut plan = Plan::new(Mode::Count, devices, true, None);
    (plan.columns, plan.map) = (vec![column], Some(counts));
    let folder = paths::Scratch::new_in(&paths::workspace().join("target/bench"))?;
    let (plugin, mark) = (folder.path().join("plugin.so"), folder.path().join("mark"));
    compile(PLUGIN, &plugin, &["-O2", "-shared", "-fPIC"])?;
    compile(MARK, &mark, &["-O2", "-static"])?;
    let mut payload = vec![Payload::new(mark, "mark")];
    let mut servers = BTreeMap::new();
    let mut serve = |name: &'static str, binary: PathBuf| -> Result<()> {
        servers.insert(name, Symbols::of_program(&binary)?);
        payload.push(Payload::new(binary, name));
        Ok(())
    };
    if plan.has_ours() {
        serve("blockhaus", guest_build::binary_in_place("blockhaus", Target::Bin("blockhaus"))?)?;
    }
    if plan.has("kublk") {
        serve("kublk", peer::kublk()?.0)?;
    }
    if plan.has("rublk") {
        payload.push(Payload::new(peer::rublk()?, "rublk"));
    }
    let dump = folder.path().join("counts");
    let machine = Machine {
        kernel: kernel.to_string(),
        cpus: 1,
        icount: true,
        plugin: Some(format!("file={},out={}", plugin.display(), dump.display())),
        payload,
        timeout: Some(TIMEOUT),
        ..Machine::default()
    };
    say::step(format!("counting {} devices by address, which takes a minute each", plan.devices.len()));
    let mut symbols = Symbols::default();
    let mut said = String::new();
    let mut results = Results::default();
    let mut done = 0;
    let status = machine.run(&plan.script(Place::Guest, 1, false), |line| {
        if let Some(symbol) = line.strip_prefix("@symbol ") {
            symbols.add(symbol.trim_end());
        } else if let Some(dump) = line.strip_prefix("@dump ") {
            done += 1;
            say::step(format!("[{done}/{}] {dump}", plan.devices.len() * counts.len()));
        } else if line.starts_with('@') {
            // What cannot be understood is said when the run ends early.
            if let Err(why) = results.take(line) {
                said = said.clone() + &why + "\n";
            }
        } else {
            said = said.clone() + line + "\n";
        }
    })?;
    let dumps = dumps(&paths::read(&dump).unwrap_or_default())?;
    if !status.success() || dumps.len() != plan.devices.len() * counts.len() {
        bail!("the guest ended early (exit status {}): {}", status.0, run::last_lines(&said, 15));
    }
    let names: Vec<String> = plan.devices.iter().map(|device| device.name.to_string()).collect();
    let costs: Vec<Costs> = names
        .iter()
        .zip(dumps.chunks(counts.len()))
        .map(|(name, pair)| {
            let server = name.split('-').next().and_then(|server| servers.get(server));
            costs([&pair[0], &pair[1]], counts, &symbols, server)
        })
        .collect();
    let text = table::text(column, &names, &costs);
    text.lines().for_each(say::line);
    if let Some(folder) = out {
        let about = About::this_run("1 virtual CPU that counts", &results)?;
        let backing = plan.devices.first().map_or("none", |device| device.backing());
        let file = folder.join(format!("map-{backing}-{column}.md"));
        paths::write_whole(&file, table::page(column, &about, &text).as_bytes())?;
        say::step(format!("wrote {}", file.display()));
    }
    Ok(())
}

fn compile(source: &str, to: &Path, flags: &[&str]) -> Result<()> {
    let file = to.with_extension("c");
    paths::write_whole(&file, source.as_bytes())?;
    run::quiet(Command::new("cc").args(flags).arg("-o").arg(to).arg(&file))
        .context("cannot build the plug-in")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_few_belongs_to_the_ios() {
        let text = "dump\nffffffff81000010 3 100\n401000 2 50\ndump\nffffffff81000010 3 400\n401000 2 150\n";
        let dumps = dumps(text).unwrap();
        let (mut kernel, mut server) = (Symbols::default(), Symbols::default());
        ["ffffffff81000000 submit [module]", "ffffffff82000000 other"]
            .iter()
            .for_each(|line| kernel.add(line));
        ["400000 main", "500000 end"].iter().for_each(|line| server.add(line));
        let costs = costs([&dumps[0], &dumps[1]], [10, 110], &kernel, Some(&server));
        assert_eq!(costs["submit [module]"], 9.0);
        assert_eq!(costs["main [server]"], 2.0);
        assert!(super::dumps("401000 2 50\n").is_err());
    }
}
