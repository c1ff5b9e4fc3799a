//! `detach` refuses while the disk is in use, and names who uses it.

use std::fs::File;
use std::time::Duration;

use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, Device as Attached};
use crate::check::device::Device;
use crate::check::fio::Load;
use crate::ensure;
use crate::home::{Loop, Mounted};
use crate::outcome::{Context, Outcome};
use crate::run::{Cmd, Ran, wait_until};

pub(super) const TESTS: &[Entry] = &[
    entry("life/detach-refused-while-mounted", 90, Where::Ublk, while_mounted),
    entry("life/detach-refused-while-partition-mounted", 90, Where::Ends, while_partition_mounted),
    entry("life/detach-refused-while-open", 60, Where::Ends, while_open),
    entry("life/detach-refused-under-load", 90, Where::Ends, under_load),
    entry("life/detach-refused-while-swap", 60, Where::Ends, while_swap),
    entry("life/detach-refused-below-loop", 60, Where::Ends, below_loop),
    entry("life/force-while-idle-open", 90, Where::Ends, force_while_open),
    entry("life/force-while-mounted", 90, Where::Ends, force_while_mounted),
];

const MIB: u64 = 1 << 20;

/// `detach` and `detach --all` both refuse, name the holder, and the disk goes on working.
fn refused(tool: &Blockhaus, device: &Attached, holder: &[&str]) -> Outcome {
    let id = device.id().to_string();
    for args in [["detach", &id], ["detach", "--all"]] {
        let ran = tool.answer(&args)?;
        ensure!(!ran.status.success(), "`{}` succeeds on a disk in use by {holder:?}", ran.line);
        let named = holder.iter().any(|name| ran.stderr.contains(name));
        ensure!(named, "`{}` names none of {holder:?}: {}", ran.line, ran.stderr.trim());
        ensure!(
            ran.stderr.contains("--force") || ran.stderr.contains("umount"),
            "`{}` gives no cure: {}",
            ran.line,
            ran.stderr.trim()
        );
    }
    ensure!(
        tool.state(device.id())?.as_deref() == Some("live"),
        "after a refused detach the device is {:?}",
        tool.state(device.id())?
    );
    Ok(())
}

fn while_mounted() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:64M"])?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", device.path()]).timeout(60).ok()?;
    let mounted = Mounted::new(device.path(), "busy-mount")?;
    std::fs::write(mounted.path().join("before"), [7u8; 100_000]).context("write before detach")?;
    refused(&tool, &device, &[&mounted.path().display().to_string()])?;
    std::fs::write(mounted.path().join("after"), [8u8; 100_000]).context("write after a refused detach")?;
    Cmd::new("sync").arg("-f").arg(mounted.path()).ok()?;
    crate::check::fs::drop_caches()?;
    let before = std::fs::read(mounted.path().join("before")).context("read after a refused detach")?;
    ensure!(before == [7u8; 100_000], "a file changed by a refused detach");
    mounted.unmount()?;
    Cmd::new("e2fsck").args(["-f", "-n", device.path()]).timeout(60).ok()?;
    device.detach()
}

fn while_partition_mounted() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:64M"])?;
    Cmd::new("sfdisk").args(["-q", device.path()]).stdin("label: gpt\nsize=32MiB\n").ok()?;
    let part = format!("{}p1", device.path());
    ensure!(
        wait_until(Duration::from_secs(5), || std::path::Path::new(&part).exists()),
        "{part} does not appear"
    );
    Cmd::new("mkfs.ext4").args(["-q", "-F", &part]).timeout(60).ok()?;
    let mounted = Mounted::new(&part, "busy-part")?;
    refused(&tool, &device, &[&mounted.path().display().to_string()])?;
    mounted.unmount()?;
    device.detach()
}

fn while_open() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:16M"])?;
    let us = std::process::id().to_string();
    let held = File::open(device.path()).context("open for reading")?;
    refused(&tool, &device, &[&us])?;
    drop(held);
    let held = Device::open(device.path())?;
    refused(&tool, &device, &[&us])?;
    held.fill(1, 0, MIB)?;
    held.expect(1, 0, MIB, 0)?;
    drop(held);
    device.detach()
}

fn under_load() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:64M", "--queues", "2"])?;
    // Longer than two refused detaches, on a busy machine too.
    let load = Load::start(device.path(), 25, 500, || device.requests())?;
    let fio = load.pid().to_string();
    refused(&tool, &device, &[&fio, "fio"])?;
    load.ends_well(60)?;
    device.detach()
}

fn while_swap() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:32M"])?;
    Cmd::new("mkswap").arg(device.path()).ok()?;
    Cmd::new("swapon").arg(device.path()).ok()?;
    let result = refused(&tool, &device, &["swap"]);
    Cmd::new("swapoff").arg(device.path()).ok()?;
    result?;
    device.detach()
}

fn below_loop() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:32M"])?;
    let holder = Loop::new(device.path())?;
    refused(&tool, &device, &["loop"])?;
    drop(holder);
    // The loop device lets go a moment after losetup has returned.
    let mut last: Option<Ran> = None;
    let gone = wait_until(Duration::from_secs(5), || {
        let ran = tool.answer(&["detach", &device.id().to_string()]);
        let good = ran.as_ref().is_ok_and(|ran| ran.status.success());
        last = ran.ok();
        good
    });
    if !gone {
        return Err(last.map_or_else(
            || crate::outcome::Fail::new("detach was late"),
            |ran| ran.fail("still refuses 5 s after losetup -d"),
        ));
    }
    device.assert_gone("detach")?;
    drop(device.forget());
    Ok(())
}

/// A process that only holds the disk open cannot keep detach from answering.
fn force_while_open() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:16M"])?;
    let held = Device::open(device.path())?;
    let ran = tool.answer(&["detach", &device.id().to_string(), "--force"])?;
    ensure!(
        held.try_write(0, &crate::check::device::Aligned::new(4096)).is_err(),
        "the disk takes writes after detach --force"
    );
    drop(held);
    after_force(&tool, device, &ran)
}

fn force_while_mounted() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:64M"])?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", device.path()]).timeout(60).ok()?;
    let mounted = Mounted::new(device.path(), "forced")?;
    let ran = tool.answer(&["detach", &device.id().to_string(), "--force"])?;
    // The file system may complain about its lost disk, but has to let go.
    mounted.unmount()?;
    after_force(&tool, device, &ran)
}

/// While somebody holds the dead disk the kernel keeps its id; once they let go, all must vanish,
/// with `gc` at the latest.
fn after_force(tool: &Blockhaus, device: Attached, ran: &Ran) -> Outcome {
    let gone = || device.assert_gone("detach --force and the holder's close");
    if !wait_until(Duration::from_secs(5), || gone().is_ok()) {
        tool.answer(&["gc"])?;
        gone().map_err(|fail| fail.detail("detach --force said", &ran.stderr))?;
    }
    drop(device.forget());
    Ok(())
}
