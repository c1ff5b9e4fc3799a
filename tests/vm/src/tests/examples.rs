//! The examples of plugged-in backends, each a whole command line of its own.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Entry, Where, entry};
use crate::blockhaus::Blockhaus;
use crate::check::device::{Aligned, Device};
use crate::check::fio;
use crate::check::model::{self, Plan};
use crate::outcome::{Context, Fail, Outcome};
use crate::{ensure, home};

pub(super) const TESTS: &[Entry] = &[
    entry("example/blocking_backend", 150, Where::Ends, blocking),
    entry("example/async_backend", 150, Where::Ends, mirror),
];

const MIB: u64 = 1 << 20;

/// The binary; without it a skip, in CI a failure.
pub(super) fn payload(path: &str) -> Outcome<PathBuf> {
    let path = PathBuf::from(path);
    if path.exists() {
        return Ok(path);
    }
    let why = format!("{} is not there", path.display());
    Err(if std::env::var_os("VMTEST_REQUIRE_EXAMPLES").is_some() { Fail::new(why) } else { Fail::skip(why) })
}

fn served(binary: PathBuf, spec: &str) -> Outcome {
    let tool = Blockhaus::at(binary);
    let device = tool.attach(&[spec, "--queues", "2", "--depth", "32"])?;
    let disk = Device::open(device.path())?;
    let plan = Plan { seed: 21, threads: 3, operations: 150, start: 0, len: 24 * MIB };
    let model = model::verify(&disk, plan).context("the model and the disk differ")?;
    model.check(&disk).context("the model and the disk differ at a second reading")?;
    let block = device.info.block_size;
    drop(disk);
    fio::verify(device.path(), block, 32, 26 * MIB, 24 * MIB)?;
    // It serves the usual specs as well.
    let usual = tool.attach(&["ram:8M"])?;
    Device::open(usual.path())?.fill(1, 0, MIB)?;
    usual.detach()?;
    device.detach()
}

fn blocking() -> Outcome {
    served(payload("/payload/examples/blocking_backend")?, "heap:64M")
}

/// Both sides of the mirror hold the same in the end.
fn mirror() -> Outcome {
    let binary = payload("/payload/examples/async_backend")?;
    let (one, other) = (home::file("mirror-a.img", 64 * MIB)?, home::file("mirror-b.img", 64 * MIB)?);
    served(binary, &format!("mirror:{one},second={other}"))?;
    ensure!(contents(Path::new(&one), Path::new(&other))? > 0, "nothing was written to either side");
    Ok(())
}

/// Compares two files; returns how many of their 64 KiB pieces hold data.
fn contents(one: &Path, other: &Path) -> Outcome<u32> {
    let open = |path: &Path| std::fs::File::open(path).context(format!("cannot open {}", path.display()));
    let (a, b) = (open(one)?, open(other)?);
    let (mut left, mut right) = (Aligned::new(65536), Aligned::new(65536));
    let mut data = 0;
    for at in (0..64 * MIB).step_by(65536) {
        a.read_exact_at(&mut left, at).context("read of the first side")?;
        b.read_exact_at(&mut right, at).context("read of the second side")?;
        ensure!(*left == *right, "the sides of the mirror differ near byte {at}");
        data += u32::from(left.iter().any(|&byte| byte != 0));
    }
    Ok(data)
}
