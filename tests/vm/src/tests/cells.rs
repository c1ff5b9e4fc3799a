//! One cell: everything a disk is asked to do, with one backend, queue count and depth.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::examples;
use crate::blockhaus::{Blockhaus, Device as Attached};
use crate::cell::{Backend, Cell, Extent, Filters};
use crate::check::device::Device;
use crate::check::model::{self, Plan, Target};
use crate::check::{fio, fs};
use crate::outcome::{Context, Outcome};
use crate::run::{Cmd, wait_until};
use crate::{ensure, home, procfs};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 512 * MIB;
const SEED: u64 = 0xce11;

/// What `examples/static_filters.rs` has built in.
const DYNAMIC: [&str; 6] = [
    "--filter",
    "throttle,bandwidth=1G",
    "--filter",
    "fault,every=997,delay_ms=1",
    "--filter",
    "offset,start=1M",
];

pub fn run(cell: Cell) -> Outcome {
    let (tool, filters) = match cell.filters {
        Filters::Static => (Blockhaus::at(examples::payload("/payload/examples/static_filters")?), &[][..]),
        Filters::Dynamic => (Blockhaus::new(), &DYNAMIC[..]),
        Filters::None => (Blockhaus::new(), &[][..]),
    };
    let (queues, depth) = (cell.queues.to_string(), cell.depth.to_string());
    let knobs = ["--queues", &queues, "--depth", &depth, "--data-path", cell.path];
    let file = home::path("cell.img");
    // The filters leave out the first MiB.
    let size = if cell.filters == Filters::None { "512M" } else { "513M" };
    let spec = match (cell.backend, cell.filters) {
        (Backend::Ram, Filters::Static) => format!("guarded-ram:{size}"),
        (Backend::Ram, _) => format!("ram:{size}"),
        (Backend::File, Filters::Static) => format!("guarded:{file},size={size}"),
        (Backend::File, _) => format!("file:{file},size={size}"),
    };
    let attach = |more: &[&str]| {
        let args: Vec<&str> =
            [spec.as_str()].iter().chain(&knobs).chain(filters).chain(more).copied().collect();
        tool.attach(&args)
    };
    let device = attach(&[])?;
    shape(&device, cell)?;
    if cell.backend == Backend::File {
        direct(&device, &file)?;
    }
    let one = [fs::KINDS[cell.turn() % fs::KINDS.len()]];
    let kinds = if cell.extent == Extent::Part { &one[..] } else { &fs::KINDS };
    inner(device.path(), cell.depth, cell.extent == Extent::Full, kinds)?;
    let second = partitions(&device)?;
    let device = match cell.backend {
        Backend::Ram => device,
        Backend::File => {
            device.detach()?;
            let device = attach(&[])?;
            survived(&device, second)?;
            device
        }
    };
    zeros(device.path())?;
    gives_back(&device, &file, cell.backend)?;
    Device::open(device.path())?.fill(SEED + 5, 100 * MIB, 8 * MIB)?;
    device.detach()?;
    read_only(&attach(&["--read-only"])?, cell.backend)?;
    Ok(())
}

/// What needs a disk alone, whoever serves it.
pub fn inner(path: &str, depth: u16, full: bool, kinds: &[fs::Kind]) -> Outcome {
    let disk = Device::open(path)?;
    let plan = Plan {
        seed: SEED,
        threads: 4,
        operations: if full { 1500 } else { 250 },
        start: 3 * MIB + 1536,
        len: 48 * MIB,
    };
    let model = model::verify(&disk, plan).context("the model and the disk differ")?;
    model.check(&disk).context("the model and the disk differ at a second reading")?;
    let block = disk.block() as u32;
    drop(disk);
    let len = if full { 128 * MIB } else { 32 * MIB };
    fio::verify(path, block, depth.clamp(1, 32), 64 * MIB, len)?;
    for &kind in kinds {
        fs::round(path, kind, 60 * MIB, full)?;
    }
    Ok(())
}

/// The kernel's disk is what was asked for.
fn shape(device: &Attached, cell: Cell) -> Outcome {
    let info = &device.info;
    ensure!(info.queues == cell.queues, "asked for {} queues, got {}", cell.queues, info.queues);
    ensure!(info.depth == cell.depth, "asked for depth {}, got {}", cell.depth, info.depth);
    ensure!(info.data_path == cell.path, "asked for {}, got {}", cell.path, info.data_path);
    ensure!(info.size == SIZE, "attach reports {} bytes, the backend has {SIZE}", info.size);
    let sectors = device.sys("size")?;
    ensure!(sectors == (SIZE / 512).to_string(), "the disk has {sectors} sectors, not {}", SIZE / 512);
    let queues =
        std::fs::read_dir(format!("/sys/block/ublkb{}/mq", device.id())).context("cannot read mq")?.count();
    ensure!(queues == usize::from(cell.queues), "the disk has {queues} hardware queues, not {}", cell.queues);
    let status = device.status()?;
    ensure!(status.state == "live", "status says {:?} of a device in use", status.state);
    ensure!(
        (status.queues, status.depth, status.size) == (cell.queues, cell.depth, SIZE),
        "status tells another shape"
    );
    Ok(())
}

/// On a file system that takes O_DIRECT, the backing file is open with it.
fn direct(device: &Attached, file: &str) -> Outcome {
    let fds = format!("/proc/{}/fd", device.info.pid);
    let mut open = Vec::new();
    for entry in std::fs::read_dir(&fds).context(format!("cannot read {fds}"))?.flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(file)) {
            let info = format!("/proc/{}/fdinfo/{}", device.info.pid, entry.file_name().to_string_lossy());
            let flags = procfs::field(&info, "flags").and_then(|flags| i32::from_str_radix(&flags, 8).ok());
            open.push(flags.unwrap_or(0) & libc::O_DIRECT != 0);
        }
    }
    // A file that is only a fixed file of the ring shows no descriptor: nothing to see then.
    ensure!(
        open.is_empty() || open.contains(&true),
        "{file} is served without O_DIRECT where O_DIRECT works"
    );
    Ok(())
}

/// Two partitions appear and hold data where they should. Returns the start of the second.
fn partitions(device: &Attached) -> Outcome<u64> {
    let path = device.path();
    Cmd::new("sfdisk")
        .args(["-q", "--wipe", "always", path])
        .stdin("label: gpt\nsize=64MiB\nsize=128MiB\n")
        .timeout(60)
        .ok()?;
    appear(path)?;
    let start = device.sys(&format!("ublkb{}p2/start", device.id()))?;
    let start = start.parse::<u64>().context("start of the second partition")? * 512;
    let (first, second) = (Device::open(&format!("{path}p1"))?, Device::open(&format!("{path}p2"))?);
    ensure!(
        (first.size(), second.size()) == (64 * MIB, 128 * MIB),
        "partitions of {} and {} bytes",
        first.size(),
        second.size()
    );
    first.fill(SEED + 1, 0, 2 * MIB)?;
    second.fill(SEED + 2, 0, 2 * MIB)?;
    second.flush().context("flush of the second partition")?;
    drop((first, second));
    Device::open(path)?.expect(SEED + 2, start, 2 * MIB, 0)?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", &format!("{path}p1")]).timeout(60).ok()?;
    Cmd::new("e2fsck").args(["-f", "-n", &format!("{path}p1")]).timeout(60).ok()?;
    Device::open(&format!("{path}p2"))?.expect(SEED + 2, 0, 2 * MIB, 0)?;
    Ok(start)
}

fn appear(path: &str) -> Outcome {
    // When a writer has closed the disk, udev has the kernel read the partitions again: they go and come back.
    Cmd::new("udevadm").args(["settle", "--timeout=30"]).timeout(60).ok()?;
    let there = || ["p1", "p2"].iter().all(|part| Path::new(&format!("{path}{part}")).exists());
    ensure!(
        wait_until(Duration::from_secs(5), there),
        "the partitions {path}p1 and p2 do not appear within 5 s"
    );
    Ok(())
}

/// Data and partitions are there again after a new attach.
fn survived(device: &Attached, second: u64) -> Outcome {
    appear(device.path())?;
    Device::open(device.path())?.expect(SEED + 2, second, 2 * MIB, 0)?;
    Cmd::new("e2fsck").args(["-f", "-n", &format!("{}p1", device.path())]).timeout(60).ok()?;
    Ok(())
}

/// `blkdiscard -z` reads zeros, and only where it was asked to.
fn zeros(path: &str) -> Outcome {
    let disk = Device::open(path)?;
    disk.fill(SEED + 3, 8 * MIB, 16 * MIB)?;
    disk.expect(SEED + 3, 8 * MIB, 16 * MIB, 8 * MIB)?;
    let (start, len) = (10 * MIB + 512, 7 * MIB + 1024);
    Cmd::new("blkdiscard")
        .args(["-f", "-z", "-o", &start.to_string(), "-l", &len.to_string(), path])
        .timeout(60)
        .ok()?;
    disk.expect_zeros(start, len)?;
    disk.expect(SEED + 3, 8 * MIB, start - 8 * MIB, 8 * MIB)?;
    let end = start + len;
    disk.expect(SEED + 3, end, 24 * MIB - end, end)
}

/// A discarded disk gives back what it occupied.
fn gives_back(device: &Attached, file: &str, backend: Backend) -> Outcome {
    let disk = Device::open(device.path())?;
    disk.fill(SEED + 4, 100 * MIB, 64 * MIB)?;
    disk.flush().context("flush")?;
    let occupied = || match backend {
        Backend::Ram => {
            device.status()?.memory.backend.context("status does not say how much memory ram: takes")
        }
        Backend::File => Ok(std::fs::metadata(file).context("backing file")?.blocks() * 512),
    };
    let resident = || procfs::bytes(device.info.pid, "VmRSS").context("VmRSS of the server");
    let (before, resident_before) = (occupied()?, resident()?);
    ensure!(before >= 64 * MIB, "{before} bytes are occupied after 64 MiB were written");
    drop(disk);
    Cmd::new("blkdiscard").args(["-f", device.path()]).timeout(60).ok()?;
    // Delayed frees of the file system below may take a moment.
    let mut after = occupied()?;
    let mut tries = 0;
    while after > 2 * MIB && tries < 50 {
        std::thread::sleep(Duration::from_millis(100));
        after = occupied()?;
        tries += 1;
    }
    ensure!(
        after <= 2 * MIB,
        "{after} of {before} bytes are still occupied after the whole disk was discarded"
    );
    let resident_after = resident()?;
    if backend == Backend::Ram {
        let given = resident_before.saturating_sub(resident_after);
        ensure!(
            given >= (before - after) / 10 * 9,
            "status says {} bytes were given back, VmRSS fell by {given} (from {resident_before} to {resident_after})",
            before - after
        );
    }
    Device::open(device.path())?.expect_zeros(100 * MIB, 64 * MIB)
}

/// `--read-only` refuses every kind of change and still reads.
fn read_only(device: &Attached, backend: Backend) -> Outcome {
    let path = device.path();
    let flag = Cmd::new("blockdev").args(["--getro", path]).ok()?;
    ensure!(flag.trim() == "1", "blockdev --getro says {:?}", flag.trim());
    if let Ok(disk) = Device::open(path) {
        ensure!(
            disk.try_write(0, &crate::check::device::Aligned::new(4096)).is_err(),
            "a read-only disk took a write"
        );
        ensure!(disk.discard(0, MIB).is_err(), "a read-only disk took a discard");
        ensure!(disk.zero(0, MIB).is_err(), "a read-only disk took a write-zeroes");
    }
    ensure!(
        !Cmd::new("mkfs.ext4").args(["-q", "-F", path]).run()?.status.success(),
        "mkfs worked on a read-only disk"
    );
    let disk = Device::open_read_only(path)?;
    match backend {
        Backend::File => disk.expect(SEED + 5, 100 * MIB, 8 * MIB, 100 * MIB),
        // A new one, and nothing can have been written to it.
        Backend::Ram => disk.expect_zeros(0, 16 * MIB),
    }
}
