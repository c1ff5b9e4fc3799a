//! Much at once: fio with verification, and file systems.

use std::path::Path;

use crate::world::{Disk, World, tool};

/// Writes all of it in any order and reads it back, with so many requests at once.
fn verify(path: &Path, depth: u32, jobs: u32, direct: bool, block: &str) {
    let (filename, depth) = (format!("--filename={}", path.display()), format!("--iodepth={depth}"));
    let (jobs, size) = (format!("--numjobs={jobs}"), format!("{}M", 32 / jobs));
    let (block, direct) = (format!("--bsrange={block}"), format!("--direct={}", u8::from(direct)));
    let (size, increment) = (format!("--size={size}"), format!("--offset_increment={size}"));
    tool(
        "fio",
        &[
            "--name=verify",
            "--rw=randwrite",
            "--ioengine=libaio",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--do_verify=1",
            "--end_fsync=1",
            "--group_reporting",
            "--thread",
            &filename,
            &depth,
            &jobs,
            &size,
            &increment,
            &block,
            &direct,
        ],
    );
}

/// Depths and threads with each other; the ways (the file, the loop device; with and without the page cache) and lengths in turn.
#[test]
fn what_fio_writes_it_reads() {
    let Some(world) = World::new() else { return };
    let cases = [
        // threads of ours, depth, jobs, of the file, direct, block
        ("1", 1, 1, true, true, "4k-4k"),
        ("1", 64, 1, true, false, "4k-4k"),
        ("4", 1, 4, true, false, "512-512"),
        ("4", 64, 4, true, true, "1k-300k"),
        ("1", 1, 1, false, false, "4k-4k"),
        ("1", 64, 4, false, true, "4k-4k"),
        ("4", 1, 4, false, true, "64k-64k"),
        ("4", 64, 1, false, false, "1k-1M"),
    ];
    for (at, (threads, depth, jobs, of_file, direct, block)) in cases.into_iter().enumerate() {
        let spec = ["ram:32M", "file:disk.img,size=32M"][at % 2];
        let queues = ["1", "2"][at / 2 % 2];
        let disk = world.attach(&[spec, "--connections", threads, "--queues", queues]);
        verify(if of_file { &disk.file } else { &disk.path }, depth, jobs, direct, block);
        world.detach(&disk);
    }
}

/// One slot is enough, whatever comes.
#[test]
fn more_requests_than_slots_wait() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:32M", "--depth", "1", "--connections", "4"]);
    verify(&disk.path, 64, 4, true, "16k-16k");
    verify(&disk.file, 64, 4, true, "16k-16k");
    let stats = world.ok(&["stats", &disk.name]);
    assert!(stats.contains("write"), "{stats}");
    world.detach(&disk);
}

#[test]
fn ext4_lives_on_it() {
    file_system("ext4", &["-q"], &["fsck.ext4", "-f", "-n"]);
}

#[test]
fn xfs_lives_on_it() {
    file_system("xfs", &["-q"], &["xfs_repair", "-n"]);
}

#[test]
fn btrfs_lives_on_it() {
    file_system("btrfs", &["-q"], &["btrfs", "check"]);
}

fn file_system(kind: &str, options: &[&str], check: &[&str]) {
    let Some(world) = World::new() else { return };
    let known = std::fs::read_to_string("/proc/filesystems").unwrap();
    if !known.lines().any(|line| line.trim_start().ends_with(kind)) {
        let _ = std::process::Command::new("modprobe").args(["-q", kind]).status();
        let known = std::fs::read_to_string("/proc/filesystems").unwrap();
        if !known.lines().any(|line| line.split_whitespace().next_back() == Some(kind)) {
            return eprintln!("SKIPPED: this kernel has no {kind}");
        }
    }
    let disk = world.attach(&["file:disk.img,size=400M", "--connections", "2"]);
    let device = disk.path.to_str().unwrap();
    tool(&format!("mkfs.{kind}"), &[options, &[device]].concat());
    let at = world.home.path().join("mnt");
    std::fs::create_dir(&at).unwrap();
    let mount =
        |disk: &Disk| tool("mount", &["-o", "discard", disk.path.to_str().unwrap(), at.to_str().unwrap()]);
    mount(&disk);
    // A tree that everybody has, and a file that says whether its bytes are right.
    tool("cp", &["-r", concat!(env!("CARGO_MANIFEST_DIR"), "/src"), at.to_str().unwrap()]);
    verify(&at.join("big"), 16, 1, false, "4k-64k");
    tool("rm", &[at.join("big").to_str().unwrap()]);
    tool("fstrim", &[at.to_str().unwrap()]);
    tool("umount", &[at.to_str().unwrap()]);
    tool(check[0], &[&check[1..], &[device]].concat());
    world.detach(&disk);
    // Another server, the same data.
    let disk = world.attach(&["file:disk.img"]);
    mount(&disk);
    tool("diff", &["-r", concat!(env!("CARGO_MANIFEST_DIR"), "/src"), at.join("src").to_str().unwrap()]);
    tool("umount", &[at.to_str().unwrap()]);
    world.detach(&disk);
}

/// Requests that take a tenth of a second each are on their way together, by the loop device and by the file.
#[test]
fn as_many_requests_are_under_way_as_were_sent() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:8M", "--depth", "64", "--filter", "fault,op=read,delay_ms=100"]);
    for path in [&disk.path, &disk.file] {
        let began = std::time::Instant::now();
        let filename = format!("--filename={}", path.display());
        let load =
            ["--name=read", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=64"];
        tool("fio", &[&load[..], &["--number_ios=256", "--size=8M", &filename]].concat());
        // 25 s one at a time; 0.4 s and what fio takes to start with 64 at a time.
        assert!(began.elapsed() < std::time::Duration::from_secs(8), "{:?}", began.elapsed());
    }
    world.detach(&disk);
}
