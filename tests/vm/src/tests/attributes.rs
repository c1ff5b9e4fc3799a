//! What the kernel is told about a disk, and where its queue threads run.

use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, Device as Attached};
use crate::check::device::{Aligned, Device};
use crate::check::fio;
use crate::check::model::{self, Plan, Target};
use crate::outcome::{Context, Outcome};
use crate::{ensure, home, procfs};

pub(super) const TESTS: &[Entry] = &[
    entry("life/parameters", 60, Where::Ublk, parameters),
    entry("life/block-size-4096", 120, Where::Ends, block_size),
    entry("life/no-partition-scan", 60, Where::Ends, no_partition_scan),
    entry("life/queue-threads", 60, Where::Ublk, queue_threads),
    entry("life/null", 60, Where::Ends, null),
];

const MIB: u64 = 1 << 20;

fn number(device: &Attached, name: &str) -> Outcome<u64> {
    device.sys(name)?.parse().context(format!("{name} is no number"))
}

/// Block sizes, cache, FUA, discard and write-zeroes as the backends are.
fn parameters() -> Outcome {
    let tool = Blockhaus::new();
    let file = home::path("parameters.img");
    for (spec, volatile) in [("ram:64M".to_string(), false), (format!("file:{file},size=64M"), true)] {
        let device = tool.attach(&[&spec])?;
        let logical = number(&device, "queue/logical_block_size")?;
        ensure!(
            logical == u64::from(device.info.block_size),
            "{spec}: {logical} byte blocks, attach says {}",
            device.info.block_size
        );
        ensure!(
            number(&device, "queue/physical_block_size")? >= logical,
            "{spec}: physical blocks below logical ones"
        );
        ensure!(number(&device, "queue/rotational")? == 0, "{spec}: the disk says it rotates");
        ensure!(number(&device, "queue/discard_max_bytes")? >= MIB, "{spec}: no useful discard");
        ensure!(number(&device, "queue/write_zeroes_max_bytes")? >= MIB, "{spec}: no useful write-zeroes");
        ensure!(number(&device, "queue/max_sectors_kb")? >= 64, "{spec}: requests of less than 64 KiB");
        ensure!(number(&device, "ro")? == 0, "{spec}: read-only without having been asked");
        let cache = device.sys("queue/write_cache")?;
        if volatile {
            ensure!(cache == "write back", "{spec}: write_cache is {cache:?}: flushes never reach the file");
            ensure!(number(&device, "queue/fua")? == 1, "{spec}: no FUA");
        }
        device.detach()?;
    }
    Ok(())
}

/// A disk of 4 KiB blocks refuses less and works with more.
fn block_size() -> Outcome {
    let tool = Blockhaus::new();
    let file = home::path("blocks.img");
    for spec in ["ram:64M".to_string(), format!("file:{file},size=64M")] {
        let device = tool.attach(&[&spec, "--block-size", "4096", "--queues", "2"])?;
        ensure!(device.info.block_size == 4096, "{spec}: asked for 4096, got {}", device.info.block_size);
        ensure!(number(&device, "queue/logical_block_size")? == 4096, "{spec}: the kernel has other blocks");
        let disk = Device::open(device.path())?;
        ensure!(disk.try_write(512, &Aligned::new(512)).is_err(), "{spec}: a write of 512 bytes was taken");
        let plan = Plan { seed: 4096, threads: 3, operations: 150, start: 0, len: 32 * MIB };
        model::verify(&disk, plan).context(format!("{spec}: the model and the disk differ"))?;
        drop(disk);
        fio::verify(device.path(), 4096, 16, 33 * MIB, 16 * MIB)?;
        device.detach()?;
    }
    Ok(())
}

/// With the option partitions stay hidden; without it they are there.
fn no_partition_scan() -> Outcome {
    let tool = Blockhaus::new();
    let spec = format!("file:{},size=64M", home::path("scan.img"));
    let device = tool.attach(&[&spec])?;
    let path = device.path().to_string();
    crate::run::Cmd::new("sfdisk").args(["-q", &path]).stdin("label: gpt\nsize=8MiB\n").ok()?;
    device.detach()?;
    let there = |device: &Attached| std::path::Path::new(&format!("{}p1", device.path())).exists();
    let device = tool.attach(&[&spec])?;
    let appeared = crate::run::wait_until(std::time::Duration::from_secs(5), || there(&device));
    ensure!(appeared, "a new attach does not show the partition within 5 s");
    device.detach()?;
    let device = tool.attach(&[&spec, "--no-partition-scan"])?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    ensure!(!there(&device), "--no-partition-scan shows a partition");
    device.detach()
}

/// The flags PR_SET_IO_FLUSHER gives a thread on this kernel, found by trying.
pub(super) fn io_flusher_flags() -> Outcome<u64> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    std::thread::spawn(|| {
        // SAFETY: gettid takes nothing and cannot fail.
        let stat = format!("/proc/self/task/{}/stat", unsafe { libc::gettid() });
        let flags = || procfs::stat(&stat).map(|stat| stat.flags).context("cannot read our own stat");
        let set = |on: libc::c_ulong| {
            // SAFETY: this prctl takes numbers alone and changes flags of this thread, which ends
            // here.
            let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, 0, 0, 0) };
            let error = std::io::Error::last_os_error();
            ensure!(result == 0, "PR_SET_IO_FLUSHER is refused to the test itself: {error}");
            Ok(())
        };
        // On and off first: using the privilege leaves a flag of its own.
        set(1)?;
        set(0)?;
        let before = flags()?;
        set(1)?;
        let gained = flags()? & !before;
        ensure!(gained != 0, "PR_SET_IO_FLUSHER shows in no flag: the test cannot see anything");
        Ok(gained)
    })
    .join()
    .unwrap_or_else(|_| Err(crate::outcome::Fail::new("the trying thread panicked")))
}

/// Queue threads are where the kernel wants them and may not wait for their own disk.
fn queue_threads() -> Outcome {
    let wanted = io_flusher_flags()?;
    let tool = Blockhaus::new();
    let device = tool.attach(&[&format!("file:{},size=64M", home::path("threads.img")), "--queues", "2"])?;
    Device::open(device.path())?.fill(1, 0, 4 * MIB)?;
    let status = device.status()?;
    let mut queues: Vec<u16> = status.queue_threads.iter().map(|thread| thread.queue).collect();
    queues.sort_unstable();
    ensure!(queues == [0, 1], "status names threads for the queues {queues:?}");
    let pid = device.info.pid;
    for thread in &status.queue_threads {
        let task = format!("/proc/{pid}/task/{}", thread.tid);
        let stat = procfs::stat(&format!("{task}/stat"))
            .context(format!("queue {}: no thread {}", thread.queue, thread.tid))?;
        ensure!(
            stat.flags & wanted == wanted,
            "queue {}: thread {} has flags {:#x} without {wanted:#x}: no IO_FLUSHER",
            thread.queue,
            stat.comm,
            stat.flags
        );
        ensure!(thread.io_flusher, "queue {}: status denies the IO_FLUSHER that is there", thread.queue);
        let mask = procfs::cpu_list(&device.sys(&format!("mq/{}/cpu_list", thread.queue))?);
        let allowed =
            procfs::field(format!("{task}/status"), "Cpus_allowed_list").context("no Cpus_allowed_list")?;
        let cpus = procfs::cpu_list(&allowed);
        ensure!(
            !cpus.is_empty() && cpus.iter().all(|cpu| mask.contains(cpu)),
            "queue {}: pinned to {allowed}, the kernel's mask is {mask:?}",
            thread.queue
        );
        ensure!(
            procfs::cpu_list(&thread.cpus) == cpus,
            "queue {}: status says {}, the thread has {allowed}",
            thread.queue,
            thread.cpus
        );
    }
    // What io_uring starts for them inherits the flags when they were set before the ring was made.
    for tid in procfs::threads(pid) {
        if let Some(stat) = procfs::stat(&format!("/proc/{pid}/task/{tid}/stat")) {
            ensure!(
                !stat.comm.starts_with("iou-") || stat.flags & wanted == wanted,
                "{} has no IO_FLUSHER",
                stat.comm
            );
        }
    }
    device.detach()
}

/// The benchmark's backend takes everything, keeps nothing, and says so.
fn null() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["null:1G", "--queues", "2"])?;
    let said = device.info.notes.join(" ").to_lowercase();
    let warns = ["undefined", "discard", "benchmark", "lost", "nothing", "not kept"]
        .iter()
        .any(|word| said.contains(word));
    ensure!(warns, "attach does not say that null: keeps nothing: {said:?}");
    let disk = Device::open(device.path())?;
    disk.fill(1, 0, 8 * MIB)?;
    disk.flush().context("flush")?;
    disk.discard(0, MIB).context("discard")?;
    disk.zero(0, MIB).context("write-zeroes")?;
    let mut buffer = Aligned::new(MIB as usize);
    disk.read(0, &mut buffer).context("read")?;
    drop(disk);
    device.detach()
}
