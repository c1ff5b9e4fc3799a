//! Bad input of another kind: backing that somebody else holds.

use super::bad::refused;
use super::{Entry, Where, entry};
use crate::blockhaus::Blockhaus;
use crate::check::device::Device;
use crate::check::model::Target;
use crate::home::{Loop, Mounted};
use crate::outcome::{Context, Fail, Outcome};
use crate::run::Cmd;
use crate::{ensure, home};

pub(super) const TESTS: &[Entry] = &[
    entry("bad/attached-twice", 60, Where::Ends, attached_twice),
    entry("bad/mounted-block-device", 60, Where::Ends, mounted_block_device),
    entry("bad/held-block-device", 60, Where::Ends, held_block_device),
    entry("bad/read-only-file", 60, Where::Ends, read_only_file),
    entry("bad/no-disk-at-all", 60, Where::Ends, no_disk_at_all),
    entry("life/file-on-block-device", 90, Where::Ends, block_device),
    entry("life/file-without-direct-io", 60, Where::Ends, without_direct),
];

const MIB: u64 = 1 << 20;

fn attached_twice() -> Outcome {
    let tool = Blockhaus::new();
    let path = home::path("twice.img");
    let first = tool.attach(&[&format!("file:{path},size=16M")])?;
    Device::open(first.path())?.fill(1, 0, MIB)?;
    refused(&[&format!("file:{path}")], &[&path], &["detach", "--read-only", "lock", "in use"])?;
    // By another name, too: it is the file that is locked.
    let link = home::path("twice-link.img");
    std::fs::hard_link(&path, &link).context("hard link")?;
    refused(&[&format!("file:{link}")], &[&link], &["detach", "--read-only", "lock", "in use"])?;
    Device::open(first.path())?.expect(1, 0, MIB, 0)?;
    first.detach()?;
    tool.attach(&[&format!("file:{path}")]).context("attach after the first has gone")?.detach()
}

fn mounted_block_device() -> Outcome {
    let image = home::file("mounted.img", 32 * MIB)?;
    let below = Loop::new(&image)?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", &below.device]).timeout(60).ok()?;
    let mounted = Mounted::new(&below.device, "held")?;
    std::fs::write(mounted.path().join("file"), "data").context("write")?;
    refused(
        &[&format!("file:{}", below.device)],
        &[&below.device, &mounted.path().display().to_string()],
        &["umount", "unmount", "release"],
    )?;
    mounted.unmount()?;
    Cmd::new("e2fsck").args(["-f", "-n", &below.device]).timeout(60).ok()?;
    Ok(())
}

fn held_block_device() -> Outcome {
    let image = home::file("held.img", 32 * MIB)?;
    let below = Loop::new(&image)?;
    Cmd::new("mkswap").arg(&below.device).ok()?;
    Cmd::new("swapon").arg(&below.device).ok()?;
    let result = refused(
        &[&format!("file:{}", below.device)],
        &[&below.device],
        &["swapoff", "swap", "in use", "held"],
    );
    Cmd::new("swapoff").arg(&below.device).ok()?;
    result
}

fn read_only_file() -> Outcome {
    let tool = Blockhaus::new();
    let path = home::file("immutable.img", 16 * MIB)?;
    Cmd::new("chattr").args(["+i", &path]).ok()?;
    let result = refused(&[&format!("file:{path}")], &[&path], &["--read-only"]).and_then(|()| {
        let device = tool.attach(&[&format!("file:{path}"), "--read-only"])?;
        Device::open_read_only(device.path())?.expect_zeros(0, MIB)?;
        device.detach()
    });
    Cmd::new("chattr").args(["-i", &path]).ok()?;
    result
}

fn no_disk_at_all() -> Outcome {
    refused(&["file:/dev/null"], &["/dev/null"], &["regular file", "block device"])?;
    refused(&["file:/proc/self/status"], &["/proc/self/status"], &["size", "empty", "regular"])
}

/// A block device that nobody holds is a good backing, and is held while attached.
fn block_device() -> Outcome {
    let tool = Blockhaus::new();
    let image = home::file("below.img", 32 * MIB)?;
    let below = Loop::new(&image)?;
    let device = tool.attach(&[&format!("file:{}", below.device)])?;
    ensure!(device.info.size == 32 * MIB, "a device of 32 MiB is served as {} bytes", device.info.size);
    let disk = Device::open(device.path())?;
    let plan = crate::check::model::Plan { seed: 8, threads: 2, operations: 100, start: 0, len: 16 * MIB };
    crate::check::model::verify(&disk, plan).context("the model and the disk differ")?;
    drop(disk);
    Cmd::new("mkfs.ext4").args(["-q", "-F", device.path()]).timeout(60).ok()?;
    let taken = Mounted::new(&below.device, "taken");
    ensure!(taken.is_err(), "{} could be mounted while it was attached", below.device);
    refused(
        &[&format!("file:{}", below.device)],
        &[&below.device],
        &["in use", "held", "lock", "busy", "detach"],
    )?;
    device.detach()?;
    Cmd::new("e2fsck").args(["-f", "-n", &below.device]).timeout(60).ok().map(drop).map_err(|fail: Fail| fail)
}

/// Where the file system has no O_DIRECT, `auto` says that it falls back, and `yes` refuses.
fn without_direct() -> Outcome {
    let tool = Blockhaus::new();
    let mounted = Mounted::with("ramfs", "ramfs", &["-t", "ramfs"])?;
    let path = mounted.path().join("disk.img").display().to_string();
    let device = tool.attach(&[&format!("file:{path},size=32M")])?;
    let said = device.info.notes.join(" ").to_lowercase();
    ensure!(
        ["direct", "buffered", "page cache"].iter().any(|word| said.contains(word)),
        "attach does not say that it serves without O_DIRECT: {said:?}"
    );
    let disk = Device::open(device.path())?;
    disk.fill(1, MIB, 4 * MIB)?;
    disk.flush().context("flush")?;
    disk.zero(2 * MIB, MIB).context("write-zeroes where the file system cannot punch holes")?;
    disk.expect(1, MIB, MIB, MIB)?;
    disk.expect_zeros(2 * MIB, MIB)?;
    disk.expect(1, 3 * MIB, 2 * MIB, 3 * MIB)?;
    drop(disk);
    device.detach()?;
    refused(
        &[&format!("file:{path},direct=yes")],
        &[&path],
        &["direct=auto", "direct=no", "leave direct=yes"],
    )?;
    tool.attach(&[&format!("file:{path},direct=no")])?.detach()?;
    mounted.unmount()
}
