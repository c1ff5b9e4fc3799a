//! What a keeper does: it waits for the end of a server, and starts it again where it was killed.
//!
//! It holds no socket and no descriptor of the disk. The kernel's NBD driver keeps the device, and everything that was
//! asked of it and not answered, for as long as its connections may be dead; the new server gives it new ones.

use super::log;
use crate::engine::DeviceName;
use crate::error::{Error, Kind, Result};
use crate::port::clock::{Deadline, Duration, sleep};
use crate::port::process::Other;
use crate::registry::{Entry, Registry, devices};

/// For ever.
const LONG: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long a server is tried to be started again; longer than requests usually wait.
const TRIES: Duration = Duration::from_secs(600);

/// The pause after the first try that failed; each further one is longer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A server that lived for so long was not killed by what killed the one before.
const WELL: Duration = Duration::from_secs(10);

/// A server that runs.
pub trait Running {
    /// Its number and when it started.
    fn process(&self) -> (i32, u64);
    /// Waits for what is left of it, once it has ended.
    fn bury(&mut self);
}

/// Keeps the server `process` of a device, and those that come after it, until one ends in order or nothing is left to
/// keep. `again` starts another one and returns when its disk is served.
pub fn keep(
    registry: &Registry,
    name: DeviceName,
    process: (i32, u64),
    again: &mut dyn FnMut() -> Result<Box<dyn Running>>,
) -> Result<()> {
    registry.announce_keeper(name)?;
    let kept = keep_on(registry, name, process, again);
    registry.retire_keeper(name)?;
    kept
}

fn keep_on(
    registry: &Registry,
    name: DeviceName,
    mut process: (i32, u64),
    again: &mut dyn FnMut() -> Result<Box<dyn Running>>,
) -> Result<()> {
    let mut running: Option<Box<dyn Running>> = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let well = Deadline::after(WELL);
        // The wait may fail, where memory is short: its server is not dead for that.
        while let Some(server) = Other::open(process.0, process.1)
            && !server.gone_by(Deadline::after(LONG))
        {
            sleep(FIRST_PAUSE);
        }
        if let Some(mut server) = running.take() {
            server.bury();
        }
        if !is_left_behind(registry, name, process) {
            return Ok(());
        }
        if well.passed() {
            pause = FIRST_PAUSE;
        }
        log(&format!("the server of {name} (process {}) was killed", process.0));
        let deadline = Deadline::after(TRIES);
        let server = loop {
            match again() {
                Ok(server) => break server,
                Err(error) => log(&format!("it cannot be started again yet: {error}")),
            }
            if deadline.passed() {
                let why = format!("it could not be started for {} s", TRIES.as_secs());
                return Err(Error::new(Kind::Deadline, format!("giving up the server of {name}"), why)
                    .cure("`blockhaus gc` removes the device"));
            }
            if !devices::exists(name) {
                return Ok(());
            }
            sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        process = server.process();
        log(&format!("the server of {name} is process {} now", process.0));
        running = Some(server);
        // One that is killed again and again is not started without a breath in between.
        sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether a server that has ended has left its device: it has not said goodbye, and the kernel still has it.
fn is_left_behind(registry: &Registry, name: DeviceName, process: (i32, u64)) -> bool {
    registry
        .read(name)
        .is_some_and(|entry| is_killed(&entry, process) && devices::exists(name) && entry.owns_device())
}

/// Whether this process, which the entry is of, has ended without a goodbye.
fn is_killed(entry: &Entry, process: (i32, u64)) -> bool {
    (entry.pid, entry.pid_start) == process && !entry.ended && !entry.is_alive()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::port::process;

    struct Sleeper(Child);

    impl Running for Sleeper {
        fn process(&self) -> (i32, u64) {
            let pid = self.0.id() as i32;
            (pid, process::stat(pid).unwrap().start)
        }

        fn bury(&mut self) {
            self.0.wait().unwrap();
        }
    }

    fn sleeper() -> Sleeper {
        Sleeper(Command::new("sleep").arg("60").spawn().unwrap())
    }

    /// The device is one that no machine has, so that nothing is ever left behind.
    #[test]
    fn a_keeper_goes_with_the_device() {
        let (_folder, registry) = Registry::temporary();
        let name = DeviceName::nbd(999_803);
        let mut server = sleeper();
        let (pid, pid_start) = server.process();
        let entry = Entry { pid, pid_start, ..Entry::new(name, name.path(), "null:1M") };
        registry.write(&entry).unwrap();
        let of_keeper = registry.clone();
        let keeper = std::thread::spawn(move || {
            keep(&of_keeper, name, (pid, pid_start), &mut || panic!("there is nothing to serve"))
        });
        assert!(Deadline::after(Duration::from_secs(10)).wait_until(|| registry.keeper(name).is_some()));
        server.0.kill().unwrap();
        server.bury();
        keeper.join().unwrap().unwrap();
        assert!(registry.keeper(name).is_none());
    }

    #[test]
    fn who_lives_or_has_said_goodbye_was_not_killed() {
        let name = DeviceName::nbd(999_804);
        let mut server = sleeper();
        let (pid, pid_start) = server.process();
        let entry = Entry { pid, pid_start, ..Entry::new(name, name.path(), "null:1M") };
        assert!(!is_killed(&entry, (pid, pid_start)));
        server.0.kill().unwrap();
        server.bury();
        assert!(is_killed(&entry, (pid, pid_start)) && !is_killed(&entry, (pid, pid_start + 1)));
        assert!(!is_killed(&Entry { ended: true, ..entry }, (pid, pid_start)));
    }
}
