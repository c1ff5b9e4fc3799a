//! The command line of one QEMU machine.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's CPU.
    Kvm,
    /// QEMU's translator, one host thread for all guest CPUs.
    Tcg,
    /// The same with a host thread for each guest CPU: what waits for another CPU takes the time it takes.
    ParallelTcg,
    /// QEMU's translator counting: the guest's clock advances one nanosecond
    /// an instruction, whatever else the host is doing.
    CountedTcg,
}

/// Where the guest's words go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// A command's output, as it is, to our reader.
    Output,
    /// A terminal in both directions. Ctrl-A x ends the machine.
    Interactive,
}

/// All that a command line is made of.
pub struct Setup<'a> {
    /// See [`Accelerator`].
    pub accelerator: Accelerator,
    /// See [`Machine`](super::Machine).
    pub plugin: Option<&'a str>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// The kernel.
    pub vmlinuz: PathBuf,
    /// Its first file system.
    pub initrd: &'a Path,
    /// Images whose changes are thrown away, with their names in the guest.
    pub images: Vec<(&'static str, PathBuf)>,
    /// What the root file system is on, where that is none of the images: what is written stays.
    pub root: Option<&'a str>,
    /// Raw disks that keep what is written.
    pub drives: &'a [PathBuf],
    /// See [`Terminal`].
    pub terminal: Terminal,
    /// The file for the guest's kernel messages.
    pub console: &'a Path,
    /// The file for the command's exit status.
    pub status: &'a Path,
}

impl Setup<'_> {
    /// The command, ready to start.
    pub fn command(&self) -> Command {
        let mut qemu = run::command("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.args(["-machine", "pc", "-m", &self.memory_mib.to_string()]);
        qemu.args(self.accelerator.args(self.cpus));
        qemu.arg("-kernel").arg(&self.vmlinuz).arg("-initrd").arg(self.initrd);
        match self.plugin {
            None => qemu.args(["-append", COMMAND_LINE]),
            Some(plugin) => {
                let append = format!("{COMMAND_LINE} nokaslr norandmaps");
                qemu.args(["-append", &append, "-plugin", plugin])
            }
        };
        qemu.args(["-chardev", &format!("file,id=log,path={}", option(self.console))]);
        qemu.args(["-serial", "chardev:log"]);
        qemu.args(["-device", "virtio-serial-pci"]);
        match self.terminal {
            Terminal::Output => qemu
                .args(["-chardev", "stdio,id=out,signal=off"])
                .args(["-device", "virtserialport,chardev=out,name=blockhaus.out"]),
            Terminal::Interactive => qemu
                .args(["-chardev", "stdio,id=out,mux=on,signal=off"])
                .args(["-mon", "chardev=out"])
                .args(["-device", "virtconsole,chardev=out"]),
        };
        qemu.args(["-chardev", &format!("file,id=status,path={}", option(self.status))]);
        qemu.args(["-device", "virtserialport,chardev=status,name=blockhaus.status"]);
        for (name, file) in &self.images {
            let file = option(file);
            let drive = format!("if=none,id={name},format=raw,snapshot=on,file={file}");
            qemu.args(["-drive", &drive]);
            qemu.args(["-device", &format!("virtio-blk-pci,drive={name},serial={name}")]);
        }
        if let Some(file) = self.root {
            let drive = format!("if=none,id=root,format=raw,discard=unmap,file={}", option(Path::new(file)));
            qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=root,serial=root"]);
        }
        for (at, path) in self.drives.iter().enumerate() {
            let (file, cache) = (option(path), cache_mode(path));
            let drive = format!("if=none,id=drive{at},format=raw,cache={cache},discard=unmap,file={file}");
            qemu.args(["-drive", &drive]);
            qemu.args(["-device", &format!("virtio-blk-pci,drive=drive{at},serial=drive{at}")]);
        }
        qemu
    }
}

/// No waiting before a reboot, which ends the machine; no mitigations, which
/// cost much when emulated; a watchdog would only misread a slow host. The
/// guest's init brings the other CPUs up, and says there why not the kernel.
const COMMAND_LINE: &str =
    "console=ttyS0 panic=-1 mitigations=off nowatchdog random.trust_cpu=on loglevel=6 maxcpus=1";

impl Accelerator {
    /// What it is called where figures are shown.
    pub fn about(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "translated (TCG), one host thread",
            Self::ParallelTcg => "translated (TCG), a host thread each",
            Self::CountedTcg => "translated (TCG), counting instructions",
        }
    }

    fn args(self, cpus: u32) -> Vec<String> {
        let words = match self {
            Self::Kvm => format!("-accel kvm -cpu host -smp {cpus}"),
            // One host thread for all CPUs: with one each (thread=multi), QEMU 7.2 now and then loses a
            // timer, or lets one CPU run code that another is patching, and the guest panics. Two
            // machines side by side use two host CPUs as well.
            // Without cmpxchg16b: QEMU 7.2's emulation of it leaves rubbish in EFLAGS, which
            // kernels up to 6.12 run into in their memory allocator (double fault, GP fault).
            Self::Tcg => format!("-accel tcg,thread=single -cpu max,-cx16 -smp {cpus}"),
            // For measuring only. `rep movsb` would be translated byte by byte, which no CPU does.
            Self::ParallelTcg => {
                format!("-accel tcg,thread=multi -cpu max,-cx16,-erms,-fsrm -smp {cpus}")
            }
            Self::CountedTcg => "-accel tcg,thread=single -icount shift=0,sleep=off \
                                 -cpu max,-erms,-fsrm -smp 1"
                .to_string(),
        };
        words.split_whitespace().map(str::to_string).collect()
    }
}

/// In QEMU's options a comma is written twice.
fn option(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// `none` goes past the host's cache and is honest about flushes; where the
/// file system refuses that (tmpfs), `writeback` passes flushes on as well.
fn cache_mode(path: &Path) -> &'static str {
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    if direct.is_ok() { "none" } else { "writeback" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_what_was_asked_for() {
        let drives = [PathBuf::from("/no,where")];
        let setup = Setup {
            accelerator: Accelerator::CountedTcg,
            plugin: None,
            memory_mib: 512,
            cpus: 4,
            vmlinuz: "/k".into(),
            initrd: Path::new("/i"),
            images: vec![("modules", "/m".into())],
            root: Some("nbd+unix:///root?socket=/s,"),
            drives: &drives,
            terminal: Terminal::Output,
            console: Path::new("/c"),
            status: Path::new("/s"),
        };
        let command = setup.command();
        let words: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        let line = words.join(" ");
        assert!(line.contains("-icount shift=0,sleep=off"), "{line}");
        assert!(line.contains("-smp 1"), "counting takes one CPU: {line}");
        assert!(line.contains("snapshot=on,file=/m"), "{line}");
        let root = "id=root,format=raw,discard=unmap,file=nbd+unix:///root?socket=/s,, -device virtio-blk-pci,drive=root";
        assert!(line.contains(root), "{line}");
        assert!(line.contains("cache=writeback,discard=unmap,file=/no,,where"), "{line}");
    }
}
