//! Devices come, work and go, and leave nothing.

use std::time::{Duration, Instant};

use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, Device as Attached};
use crate::check::device::Device;
use crate::check::fio::Load;
use crate::check::model::Target;
use crate::outcome::{Context, Outcome};
use crate::run::Cmd;
use crate::system::{Snapshot, leftovers};
use crate::{ensure, home};

pub(super) const TESTS: &[Entry] = &[
    entry("life/twenty", 240, Where::Ends, twenty),
    entry("life/ready", 120, Where::Ends, ready),
    entry("life/ids", 60, Where::Ends, ids),
    entry("life/stdout-alone", 60, Where::Ends, stdout_alone),
    entry("life/empty-host", 30, Where::Ublk, empty_host),
];

const MIB: u64 = 1 << 20;
/// After a detach has returned there is nothing to wait for but the exit of the process.
const GRACE: Duration = Duration::from_secs(2);

/// Every other round a file, every third two queues.
fn attach(tool: &Blockhaus, round: u32, size: &str) -> Outcome<Attached> {
    let spec = if round.is_multiple_of(2) {
        format!("ram:{size}")
    } else {
        format!("file:{},size={size}", home::path("life.img"))
    };
    let (queues, depth) = if round.is_multiple_of(3) { ("2", "64") } else { ("1", "16") };
    tool.attach(&[&spec, "--queues", queues, "--depth", depth])
}

/// Attach, write, read, detach; after each the host is as before.
pub fn rounds(count: u32) -> Outcome {
    let tool = Blockhaus::new();
    let before = Snapshot::take();
    for round in 0..count {
        let device = attach(&tool, round, "64M")?;
        let disk = Device::open(device.path())?;
        let seed = u64::from(round);
        disk.fill(seed, 0, MIB)?;
        disk.fill(seed, 63 * MIB, MIB)?;
        disk.flush().context("flush")?;
        disk.discard(30 * MIB, MIB).context("discard")?;
        disk.expect(seed, 0, MIB, 0)?;
        disk.expect(seed, 63 * MIB, MIB, 63 * MIB)?;
        drop(disk);
        device.detach().context(format!("round {round}"))?;
        same_as(&before, round)?;
    }
    Ok(())
}

/// Detach under full load: I/O may fail, but everything is gone and nobody hangs.
pub fn full_load(count: u32) -> Outcome {
    let tool = Blockhaus::new();
    let before = Snapshot::take();
    for round in 0..count {
        let device = attach(&tool, round, "128M")?;
        let load = Load::start(device.path(), 120, 1000, || device.requests())?;
        let started = Instant::now();
        device.force().context(format!("round {round}"))?;
        load.ends(30)
            .context(format!("round {round}, {:.1} s after detach", started.elapsed().as_secs_f64()))?;
        same_as(&before, round)?;
    }
    Ok(())
}

fn same_as(before: &Snapshot, round: u32) -> Outcome {
    let left = leftovers(before, GRACE);
    ensure!(left.is_empty(), "round {round} left {}\n{}", left[0], left.join("\n"));
    Ok(())
}

/// Twenty devices at once, each with its own data, and one command that ends them all.
fn twenty() -> Outcome {
    let tool = Blockhaus::new();
    let mut devices = Vec::new();
    for _ in 0..20 {
        devices.push(tool.attach(&["ram:16M", "--depth", "16"])?);
    }
    let all = |work: &(dyn Fn(u64, &Device) -> Outcome + Sync)| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = devices
                .iter()
                .map(|device| {
                    scope.spawn(move || work(u64::from(device.id()) + 77, &Device::open(device.path())?))
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().unwrap_or_else(|_| Err(crate::outcome::Fail::new("a thread panicked")))
            })
        })
    };
    all(&|seed, disk| disk.fill(seed, 0, 8 * MIB))?;
    // Only after all have been written: what leaks into a neighbour shows now.
    all(&|seed, disk| disk.expect(seed, 0, 8 * MIB, 0))?;
    let listed = tool.list()?;
    for device in &devices {
        let found = listed.iter().find(|listed| listed.id == device.id());
        let found = found.context(format!("{} is not in list", device.path()))?;
        ensure!(found.device == device.path(), "list says {} of device {}", found.device, device.id());
        ensure!(found.state == "live", "list says {:?} of {}", found.state, device.path());
        ensure!(
            found.pid == Some(device.info.pid),
            "list names process {:?} for {}",
            found.pid,
            device.path()
        );
        ensure!(
            found.spec.as_deref() == Some("ram:16M"),
            "list says {:?} is behind {}",
            found.spec,
            device.path()
        );
    }
    // On a busy machine udev takes its time to look at twenty disks that were written to.
    Cmd::new("udevadm").args(["settle", "--timeout=60"]).timeout(70).ok()?;
    tool.command(&["detach", "--all"]).timeout(60).run()?.done()?;
    for device in &devices {
        device.assert_gone("detach --all")?;
    }
    ensure!(tool.list()?.is_empty(), "list is not empty after detach --all");
    devices.into_iter().for_each(|device| drop(device.forget()));
    Ok(())
}

/// What attach has returned can be opened, at once and every time.
fn ready() -> Outcome {
    let tool = Blockhaus::new();
    for round in 0..10 {
        let device = attach(&tool, round, "32M")?;
        let disk = Device::open(device.path()).context(format!("round {round}, right after attach"))?;
        disk.fill(1, 0, 4096).context(format!("round {round}, right after attach"))?;
        ensure!(disk.size() == 32 * MIB, "the disk has {} bytes right after attach", disk.size());
        let state = tool.state(device.id())?;
        ensure!(state.as_deref() == Some("live"), "list says {state:?} right after attach");
        drop(disk);
        device.detach()?;
    }
    Ok(())
}

/// A chosen id, a kernel-chosen id, an id that is taken, an id that is free again.
fn ids() -> Outcome {
    let tool = Blockhaus::new();
    let seven = tool.attach(&["ram:8M", "--id", "7"])?;
    ensure!((seven.id(), seven.path()) == (7, "/dev/ublkb7"), "asked for id 7, got {}", seven.path());
    let (one, other) = (tool.attach(&["ram:8M"])?, tool.attach(&["ram:8M"])?);
    ensure!(
        one.id() != other.id() && ![one.id(), other.id()].contains(&7),
        "ids {}, {} and 7",
        one.id(),
        other.id()
    );
    // Both ways to name a device.
    ensure!(tool.status(7)?.state == "live", "device 7 is not live");
    let by_path = tool.answer(&["status", "/dev/ublkb7", "--json"])?;
    ensure!(by_path.status.success(), "status does not take a path: {}", by_path.stderr.trim());
    let gone = tool.answer(&["detach", "/dev/ublkb7"])?;
    if !gone.status.success() {
        return Err(gone.fail("failed"));
    }
    seven.assert_gone("detach")?;
    drop(seven.forget());
    let again = tool.attach(&["ram:8M", "--id", "7"])?;
    ensure!(again.id() == 7, "id 7 cannot be had again");
    again.detach()?;
    one.detach()?;
    other.detach()
}

/// Standard output is the device's path and nothing else, and nobody holds it open.
fn stdout_alone() -> Outcome {
    let tool = Blockhaus::new();
    let ran = tool.command(&["attach", "ram:8M"]).run()?.done()?;
    ensure!(!ran.held_open, "the server keeps attach's standard output open");
    let path = ran.stdout.strip_suffix('\n').unwrap_or("").to_string();
    let number = path.strip_prefix("/dev/ublkb").and_then(|id| id.parse::<u32>().ok());
    ensure!(number.is_some(), "standard output is {:?}, not the path alone", ran.stdout);
    ensure!(!ran.stderr.trim().is_empty(), "attach does not say on standard error what it chose and why");
    for line in ran.stderr.lines() {
        ensure!(
            line.starts_with("blockhaus: "),
            "a line on standard error does not say who speaks: {line:?}"
        );
    }
    let gone = tool.answer(&["detach", &path])?;
    if !gone.status.success() {
        return Err(gone.fail("failed"));
    }
    let json = tool.attach(&["ram:8M"])?;
    ensure!(json.info.notes.iter().all(|note| !note.is_empty()), "empty notes: {:?}", json.info.notes);
    ensure!(!json.info.data_path.is_empty(), "attach does not name its data path");
    json.detach()
}

/// With nothing attached every verb still answers, and says so.
fn empty_host() -> Outcome {
    let tool = Blockhaus::new();
    ensure!(tool.list()?.is_empty(), "list shows devices on an empty host");
    for args in [&["gc"][..], &["list"], &["detach", "--all"]] {
        let ran = tool.answer(args)?;
        if !ran.status.success() {
            return Err(ran.fail("fails on an empty host"));
        }
    }
    for args in [["status", "41"], ["detach", "41"], ["detach", "/dev/ublkb41"], ["status", "/dev/null"]] {
        let ran = tool.answer(&args)?;
        ensure!(!ran.status.success(), "`{}` succeeds although there is no such device", ran.line);
        let named = args[1].trim_start_matches("/dev/ublkb");
        ensure!(ran.stderr.contains(named), "`{}` does not name the device: {}", ran.line, ran.stderr.trim());
    }
    Ok(())
}
