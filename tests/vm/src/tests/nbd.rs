//! The kernel's NBD driver as the engine: every verb, every file system, servers that are killed and come back.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Entry, Where, cells, entry};
use crate::blockhaus::{Blockhaus, Device as Attached};
use crate::check::device::Device;
use crate::check::fio::Load;
use crate::check::model::Target;
use crate::check::{fio, fs};
use crate::home::Mounted;
use crate::outcome::{Context, Outcome};
use crate::run::{Background, Cmd, signal, wait_until};
use crate::{ensure, home, procfs};

pub(super) const TESTS: &[Entry] = &[
    entry("nbd/auto", 60, Where::NoUblk, auto),
    entry("nbd/verbs", 150, Where::NbdEnds, verbs),
    entry("nbd/up", 90, Where::NbdEnds, up),
    entry("nbd/in-use", 90, Where::NbdEnds, in_use),
    entry("nbd/ids", 60, Where::NbdEnds, ids),
    entry("nbd/stop-writes-back", 120, Where::NbdEnds, stop_writes_back),
    entry("nbd/ioctl", 150, Where::NbdEnds, by_ioctl),
    entry("nbd/kill9-ram", 90, Where::NbdEnds, kill9_ram),
    entry("nbd/kill9-mounted", 180, Where::NbdEnds, kill9_mounted),
    entry("nbd/kill9-detach", 120, Where::NbdEnds, kill9_detach),
    entry("nbd/kill9-verify-20", 900, Where::NbdNewest, kill9_verify),
    entry("nbd/slow-backend", 120, Where::NbdNewest, slow_backend),
];

pub(super) const MIB: u64 = 1 << 20;
const SIZE: u64 = 512 * MIB;

/// How long a killed server may take until its disk is served again.
const BACK: Duration = Duration::from_secs(40);

/// Kernels whose NBD driver is promised to work.
const KERNELS: [&str; 3] = ["6.1", "6.12", "7.2"];

/// One combination; every two values of two columns are together in one.
pub(super) struct Cell {
    connections: u16,
    depth: u16,
    kind: fs::Kind,
}

const CONNECTIONS: [u16; 2] = [1, 4];
const DEPTHS: [u16; 2] = [1, 64];
/// For each kernel and each file system which depth, so that with the connections below all pairs are there.
const DEPTH_OF: [[usize; 3]; 3] = [[0, 1, 0], [0, 0, 1], [1, 1, 0]];

impl Cell {
    fn at(kernel: usize, kind: usize) -> Cell {
        Cell {
            connections: CONNECTIONS[(kernel + kind) % 2],
            depth: DEPTHS[DEPTH_OF[kernel][kind]],
            kind: fs::KINDS[kind],
        }
    }

    fn name(&self) -> String {
        format!("nbd/cell/c{}/d{}/{}", self.connections, self.depth, self.kind.name())
    }
}

/// The cells that `kernel` runs: with `full` all there are.
pub(super) fn names(kernel: &str, full: bool) -> Vec<String> {
    let Some(kernel) = KERNELS.iter().position(|known| *known == kernel) else { return Vec::new() };
    if !full {
        return (0..fs::KINDS.len()).map(|kind| Cell::at(kernel, kind).name()).collect();
    }
    all().iter().map(Cell::name).collect()
}

fn all() -> Vec<Cell> {
    let shapes = CONNECTIONS.into_iter().flat_map(|c| DEPTHS.into_iter().map(move |d| (c, d)));
    shapes
        .flat_map(|(connections, depth)| {
            fs::KINDS.into_iter().map(move |kind| Cell { connections, depth, kind })
        })
        .collect()
}

/// The cell of this name.
pub(super) fn find(name: &str) -> Option<Cell> {
    all().into_iter().find(|cell| cell.name() == name)
}

/// Everything that a disk alone has to do, a file system, zeros, and all of it again after a new attach.
pub(super) fn cell(cell: &Cell) -> Outcome {
    let tool = Blockhaus::new();
    let file = home::path("nbd-cell.img");
    let spec = format!("file:{file},size=512M");
    let (connections, depth) = (cell.connections.to_string(), cell.depth.to_string());
    let knobs = [spec.as_str(), "--connections", &connections, "--depth", &depth, "--queues", "2"];
    let device = tool.attach_nbd(&knobs)?;
    let queues =
        std::fs::read_dir(format!("/sys/block/{}/mq", device.name())).context("cannot read mq")?.count();
    // More than processors the driver keeps in reserve.
    let cpus = std::thread::available_parallelism().context("number of processors")?.get();
    let wanted = usize::from(cell.connections).min(cpus);
    ensure!(queues == wanted, "the disk has {queues} queues of {connections} connections");
    ensure!(device.info.data_path == "netlink", "it was made by {}", device.info.data_path);
    let sectors = device.sys("size")?;
    ensure!(sectors == (SIZE / 512).to_string(), "the disk has {sectors} sectors, not {}", SIZE / 512);
    cells::inner(device.path(), cell.depth, false, &[cell.kind])?;
    let disk = Device::open(device.path())?;
    disk.fill(7, 8 * MIB, 16 * MIB)?;
    Cmd::new("blkdiscard")
        .args(["-f", "-o", &(10 * MIB).to_string(), "-l", &(4 * MIB).to_string(), device.path()])
        .timeout(60)
        .ok()?;
    disk.expect_zeros(10 * MIB, 4 * MIB)?;
    disk.expect(7, 8 * MIB, 2 * MIB, 8 * MIB)?;
    drop(disk);
    device.detach()?;
    let device = tool.attach_nbd(&knobs)?;
    Device::open(device.path())?.expect(7, 14 * MIB, 10 * MIB, 14 * MIB)?;
    device.detach()
}

/// On a kernel without ublk `attach` takes nbd by itself and says why in a line.
fn auto() -> Outcome {
    let tool = Blockhaus::new();
    let ran = tool.command(&["attach", "ram:64M"]).run()?.done()?;
    let path = ran.stdout.trim().to_owned();
    ensure!(path.starts_with("/dev/nbd"), "attach printed {path:?}");
    let why = ran.stderr.lines().find(|line| line.contains("engine nbd: "));
    let why = why.context(format!("attach does not say what it took: {}", ran.stderr))?;
    ensure!(why.contains("has no ublk"), "attach does not say why it took nbd: {why}");
    let disk = Device::open(&path)?;
    disk.fill(1, 0, 4 * MIB)?;
    disk.expect(1, 0, 4 * MIB, 0)?;
    drop(disk);
    let gone = tool.answer(&["detach", &path])?;
    ensure!(gone.status.success(), "detach {path} fails: {}", gone.stderr.trim());
    let features = tool.features()?;
    let engines: Vec<(String, bool)> =
        features.engines.iter().map(|row| (row.engine.clone(), row.offered)).collect();
    ensure!(engines[0] == ("ublk".into(), false), "features says {engines:?}");
    ensure!(engines.contains(&("nbd".into(), true)), "features says {engines:?}");
    ensure!(features.engines[0].reason.is_some(), "features does not say why there is no ublk");
    Ok(())
}

/// Each verb, by name, path and number.
fn verbs() -> Outcome {
    let tool = Blockhaus::new();
    let one = tool.attach_nbd(&["ram:64M", "--queues", "2", "--connections", "4"])?;
    let file = home::path("nbd-verbs.img");
    let two = tool.attach_nbd(&[&format!("file:{file},size=64M"), "--block-size", "4096"])?;
    ensure!(one.id() != two.id(), "both disks are {}", one.path());
    let listed = tool.list()?;
    for device in [&one, &two] {
        let found = listed.iter().find(|listed| listed.name == device.name());
        let found = found.context(format!("{} is not in list", device.name()))?;
        ensure!(
            (found.state.as_str(), found.device.as_str()) == ("live", device.path()),
            "list says {found:?}"
        );
        let by_each = [device.name().to_owned(), device.path().to_owned(), device.id().to_string()];
        for name in by_each {
            let status = tool.status_of(&name)?;
            ensure!(status.engine == "nbd" && status.size == 64 * MIB, "status of {name}: {status:?}");
        }
        let disk = Device::open(device.path())?;
        disk.fill(3, 0, 8 * MIB)?;
        disk.flush().context("flush")?;
        disk.expect(3, 0, 8 * MIB, 0)?;
        let stats = tool.stats_of(device.name())?;
        ensure!(stats.engine == "nbd" && stats.op("write")?.bytes >= 8 * MIB, "stats says {stats:?}");
    }
    // What an empty disk would be worse than is not brought back; the other is.
    ensure!(one.status()?.keeper.is_none(), "a ram: disk has a keeper");
    ensure!(two.status()?.keeper.is_some(), "a file: disk has no keeper");
    for thread in one.status()?.queue_threads {
        ensure!(thread.io_flusher, "queue {} is no IO_FLUSHER", thread.queue);
    }
    let metrics = tool.answer(&["metrics"])?;
    ensure!(metrics.stdout.contains(two.path()), "metrics does not know {}", two.path());
    let gc = tool.answer(&["gc"])?;
    ensure!(gc.stdout.is_empty(), "gc removed what lives: {}", gc.stdout);
    tool.answer(&["detach", "--all"])?.done()?;
    one.assert_gone("detach --all")?;
    two.assert_gone("detach --all")?;
    ensure!(tool.list()?.is_empty(), "list is not empty after detach --all");
    drop((one.forget(), two.forget()));
    let read_only = tool.attach_nbd(&[&format!("file:{file}"), "--read-only"])?;
    ensure!(read_only.sys("ro")? == "1", "--read-only makes a disk that can be written");
    Device::open_read_only(read_only.path())?.expect(3, 0, 8 * MIB, 0)?;
    read_only.detach()
}

/// A file of `up` with disks of this engine.
fn up() -> Outcome {
    let tool = Blockhaus::new();
    let config = home::scratch().join("nbd-up.toml");
    let text = "[[device]]\nspec = \"ram:32M\"\nengine = \"nbd\"\nid = 2\nconnections = 2\n\
                [[device]]\nspec = \"ram:16M\"\nengine = \"nbd\"\n";
    std::fs::write(&config, text).context("cannot write the file of up")?;
    let config = config.display().to_string();
    let mut server = tool.command(&["up", &config]).spawn()?;
    let ready = wait_until(Duration::from_secs(30), || {
        server.stdout_so_far().lines().count() == 2 || !matches!(server.ended(), Ok(None))
    });
    let said = server.stdout_so_far();
    ensure!(ready && said.starts_with("/dev/nbd2\n"), "up printed {said:?}: {}", server.stderr_so_far());
    let disk = Device::open("/dev/nbd2")?;
    disk.fill(4, 0, 4 * MIB)?;
    disk.expect(4, 0, 4 * MIB, 0)?;
    drop(disk);
    ensure!(tool.list()?.len() == 2, "list says {:?}", tool.list()?);
    let down = tool.answer(&["down", &config])?;
    if !down.status.success() {
        return Err(down.fail("failed"));
    }
    let ran = server.wait(Duration::from_secs(10))?;
    if ran.status.success() { Ok(()) } else { Err(ran.fail("ends badly after down")) }
}

/// What uses the disk is named and keeps it; by force it goes.
fn in_use() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach_nbd(&["ram:64M"])?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", device.path()]).timeout(60).ok()?;
    let mounted = Mounted::new(device.path(), "nbd-busy")?;
    let place = mounted.path().display().to_string();
    for args in [["detach", device.name()], ["detach", "--all"]] {
        let ran = tool.answer(&args)?;
        ensure!(!ran.status.success() && ran.stderr.contains(&place), "`{}` says {}", ran.line, ran.stderr);
    }
    let state = tool.state_of(device.name())?;
    ensure!(state.as_deref() == Some("live"), "after a refused detach it is {state:?}");
    std::fs::write(mounted.path().join("file"), [1u8; 100_000]).context("write after a refused detach")?;
    Cmd::new("sync").arg("-f").arg(mounted.path()).ok()?;
    let ran = tool.answer(&["detach", device.name(), "--force"])?;
    if !ran.status.success() {
        return Err(ran.fail("cannot take a mounted disk away by force"));
    }
    let state = tool.state_of(device.name())?;
    ensure!(!matches!(state.as_deref(), Some("live" | "foreign")), "a disk that was taken away is {state:?}");
    // The file system may complain about its lost disk, but has to let go.
    mounted.unmount()?;
    let gone = || device.assert_gone("detach --force and umount").is_ok();
    ensure!(wait_until(Duration::from_secs(5), gone), "it is still there after umount");
    drop(device.forget());
    Ok(())
}

/// Numbers that are asked for, that are taken, and that are free again.
fn ids() -> Outcome {
    let tool = Blockhaus::new();
    let three = tool.attach_nbd(&["ram:8M", "--id", "3"])?;
    ensure!(three.path() == "/dev/nbd3", "asked for 3, got {}", three.path());
    let ran = tool.answer(&["attach", "ram:8M", "--engine", "nbd", "--id", "3"])?;
    ensure!(!ran.status.success() && ran.stderr.contains("--id"), "a taken number: {}", ran.stderr.trim());
    // One that the driver has no node for yet.
    let far = tool.attach_nbd(&["ram:8M", "--id", "37"])?;
    ensure!(far.path() == "/dev/nbd37", "asked for 37, got {}", far.path());
    Device::open(far.path())?.fill(1, 0, MIB)?;
    far.detach()?;
    three.detach()?;
    let again = tool.attach_nbd(&["ram:8M", "--id", "3"])?;
    ensure!(again.path() == "/dev/nbd3", "3 is not free again: {}", again.path());
    again.detach()
}

/// What was written and not flushed is on the backend when the disk has gone, by force too.
fn stop_writes_back() -> Outcome {
    const LEN: usize = 24 << 20;
    let tool = Blockhaus::new();
    let spec = format!("file:{},size=64M", home::path("nbd-back.img"));
    let device = tool.attach_nbd(&[&spec, "--connections", "2"])?;
    let bytes: Vec<u8> = (0..LEN).map(|at| (at / 512 + at % 7) as u8).collect();
    let mut held = OpenOptions::new().read(true).write(true).open(device.path()).context("open")?;
    held.write_all(&bytes).context("write through the page cache")?;
    let refused = tool.answer(&["detach", device.name()])?;
    ensure!(!refused.status.success(), "detach succeeds while it is open");
    tool.answer(&["detach", device.name(), "--force"])?.done()?;
    drop(held);
    let gone = || device.assert_gone("detach --force").is_ok();
    ensure!(wait_until(Duration::from_secs(5), gone), "it is still there after its last user has gone");
    drop(device.forget());
    let device = tool.attach_nbd(&[&spec])?;
    same(device.path(), &bytes)?;
    // And in order, by a signal.
    let mut disk = OpenOptions::new().write(true).open(device.path()).context("open")?;
    disk.seek(SeekFrom::Start(30 * MIB)).context("seek")?;
    disk.write_all(&bytes[..1 << 20]).context("write")?;
    drop(disk);
    signal(device.info.pid as i32, libc::SIGTERM);
    let ended = wait_until(Duration::from_secs(15), || device.assert_gone("SIGTERM").is_ok());
    ensure!(ended, "the server does not end on SIGTERM");
    drop(device.forget());
    let device = tool.attach_nbd(&[&spec])?;
    same(device.path(), &bytes)?;
    device.detach()
}

fn same(path: &str, bytes: &[u8]) -> Outcome {
    let mut found = vec![0; bytes.len()];
    File::open(path).context("open")?.read_exact(&mut found).context("read")?;
    let differs = found.iter().zip(bytes).position(|(found, wanted)| found != wanted);
    ensure!(differs.is_none(), "byte {differs:?} differs from what was written");
    Ok(())
}

/// Where netlink is not to be had, ioctls make the disk, and that is said.
fn by_ioctl() -> Outcome {
    let tool = Blockhaus::new();
    let ours = crate::blockhaus::binary().display().to_string();
    let us = std::env::current_exe().context("our own path")?;
    let spec = format!("file:{},size=256M", home::path("nbd-ioctl.img"));
    let attach = |more: &[&str]| {
        let command = Cmd::new(&us)
            .args(["without-netlink", &ours, "attach", "--engine", "nbd"])
            .args([spec.as_str(), "--connections", "2"])
            .args(more)
            .timeout(40);
        tool.attached("nbd", command)
    };
    let device = attach(&[])?;
    let (path, why) = (&device.info.data_path, &device.info.data_path_reason);
    ensure!(path == "ioctl" && why.contains("netlink"), "it was made by {path}: {why}");
    ensure!(
        why.contains("ends when its server is killed"),
        "it does not say that it cannot come back: {why}"
    );
    ensure!(why.contains("has no meaning"), "it does not say that nothing waits for a server: {why}");
    ensure!(device.status()?.keeper.is_none(), "a keeper that can keep nothing");
    cells::inner(device.path(), 16, false, &[fs::Kind::Ext4])?;
    device.detach()?;
    let device = attach(&[])?;
    let load = Load::start(device.path(), 60, 200, || device.requests())?;
    signal(device.info.pid as i32, libc::SIGKILL);
    load.ends(60)?;
    let dead = || matches!(tool.state_of(device.name()), Ok(Some(state)) if state == "dead");
    ensure!(wait_until(Duration::from_secs(10), dead), "list says {:?}", tool.state_of(device.name())?);
    let gc = tool.answer(&["gc"])?;
    ensure!(gc.status.success() && gc.stdout.contains(device.name()), "gc says {:?}", gc.stdout);
    device.assert_gone("gc")?;
    drop(device.forget());
    Ok(())
}

/// What a RAM disk had is gone with its server: nobody brings back an empty one, and `gc` removes it.
fn kill9_ram() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach_nbd(&["ram:64M", "--dead-connection-timeout", "2", "--timeout", "2"])?;
    let log = crate::blockhaus::run_dir().join(format!("{}.log", device.name()));
    let load = Load::start(device.path(), 60, 500, || device.requests())?;
    signal(device.info.pid as i32, libc::SIGKILL);
    load.ends_in_error(60)?;
    let state = tool.state_of(device.name())?;
    ensure!(state.as_deref() == Some("dead"), "list says {state:?}: {}", log.display());
    let gc = tool.answer(&["gc"])?;
    ensure!(gc.status.success() && gc.stdout.contains(device.name()), "gc says {:?}", gc.stdout);
    device.assert_gone("gc")?;
    drop(device.forget());
    Ok(())
}

/// Kills the server of a device and waits until another one serves it.
fn kill(tool: &Blockhaus, device: &Attached) -> Outcome<Duration> {
    let before = device.status()?.pid.context("status names no server")?;
    let since = Instant::now();
    ensure!(signal(before as i32, libc::SIGKILL), "there is no process {before}");
    let another = || {
        let status = tool.status_of(device.name()).ok()?;
        status.pid.filter(|pid| *pid != before && status.state == "live")
    };
    ensure!(
        wait_until(BACK, || another().is_some()),
        "no other server within {} s: {:?}, {}",
        BACK.as_secs(),
        tool.state_of(device.name())?,
        log(device)
    );
    Ok(since.elapsed())
}

pub(super) fn log(device: &Attached) -> String {
    let path = crate::blockhaus::run_dir().join(format!("{}.log", device.name()));
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Under a file system that is being written to.
fn kill9_mounted() -> Outcome {
    let tool = Blockhaus::new();
    let spec = format!("file:{},size=256M", home::path("nbd-mounted.img"));
    let device = tool.attach_nbd(&[&spec, "--timeout", "3", "--connections", "2"])?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", device.path()]).timeout(60).ok()?;
    let mounted = Mounted::new(device.path(), "nbd-kept")?;
    let file = |number: u32| mounted.path().join(format!("file-{number}"));
    let content = |number: u32| vec![number as u8 + 1; 3_000_000 + number as usize];
    for number in 0..6 {
        std::fs::write(file(number), content(number)).context("write")?;
        if number % 2 == 1 {
            kill(&tool, &device)?;
        }
        Cmd::new("sync").arg("-f").arg(mounted.path()).timeout(60).ok()?;
    }
    fs::drop_caches()?;
    for number in 0..6 {
        let found = std::fs::read(file(number)).context("read after the server was killed")?;
        ensure!(found == content(number), "file {number} has changed");
    }
    mounted.unmount()?;
    Cmd::new("e2fsck").args(["-f", "-n", device.path()]).timeout(60).ok()?;
    ensure!(log(&device).contains("was killed"), "the log does not tell: {}", log(&device));
    device.detach()
}

/// A disk whose server is being started again can be had rid of all the same.
fn kill9_detach() -> Outcome {
    let tool = Blockhaus::new();
    let file = home::path("nbd-stuck.img");
    let device = tool.attach_nbd(&[&format!("file:{file},size=64M"), "--timeout", "2"])?;
    let server = device.info.pid;
    let kept = wait_until(Duration::from_secs(5), || device.status().is_ok_and(|it| it.keeper.is_some()));
    ensure!(kept, "there is no keeper");
    let keeper = device.status()?.keeper.context("there is no keeper")?;
    // Without its file no server can be started, and none may make an empty one.
    std::fs::rename(&file, format!("{file}.away")).context("rename")?;
    ensure!(signal(server as i32, libc::SIGKILL), "there is no process {server}");
    let recovering = || matches!(tool.state_of(device.name()), Ok(Some(state)) if state == "recovering");
    ensure!(wait_until(Duration::from_secs(10), recovering), "it is {:?}", tool.state_of(device.name())?);
    let gc = tool.answer(&["gc"])?;
    ensure!(gc.stdout.is_empty(), "gc takes a disk away that may come back: {}", gc.stdout);
    let refused = tool.answer(&["detach", device.name()])?;
    ensure!(!refused.status.success(), "detach takes it away without being forced");
    ensure!(refused.stderr.contains("--force"), "detach gives no cure: {}", refused.stderr.trim());
    ensure!(!Path::new(&file).exists(), "an empty file was made in the place of the disk's");
    tool.answer(&["detach", device.name(), "--force"])?.done()?;
    device.assert_gone("detach --force")?;
    let gone = wait_until(Duration::from_secs(2), || !procfs::alive(keeper));
    ensure!(gone, "the keeper still runs");
    drop(device.forget());
    ensure!(!Path::new(&file).exists(), "an empty file was made in the place of the disk's");
    std::fs::rename(format!("{file}.away"), &file).context("rename")?;
    tool.attach_nbd(&[&format!("file:{file}")])?.detach()
}

/// Writes with a CRC in each block, and reads all of it back.
fn verifying(path: &str) -> Outcome<Background> {
    Cmd::new("fio")
        .args(["--name=verify", "--direct=1", "--ioengine=io_uring", "--rw=randwrite", "--iodepth=32"])
        .args(["--bsrange=4k-64k", "--size=48M", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"])
        .args(["--verify_state_save=0", "--thread", "--randrepeat=0"])
        .arg(format!("--filename={path}"))
        .spawn()
}

/// The promise: a server killed under a verifying load comes back, and the load meets no error. Twenty times.
fn kill9_verify() -> Outcome {
    let tool = Blockhaus::new();
    let mut slowest = Duration::ZERO;
    for connections in ["1", "4"] {
        let spec = format!("file:{},size=128M", home::path("nbd-verify.img"));
        let device =
            tool.attach_nbd(&[&spec, "--connections", connections, "--timeout", "2", "--queues", "2"])?;
        for round in 0..10u32 {
            let mut load = verifying(device.path())?;
            // Now while it writes, now while it reads.
            let before = device.requests()?;
            let warm = before + 50 + u64::from(round) * 250;
            let warmed = wait_until(Duration::from_secs(30), || {
                device.requests().is_ok_and(|now| now >= warm) || !matches!(load.ended(), Ok(None))
            });
            ensure!(warmed, "the load does not get on");
            let was_running = matches!(load.ended(), Ok(None));
            ensure!(was_running, "round {round}: the load ended before the server was killed");
            slowest = slowest.max(kill(&tool, &device)?);
            let ran = load.wait(Duration::from_secs(90))?;
            if !ran.status.success() {
                return Err(ran
                    .fail(&format!("met an error in round {round}"))
                    .detail("the log", &log(&device)));
            }
        }
        ensure!(
            log(&device).matches("was killed").count() >= 10,
            "the log has not every kill: {}",
            log(&device)
        );
        device.detach()?;
    }
    ensure!(slowest < BACK, "the slowest server took {:.1} s to come back", slowest.as_secs_f64());
    Ok(())
}

/// A request that takes longer than its time costs its connection, which comes back when the request has ended.
fn slow_backend() -> Outcome {
    let tool = Blockhaus::new();
    let fault = "fault,op=write,every=40,delay_ms=6000";
    let device = tool.attach_nbd(&["ram:64M", "--filter", fault, "--timeout", "2", "--connections", "2"])?;
    let ran = Cmd::new("fio")
        .args([
            "--name=slow",
            "--direct=1",
            "--ioengine=io_uring",
            "--rw=randwrite",
            "--iodepth=4",
            "--bs=16k",
        ])
        .args(["--size=2M", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"])
        .arg(format!("--filename={}", device.path()))
        .timeout(100)
        .run()?;
    if !ran.status.success() {
        return Err(ran.fail("met an error"));
    }
    let alive = || {
        let notes = tool.answer(&["status", device.name()]).map(|ran| ran.stdout).unwrap_or_default();
        !notes.contains("connections are alive")
    };
    ensure!(wait_until(Duration::from_secs(20), alive), "connections stay dead");
    fio::write(fio::Side::Disk(device.path()), "4k", 8 * MIB, MIB)?;
    device.detach()
}
