//! Watching a running machine: its output, how far it has come, how it ended.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::machine::ExitStatusCode;
use crate::run;

/// How long a guest may take to power off after its command has ended.
const POWER_OFF: Duration = Duration::from_secs(10);

/// A QEMU process, which never outlives this value.
pub(super) struct Running<'a> {
    pub(super) child: Child,
    pub(super) status: &'a Path,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of one boot.
pub(super) enum Outcome {
    /// The command ended with this status.
    Exited(ExitStatusCode),
    /// The guest failed before the command began; why.
    NeverStarted(String),
}

/// How a machine ended.
pub(super) enum Ended {
    ByItself,
    TooLate(Duration),
}

impl Running<'_> {
    /// Pass output on until QEMU ends; end it when it is too late, or when the
    /// status is known and the guest does not manage to power off.
    pub(super) fn watch(
        &mut self,
        boot_limit: Duration,
        timeout: Option<Duration>,
        on_bytes: &mut dyn FnMut(&[u8]),
    ) -> Result<Ended> {
        let output = self.reader();
        let mut guest = Status::Booting;
        let mut since = Instant::now();
        loop {
            match output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => on_bytes(&bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    if self.child.try_wait()?.is_some() {
                        return Ok(Ended::ByItself);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            let now = Status::read(self.status);
            if now != guest {
                (guest, since) = (now, Instant::now());
            }
            let limit = match guest {
                Status::Booting => Some(boot_limit),
                Status::Started => timeout,
                Status::Exited(_) => Some(POWER_OFF),
            };
            if let Some(limit) = limit.filter(|limit| since.elapsed() > *limit) {
                return Ok(Ended::TooLate(limit));
            }
        }
    }

    fn reader(&mut self) -> Receiver<Vec<u8>> {
        let (send, receive) = mpsc::sync_channel(64);
        if let Some(mut stdout) = self.child.stdout.take() {
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count) = stdout.read(&mut buffer) {
                    if count == 0 || send.send(buffer[..count].to_vec()).is_err() {
                        break;
                    }
                }
            });
        }
        receive
    }
}

/// How far a guest has come: it writes `started`, and then `exit N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Booting,
    Started,
    Exited(ExitStatusCode),
}

impl Status {
    fn read(file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let code = |line: &str| line.strip_prefix("exit ")?.parse().ok().map(ExitStatusCode);
        match whole.lines().last() {
            None => Self::Booting,
            Some(line) => code(line).map_or(Self::Started, Self::Exited),
        }
    }
}

impl Ended {
    /// The status, or why there is none.
    pub(super) fn explained(self, status: &Path, console: &Path, errors: &Path) -> Result<Outcome> {
        let status = Status::read(status);
        if let Status::Exited(code) = status {
            return Ok(Outcome::Exited(code));
        }
        let log = fs::read(console).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let said = fs::read_to_string(errors).unwrap_or_default();
        let what = match self {
            Self::TooLate(limit) => {
                format!("the machine was not done after {} s and was ended", limit.as_secs())
            }
            Self::ByItself if log.contains("Kernel panic") => "the guest's kernel panicked".into(),
            Self::ByItself if !said.trim().is_empty() => format!("QEMU failed: {}", said.trim()),
            Self::ByItself => "the machine ended before its command did".into(),
        };
        let why = format!(
            "{what}. The last lines of its console ({}):\n{}",
            console.display(),
            run::last_lines(&log, 30)
        );
        match status {
            Status::Booting => Ok(Outcome::NeverStarted(why)),
            _ => bail!("{why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_counts_only_when_it_is_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let exited = |code| Status::Exited(ExitStatusCode(code));
        for (text, status) in [
            ("", Status::Booting),
            ("start", Status::Booting),
            ("started\n", Status::Started),
            ("started\nexit 1", Status::Started),
            ("started\nexit 12\n", exited(12)),
        ] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(Status::read(file.path()), status, "{text:?}");
        }
    }
}
