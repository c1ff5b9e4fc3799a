//! Whether KVM can be used: only a guest that has booted proves it.
//! `/dev/kvm` may be there and still not run a stock kernel.

use std::fs::{self, OpenOptions};
use std::time::Duration;

use anyhow::Result;

use super::machine::Machine;
use super::qemu::Accelerator;
use super::watch::Outcome;
use crate::{paths, say};

/// How long a guest may take to prove it.
const PROBE: Duration = Duration::from_secs(10);

/// Whether a guest boots with KVM here; tried once for each host and kernel.
pub(super) fn works(kernel: &str) -> Result<bool> {
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let file = paths::vm_dir("kvm")?.join(paths::content_hash(&[&host()]));
    match fs::read_to_string(&file).as_deref() {
        Ok("yes") => return Ok(true),
        Ok("no") => return Ok(false),
        _ => {}
    }
    say::step("there is a /dev/kvm; finding out whether it boots a guest (once, 10 s at most)");
    let machine = Machine { timeout: Some(PROBE), ..Machine::with_kernel(kernel) };
    let booted = machine.boot(Accelerator::Kvm, Some("true"), PROBE, &mut |_| {});
    let works = matches!(booted, Ok(Outcome::Exited(status)) if status.success());
    say::step(if works { "KVM works" } else { "KVM does not work here; emulating instead" });
    paths::write_whole(&file, if works { b"yes" } else { b"no" })?;
    Ok(works)
}

/// What the verdict depends on: the host's kernel and CPU.
fn host() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    format!("{kernel}{model}")
}
