//! Taking the device away: on a thread of its own, since every step may wait for the disk's users.

use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::Disk;
use super::served::NODES_GONE;
use crate::error::{Error, Kind, Result};
use crate::holders::{self, Holder};
use crate::port::clock::{self, Deadline, Duration};
use crate::registry::devices;

/// For how long a disk that is only open counts as used by somebody passing by: udev, a partition
/// scan.
const PASSING: Duration = Duration::from_secs(2);

/// For how long where all who have it open are udev's own, or gone again when we look; less than a
/// detach waits altogether.
const UDEV: Duration = Duration::from_secs(7);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// How a stop ended.
pub(super) enum Stopped {
    /// It goes on as before.
    Refused(Box<dyn Disk>, Error),
    /// The device is gone, or as far gone as it will get.
    Gone(Result<()>),
}

/// Takes the device away unless it is in use; with `force`, which may be set meanwhile, also then.
/// One that `must_go` is dropped where the kernel refuses, which tries once more, whoever has it open;
/// what is left even then is for `gc`.
pub(super) fn stop(device: Box<dyn Disk>, force: &AtomicBool, must_go: bool) -> Stopped {
    let node = device.node();
    let stopped = match attempt(device, force) {
        Stopped::Refused(device, error) if must_go => {
            drop(device);
            Stopped::Gone(Err(error))
        }
        other => other,
    };
    if let (Stopped::Gone(_), Some(node)) = (&stopped, node) {
        devices::gone_by(node.name, Deadline::after(NODES_GONE));
    }
    stopped
}

fn attempt(device: Box<dyn Disk>, force: &AtomicBool) -> Stopped {
    let patience = Deadline::after(PASSING);
    let patience_with_udev = Deadline::after(UDEV);
    loop {
        let forced = force.load(Ordering::Relaxed);
        let users = if forced { Vec::new() } else { device.users() };
        let lasting = users.iter().any(Holder::is_lasting);
        if users.is_empty() {
            match device.stop(!forced) {
                Ok(()) => break,
                // Somebody opened it between our look and the kernel's, or is where we cannot see.
                Err(error) if error.kind() == Kind::Busy && !forced => {}
                Err(error) => return Stopped::Refused(device, error),
            }
        }
        // What was set meanwhile is obeyed; what passes by is waited for.
        let only_udev = users.iter().all(Holder::is_udev);
        let passed = if only_udev { patience_with_udev.passed() } else { patience.passed() };
        if !force.load(Ordering::Relaxed) && (lasting || passed) {
            let error = in_use(&*device, &users);
            return Stopped::Refused(device, error);
        }
        clock::sleep(PAUSE);
    }
    device.drain(&|| force.load(Ordering::Relaxed));
    Stopped::Gone(device.finish())
}

fn in_use(device: &dyn Disk, users: &[Holder]) -> Error {
    let name = device.name();
    let why = match users {
        [] => "it is in use, by whom the kernel does not say".to_owned(),
        users => format!("it is in use: {}", holders::describe(users)),
    };
    let cure =
        match users.iter().find_map(|user| if let Holder::Mount { at, .. } = user { Some(at) } else { None })
        {
            Some(at) => format!("run umount {at} first, or force it"),
            None => "end that first, or force it".to_owned(),
        };
    let how = device.node().map(|node| format!(" with `blockhaus detach --force {}`", node.name));
    Error::new(Kind::Busy, format!("cannot detach {name}"), why)
        .cure(format!("{cure}{}", how.unwrap_or_default()))
}
