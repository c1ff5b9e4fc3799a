//! A server in the background, and the `attach` that waits for it.
//!
//! The server is this program again, with the same arguments and a mark. Its standard
//! output is a pipe on which it says one line: ready, or why not. Its standard error is ours until
//! then, and its log afterwards.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::output;
use crate::engine::nbd::kernel::BY_NETLINK;
use crate::engine::{DeviceName, Engine};
use crate::error::{Error, Kind, Result};
use crate::port::clock::{Deadline, Duration};
use crate::port::process::{self, Helper, Standard};
use crate::port::signal::{Signal, Signals};
use crate::port::socket::poll;
use crate::registry::control::received_error;
use crate::registry::{Registry, isolated};
use crate::server::keeper::Running;
use crate::server::{self, Plan, Ready};

/// How long a server may take until its disk can be opened.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a keeper may take to be known as one, which takes the registry's lock.
const KEEPER: Duration = Duration::from_secs(10);

/// How long a server may take to clean up when it is told to end.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// Longest line a server says.
const MAX_LINE: usize = 1 << 20;

/// What stands behind `attach` on the command line of a server in the background. Not among the
/// definitions of the command line, since it is for nobody to type.
const MARK: &str = "--background";

/// A server in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Background {
    /// It takes the place of this device's, which was killed.
    pub(super) again: Option<DeviceName>,
}

/// The arguments without [`MARK`], and what it said, if it was there: `--background`, or `--background=nbd0` for a server
/// that takes the place of another.
pub(super) fn arguments(mut arguments: Vec<OsString>) -> (Vec<OsString>, Option<Background>) {
    let is_attach = arguments.get(1).is_some_and(|verb| verb == "attach");
    let mark = arguments.get(2).and_then(|next| next.to_str()).filter(|_| is_attach);
    let again = match mark.and_then(|mark| mark.strip_prefix(MARK)) {
        Some("") => None,
        Some(device) => match device.strip_prefix('=').and_then(|name| name.parse().ok()) {
            Some(name) => Some(name),
            None => return (arguments, None),
        },
        None => return (arguments, None),
    };
    arguments.remove(2);
    (arguments, Some(Background { again }))
}

/// The one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Said {
    Ready(Box<Ready>),
    Failed { kind: String, text: String },
}

/// How waiting for a server ended well.
pub(super) enum Outcome {
    /// The disk is there.
    Ready(Box<Ready>),
    /// A signal told us to give up, and the server has cleaned up.
    Interrupted(Signal),
}

/// Starts a server with the arguments of this process and waits until it is ready.
pub(super) fn start(mut signals: Signals) -> Result<Outcome> {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).filter(|argument| argument != "--json").collect();
    // Behind the verb, which is the first argument that there can be.
    arguments.insert(1.min(arguments.len()), MARK.into());
    let server = Helper::spawn(&arguments, MAX_LINE, false);
    let mut server = server.map_err(|error| Error::system("cannot start the server process", error))?;
    let deadline = Deadline::after(PATIENCE);
    loop {
        match server.lines.receive() {
            Ok(Some(line)) => return said(&line),
            Ok(None) if server.lines.ended() => return Err(died(&mut server)),
            Ok(None) => {}
            Err(error) => return Err(Error::system("cannot read what the server says", error)),
        }
        if let Some(signal) = signals.take() {
            give_up(&mut server, signal.name())?;
            return Ok(Outcome::Interrupted(signal));
        }
        if deadline.passed() {
            give_up(&mut server, "the deadline")?;
            let why = format!("the server was not ready within {} s", PATIENCE.as_secs());
            return Err(Error::new(Kind::Deadline, "cannot attach", why));
        }
        poll(&[(server.lines.as_fd(), false), (signals.as_fd(), false)], deadline.left())
            .map_err(|error| Error::system("cannot wait for the server", error))?;
    }
}

fn said(line: &str) -> Result<Outcome> {
    match serde_json::from_str(line) {
        Ok(Said::Ready(ready)) => Ok(Outcome::Ready(ready)),
        Ok(Said::Failed { kind, text }) => Err(received_error(&kind, &text)),
        Err(error) => Err(Error::system("cannot understand the server", std::io::Error::from(error))),
    }
}

/// The error for a server that went without a word.
fn died(server: &mut Helper) -> Error {
    let how = server.ended_by(Deadline::after(Duration::from_secs(2)));
    let how = how.map_or_else(|| "it closed its output".to_owned(), process::describe);
    Error::new(Kind::Failed, "cannot attach", format!("the server process died before it was ready: {how}"))
        .cure("`blockhaus gc` removes what it may have left")
}

/// A server that a keeper has started, and whose disk is served again.
struct Again {
    server: Helper,
    process: (i32, u64),
}

impl Running for Again {
    fn process(&self) -> (i32, u64) {
        self.process
    }

    fn bury(&mut self) {
        self.server.ended_by(Deadline::after(CLEAN_UP));
    }
}

/// Starts a server in the place of the one of this device, which was killed. `arguments` are those of that one.
pub(super) fn again(name: DeviceName, arguments: &[OsString]) -> Result<Box<dyn Running>> {
    let (arguments, _) = self::arguments([&["".into()], arguments].concat());
    let mut arguments = arguments[1..].to_vec();
    arguments.insert(1.min(arguments.len()), format!("{MARK}={name}").into());
    let server = Helper::spawn(&arguments, MAX_LINE, false);
    let mut server = server.map_err(|error| Error::system("cannot start the server process", error))?;
    let line = match server.lines.receive_by(Deadline::after(PATIENCE)) {
        Ok(line) => line,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(died(&mut server)),
        Err(error) => {
            server.kill();
            server.ended_by(Deadline::after(CLEAN_UP));
            return Err(Error::system("the server process does not say that it is ready", error));
        }
    };
    match said(&line) {
        Ok(_) => {
            let pid = server.pid();
            let start = process::stat(pid).map_or(0, |stat| stat.start);
            Ok(Box::new(Again { server, process: (pid, start) }))
        }
        Err(error) => {
            server.ended_by(Deadline::after(CLEAN_UP));
            Err(error)
        }
    }
}

/// Tells the server to end, and waits until it has cleaned up.
fn give_up(server: &mut Helper, because: &str) -> Result<()> {
    output::note(&format!("giving up ({because}), the server cleans up"));
    server.terminate();
    if server.ended_by(Deadline::after(CLEAN_UP)).is_some() {
        return Ok(());
    }
    server.kill();
    let what = format!("the server (process {}) has not cleaned up", server.pid());
    let why = format!("it had {} s for it and was killed", CLEAN_UP.as_secs());
    Err(Error::new(Kind::Deadline, what, why).cure("`blockhaus gc` removes what it left"))
}

/// Is the server: opens what `plan` says and serves it. Errors go through the pipe until the disk
/// is ready, and into the log afterwards.
pub(super) fn serve(background: Background, plan: impl FnOnce() -> Result<Plan>) -> Result<ExitCode> {
    process::close_inherited();
    process::set_name(c"blockhaus");
    let mut was_ready = false;
    let result = try_serve(background, plan, &mut was_ready);
    let Err(error) = result else { return Ok(ExitCode::SUCCESS) };
    match was_ready {
        true => server::log(&error.to_string()),
        // Nobody may be waiting any more; there is nobody else to tell.
        false => {
            drop(output::json(&Said::Failed { kind: format!("{:?}", error.kind()), text: error.to_string() }))
        }
    }
    Ok(ExitCode::FAILURE)
}

fn try_serve(
    background: Background,
    plan: impl FnOnce() -> Result<Plan>,
    was_ready: &mut bool,
) -> Result<()> {
    let system = |what: &'static str| move |error: std::io::Error| Error::system(what, error);
    process::own_session().map_err(system("cannot leave the session"))?;
    let signals = Signals::block().map_err(system("cannot block signals"))?;
    // Relative paths in the spec begin where the person is; only what is opened later does not.
    let plan = plan()?;
    let is_again = background.again.is_some();
    let can_be_kept = plan.stack.outlives_process();
    let registry = Registry::of_host();
    let logs = registry.clone();
    server::run(plan, signals, registry, &mut |ready| {
        let log_path = logs.log(ready.name);
        let log = open_log(&log_path, is_again);
        let log = log
            .map_err(|error| Error::system(format!("cannot make the log {}", log_path.display()), error))
            .and_then(|log| process::redirect(Standard::Error, &log).map_err(system("cannot use the log")));
        unless_used(is_again, log)?;
        // While the folder is the one that relative paths begin at.
        if !is_again && can_be_kept && is_kept(ready) {
            start_keeper(&logs, ready.name)?;
        }
        unless_used(is_again, std::env::set_current_dir("/").map_err(system("cannot leave the folder")))?;
        unless_used(is_again, output::json(&Said::Ready(Box::new(ready.clone()))))?;
        *was_ready = true;
        let null = process::null_device().map_err(system("cannot open /dev/null"));
        let null = null.and_then(|null| {
            process::redirect(Standard::Output, &null).map_err(system("cannot close standard output"))
        });
        unless_used(is_again, null)
    })
}

/// Opens a log that others write to as well: the keeper, and the servers that come after this one. What was said before a
/// server was killed stays.
fn open_log(path: &Path, is_again: bool) -> std::io::Result<File> {
    let log = File::options().create(true).append(true).open(path)?;
    if !is_again {
        log.set_len(0)?;
    }
    Ok(log)
}

/// What went wrong, which ends a disk that nobody has heard of yet. One that `is_used` goes on without the log, the
/// keeper or whatever it was that failed: its users would lose more.
fn unless_used(is_used: bool, result: Result<()>) -> Result<()> {
    match result {
        Err(error) if is_used => server::log(&error.to_string()),
        result => return result,
    }
    Ok(())
}

/// Whether the kernel keeps this device while its server is gone.
fn is_kept(ready: &Ready) -> bool {
    ready.name.engine == Engine::Nbd && ready.data_path == BY_NETLINK
}

/// Starts a process that starts this one again when it is killed; returns when others can find it.
fn start_keeper(registry: &Registry, name: DeviceName) -> Result<()> {
    let pid = process::own_pid();
    let start = process::stat(pid).map_or(0, |stat| stat.start);
    let mut arguments: Vec<OsString> =
        vec![isolated::VERB.into(), isolated::KEEP.into(), name.to_string().into()];
    arguments.extend([pid.to_string().into(), start.to_string().into()]);
    arguments.extend(std::env::args_os().skip(1));
    let keeper = process::start_apart(&arguments);
    let keeper = keeper.map_err(|error| Error::system("cannot start the keeper", error))?;
    let is_there = || registry.keeper(name).is_some_and(|found| found.pid == keeper);
    if Deadline::after(KEEPER).wait_until(|| is_there() || !process::exists(keeper)) && is_there() {
        return Ok(());
    }
    let why = format!("it (process {keeper}) has not said within {} s that it is there", KEEPER.as_secs());
    let what = format!("nobody would start the server of {name} again");
    let lock = registry.folder().join("lock").display().to_string();
    Err(Error::new(Kind::Failed, what, why).cure(format!("does somebody hold {lock}?")))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_server_in_the_background_is_told_by_its_mark() {
        let nbd = Some(DeviceName::nbd(0));
        for (given, left, said) in [
            ("b attach ram:1G", "b attach ram:1G", None),
            ("b attach --background ram:1G", "b attach ram:1G", Some(None)),
            ("b attach --background=nbd0 ram:1G", "b attach ram:1G", Some(nbd)),
            ("b attach --background=sda ram:1G", "b attach --background=sda ram:1G", None),
            ("b attach --backgrounds ram:1G", "b attach --backgrounds ram:1G", None),
            ("b detach --background", "b detach --background", None),
        ] {
            let found = arguments(words(given));
            assert_eq!(found, (words(left), said.map(|again| Background { again })), "{given}");
        }
    }

    #[test]
    fn nobody_writes_over_what_another_has_written_to_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd0.log");
        std::fs::write(&path, "of the disk before").unwrap();
        let logs = [open_log(&path, false).unwrap(), open_log(&path, true).unwrap()];
        for (log, text) in [(0, "one "), (1, "two "), (0, "three")] {
            (&logs[log]).write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one two three");
    }
}
