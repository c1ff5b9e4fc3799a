//! `bench` on a real ublk disk: it reads and changes nothing, and writes to no disk that is in use.

use serde_json::Value;

use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, Device as Attached};
use crate::check::device::Device;
use crate::ensure;
use crate::home::{self, Mounted};
use crate::outcome::{Context, Outcome};
use crate::run::Cmd;

pub(super) const TESTS: &[Entry] = &[
    entry("bench/reads-and-changes-nothing", 90, Where::Ublk, reads),
    entry("bench/writes-to-no-mounted-disk", 90, Where::Ends, mounted),
];

const SIZE: u64 = 32 << 20;

/// The report of a run that has to work.
fn report(tool: &Blockhaus, args: &[&str]) -> Outcome<Value> {
    let args: Vec<&str> = ["bench", "--json", "--seconds", "0.5"].iter().chain(args).copied().collect();
    let ran = tool.command(&args).run()?;
    ensure!(ran.status.success(), "`{}` fails: {}", ran.line, ran.stderr.trim());
    serde_json::from_str(&ran.stdout).context("the report of bench")
}

fn has_figures(report: &Value, loads: usize) -> Outcome {
    let found = report["loads"].as_array().map_or(0, Vec::len);
    ensure!(found == loads, "{found} loads and not {loads}: {report}");
    for load in report["loads"].as_array().into_iter().flatten() {
        let figure = |of: &Value| of.as_f64().unwrap_or(-1.0);
        ensure!(
            figure(&load["iops"]) > 0.0 && figure(&load["latency_ns"]["p50"]) > 0.0,
            "no figures: {load}"
        );
        ensure!(load["errors"] == 0, "errors: {load}");
    }
    Ok(())
}

/// As the kernel's block layer counts them.
fn bytes_read(device: &Attached) -> Outcome<u64> {
    let stat = device.sys("stat")?;
    let sectors = stat.split_whitespace().nth(2).and_then(|word| word.parse::<u64>().ok());
    Ok(sectors.context("the disk's stat has no sectors")? * 512)
}

fn reads() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&[&format!("file:{},size=32M", home::path("bench.img"))])?;
    let held = Device::open(device.path())?;
    held.fill(1, 0, SIZE)?;
    drop(held);
    let (before, bytes_before) = (device.requests()?, bytes_read(&device)?);
    let seen = report(&tool, &[device.path()])?;
    has_figures(&seen, 3)?;
    // The warm-up is as long as what is measured, so that about half of what the kernel has seen is told of.
    let bytes = bytes_read(&device)? - bytes_before;
    let figure = |of: &Value| of.as_u64().unwrap_or(0);
    let loads = seen["loads"].as_array().into_iter().flatten();
    let told: u64 = loads.map(|load| figure(&load["requests"]) * figure(&load["block_size"])).sum();
    ensure!(told <= bytes && bytes <= 6 * told, "{told} bytes are told of, and the kernel counts {bytes}");
    let remarks = seen["remarks"].to_string();
    ensure!(remarks.contains("A ublk disk, file:"), "nobody says what serves the disk: {remarks}");
    ensure!(!remarks.contains("zeros"), "a full disk is taken for an empty one: {remarks}");
    ensure!(device.requests()? > before + 100, "the disk was not asked");
    // Its id is as good, and so are several threads.
    has_figures(&report(&tool, &[&device.id().to_string(), "--op", "randread", "--jobs", "2"])?, 1)?;
    let held = Device::open(device.path())?;
    held.expect(1, 0, SIZE, 0)?;
    drop(held);
    device.detach()
}

fn mounted() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:32M"])?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", device.path()]).timeout(60).ok()?;
    let mounted = Mounted::new(device.path(), "bench-mount")?;
    let at = mounted.path().display().to_string();
    let ran = tool.answer(&["bench", device.path(), "--write"])?;
    ensure!(!ran.status.success(), "`{}` writes to a mounted disk", ran.line);
    for part in ["in use", "umount", &at] {
        ensure!(ran.stderr.contains(part), "`{}` does not say {part}: {}", ran.line, ran.stderr.trim());
    }
    let remarks = report(&tool, &[device.path(), "--op", "read"])?["remarks"].to_string();
    ensure!(remarks.contains(&at), "nobody says that the disk is mounted: {remarks}");
    mounted.unmount()?;
    // The kernel lets a writer in beside whoever has it open; we do not.
    let held = std::fs::File::open(device.path()).context("the disk cannot be opened")?;
    let ran = tool.answer(&["bench", device.path(), "--write"])?;
    let said = format!("open in process {} (", std::process::id());
    ensure!(!ran.status.success() && ran.stderr.contains(&said), "{}{}", ran.stdout, ran.stderr);
    drop(held);
    Cmd::new("e2fsck").args(["-f", "-n", device.path()]).timeout(60).ok()?;
    has_figures(&report(&tool, &[device.path(), "--write"])?, 6)?;
    device.detach()
}
