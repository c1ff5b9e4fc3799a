//! Running other programs, with errors that show what they said.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many lines of a failed program's words an error carries.
const SHOWN_LINES: usize = 15;

/// Run it, keep its words to ourselves unless it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Run it and return its stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let line = shown(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !out.status.success() {
        let words = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        bail!("`{line}` failed ({}):\n{}", out.status, last_lines(&words, SHOWN_LINES));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The command line, shortened for a message.
fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
        if line.len() > 200 {
            line.truncate(line.floor_char_boundary_(200));
            line.push('…');
            break;
        }
    }
    line
}

/// `str::floor_char_boundary` is newer than our oldest compiler.
trait FloorCharBoundary {
    fn floor_char_boundary_(&self, at: usize) -> usize;
}

impl FloorCharBoundary for String {
    fn floor_char_boundary_(&self, at: usize) -> usize {
        (0..=at).rev().find(|&i| self.is_char_boundary(i)).unwrap_or(0)
    }
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Where a program is, also looking where only root's PATH looks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(dir).join(name))
        .find(|file| file.is_file())
}

/// A command, found also where only root's PATH looks.
pub fn command(name: &str) -> Command {
    Command::new(find_program(name).unwrap_or_else(|| PathBuf::from(name)))
}

/// Whether we are root.
pub fn is_root() -> bool {
    // SAFETY: geteuid reads a number of this process and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A command run as root: through sudo when we are not root already.
pub fn as_root(name: &str) -> Command {
    let program = find_program(name).unwrap_or_else(|| PathBuf::from(name));
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = command("sudo");
    sudo.arg("--preserve-env=DEBIAN_FRONTEND").arg(program);
    sudo
}

/// Let the kernel kill the child when the thread that starts it dies, so that
/// a killed test run leaves no machine behind.
pub fn die_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only prctl is called, which is a plain
    // system call: it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    }
}

/// Held while a cache is being built; let go when dropped or when we die.
pub struct Lock(#[expect(dead_code, reason = "open means locked")] File);

impl Lock {
    /// Wait for the lock named `name`, saying so when it takes another's time.
    pub fn take(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(format!("{name}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        if !flock(&file, libc::LOCK_EX | libc::LOCK_NB) {
            crate::say::step(format!("waiting: another run is preparing {name}"));
            if !flock(&file, libc::LOCK_EX) {
                let error = std::io::Error::last_os_error();
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Self(file))
    }
}

fn flock(file: &File, operation: i32) -> bool {
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and
    // flock touches no memory of ours.
    unsafe { libc::flock(file.as_raw_fd(), operation) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_keeps_the_end() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn a_failure_shows_what_the_program_said() {
        let error = quiet(command("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }

    #[test]
    fn a_long_command_line_is_cut_between_characters() {
        let mut long = Command::new("x");
        long.arg("é".repeat(300));
        assert!(shown(&long).ends_with('…'));
    }
}
