//! The keeper of a device: a process that starts the device's server again when that was killed. Here is how others
//! find it; what it does is in `server/keeper.rs`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Registry, boot_id};
use crate::engine::DeviceName;
use crate::error::{Error, Result};
use crate::port::clock::{Deadline, Duration};
use crate::port::process::{self, Other};

/// What stands behind the name of the device in the name of its keeper's file.
const EXTENSION: &str = "keeper";

/// How long a keeper that was killed may take to be gone.
const DEATH: Duration = Duration::from_secs(2);

/// A keeper's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeper {
    /// Its number.
    pub pid: i32,
    pid_start: u64,
    boot: String,
}

impl Keeper {
    fn own() -> Keeper {
        let pid = process::own_pid();
        Keeper { pid, pid_start: process::stat(pid).map_or(0, |stat| stat.start), boot: boot_id() }
    }

    fn is_alive(&self) -> bool {
        self.boot == boot_id() && process::is_alive(self.pid, self.pid_start)
    }

    /// Whether it has ended by the deadline.
    pub fn gone_by(&self, deadline: Deadline) -> bool {
        Other::open(self.pid, self.pid_start).is_none_or(|process| process.gone_by(deadline))
    }
}

impl Registry {
    fn keeper_file(&self, name: DeviceName) -> PathBuf {
        self.folder.join(format!("{name}.{EXTENSION}"))
    }

    fn read_keeper(&self, name: DeviceName) -> Option<Keeper> {
        serde_json::from_str(&std::fs::read_to_string(self.keeper_file(name)).ok()?).ok()
    }

    /// The keeper of a device, where it has one that lives.
    pub fn keeper(&self, name: DeviceName) -> Option<Keeper> {
        self.read_keeper(name).filter(Keeper::is_alive)
    }

    /// Says that this process is the device's keeper.
    pub fn announce_keeper(&self, name: DeviceName) -> Result<()> {
        let _lock = self.lock()?;
        Registry::write_whole(&self.keeper_file(name), &Keeper::own())
    }

    /// Takes that back, unless another process is by now.
    pub fn retire_keeper(&self, name: DeviceName) -> Result<()> {
        let _lock = self.lock()?;
        match self.read_keeper(name) {
            Some(keeper) if keeper == Keeper::own() => self.remove_files([self.keeper_file(name)]).map(drop),
            _ => Ok(()),
        }
    }

    /// Ends the keeper of a device, so that nobody starts its server again.
    pub fn dismiss_keeper(&self, name: DeviceName) -> Result<()> {
        if let Some(keeper) = self.keeper(name)
            && let Some(process) = Other::open(keeper.pid, keeper.pid_start)
        {
            let what = format!("cannot end the keeper of {name} (process {})", keeper.pid);
            process.kill().map_err(|error| Error::system(what, error).cure("run as root"))?;
            process.gone_by(Deadline::after(DEATH));
        }
        let _lock = self.lock()?;
        match self.read_keeper(name) {
            Some(keeper) if keeper.is_alive() => Ok(()),
            _ => self.remove_files([self.keeper_file(name)]).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_found_while_it_lives_and_its_file_is_the_devices() {
        let (_folder, registry) = Registry::temporary();
        let (name, other) = (DeviceName::nbd(999_801), DeviceName::nbd(999_802));
        assert!(registry.keeper(name).is_none());
        registry.announce_keeper(name).unwrap();
        assert_eq!(registry.keeper(name).unwrap().pid, process::own_pid());
        assert_eq!(registry.names().into_keys().collect::<Vec<_>>(), [name]);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let pid_start = process::stat(pid).unwrap().start;
        let kept = Keeper { pid, pid_start, boot: boot_id() };
        Registry::write_whole(&registry.keeper_file(other), &kept).unwrap();
        // Not this process's to take back.
        registry.retire_keeper(other).unwrap();
        registry.dismiss_keeper(other).unwrap();
        assert!(registry.keeper(other).is_none() && !child.wait().unwrap().success());
        registry.retire_keeper(name).unwrap();
        assert!(registry.names().is_empty());
    }
}
