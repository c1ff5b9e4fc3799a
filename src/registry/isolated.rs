//! Kernel commands that may never return, in a process of their own.
//!
//! A STOP or a DEL can sit uninterruptibly in the kernel, and its process cannot exit then. So
//! the command line starts itself again for it, waits as long as it has time, and goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::control::received_error;
use super::devices;
use crate::engine::ublk::control::Control;
use crate::engine::{DeviceName, Engine, fuse, nbd};
use crate::error::{Error, Kind, Result};
use crate::port::clock::{Deadline, Duration};
use crate::port::process::{self, Helper};

/// The hidden verb of the helper.
pub const VERB: &str = "isolated";

/// The order behind it that makes the process a keeper; see `server/keeper.rs`.
pub const KEEP: &str = "keep";

/// Longest line that a helper says.
const MAX_LINE: usize = 64 << 10;

/// How long the id of a removed device may stay taken before that is left to its users.
const ID_FREE: Duration = Duration::from_secs(1);

/// What the helper is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// STOP, and when that has returned, DEL, without waiting for whoever still has the disk open; for a
    /// device of the NBD driver DISCONNECT.
    Remove,
    /// What the driver knows of a device.
    Info,
}

impl Order {
    /// As an argument of the hidden verb.
    pub fn name(self) -> &'static str {
        match self {
            Order::Remove => "remove",
            Order::Info => "info",
        }
    }

    /// The order with this name.
    pub fn from_name(name: &str) -> Option<Order> {
        [Order::Remove, Order::Info].into_iter().find(|order| order.name() == name)
    }
}

/// What the driver knows of a device.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// The process that serves it; not positive where there is none.
    pub pid: i32,
    /// Number of queues.
    pub queues: u16,
    /// Depth of each.
    pub depth: u16,
}

impl DeviceInfo {
    /// Whether a process serves it.
    pub fn is_served(&self) -> bool {
        self.pid > 0 && process::exists(self.pid)
    }
}

/// One line of the helper: what became of one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The device is removed.
    Removed {
        /// Which one.
        name: DeviceName,
    },
    /// Here it is.
    Info {
        /// Which one.
        name: DeviceName,
        /// What the driver said.
        info: DeviceInfo,
    },
    /// It did not work.
    Failed {
        /// Which one.
        name: DeviceName,
        /// Which kind of failure.
        kind: String,
        /// The whole text for a person.
        text: String,
    },
}

/// A device as the helper is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    name: DeviceName,
    /// See [`devices::identity`].
    identity: Option<u64>,
}

impl Target {
    fn argument(self) -> String {
        match self.identity {
            Some(identity) => format!("{}={identity}", self.name),
            None => self.name.to_string(),
        }
    }

    /// Out of an argument of the hidden verb: `nbd0`, or `nbd0=IDENTITY`.
    pub fn from_argument(text: &str) -> Option<Target> {
        let (name, identity) = match text.split_once('=') {
            Some((name, identity)) => (name, Some(identity.parse().ok()?)),
            None => (text, None),
        };
        Some(Target { name: name.parse().ok()?, identity })
    }
}

/// The helper's side: carries out the order for each device and tells.
pub fn serve(order: Order, targets: &[Target], tell: &mut dyn FnMut(&Answer)) {
    // Ctrl-C at the terminal is for the command line, not for this.
    let _ = process::own_session();
    let mut ublk = None;
    for &Target { name, identity } in targets {
        let result = match name.engine {
            Engine::Ublk => match ublk.get_or_insert_with(Control::open) {
                Ok(control) => with_ublk(order, control, name),
                Err(error) => {
                    Err(Error::new(error.kind(), "cannot reach the ublk driver", error.to_string()))
                }
            },
            Engine::Nbd => with_nbd(order, name, identity),
            Engine::Fuse => with_fuse(order, name),
        };
        tell(&result.unwrap_or_else(|error| Answer::Failed {
            name,
            kind: format!("{:?}", error.kind()),
            text: error.to_string(),
        }));
    }
}

fn with_fuse(order: Order, name: DeviceName) -> Result<Answer> {
    match order {
        Order::Remove => {
            fuse::place::remove(&fuse::place::root(), name.id)?;
            Ok(Answer::Removed { name })
        }
        // Nobody tells who serves it; who does has an entry.
        Order::Info => Ok(Answer::Info { name, info: DeviceInfo { pid: 0, queues: 0, depth: 0 } }),
    }
}

fn with_nbd(order: Order, name: DeviceName, identity: Option<u64>) -> Result<Answer> {
    match order {
        Order::Remove => {
            // Whoever wants it gone and does not know which it is means the one that is there.
            if let Some(identity) = identity.or_else(|| nbd::kernel::identity(name.id)) {
                nbd::kernel::disconnect(name.id, identity)?;
            }
            Ok(Answer::Removed { name })
        }
        Order::Info => {
            let (pid, queues) = nbd::kernel::seen(name.id);
            Ok(Answer::Info { name, info: DeviceInfo { pid, queues, depth: nbd::kernel::DEPTH } })
        }
    }
}

fn with_ublk(order: Order, control: &Control, name: DeviceName) -> Result<Answer> {
    let id = name.id;
    match order {
        Order::Remove => {
            // A device that is gone already is as it should be, at either step.
            unless_gone(control.stop(id))?;
            match control.delete_async(id) {
                Err(error) if error.kind() == Kind::Unsupported => unless_gone(control.delete(id))?,
                result => unless_gone(result)?,
            }
            // Whoever still has the disk mounted or open keeps the id taken, and nothing else.
            let is_free = || control.info(id).is_err_and(|error| error.kind() == Kind::NotFound);
            Deadline::after(ID_FREE).wait_until(is_free);
            Ok(Answer::Removed { name })
        }
        Order::Info => {
            let info = control.info(id)?;
            let info =
                DeviceInfo { pid: info.ublksrv_pid, queues: info.nr_hw_queues, depth: info.queue_depth };
            Ok(Answer::Info { name, info })
        }
    }
}

fn unless_gone(result: Result<()>) -> Result<()> {
    result.or_else(|error| if error.kind() == Kind::NotFound { Ok(()) } else { Err(error) })
}

/// Removes a device whose server is gone, and waits until it is away. `identity` is the one that it was known by.
pub fn remove(name: DeviceName, identity: Option<u64>, deadline: Deadline) -> Result<()> {
    let what = format!("cannot remove {}", name.path().display());
    let mut helper = spawn(Order::Remove, [Target { name, identity }])?;
    let pid = helper.pid();
    let late = || {
        let cure = format!("process {pid} goes on with it in the background; `blockhaus gc` tries again");
        Error::new(Kind::Deadline, what.as_str(), "the kernel has not done it in time").cure(cure)
    };
    match receive(&mut helper, deadline) {
        Ok(Some(Answer::Removed { .. })) if devices::stays_with_its_users(name) => Ok(()),
        Ok(Some(Answer::Removed { .. })) if devices::gone_by(name, deadline) => Ok(()),
        Ok(Some(Answer::Removed { .. })) | Ok(None) => Err(late()),
        Ok(Some(Answer::Failed { kind, text, .. })) => Err(received_error(&kind, &text)),
        Ok(Some(Answer::Info { .. })) => {
            Err(Error::new(Kind::Failed, what, "the helper answered something else"))
        }
        Err(error) => Err(Error::system(what, error)),
    }
}

/// What the driver knows of each device, as far as it answers by the deadline.
pub fn infos(names: &[DeviceName], deadline: Deadline) -> BTreeMap<DeviceName, DeviceInfo> {
    let mut found = BTreeMap::new();
    if names.is_empty() {
        return found;
    }
    let targets = names.iter().map(|&name| Target { name, identity: None });
    let Ok(mut helper) = spawn(Order::Info, targets) else { return found };
    for _ in names {
        match receive(&mut helper, deadline) {
            Ok(Some(Answer::Info { name, info })) => drop(found.insert(name, info)),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    found
}

fn spawn(order: Order, targets: impl IntoIterator<Item = Target>) -> Result<Helper> {
    let mut arguments = vec![VERB.into(), order.name().into()];
    arguments.extend(targets.into_iter().map(|target| target.argument().into()));
    Helper::spawn(&arguments, MAX_LINE, true)
        .map_err(|error| Error::system("cannot start a helper process", error))
}

/// The helper's next answer; `None` at the deadline.
fn receive(helper: &mut Helper, deadline: Deadline) -> std::io::Result<Option<Answer>> {
    match helper.lines.receive_by(deadline) {
        Ok(line) => Ok(Some(serde_json::from_str(&line)?)),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_told_which_device_of_a_name_it_is() {
        let name = DeviceName::nbd(3);
        for target in [Target { name, identity: None }, Target { name, identity: Some(u64::MAX) }] {
            assert_eq!(Target::from_argument(&target.argument()), Some(target));
        }
        for text in ["", "nbd3=", "nbd3=-1", "nbd3=0x1", "sda=1", "=1"] {
            assert_eq!(Target::from_argument(text), None, "{text}");
        }
    }
}
