//! `stats` says what the kernel says, and what nobody else can.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, Device as Attached};
use crate::check::device::{Aligned, Device};
use crate::check::model::Target;
use crate::outcome::{Context, Fail, Outcome};
use crate::run::wait_until;
use crate::{ensure, home, procfs};

pub(super) const TESTS: &[Entry] = &[
    entry("stats/counted", 120, Where::Ublk, counted),
    entry("stats/in-flight", 60, Where::Ublk, in_flight),
    entry("stats/bounded", 60, Where::Ublk, bounded),
    entry("stats/idle", 60, Where::Ublk, idle),
    entry("stats/metrics", 60, Where::Ends, metrics),
];

const MIB: u64 = 1 << 20;

/// IORING_FEAT_NO_IOWAIT came with Linux 6.15: before, whoever waits for anything with requests under way waits for a disk.
const NO_IOWAIT: (u32, u32) = (6, 15);

/// A disk that nobody uses takes no processor's time, and no processor is said to wait for it.
fn idle() -> Outcome {
    const WATCHED: Duration = Duration::from_secs(4);
    let file = format!("file:{},size=64M", home::path("idle.img"));
    let device = Blockhaus::new().attach(&[&file, "--queues", "2"])?;
    Device::open(device.path())?.fill(1, 0, 4 * MIB)?;
    // What udev still wants has an end.
    thread::sleep(Duration::from_secs(2));
    let cpu = || procfs::cpu_ticks(device.info.pid).context("how long the server ran");
    let waited = || procfs::iowait_ticks().context("how long the processors waited for disks");
    let before = (cpu()?, waited()?);
    thread::sleep(WATCHED);
    let after = (cpu()?, waited()?);
    let ran = after.0 - before.0;
    ensure!(ran <= 2, "a server whose disk is idle ran for {ran} ticks of 10 ms in {WATCHED:?}");
    if procfs::kernel().context("which kernel this is")? >= NO_IOWAIT {
        let waited = after.1 - before.1;
        ensure!(
            waited < 100,
            "with an idle disk processors waited for {waited} ticks of 10 ms in {WATCHED:?}"
        );
    }
    device.detach()
}

/// Reads and writes as the kernel's block layer counts them: requests and bytes of each.
fn of_kernel(device: &Attached) -> Outcome<[u64; 4]> {
    let stat = device.sys("stat")?;
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match fields[..] {
        [reads, _, read_sectors, _, writes, _, written_sectors, ..] => {
            Ok([reads, read_sectors * 512, writes, written_sectors * 512])
        }
        _ => Err(Fail::new(format!("cannot read the disk's stat: {stat:?}"))),
    }
}

fn of_server(tool: &Blockhaus, device: &Attached) -> Outcome<[u64; 4]> {
    let stats = tool.stats(device.id())?;
    let (read, write) = (stats.op("read")?, stats.op("write")?);
    // To the block layer a flush is a write without bytes.
    let writes = write.requests + stats.op("flush")?.requests;
    Ok([read.requests, read.bytes, writes, write.bytes])
}

/// By every way that a kernel takes by itself, one request at a time and many: the same numbers as the kernel's.
fn counted() -> Outcome {
    let tool = Blockhaus::new();
    let file = format!("file:{},size=64M", home::path("counted.img"));
    for arguments in [
        &[file.as_str()][..],
        &[&file, "--for", "throughput"],
        &[&file, "--data-path", "copy", "--queues", "2"],
        &["ram:64M", "--filter", "throttle,bandwidth=1G", "--filter", "fault,op=read,offset=32M,length=4K"],
    ] {
        let device = tool.attach(arguments)?;
        let disk = Device::open(device.path())?;
        let mut page = Aligned::new(4096);
        for number in 0..200 {
            disk.write(number * 4096, &page, false).context("a write")?;
            disk.read(number * 4096, &mut page).context("a read")?;
        }
        disk.fill(5, 8 * MIB, 8 * MIB)?;
        disk.flush().context("a flush")?;
        disk.discard(8 * MIB, MIB).context("a discard")?;
        let fails = arguments[0].starts_with("ram");
        ensure!(disk.read(32 * MIB, &mut page).is_err() == fails, "the fault is not where it was planted");
        drop(disk);
        // What udev reads when a writer has closed the disk comes to both, but not at one moment.
        let mut told = Ok(([0; 4], [0; 4]));
        let agree = wait_until(Duration::from_secs(10), || {
            told = of_kernel(&device).and_then(|kernel| Ok((kernel, of_server(&tool, &device)?)));
            told.as_ref().is_ok_and(|(kernel, server)| kernel == server)
        });
        let (kernel, server) = told?;
        ensure!(agree, "{arguments:?}: the kernel counts {kernel:?}, the server {server:?}");
        let stats = tool.stats(device.id())?;
        ensure!(stats.engine == "ublk" && stats.name == device.path(), "{stats:?}");
        ensure!(stats.data_path.as_ref() == Some(&device.info.data_path), "{stats:?}");
        ensure!(stats.op("discard")?.requests == 1, "{stats:?}");
        // Memory has no cache to flush.
        ensure!((stats.op("flush")?.requests > 0) != fails, "{stats:?}");
        ensure!((stats.op("read")?.errors > 0) == fails, "{stats:?}");
        ensure!(stats.op("write")?.errors == 0, "{stats:?}");
        ensure!(stats.queues.len() == usize::from(device.info.queues), "{stats:?}");
        let of_queues: u64 = stats.queues.iter().flat_map(|queue| &queue.ops).map(|op| op.requests).sum();
        ensure!(of_queues == stats.ops.iter().map(|op| op.requests).sum::<u64>(), "{stats:?}");
        let writes = stats.op("write")?;
        let latency = writes.latency.as_ref().context("no latency of writes")?;
        // One of 32 of those that go as chains stands for them.
        let (chains, queues) = (device.info.data_path.contains("auto-buf"), u64::from(device.info.queues));
        let unmeasured = if chains { 31 * queues } else { 0 };
        let expected = writes.requests.saturating_sub(unmeasured)..=writes.requests;
        ensure!(expected.contains(&latency.measured), "{latency:?} of {} writes", writes.requests);
        // A virtual machine takes its time, but not minutes for a page.
        ensure!(latency.p50_ns > 100 && latency.max_ns < 60_000_000_000, "{latency:?}");
        ensure!(latency.p50_ns <= latency.p99_ns && latency.p99_ns <= latency.max_ns, "{latency:?}");
        device.detach()?;
    }
    Ok(())
}

/// What waits is seen while it waits, and for how long when it has ended.
fn in_flight() -> Outcome {
    let tool = Blockhaus::new();
    let slow = "fault,op=read,offset=32M,length=4K,delay_ms=3000,errno=none";
    let device = tool.attach(&["ram:64M", "--filter", slow])?;
    let path = device.path().to_owned();
    let reader = thread::spawn(move || -> Outcome {
        let disk = Device::open(&path)?;
        disk.read(32 * MIB, &mut Aligned::new(4096)).context("the slow read")
    });
    let seen = || tool.stats(device.id()).is_ok_and(|stats| stats.queues[0].in_flight == 1);
    ensure!(wait_until(Duration::from_secs(3), seen), "a request that waits is not seen in flight");
    reader.join().map_err(|_| Fail::new("the reader panicked"))??;
    // Udev looks at a disk that a writer has closed.
    let none = || tool.stats(device.id()).is_ok_and(|stats| stats.queues[0].in_flight == 0);
    ensure!(wait_until(Duration::from_secs(10), none), "what has ended is still in flight");
    let stats = tool.stats(device.id())?;
    let longest = stats.op("read")?.latency.as_ref().context("no latency of reads")?.max_ns;
    ensure!((2_900_000_000..20_000_000_000).contains(&longest), "a read of 3 s took {longest} ns");
    let interval = tool.answer(&["stats", &device.id().to_string(), "--every", "1", "--count", "1"])?;
    ensure!(interval.stdout.contains(" in flight\n"), "{}", interval.stdout);
    device.detach()
}

/// However much is done for a disk while it is looked at, no more is in flight than its queues take.
fn bounded() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:64M", "--queues", "1", "--depth", "2"])?;
    let (path, ends) = (device.path().to_owned(), Arc::new(AtomicBool::new(false)));
    let end = ends.clone();
    let reader = thread::spawn(move || -> Outcome<u64> {
        let (disk, mut page) = (Device::open_read_only(&path)?, Aligned::new(4096));
        let mut reads = 0;
        while !end.load(Ordering::Relaxed) {
            disk.read(reads % 1024 * 4096, &mut page).context("a read")?;
            reads += 1;
        }
        Ok(reads)
    });
    let looked = (0..10).try_for_each(|_| {
        let stats = tool.stats(device.id())?;
        let (in_flight, read) = (stats.queues[0].in_flight, stats.op("read")?);
        ensure!(in_flight <= 2, "{in_flight} requests in flight of a queue of depth 2");
        let measured = read.latency.as_ref().map_or(0, |latency| latency.measured);
        ensure!(measured <= read.requests, "{measured} of {} reads were measured", read.requests);
        Ok(())
    });
    ends.store(true, Ordering::Relaxed);
    let reads = reader.join().map_err(|_| Fail::new("the reader panicked"))??;
    looked?;
    ensure!(reads > 100, "there were only {reads} reads to look at");
    device.detach()
}

/// Every device is in the metrics, and one whose server hangs is said to.
fn metrics() -> Outcome {
    let tool = Blockhaus::new();
    let (one, other) = (tool.attach(&["ram:64M"])?, tool.attach(&["ram:64M"])?);
    Device::open(one.path())?.fill(5, 0, MIB)?;
    let text = tool.answer(&["metrics"])?.stdout;
    for device in [&one, &other] {
        let line =
            format!("blockhaus_server_answers{{about=\"{}\",pid=\"{}\"}} 1", device.path(), device.info.pid);
        ensure!(text.contains(&line), "no {line} in {text}");
    }
    let written = format!(
        "blockhaus_request_bytes_total{{disk=\"{}\",engine=\"ublk\",queue=\"0\",op=\"write\"}} {MIB}",
        one.path()
    );
    ensure!(text.contains(&written), "no {written} in {text}");
    let pid = other.info.pid as i32;
    // SAFETY: kill(2) touches no memory; the process is a server of ours.
    ensure!(unsafe { libc::kill(pid, libc::SIGSTOP) } == 0, "cannot stop the server");
    let hung = tool.answer(&["metrics"]);
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGCONT) };
    let hung = hung?;
    let line = format!("blockhaus_server_answers{{about=\"{}\",pid=\"{pid}\"}} 0", other.path());
    ensure!(hung.stdout.contains(&line) && hung.status.success(), "no {line} in {}", hung.stdout);
    ensure!(hung.stderr.contains("does not answer"), "{}", hung.stderr);
    one.detach()?;
    other.detach()
}
