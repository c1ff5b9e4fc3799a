//! Taking a device away, with an answer in bounded time whatever its server does.

use serde::Serialize;

use super::control::{Client, Reply, Request, received_error, why_silent};
use super::{Entry, Registry, devices, isolated};
use crate::engine::{DeviceName, Engine, fuse};
use crate::error::{Error, Kind, Result};
use crate::port::clock::{Deadline, Duration};
use crate::port::process::Other;

/// How long an answer may take altogether. The promise is ten seconds; this leaves some for
/// starting and printing on a busy machine.
pub const ANSWER: Duration = Duration::from_millis(8500);

/// How long a server may take to say that it has understood.
pub(super) const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// How long a killed server may take to be gone.
pub(super) const DEATH: Duration = Duration::from_secs(4);

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct Detached {
    /// Its name.
    pub name: DeviceName,
    /// Its number with its engine.
    pub id: u32,
    /// The disk's path.
    pub device: std::path::PathBuf,
    /// What it took: "stopped", "killed", "cleaned-up".
    pub how: &'static str,
}

/// Takes the device away, and returns when it is gone.
pub fn detach(registry: &Registry, name: DeviceName, force: bool) -> Result<Detached> {
    let deadline = Deadline::after(ANSWER);
    let Some(entry) = registry.read(name) else { return Err(unknown(name)) };
    take_away(registry, entry, Request::Stop { force }, deadline)
}

/// Takes a device away by a request to stop it, or to end its whole process.
pub(super) fn take_away(
    registry: &Registry,
    entry: Entry,
    request: Request,
    deadline: Deadline,
) -> Result<Detached> {
    let how = match entry.is_alive() {
        false if !request.is_forced() && registry.keeper(entry.name).is_some() => {
            return Err(recovering(&entry));
        }
        false => clean_up(registry, &entry, deadline).map(|()| "cleaned-up")?,
        true => stop(registry, &entry, request, deadline)?,
    };
    Ok(Detached { name: entry.name, id: entry.name.id, device: entry.device, how })
}

/// The error for a device that the registry does not have.
fn unknown(name: DeviceName) -> Error {
    let what = format!("cannot detach {}", name.path().display());
    if devices::exists(name) {
        let cure = match name.engine {
            Engine::Ublk => {
                "detach it with the program that made it; if that is gone, `blockhaus gc --foreign` removes it"
            }
            Engine::Nbd => "detach it with the program that made it, or with `nbd-client -d`",
            Engine::Fuse => "unmount its folder and remove it",
        };
        return Error::new(Kind::Invalid, what, "it is not one of blockhaus' devices").cure(cure);
    }
    Error::new(Kind::NotFound, what, "there is no such device").cure("`blockhaus list` shows what there is")
}

/// The error for a device whose server is being started again.
fn recovering(entry: &Entry) -> Error {
    let what = format!("cannot detach {}", entry.device.display());
    let why = "its server was killed and is being started again, so that whoever uses it can go on";
    let cure = format!("try again in a moment, or `blockhaus detach --force {}`", entry.name);
    Error::new(Kind::Busy, what, why).cure(cure)
}

/// Removes what a dead server left, for good.
fn clean_up(registry: &Registry, entry: &Entry, deadline: Deadline) -> Result<()> {
    registry.dismiss_keeper(entry.name)?;
    if devices::exists(entry.name) && entry.owns_device() {
        isolated::remove(entry.name, entry.identity, deadline)?;
    }
    registry.remove(entry, false).map(drop)
}

fn stop(registry: &Registry, entry: &Entry, request: Request, deadline: Deadline) -> Result<&'static str> {
    let what = format!("cannot detach {}", entry.device.display());
    let process = Other::open(entry.pid, entry.pid_start);
    let keeper = registry.keeper(entry.name);
    let first = Client::send(registry, entry, request).and_then(|mut client| {
        let reply = client.receive(deadline.at_most(FIRST_ANSWER))?;
        Ok((client, reply))
    });
    let mut client = match first {
        Ok((client, Reply::Accepted)) => client,
        Ok((_, reply)) => return Err(refused(what, reply)),
        // It ended by itself between our look and our question.
        Err(_) if !entry.is_alive() => return clean_up(registry, entry, deadline).map(|()| "cleaned-up"),
        Err(error) if error.kind() == Kind::Permission => {
            return Err(
                Error::new(Kind::Permission, what, "its server obeys its owner only").cure("run as root")
            );
        }
        Err(_) if was_taken_away(registry, entry) => return Ok("stopped"),
        Err(error) => match request {
            // The exports of an `up` have no entries, and a kill would take them along too.
            Request::Stop { force: true } if entry.config.is_some() || serves_others(registry, entry) => {
                return Err(hung(what, entry, &error));
            }
            Request::Stop { force: true } | Request::End { force: true } => {
                return kill(registry, entry, process, deadline);
            }
            _ => return Err(hung(what, entry, &error)),
        },
    };
    match client.receive(deadline) {
        Ok(Reply::Stopped) => {}
        Ok(reply) => return Err(refused(what, reply)),
        Err(_) if !entry.is_alive() => return clean_up(registry, entry, deadline).map(|()| "cleaned-up"),
        Err(_) if was_taken_away(registry, entry) => {}
        Err(error) if error.kind() == Kind::Deadline => return Err(slow(what, entry)),
        Err(error) => return Err(error),
    }
    // Nothing of it may be left behind when this returns, not even a process of its own.
    let stays = devices::stays_with_its_users(entry.name);
    let gone = stays || devices::gone_by(entry.name, deadline) || !entry.owns_device();
    let is_shared = entry.config.is_some();
    if gone
        && (is_shared || process.is_none_or(|process| process.gone_by(deadline)))
        && keeper.is_none_or(|keeper| keeper.gone_by(deadline))
    {
        // The server did that itself, unless something kept it from it.
        if registry.read(entry.name).is_some() {
            registry.remove(entry, false)?;
        }
        return Ok("stopped");
    }
    Err(slow(what, entry))
}

/// Whether a device whose server lives on has gone by itself: its file has changed, or somebody
/// else has taken it away.
fn was_taken_away(registry: &Registry, entry: &Entry) -> bool {
    entry.config.is_some()
        && registry
            .read(entry.name)
            .is_none_or(|now| !now.is_same_device(entry) || now.started != entry.started)
        && !(devices::exists(entry.name) && entry.owns_device())
}

/// Whether the process serves other devices as well, which a kill would take along.
fn serves_others(registry: &Registry, entry: &Entry) -> bool {
    let mut entries = registry.names().into_values().filter_map(|(_, entry)| entry);
    entries.any(|other| other.name != entry.name && other.is_same(entry))
}

pub(super) fn refused(what: String, reply: Reply) -> Error {
    match reply {
        Reply::Failed { kind, text } => received_error(&kind, &text),
        Reply::Status { .. }
        | Reply::Exports { .. }
        | Reply::Stats { .. }
        | Reply::Accepted
        | Reply::Stopped => Error::new(Kind::Failed, what, "its server answered something else"),
    }
}

fn hung(what: String, entry: &Entry, error: &Error) -> Error {
    let pid = entry.pid;
    let why = match error.kind() {
        Kind::Deadline => format!("its server (process {pid}) does not answer{}", why_silent(pid)),
        _ => format!("its server (process {pid}) cannot be asked ({error})"),
    };
    let resume = match why_silent(pid).contains("signal") {
        true => format!("`kill -CONT {pid}` lets it go on, "),
        false => String::new(),
    };
    let cure = match &entry.config {
        Some(config) => {
            format!("`blockhaus down --force {}` kills it with all its devices", config.display())
        }
        None => format!("`blockhaus detach --force {}` kills it", entry.name),
    };
    Error::new(Kind::Deadline, what, why).cure(format!("{resume}{cure}"))
}

fn slow(what: String, entry: &Entry) -> Error {
    let (pid, name) = (entry.pid, entry.name);
    Error::new(Kind::Deadline, what, "it takes long to write everything back and stop").cure(format!(
        "process {pid} goes on with it, `blockhaus status {name}` shows how far it is; \
         the last resort is `kill -9 {pid}` and `blockhaus gc`, which loses what is not on the disk"
    ))
}

/// Kills a server that does not answer and removes its device.
fn kill(
    registry: &Registry,
    entry: &Entry,
    process: Option<Other>,
    deadline: Deadline,
) -> Result<&'static str> {
    let what = format!("cannot kill the server of {} (process {})", entry.device.display(), entry.pid);
    registry.dismiss_keeper(entry.name)?;
    if let Some(process) = process {
        process.kill().map_err(|error| Error::system(what.as_str(), error))?;
        if entry.name.engine == Engine::Fuse {
            // Should it wait for its own disk, it could not end otherwise.
            fuse::place::cut(&fuse::place::root(), entry.name.id);
        }
        // One that has ended and only waits for its parent is gone as far as a disk is concerned.
        if !process.gone_by(deadline.at_most(DEATH)) && entry.is_alive() {
            let why = format!("it was told to end and has not{}", why_silent(entry.pid));
            return Err(Error::new(Kind::Deadline, what, why).cure("`blockhaus gc` cleans up when it has"));
        }
    }
    clean_up(registry, entry, deadline).map(|()| "killed")
}

/// Takes away every device of ours, all at once. Never empty-handed about a failure.
pub fn detach_all(registry: &Registry, force: bool) -> Vec<Result<Detached>> {
    let ours = registry.names().into_iter().filter_map(|(name, (_, entry))| entry.map(|_| name));
    let running: Vec<_> = ours
        .map(|name| {
            let registry = registry.clone();
            crate::port::thread::spawn(format!("detach-{name}"), move || detach(&registry, name, force))
        })
        .collect();
    let lost = || Error::new(Kind::Failed, "cannot detach", "a thread could not be made or ended by itself");
    running
        .into_iter()
        .map(|thread| thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| Err(lost())))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;
    use crate::port::process;

    /// An `up` can have exports besides its one device.
    #[test]
    fn a_forced_detach_from_a_hung_up_kills_nobody() {
        let (_folder, registry) = Registry::temporary();
        let mut server = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = server.id() as i32;
        let pid_start = process::stat(pid).unwrap().start;
        // Above what any test machine has.
        let name = DeviceName::ublk(999_800);
        let entry = Entry { pid, pid_start, ..Entry::new(name, name.path(), "ram:1G") };
        // Nobody ever accepts.
        let _socket = UnixListener::bind(registry.socket(name)).unwrap();
        registry.write(&Entry { config: Some("/etc/up.toml".into()), ..entry.clone() }).unwrap();
        let error = detach(&registry, name, true).unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline);
        assert!(error.to_string().contains("blockhaus down --force /etc/up.toml"), "{error}");
        assert!(server.try_wait().unwrap().is_none(), "it was killed");
        // A server of one device is.
        registry.write(&entry).unwrap();
        assert_eq!(detach(&registry, name, true).unwrap().how, "killed");
        assert!(!server.wait().unwrap().success());
    }
}
