//! One machine, from its description to its command's exit status.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::initrd::{self, Order};
use super::kernel::{self, Kernel};
use super::payload::{self, Payload};
use super::qemu::{Accelerator, Setup, Terminal};
use super::{kvm, recipe, rootfs};
use crate::{host, paths, run};

/// How long a command may take when nothing else is said.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// How long a guest may take to power off after its command has ended.
const POWER_OFF: Duration = Duration::from_secs(10);

/// How many consoles of earlier runs are kept.
const LOGS_KEPT: usize = 50;

/// A machine to boot. Each run boots it anew; nothing is kept but `drives`.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The name of a recipe in `vm-images/kernels`.
    pub kernel: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs; one when instructions are counted.
    pub cpus: u32,
    /// Count instructions: the guest's clock advances 1 ns for each.
    pub icount: bool,
    /// Files that the guest finds in `/payload`.
    pub payload: Vec<Payload>,
    /// Raw disk images that the guest may change; they are `/dev/drive0` and so on.
    pub drives: Vec<PathBuf>,
    /// When to give up; `None` waits for ever.
    pub timeout: Option<Duration>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            kernel: recipe::DEFAULT_KERNEL.to_string(),
            memory_mib: 3072,
            cpus: 2,
            icount: false,
            payload: Vec::new(),
            drives: Vec::new(),
            timeout: Some(DEFAULT_TIMEOUT),
        }
    }
}

/// The exit status of a command in a guest, as a shell would say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatusCode(pub u8);

impl ExitStatusCode {
    /// Whether it is 0.
    pub fn success(self) -> bool {
        self.0 == 0
    }
}

impl Machine {
    /// A machine with this kernel, and the usual of everything else.
    pub fn with_kernel(name: &str) -> Self {
        Self { kernel: name.to_string(), ..Self::default() }
    }

    /// Fetch and make what the machine is made of, if that is not there yet.
    pub fn prepare(&self, refresh: bool) -> Result<()> {
        kernel::ensure(&self.kernel, refresh)?;
        rootfs::ensure(refresh)?;
        rootfs::busybox()?;
        host::ensure(host::TO_RUN)
    }

    /// Run a shell script (bash) and pass on each line of what it writes, to
    /// stdout and stderr alike, as it comes.
    pub fn run(&self, command: &str, mut on_line: impl FnMut(&str)) -> Result<ExitStatusCode> {
        let mut lines = Lines::default();
        let status = self.run_bytes(command, |bytes| lines.take(bytes, &mut on_line));
        lines.finish(&mut on_line);
        status
    }

    /// [`Machine::run`], with the bytes as they come.
    pub fn run_bytes(&self, command: &str, on_bytes: impl FnMut(&[u8])) -> Result<ExitStatusCode> {
        self.boot(self.accelerator()?, Some(command), on_bytes)
    }

    /// A shell on this terminal.
    pub fn shell(&self) -> Result<ExitStatusCode> {
        self.boot(self.accelerator()?, None, |_| {})
    }

    fn accelerator(&self) -> Result<Accelerator> {
        self.prepare(false)?;
        Ok(match self.icount {
            true => Accelerator::CountedTcg,
            false if kvm::works(&self.kernel)? => Accelerator::Kvm,
            false => Accelerator::Tcg,
        })
    }

    /// Boot with `accelerator`, run, and read the status.
    pub(super) fn boot(
        &self,
        accelerator: Accelerator,
        script: Option<&str>,
        mut on_bytes: impl FnMut(&[u8]),
    ) -> Result<ExitStatusCode> {
        if let Some(drive) = self.drives.iter().find(|drive| !drive.is_file()) {
            bail!("there is no {}; make it first, such as with truncate", drive.display());
        }
        let kernel = kernel::ensure(&self.kernel, false)?;
        let scratch = paths::Scratch::new_in(&paths::vm_dir("run")?)?;
        let logs = paths::vm_dir("log")?;
        keep_newest(&logs, LOGS_KEPT);
        let console = logs.join(format!("{}.console", paths::unique_name()));
        let status = scratch.path().join("status");
        let initrd = scratch.path().join("initrd");
        let order = Order { script, settings: self.settings(&kernel, script.is_none()) };
        fs::write(&initrd, initrd::build(&kernel, &order)?).context("cannot write the initrd")?;

        let mut images =
            vec![("root", rootfs::ensure(false)?), ("modules", kernel.modules_image())];
        if !self.payload.is_empty() {
            images.push(("payload", payload::image(&self.payload, scratch.path())?));
        }
        let setup = Setup {
            accelerator,
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            vmlinuz: kernel.vmlinuz(),
            initrd: &initrd,
            images,
            drives: &self.drives,
            terminal: if script.is_some() { Terminal::Output } else { Terminal::Interactive },
            console: &console,
            status: &status,
        };
        let mut qemu = setup.command();
        let errors = scratch.path().join("qemu-stderr");
        qemu.stderr(fs::File::create(&errors)?);
        if script.is_some() {
            // Held open: at the end of its input QEMU would drop the output as well.
            qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        }
        let child = run::die_with_us(&mut qemu).spawn().context("cannot start QEMU")?;
        let mut running = Running { child, status: &status };
        let ended = running.watch(self.timeout, &mut on_bytes)?;
        ended.explained(&status, &console, &errors)
    }

    fn settings(&self, kernel: &Kernel, interactive: bool) -> String {
        let size = if interactive { terminal_size() } else { String::new() };
        let drives = self.drives.len();
        format!("release='{}'\nterminal_size='{size}'\ndrives={drives}\n", kernel.release)
    }
}

/// `rows R columns C` of our terminal, or nothing.
fn terminal_size() -> String {
    let out = run::command("stty").arg("size").stdin(Stdio::inherit()).output();
    let words = out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    match words.split_whitespace().collect::<Vec<_>>()[..] {
        [rows, columns] => format!("rows {rows} columns {columns}"),
        _ => String::new(),
    }
}

fn keep_newest(dir: &Path, count: usize) {
    let mut files: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort();
    for (_, path) in files.iter().rev().skip(count) {
        let _ = fs::remove_file(path);
    }
}

/// Bytes that come in pieces, cut into lines.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], on_line: &mut impl FnMut(&str)) {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else { return };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        for line in whole[..end].split(|&byte| byte == b'\n') {
            on_line(&String::from_utf8_lossy(line));
        }
    }

    fn finish(self, on_line: &mut impl FnMut(&str)) {
        if !self.rest.is_empty() {
            on_line(&String::from_utf8_lossy(&self.rest));
        }
    }
}

/// A QEMU process, which never outlives this value.
struct Running<'a> {
    child: Child,
    status: &'a Path,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a machine ended.
enum Ended {
    ByItself,
    TooLate(Duration),
}

impl Running<'_> {
    /// Pass output on until QEMU ends; end it when it is too late, or when the
    /// status is known and the guest does not manage to power off.
    fn watch(&mut self, timeout: Option<Duration>, on_bytes: &mut impl FnMut(&[u8])) -> Result<Ended> {
        let started = Instant::now();
        let output = self.reader();
        let mut known_since: Option<Instant> = None;
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
            if known_since.is_none() && read_status(self.status).is_some() {
                known_since = Some(Instant::now());
            }
            if known_since.is_some_and(|since| since.elapsed() > POWER_OFF) {
                return Ok(Ended::ByItself);
            }
            if let Some(limit) = timeout.filter(|limit| started.elapsed() > *limit)
                && known_since.is_none()
            {
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

/// The status that the guest wrote as its last words: `exit N`.
fn read_status(file: &Path) -> Option<ExitStatusCode> {
    let text = fs::read_to_string(file).ok()?;
    text.strip_suffix('\n')?.strip_prefix("exit ")?.parse().ok().map(ExitStatusCode)
}

impl Ended {
    /// The status, or why there is none.
    fn explained(self, status: &Path, console: &Path, errors: &Path) -> Result<ExitStatusCode> {
        if let Some(code) = read_status(status) {
            return Ok(code);
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
        bail!(
            "{what}. The last lines of its console ({}):\n{}",
            console.display(),
            run::last_lines(&log, 30)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_the_bytes_come() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for piece in ["a", "b\nc\n\nd", "e"] {
            lines.take(piece.as_bytes(), &mut |line: &str| seen.push(line.to_string()));
        }
        lines.finish(&mut |line: &str| seen.push(line.to_string()));
        assert_eq!(seen, ["ab", "c", "", "de"]);
    }

    #[test]
    fn a_status_counts_only_when_it_is_whole() {
        let dir = std::env::temp_dir();
        let file = dir.join(paths::unique_name());
        for (text, status) in [("exit 3\n", Some(3)), ("exit 12", None), ("", None), ("x\n", None)] {
            fs::write(&file, text).unwrap();
            assert_eq!(read_status(&file), status.map(ExitStatusCode), "{text:?}");
        }
        fs::remove_file(&file).unwrap();
    }
}
