//! The file as a file: any bytes, its end, its holes, what is durable.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::world::{World, tool};

const SIZE: usize = 1 << 20;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn fallocate(file: &File, mode: i32, offset: usize, len: usize) -> Result<(), i32> {
    // SAFETY: plain numbers and an open descriptor.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) }
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// What anybody may do to a file, against a vector. Blocks of 4096 bytes, so that most of it takes the blocksize filter.
#[test]
fn any_bytes_can_be_written_read_and_zeroed() {
    let Some(world) = World::new() else { return };
    for spec in ["ram:1M", "file:disk.img,size=1M"] {
        let disk = world.attach(&[spec, "--block-size", "4096", "--connections", "2"]);
        let file = open(&disk.file);
        let mut model = vec![0u8; SIZE];
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        for round in 0..600 {
            let offset = random(SIZE);
            let len = (1 + random(if round % 10 == 0 { 700_000 } else { 10_000 })).min(SIZE - offset);
            let range = offset..offset + len;
            match random(5) {
                0 | 1 => {
                    let bytes: Vec<u8> = (0..len).map(|_| random(256) as u8).collect();
                    file.write_all_at(&bytes, offset as u64).unwrap();
                    model[range].copy_from_slice(&bytes);
                }
                2 => {
                    fallocate(&file, PUNCH, offset, len).unwrap();
                    model[range].fill(0);
                }
                3 => {
                    fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, offset, len).unwrap();
                    model[range].fill(0);
                }
                _ => {
                    let mut bytes = vec![1; len];
                    file.read_exact_at(&mut bytes, offset as u64).unwrap();
                    assert!(bytes == model[range], "{spec}, round {round}, {len} bytes at {offset}");
                }
            }
        }
        drop(file);
        // The loop device sees the same.
        assert!(std::fs::read(&disk.path).unwrap() == model);
        world.detach(&disk);
    }
}

#[test]
fn a_disk_ends_where_it_ends_and_keeps_its_size() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:1M"]);
    let file = open(&disk.file);
    assert_eq!(file.metadata().unwrap().len(), SIZE as u64);
    let errno = |result: std::io::Result<usize>| result.map_err(|error| error.raw_os_error().unwrap());
    assert_eq!(errno(file.write_at(&[1], SIZE as u64)), Err(libc::ENOSPC));
    assert_eq!(errno(file.write_at(&[1; 2], SIZE as u64 - 1)), Err(libc::ENOSPC));
    assert_eq!(errno(file.write_at(&[1; 2], i64::MAX as u64 - 2)), Err(libc::ENOSPC));
    assert_eq!(file.read_at(&mut [0; 9], SIZE as u64).unwrap(), 0);
    assert_eq!(file.read_at(&mut [0; 9], SIZE as u64 - 3).unwrap(), 3);
    assert_eq!(fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, SIZE - 1, 2), Err(libc::ENOSPC));
    assert_eq!(fallocate(&file, 0, 0, 4096), Err(libc::EOPNOTSUPP));
    assert_eq!(fallocate(&file, PUNCH, SIZE - 1, 1 << 40), Ok(()));
    assert_eq!(file.set_len(5).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    file.set_len(SIZE as u64).unwrap();
    let folder = disk.file.parent().unwrap();
    assert_eq!(File::create(folder.join("other")).unwrap_err().raw_os_error(), Some(libc::ENOSYS));
    assert!(std::fs::remove_file(&disk.file).is_err());
    let names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["disk"]);
    drop(file);
    world.detach(&disk);
}

/// The `log` filter below says what the disk was asked for.
#[test]
fn what_is_to_be_durable_is_flushed_or_has_fua() {
    let Some(world) = World::new() else { return };
    let log = world.home.path().join("requests.log");
    let filter = format!("log,file={}", log.display());
    let disk = world.attach(&["file:disk.img,size=1M", "--filter", &filter]);
    let said = || {
        // It is written by a thread that looks every tenth of a second.
        std::thread::sleep(std::time::Duration::from_millis(400));
        std::fs::read_to_string(&log).unwrap()
    };
    let count = |what: &str| said().lines().filter(|line| line.contains(what)).count();
    let file = open(&disk.file);
    let before = count("flush");
    file.write_all_at(&[7; 4096], 0).unwrap();
    assert_eq!((count("flush"), count("fua")), (before, 0), "{}", said());
    file.sync_data().unwrap();
    assert_eq!(count("flush"), before + 1, "{}", said());
    for flag in [libc::O_DSYNC, libc::O_SYNC] {
        let (flushes, fua) = (count("flush"), count("fua"));
        let durable = File::options().write(true).custom_flags(flag).open(&disk.file).unwrap();
        durable.write_all_at(&[8; 4096], 4096).unwrap();
        assert_eq!(count("flush") + count("fua"), flushes + fua + 1, "{}", said());
    }
    // And from the block device down.
    let before = count("flush");
    let device = open(&disk.path);
    device.write_all_at(&[9; 4096], 8192).unwrap();
    device.sync_all().unwrap();
    assert!(count("flush") > before, "{}", said());
    drop((file, device));
    world.detach(&disk);
}

#[test]
fn a_hole_gives_memory_back_and_reads_as_zeros() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:64M"]);
    let used = || {
        let status = world.json(&["status", &disk.name, "--json"]);
        status["memory"]["backend"].as_u64().unwrap()
    };
    tool(
        "dd",
        &["if=/dev/urandom", &format!("of={}", disk.path.display()), "bs=1M", "count=64", "oflag=direct"],
    );
    assert_eq!(used(), 64 << 20);
    tool("blkdiscard", &["--offset", "1M", "--length", "32M", disk.path.to_str().unwrap()]);
    assert_eq!(used(), 32 << 20);
    tool("blkdiscard", &["--zeroout", "--offset", "40M", "--length", "1M", disk.path.to_str().unwrap()]);
    let bytes = std::fs::read(&disk.path).unwrap();
    assert!(bytes[1 << 20..33 << 20].iter().all(|&byte| byte == 0));
    assert!(bytes[40 << 20..41 << 20].iter().all(|&byte| byte == 0));
    assert!(bytes[..1 << 20].iter().any(|&byte| byte != 0));
    world.detach(&disk);
}

#[test]
fn a_read_only_disk_takes_no_writes_by_any_way() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:1M", "--read-only"]);
    for path in [&disk.file, &disk.path] {
        let error = File::options().write(true).open(path).and_then(|file| file.write_at(&[1], 0)).err();
        let kind = error.map(|error| error.kind());
        assert!(
            matches!(kind, Some(ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)),
            "{kind:?} at {}",
            path.display()
        );
        assert_eq!(std::fs::read(path).unwrap().len(), SIZE);
    }
    world.detach(&disk);
}

/// An error below is the errno of whoever asked.
#[test]
fn errors_come_up_as_they_are() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:1M", "--filter", "fault,op=write,errno=ENOSPC"]);
    let file = open(&disk.file);
    assert_eq!(file.write_at(&[1; 512], 0).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(file.read_at(&mut [1; 512], 0).unwrap(), 512);
    drop(file);
    world.detach(&disk);
}

/// Longer than one request of the stack asks for, and across pieces of it.
#[test]
fn a_long_range_is_zeroed_to_its_last_byte() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:1G", "--no-loop-device"]);
    let file = open(&disk.file);
    let (start, len) = ((5 << 20) + 3, (700 << 20) + 5);
    let marks = [start - 1, start + len];
    for at in [start, start + (256 << 20), start + (512 << 20) - 1, start + len - 1].iter().chain(&marks) {
        file.write_all_at(&[9], *at as u64).unwrap();
    }
    fallocate(&file, PUNCH, start, len).unwrap();
    let mut bytes = vec![1; len + 2];
    file.read_exact_at(&mut bytes, start as u64 - 1).unwrap();
    assert_eq!((bytes[0], bytes[len + 1]), (9, 9));
    assert!(bytes[1..=len].iter().all(|&byte| byte == 0));
    drop(file);
    world.detach(&disk);
}
