//! One machine, from its description to its command's exit status.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::initrd::{self, Order};
use super::kernel::{self, Kernel};
use super::payload::{self, Payload};
use super::qemu::{Accelerator, Setup, Terminal};
use super::watch::{Outcome, Running};
use super::{kvm, recipe, rootfs};
use crate::{host, paths, run, say};

/// How long a command may take when nothing else is said.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// How long a guest may take to begin its command, on a busy host.
const BOOT: Duration = Duration::from_secs(180);

/// How often a guest that never begins is booted again.
const BOOT_ATTEMPTS: u32 = 3;

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
    /// Where CPUs are translated, each has a host thread of its own. QEMU 7.2's guests panic now and then
    /// so: for measuring only.
    pub parallel: bool,
    /// A plug-in of QEMU's, as `-plugin` takes it; code is then where its symbols say, also in the guest's
    /// programs.
    pub plugin: Option<String>,
    /// Files that the guest finds in `/payload`.
    pub payload: Vec<Payload>,
    /// What the guest has its root file system on, as QEMU names a file or a server's export; what it writes there stays. The
    /// usual image otherwise, of which nothing is changed.
    pub root: Option<String>,
    /// Raw disk images that the guest may change; they are `/dev/drive0` and so on.
    pub drives: Vec<PathBuf>,
    /// When to give up on the command; `None` waits for ever. Booting is apart.
    pub timeout: Option<Duration>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            kernel: recipe::DEFAULT_KERNEL.to_string(),
            memory_mib: 3072,
            cpus: 2,
            icount: false,
            parallel: false,
            plugin: None,
            payload: Vec::new(),
            root: None,
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
    pub fn run_bytes(&self, command: &str, mut on_bytes: impl FnMut(&[u8])) -> Result<ExitStatusCode> {
        self.boot_surely(Some(command), &mut on_bytes)
    }

    /// A shell on this terminal.
    pub fn shell(&self) -> Result<ExitStatusCode> {
        self.boot_surely(None, &mut |_| {})
    }

    /// Boot, and boot again when the guest fails before its command begins: an
    /// emulator under load does that now and then, and nothing has happened yet.
    fn boot_surely(&self, script: Option<&str>, on_bytes: &mut dyn FnMut(&[u8])) -> Result<ExitStatusCode> {
        let accelerator = self.accelerator()?;
        for attempt in 1.. {
            match self.boot(accelerator, script, BOOT, on_bytes)? {
                Outcome::Exited(code) => return Ok(code),
                Outcome::NeverStarted(why) if attempt == BOOT_ATTEMPTS => bail!("{why}"),
                Outcome::NeverStarted(why) => {
                    let what = why.lines().next().unwrap_or_default();
                    say::step(format!("the guest did not come up, trying again: {what}"));
                }
            }
        }
        unreachable!("the last attempt returns")
    }

    fn accelerator(&self) -> Result<Accelerator> {
        self.prepare(false)?;
        Ok(match self.icount {
            true => Accelerator::CountedTcg,
            false if kvm::works(&self.kernel)? => Accelerator::Kvm,
            false if self.parallel => Accelerator::ParallelTcg,
            false => Accelerator::Tcg,
        })
    }

    /// In one line what it is, for figures that were measured on it.
    pub fn about(&self) -> Result<String> {
        let accelerator = self.accelerator()?;
        let words = run::output(run::command("qemu-system-x86_64").arg("--version"))?;
        // `QEMU emulator version 7.2.22 (Debian …)`
        let version = words.split_whitespace().nth(3).unwrap_or("of unknown version");
        let cpus = if self.cpus == 1 { "1 CPU".to_string() } else { format!("{} CPUs", self.cpus) };
        Ok(format!("QEMU {version}, {cpus} {}, {} MiB", accelerator.about(), self.memory_mib))
    }

    /// Boot once with `accelerator`, within `boot_limit`; run, and read the status.
    pub(super) fn boot(
        &self,
        accelerator: Accelerator,
        script: Option<&str>,
        boot_limit: Duration,
        on_bytes: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome> {
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

        let mut images = vec![("modules", kernel.modules_image())];
        if self.root.is_none() {
            images.push(("root", rootfs::ensure(false)?));
        }
        if !self.payload.is_empty() {
            images.push(("payload", payload::image(&self.payload, scratch.path())?));
        }
        let setup = Setup {
            accelerator,
            plugin: self.plugin.as_deref(),
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            vmlinuz: kernel.vmlinuz(),
            initrd: &initrd,
            images,
            root: self.root.as_deref(),
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
        let ended = running.watch(boot_limit, self.timeout, on_bytes)?;
        drop(running);
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
}
