//! A full disk below a sparse file: the write fails, the device lives.

use super::{Entry, Where, entry};
use crate::blockhaus::Blockhaus;
use crate::check::device::{Aligned, Device};
use crate::check::model::Target;
use crate::check::pattern;
use crate::ensure;
use crate::home::{self, Loop, Mounted};
use crate::outcome::{Context, Outcome};
use crate::run::Cmd;

pub(super) const TESTS: &[Entry] = &[entry("bad/enospc", 90, Where::Ublk, enospc)];

const MIB: u64 = 1 << 20;
const PIECE: u64 = 256 * 1024;

fn enospc() -> Outcome {
    let tool = Blockhaus::new();
    let image = home::file("small.img", 32 * MIB)?;
    let below = Loop::new(&image)?;
    Cmd::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal", &below.device])
        .timeout(60)
        .ok()?;
    let mounted = Mounted::new(&below.device, "small")?;
    let sparse = mounted.path().join("sparse.img");
    let device = tool.attach(&[&format!("file:{},size=256M", sparse.display()), "--queues", "2"])?;
    let disk = Device::open(device.path())?;
    let mut buffer = Aligned::new(PIECE as usize);
    let mut written = 0;
    let error = loop {
        ensure!(written < 64 * MIB, "64 MiB fit on a disk of 32");
        pattern::sectors(1, written / 512, 1, &mut buffer);
        match disk.try_write(written, &buffer) {
            Ok(()) => written += PIECE,
            Err(error) => break error,
        }
    };
    ensure!(
        error.raw_os_error() == Some(libc::ENOSPC),
        "a write to a full disk fails with {error}, not with ENOSPC"
    );
    ensure!(written >= 8 * MIB, "the disk was full after {written} bytes");
    // It lives: what was written reads back, and can be written again.
    disk.expect(1, 0, written, 0)?;
    disk.fill(1, 0, 4 * MIB).context("writing again what has its place")?;
    disk.flush().context("flush on a full disk")?;
    let state = tool.state(device.id())?;
    ensure!(state.as_deref() == Some("live"), "after ENOSPC the device is {state:?}");
    // A discard makes room, and then writes work again.
    disk.discard(MIB, 4 * MIB).context("discard on a full disk")?;
    disk.fill(2, 100 * MIB, 2 * MIB).context("write after a discard made room")?;
    disk.expect(2, 100 * MIB, 2 * MIB, 100 * MIB)?;
    disk.expect(1, 5 * MIB, written - 5 * MIB, 5 * MIB)?;
    drop(disk);
    device.detach()?;
    mounted.unmount()?;
    Cmd::new("e2fsck").args(["-f", "-n", &below.device]).timeout(60).ok()?;
    Ok(())
}
