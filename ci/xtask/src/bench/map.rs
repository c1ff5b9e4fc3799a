//! Where the instructions of an I/O go, symbol by symbol, of the kernel and of the server.
//!
//! A plug-in of QEMU's counts by address, for few I/Os and for many; the difference belongs to the I/Os,
//! without what a load takes to begin and to end.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::about::About;
use super::device::Device;
use super::measure::TIMEOUT;
use super::mode::{LOADS, Mode};
use super::plan::{Place, Plan};
use super::results::Results;
use super::servers::{self, Ours, Server};
use crate::host::{self, Need};
use crate::vm::{Machine, Payload};
use crate::{paths, run, say};
use dump::{Costs, Dump, costs, dumps};
use symbols::Symbols;

mod dump;
mod symbols;
mod table;

const PLUGIN: &str = include_str!("map/plugin.c");
const MARK: &str = include_str!("map/mark.c");
const NEEDS: &[Need] =
    &[Need::new("cc", "gcc"), Need::new("nm", "binutils"), Need::new("/usr/include/stdio.h", "libc6-dev")];

/// What a guest left behind that counted by address.
#[derive(Default)]
struct Counted {
    kernel: Symbols,
    /// A pair a device: for few I/Os and for many.
    dumps: Vec<Dump>,
    /// What took part.
    results: Results,
}

/// Measures `only`, or the usual devices, under one load, and prints the table; writes it to the folder `out`, too.
pub fn main(kernel: &str, column: &str, only: &[&'static Device], out: Option<&Path>) -> Result<()> {
    host::ensure(NEEDS)?;
    let Some(column) = LOADS.into_iter().find(|known| *known == column) else {
        bail!("there is no load {column}; there are {}", LOADS.join(", "));
    };
    let counts = if column.starts_with("128k") { [2_000, 12_000] } else { [10_000, 60_000] };
    let devices = if only.is_empty() { Mode::Count.devices(false) } else { only.to_vec() };
    let mut plan = Plan::new(Mode::Count, devices, true, None);
    (plan.columns, plan.map) = (vec![column], Some(counts));
    let servers = servers::build(&plan, Ours::InPlace)?;
    let counted = count(kernel, &plan, counts, &servers)?;
    let names: Vec<String> = plan.devices.iter().map(|device| device.name.to_string()).collect();
    let text = table::text(column, &names, &by_symbol(&plan, counts, &servers, &counted)?);
    text.lines().for_each(say::line);
    if let Some(folder) = out {
        let about = About::this_run("1 virtual CPU that counts", &counted.results)?;
        let file = folder.join(format!("map-{}-{column}.md", subject(&plan.devices)));
        paths::write_whole(&file, table::page(column, &about, &text).as_bytes())?;
        say::step(format!("wrote {}", file.display()));
    }
    Ok(())
}

/// What is behind the devices, and that it is by NBD where all of them are.
fn subject(devices: &[&Device]) -> String {
    let backing = devices.first().map_or("none", |device| device.backing());
    let is_nbd = |device: &&Device| device.name.split('-').any(|word| word == "nbd");
    format!("{backing}{}", if devices.iter().all(is_nbd) { "-nbd" } else { "" })
}

/// Runs the loads in a machine whose QEMU counts.
fn count(kernel: &str, plan: &Plan, counts: [u32; 2], servers: &[Server]) -> Result<Counted> {
    let folder = paths::Scratch::new_in(&paths::workspace().join("target/bench"))?;
    let (plugin, mark) = (folder.path().join("plugin.so"), folder.path().join("mark"));
    compile(PLUGIN, &plugin, &["-O2", "-shared", "-fPIC"])?;
    compile(MARK, &mark, &["-O2", "-static"])?;
    let dump = folder.path().join("counts");
    let mut payload = vec![Payload::new(mark, "mark")];
    payload.extend(servers.iter().map(Server::payload));
    let machine = Machine {
        kernel: kernel.to_string(),
        cpus: 1,
        icount: true,
        plugin: Some(format!("file={},out={}", plugin.display(), dump.display())),
        payload,
        timeout: Some(TIMEOUT),
        ..Machine::default()
    };
    let wanted = plan.devices.len() * counts.len();
    say::step(format!("counting {} devices by address, which takes a minute each", plan.devices.len()));
    let mut counted = Counted::default();
    let mut said = String::new();
    let mut done = 0;
    let status = machine.run(&plan.script(Place::Guest, 1, false), |line| {
        if let Some(symbol) = line.strip_prefix("@symbol ") {
            counted.kernel.add(symbol.trim_end());
        } else if let Some(dump) = line.strip_prefix("@dump ") {
            done += 1;
            say::step(format!("[{done}/{wanted}] {dump}"));
        } else if let Err(why) = counted.results.take(line) {
            // Said when the run ends early.
            said += &why;
            said.push('\n');
        }
    })?;
    // A map lacks nobody in silence.
    if let Some((device, why)) = counted.results.missing.first() {
        bail!("{device} cannot be had: {why}. Leave it out with --only");
    }
    counted.dumps = dumps(&paths::read(&dump).unwrap_or_default())?;
    if !status.success() || counted.dumps.len() != wanted {
        bail!("the guest ended early (exit status {}): {}", status.0, run::last_lines(&said, 15));
    }
    Ok(counted)
}

/// The cost of an I/O by symbol, for each device of the plan.
fn by_symbol(plan: &Plan, counts: [u32; 2], servers: &[Server], counted: &Counted) -> Result<Vec<Costs>> {
    let mut all = Vec::new();
    for (device, pair) in plan.devices.iter().zip(counted.dumps.chunks(counts.len())) {
        let [few, many] = pair else { bail!("the plug-in counted one load alone of {}", device.name) };
        let of_device = |server: &&Server| device.name.split('-').next() == Some(server.name);
        // rublk is built as its authors have it, and lies somewhere else at each start.
        let server = servers.iter().filter(|server| server.name != "rublk").find(of_device);
        let symbols = server.map(|server| Symbols::of_program(&server.binary)).transpose()?;
        all.push(costs([few, many], counts, &counted.kernel, symbols.as_ref()));
    }
    Ok(all)
}

fn compile(source: &str, to: &Path, flags: &[&str]) -> Result<()> {
    let file = to.with_extension("c");
    paths::write_whole(&file, source.as_bytes())?;
    run::quiet(Command::new("cc").args(flags).arg("-o").arg(to).arg(&file))
        .context("cannot build the plug-in")
}

#[cfg(test)]
mod tests {
    use super::super::device::named;
    use super::*;

    #[test]
    fn maps_of_different_things_are_different_files() {
        let subject = |names: &[&str]| {
            let devices: Vec<_> = names.iter().map(|name| named(name).unwrap()).collect();
            subject(&devices)
        };
        assert_eq!(subject(&["loop-file", "blockhaus-file"]), "file");
        assert_eq!(subject(&["nbd-nbdkit-file", "blockhaus-file-nbd"]), "file-nbd");
        assert_eq!(subject(&["nbd-nbdkit-memory", "blockhaus-memory-nbd"]), "memory-nbd");
        assert_eq!(subject(&["null-blk", "nbd-nbdkit-memory"]), "null");
    }
}
