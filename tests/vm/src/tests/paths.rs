//! Data paths: what is chosen, what is refused, and what happens where the driver cannot do its part.

use std::time::Duration;

use super::bad::refused;
use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, Device};
use crate::outcome::{Context, Outcome};
use crate::{ensure, home, procfs, raw};

pub(super) const TESTS: &[Entry] = &[
    entry("path/auto", 60, Where::Ublk, auto),
    entry("path/refused", 60, Where::Ublk, refusals),
    entry("path/fallback", 300, Where::Ublk, fallback),
    entry("path/limits", 120, Where::Ublk, limits),
    entry("path/for-load", 60, Where::Ublk, for_load),
    entry("path/spin", 120, Where::Ublk, spin),
];

/// Policies of linux/sched.h.
const SCHED_NORMAL: u32 = 0;
const SCHED_RR: u32 = 2;
const SCHED_BATCH: u32 = 3;

/// UBLK_F_AUTO_BUF_REG and UBLK_F_BATCH_IO.
const AUTO_BUF_REG: u64 = 1 << 11;
const BATCH_IO: u64 = 1 << 15;

fn has(feature: u64) -> Outcome<bool> {
    Ok(raw::features().context("asking the kernel itself")? & feature != 0)
}

fn hides() -> Outcome<bool> {
    has(AUTO_BUF_REG)
}

fn auto() -> Outcome {
    let tool = Blockhaus::new();
    let file = format!("file:{},size=64M", home::path("auto.img"));
    let best = if hides()? { "auto-buf" } else { "copy" };
    for (spec, expected) in [(file.as_str(), best), ("ram:64M", "copy"), ("null:64M", "copy")] {
        let device = tool.attach(&[spec])?;
        let got = device.info.data_path.as_str();
        ensure!(got == expected, "{spec} goes by {got}, not by {expected}");
        let status = tool.answer(&["status", &device.id().to_string()])?;
        let line = status.stdout.lines().find(|line| line.trim_start().starts_with("data path"));
        let line = line.context("status says nothing about the data path")?;
        ensure!(line.contains(expected) && line.len() > 40, "status does not say why: {line:?}");
        device.detach()?;
    }
    Ok(())
}

/// Who says what the load is gets what suits it on this kernel.
fn for_load() -> Outcome {
    let tool = Blockhaus::new();
    let file = format!("file:{},size=64M", home::path("load.img"));
    let (hides, batches) = (hides()?, has(BATCH_IO)?);
    let usual = if hides { "auto-buf" } else { "copy" };
    let (file_batch, ram_batch) = if batches { ("batch-auto-buf", "batch-copy") } else { (usual, "copy") };
    for (arguments, expected) in [
        (&[file.as_str(), "--for", "throughput"][..], file_batch),
        (&["ram:64M", "--for", "throughput"], ram_batch),
        (&[&file, "--for", "throughput", "--depth", "1"], usual),
        (&[&file], usual),
        (&[&file, "--for", "latency"], usual),
        (&["ram:64M", "--for", "latency", "--data-path", "user-copy"], "user-copy"),
    ] {
        let device = tool.attach(arguments)?;
        let got = device.info.data_path.as_str();
        ensure!(got == expected, "{arguments:?}: by {got}, not by {expected}");
        scheduled(&device, arguments)?;
        device.detach()?;
    }
    Ok(())
}

/// The threads of the queues run when it suits the load, and all others of the server are ordinary.
fn scheduled(device: &Device, arguments: &[&str]) -> Outcome {
    let (wanted, name) = match () {
        () if arguments.contains(&"latency") => (&[SCHED_RR][..], "real-time"),
        () if arguments.contains(&"throughput") => (&[SCHED_BATCH][..], "batch"),
        () => (&[SCHED_NORMAL, SCHED_BATCH][..], "adaptive"),
    };
    let status = device.status()?;
    for thread in &status.queue_threads {
        ensure!(thread.scheduling == name, "status says of queue {}: {}", thread.queue, thread.scheduling);
    }
    let queues: Vec<u32> = status.queue_threads.iter().map(|thread| thread.tid).collect();
    for (tid, policy) in procfs::policies(device.info.pid) {
        let expected = if queues.contains(&tid) { wanted } else { &[SCHED_NORMAL] };
        ensure!(
            expected.contains(&policy),
            "thread {tid} of {queues:?} has policy {policy}, not one of {expected:?}"
        );
    }
    Ok(())
}

/// Threads that look for work find it, and those that have none for a while do not look.
fn spin() -> Outcome {
    let file = format!("file:{},size=512M", home::path("spin.img"));
    let device = Blockhaus::new().attach(&[&file, "--spin-us", "1000", "--queues", "2"])?;
    let said = device.info.notes.iter().any(|note| note.contains("look for work for up to 1000 us"));
    ensure!(said, "nothing is said about looking for work: {:?}", device.info.notes);
    super::on_device(device.path(), 16, false)?;
    let ticks = || procfs::cpu_ticks(device.info.pid).context("how long the server ran");
    // What udev and the file system above still want has an end.
    std::thread::sleep(Duration::from_secs(1));
    let before = ticks()?;
    std::thread::sleep(Duration::from_secs(3));
    let idle = ticks()? - before;
    ensure!(idle <= 15, "in 3 s without work the server ran for {idle} ticks of 10 ms");
    device.detach()
}

fn refusals() -> Outcome {
    refused(&["ram:64M", "--data-path", "telepathy"], &["telepathy"], &["auto-buf"])?;
    let file = format!("file:{},size=64M", home::path("refused.img"));
    if !has(BATCH_IO)? {
        refused(&["ram:64M", "--data-path", "batch-copy"], &["batch-copy", "kernel"], &["copy"])?;
    } else {
        let alone = ["ram:64M", "--data-path", "batch-copy", "--depth", "1"];
        refused(&alone, &["batch-copy", "depth of 1"], &["--depth 2"])?;
    }
    if !hides()? {
        refused(&[&file, "--data-path", "auto-buf"], &["auto-buf", "kernel"], &["user-copy"])?;
        refused(&[&file, "--data-path", "zero-copy"], &["zero-copy", "kernel"], &["user-copy"])?;
        return Ok(());
    }
    for path in ["auto-buf", "zero-copy"] {
        refused(&["ram:64M", "--data-path", path], &[path, "see the bytes"], &["auto"])?;
        refused(&["null:64M", "--data-path", path], &[path, "see the bytes"], &["auto"])?;
        let device = Blockhaus::new().attach(&["null:64M,zero-copy=yes", "--data-path", path])?;
        ensure!(device.info.data_path == path, "asked for {path}, got {}", device.info.data_path);
        device.detach()?;
    }
    Ok(())
}

/// Most tags have no place in the table of buffers: their bytes go another way, and are the same.
fn fallback() -> Outcome {
    if !hides()? {
        return Ok(());
    }
    let paths: &[&str] = if has(BATCH_IO)? { &["auto-buf", "batch-auto-buf"] } else { &["auto-buf"] };
    let file = format!("file:{},size=512M", home::path("fallback.img"));
    for path in paths {
        let knobs = [file.as_str(), "--depth", "16", "--data-path", path, "--test-registered-tags", "3"];
        let device = Blockhaus::new().attach(&knobs)?;
        super::on_device(device.path(), 16, false)?;
        device.detach()?;
    }
    Ok(())
}

/// A request that the kernel makes is one that the disk below takes whole.
fn limits() -> Outcome {
    if !hides()? {
        return Ok(());
    }
    let tool = Blockhaus::new();
    let below = tool.attach(&["ram:64M"])?;
    let number = |device: &crate::blockhaus::Device, name: &str| -> Outcome<u64> {
        device.sys(&format!("queue/{name}"))?.parse().context(format!("queue/{name}"))
    };
    let spec = format!("file:{}", below.path());
    let above = tool.attach(&[&spec])?;
    for name in ["max_hw_sectors_kb", "max_segments", "max_segment_size"] {
        let limit = match name {
            "max_hw_sectors_kb" => number(&below, "max_sectors_kb")?,
            _ => number(&below, name)?,
        };
        let ours = number(&above, name)?;
        ensure!(ours <= limit, "{name}: {ours} above, {limit} below");
    }
    let before = below.requests()?;
    let disk = crate::check::device::Device::open(above.path())?;
    disk.fill(7, 0, 16 << 20)?;
    let (over, under) = (above.requests()?, below.requests()? - before);
    // Partition scans and the like read a little of their own.
    ensure!(under <= over + 8, "{over} requests became {under} below");
    drop(disk);
    above.detach()?;
    below.detach()
}
