//! What `status` says of memory is what /proc says.

use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, Device as Attached};
use crate::check::device::Device;
use crate::check::model::Target;
use crate::outcome::{Context, Outcome};
use crate::{ensure, home, procfs};

pub(super) const TESTS: &[Entry] = &[entry("life/memory-stated", 90, Where::Ublk, memory_stated)];

const MIB: u64 = 1 << 20;

/// Within 10 % or 4 MiB.
fn about(stated: u64, true_value: u64) -> bool {
    stated.abs_diff(true_value) <= (true_value / 10).max(4 * MIB)
}

fn memory_stated() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:256M", "--queues", "2", "--depth", "128"])?;
    let empty = truth(&device, "empty ram")?;
    ensure!(empty <= 2 * MIB, "an empty ram: says it takes {empty} bytes");
    let disk = Device::open(device.path())?;
    disk.fill(9, 16 * MIB, 64 * MIB)?;
    let filled = truth(&device, "ram with 64 MiB")?;
    ensure!(about(filled, 64 * MIB), "ram: says {filled} bytes after 64 MiB were written");
    disk.discard(16 * MIB, 64 * MIB).context("discard")?;
    let emptied = truth(&device, "ram after discard")?;
    ensure!(emptied <= 4 * MIB, "ram: says {emptied} bytes after everything was discarded");
    drop(disk);
    device.detach()?;
    let spec = format!("file:{},size=256M", home::path("memory.img"));
    // By copy there are buffers to state; what a kernel chooses by itself may do without.
    for data_path in ["copy", "auto"] {
        let file = tool.attach(&[&spec, "--depth", "64", "--data-path", data_path])?;
        Device::open(file.path())?.fill(9, 0, 64 * MIB)?;
        truth(&file, &format!("file by {data_path}"))?;
        file.detach()?;
    }
    Ok(())
}

/// Compares every stated number; returns the backend's.
fn truth(device: &Attached, what: &str) -> Outcome<u64> {
    let stated = device.status()?.memory;
    let pid = device.info.pid;
    let resident = procfs::bytes(pid, "VmRSS").context("VmRSS")?;
    let locked = procfs::resident_and_locked(pid).context("smaps")?;
    ensure!(
        about(stated.resident, resident),
        "{what}: status says {} bytes resident, VmRSS is {resident}",
        stated.resident
    );
    ensure!(
        about(stated.locked, locked),
        "{what}: status says {} bytes locked, smaps has {locked}",
        stated.locked
    );
    let hidden = ["auto-buf", "zero-copy", "batch-auto-buf"].contains(&device.info.data_path.as_str());
    ensure!(hidden || stated.locked_buffers > 0, "{what}: no locked buffers at all");
    ensure!(
        stated.locked_buffers <= locked + 4 * MIB,
        "{what}: {} bytes of buffers are said to be locked, but only {locked} are locked and resident",
        stated.locked_buffers
    );
    let backend = stated.backend.unwrap_or(0);
    let known = backend + stated.locked_buffers;
    ensure!(
        resident <= known + known / 10 + 24 * MIB,
        "{what}: VmRSS is {resident}, but backend and buffers explain only {known}"
    );
    Ok(backend)
}
