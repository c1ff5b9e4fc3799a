//! The backends on real rings and real devices.

use std::process::Command;
use std::sync::Arc;

use blockhaus::backend::blocking::{BlockDevice, Blocking};
use blockhaus::backend::file::{Direct, File, Options};
use blockhaus::io::extents::{Answer, Extent, State, extents};
use blockhaus::io::{Capabilities, Errno, Flags, Op};
use blockhaus::queue::Stack;
use blockhaus::stack::{OpenOptions, SpecTable};
use played::{Disk, Request};

#[path = "harness/played.rs"]
mod played;

/// A loop device in blocks of 4096 bytes, taken away when dropped.
struct Loop {
    device: String,
    _image: tempfile::NamedTempFile,
}

impl Loop {
    /// `None` where one cannot be had, which needs root.
    fn new(size: u64) -> Option<Loop> {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(size).expect("a size");
        let made = Command::new("losetup")
            .args(["--sector-size", "4096", "--find", "--show"])
            .arg(image.path())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(Loop { device: String::from_utf8(made.stdout).ok()?.trim().to_owned(), _image: image })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// Writes, then zeroes and discards one block of the disk's, as far as it can.
fn zeroes_one_block(stack: Arc<dyn Stack>) {
    let block = u64::from(stack.geometry().logical_block_size);
    let mut disk = Disk::open(stack, 1, 4);
    for op in [Op::WriteZeroes, Op::Discard] {
        for flags in [Flags::empty(), Flags::NO_UNMAP] {
            assert_eq!(disk.call(Request::write(0, vec![7; 8192])).0, Ok(()));
            let request = Request { flags, ..Request::new(op, block, block) };
            assert_eq!(disk.call(request).0, Ok(()), "{op:?} of {block} bytes");
            let (result, bytes) = disk.call(Request::new(Op::Read, 0, 8192));
            let kept = bytes.iter().filter(|&&byte| byte == 7).count() as u64;
            // A part of a block of the device's may stay when it is discarded.
            assert!(kept == 8192 - block || (op == Op::Discard && kept == 8192), "{op:?}: {kept} are kept");
            assert_eq!(result, Ok(()));
        }
    }
    disk.close();
}

#[test]
fn a_block_device_in_the_page_cache_is_zeroed_in_blocks_that_it_has() {
    let Some(device) = Loop::new(8 << 20) else { return eprintln!("no loop device can be had; not tested") };
    let path = device.device.clone();
    let options = Options { path: path.into(), direct: Direct::No, ..Options::default() };
    let file = File::open(&options).expect("it is free");
    assert_eq!(Stack::geometry(&file).logical_block_size, 4096);
    zeroes_one_block(Arc::new(file));
    let spec = format!("file:{},direct=no", device.device);
    for options in [
        OpenOptions { block_size: Some(512), ..OpenOptions::default() },
        OpenOptions { engine_unit: Some(1), ..OpenOptions::default() },
    ] {
        let stack = SpecTable::builtin().open(&spec.parse().expect("a spec"), &options).expect("it is free");
        let asked = options.block_size.or(options.engine_unit);
        assert_eq!(Some(stack.geometry().logical_block_size), asked);
        zeroes_one_block(stack);
    }
}

#[test]
fn a_long_range_of_memory_is_zeroed_while_others_are_served() {
    const SIZE: u64 = 192 << 20;
    let spec = format!("ram:{SIZE}").parse().expect("a spec");
    let stack = SpecTable::builtin().open(&spec, &OpenOptions::default()).expect("memory");
    let mut disk = Disk::open(stack.clone(), 1, 4);
    for offset in [0, 512, (4 << 20) - 512, SIZE - 512] {
        assert_eq!(disk.call(Request::write(offset, vec![7; 512])).0, Ok(()));
    }
    let zeroes = Request { flags: Flags::NO_UNMAP, ..Request::new(Op::WriteZeroes, 512, SIZE - 1024) };
    let long = disk.ask(0, zeroes);
    let short = disk.ask(0, Request::new(Op::Read, 0, 512));
    let ended = [disk.wait(), disk.wait()];
    assert_eq!(ended.each_ref().map(|ended| ended.number), [short, long]);
    assert!(ended.iter().all(|ended| ended.result.is_ok()));
    for (offset, byte) in [(0, 7), (512, 0), ((4 << 20) - 512, 0), (SIZE - 512, 7)] {
        assert_eq!(disk.call(Request::new(Op::Read, offset, 512)).1, [byte; 512], "at {offset}");
    }
    // All of it was to stay allocated; and a discard of the same length gives it back.
    assert!(stack.memory_used().is_some_and(|used| used >= SIZE - 4096));
    assert_eq!(disk.call(Request::new(Op::Discard, 0, SIZE)).0, Ok(()));
    assert_eq!(stack.memory_used(), Some(0));
    disk.close();
}

/// Length and state of each run of a range.
fn runs(disk: &mut Disk, offset: u64, len: u64) -> Vec<(u64, State)> {
    let (result, answer) = disk.call(Request::new(Op::Extents, offset, len));
    assert_eq!(result, Ok(()));
    extents(&answer, len).map(|Extent { len, state }| (len, state)).collect()
}

const MIB: u64 = 1 << 20;

#[test]
fn a_disk_knows_what_of_it_takes_space() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = format!("file:{},size=16M", folder.path().join("disk.img").display());
    let (hole, data) = (State::HOLE | State::ZERO, State::empty());
    for (spec, filters) in [
        ("ram:16M", &[][..]),
        (&file, &[]),
        (&file, &["offset,start=0", "log,file=/dev/null"]),
        ("ram:16M", &["blocksize,size=4096", "throttle,iops=100000"]),
    ] {
        let filters: Vec<_> = filters.iter().map(|text| text.parse().expect("a filter")).collect();
        let spec = spec.parse().expect("a spec");
        let stack = SpecTable::builtin().open_with(&spec, &filters, &OpenOptions::default());
        let stack = stack.expect("it opens");
        assert!(stack.capabilities().contains(Capabilities::EXTENTS), "{spec} {filters:?}");
        let mut disk = Disk::open(stack, 1, 4);
        assert_eq!(runs(&mut disk, 0, 16 * MIB), [(16 * MIB, hole)], "{spec} {filters:?}");
        for at in (4 * MIB..5 * MIB).step_by(256 << 10) {
            assert_eq!(disk.call(Request::write(at, vec![7; 256 << 10])).0, Ok(()));
        }
        let all = [(4 * MIB, hole), (MIB, data), (11 * MIB, hole)];
        assert_eq!(runs(&mut disk, 0, 16 * MIB), all, "{spec} {filters:?}");
        assert_eq!(runs(&mut disk, 5 * MIB - 4096, 8192), [(4096, data), (4096, hole)]);
        assert_eq!(disk.call(Request::new(Op::Discard, 4 * MIB, MIB)).0, Ok(()));
        assert_eq!(runs(&mut disk, 4 * MIB, 12 * MIB), [(12 * MIB, hole)]);
        assert_eq!(disk.call(Request::new(Op::Extents, 16 * MIB, 512)).0, Err(Errno::EINVAL));
        disk.close();
    }
    let null = SpecTable::builtin().open(&"null:1M".parse().expect("a spec"), &OpenOptions::default());
    let mut disk = Disk::open(null.expect("it opens"), 1, 4);
    assert_eq!(runs(&mut disk, 0, MIB), [(MIB, State::HOLE)], "what it reads as nobody knows");
    disk.close();
}

/// A disk of the simple door whose first half is there.
struct Half {
    knows: bool,
}

impl BlockDevice for Half {
    fn size(&self) -> u64 {
        MIB
    }

    fn read_at(&self, bytes: &mut [u8], _offset: u64) -> std::io::Result<()> {
        bytes.fill(0);
        Ok(())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn knows_extents(&self) -> bool {
        self.knows
    }

    fn extents(&self, offset: u64, len: u64, answer: &mut Answer<'_>) -> std::io::Result<()> {
        let there = (MIB / 2).saturating_sub(offset).min(len);
        answer.add(there, State::empty());
        answer.add(len - there, State::HOLE | State::ZERO);
        Ok(())
    }
}

#[test]
fn a_disk_of_plain_methods_may_know_as_well_and_who_does_not_is_not_asked() {
    let mut disk = Disk::open(Arc::new(Blocking::new(Half { knows: true })), 1, 4);
    let half = MIB / 2;
    assert_eq!(runs(&mut disk, 0, MIB), [(half, State::empty()), (half, State::HOLE | State::ZERO)]);
    assert_eq!(runs(&mut disk, half, 512), [(512, State::HOLE | State::ZERO)]);
    disk.close();
    let mut disk = Disk::open(Arc::new(Blocking::new(Half { knows: false })), 1, 4);
    assert_eq!(disk.call(Request::new(Op::Extents, 0, MIB)).0, Err(Errno::EOPNOTSUPP));
    disk.close();
}
