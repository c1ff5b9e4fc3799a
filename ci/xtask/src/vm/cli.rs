//! The verb `vm`.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::recipe::{self, KernelRecipe};
use super::{DEFAULT_TIMEOUT, Machine, Payload, kernel, rootfs};
use crate::say;

/// What can be said after `cargo xtask vm`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The kernel to boot, one of `--list`
    #[arg(long, default_value = recipe::DEFAULT_KERNEL)]
    kernel: String,
    /// Look for newer kernels and a newer root file system
    #[arg(long)]
    refresh: bool,
    /// The guest's memory in MiB
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// The guest's CPUs
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Count instructions: one CPU, whose clock advances 1 ns for each
    #[arg(long)]
    icount: bool,
    /// A host thread for each CPU, as `bench --clock` has it: quicker, and with QEMU 7.2 it panics now and then
    #[arg(long, conflicts_with = "icount")]
    parallel: bool,
    /// A file or folder for the guest, where it is /payload/NAME (may be repeated)
    #[arg(long, value_name = "PATH[:NAME]")]
    payload: Vec<Payload>,
    /// The root file system: a raw image or an NBD export with one (nbd+unix:///NAME?socket=PATH), which keeps what is written
    #[arg(long, value_name = "FILE|URI")]
    root: Option<String>,
    /// A raw disk image that keeps what is written; /dev/drive0 and so on (may be repeated)
    #[arg(long, value_name = "FILE")]
    drive: Vec<PathBuf>,
    /// Give up after this long; a command has 1800 s unless told otherwise, a shell all the time
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Say which kernels there are, and whether they are cached
    #[arg(long, conflicts_with_all = ["prepare", "command"])]
    list: bool,
    /// Only fetch and make what these kernels need
    #[arg(long, value_name = "KERNEL", num_args = 0.., conflicts_with = "command")]
    prepare: Option<Vec<String>>,
    /// With --prepare, or alone: every kernel
    #[arg(long, conflicts_with_all = ["command", "list"])]
    all: bool,
    /// What to run: one word is a shell script, several are a command and its arguments;
    /// without it, a shell (or a script from stdin when that is no terminal)
    #[arg(last = true)]
    command: Vec<String>,
}

/// Do what was asked for; the result is the command's exit status.
pub fn main(args: &Args) -> Result<ExitCode> {
    if args.list {
        return list(args.refresh).map(|()| ExitCode::SUCCESS);
    }
    if args.all || args.prepare.is_some() {
        return prepare(args).map(|()| ExitCode::SUCCESS);
    }
    let script = script(&args.command)?;
    let limit = args.timeout.map(Duration::from_secs);
    let machine = Machine {
        kernel: args.kernel.clone(),
        memory_mib: args.memory,
        cpus: args.cpus,
        icount: args.icount,
        parallel: args.parallel,
        plugin: None,
        payload: args.payload.clone(),
        root: args.root.clone(),
        drives: args.drive.clone(),
        timeout: limit.or_else(|| script.is_some().then_some(DEFAULT_TIMEOUT)),
    };
    if args.refresh {
        machine.prepare(true)?;
    }
    let status = match script {
        Some(script) => machine.run_bytes(&script, say::raw)?,
        None => {
            say::step("a shell in the guest; `exit` or Ctrl-A x ends the machine");
            machine.shell()?
        }
    };
    Ok(ExitCode::from(status.0))
}

/// The script to run, or none for a shell on the terminal.
fn script(command: &[String]) -> Result<Option<String>> {
    match command {
        [] if std::io::stdin().is_terminal() => Ok(None),
        [] => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the script on stdin")?;
            Ok(Some(text))
        }
        [script] => Ok(Some(script.clone())),
        words => Ok(Some(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "))),
    }
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn prepare(args: &Args) -> Result<()> {
    let mut names = args.prepare.clone().unwrap_or_default();
    if args.all {
        names = recipe::kernel_names()?;
    } else if names.is_empty() {
        names.push(args.kernel.clone());
    }
    for name in &names {
        Machine::with_kernel(name).prepare(args.refresh)?;
    }
    say::step(format!("ready: {}", names.join(", ")));
    Ok(())
}

fn list(refresh: bool) -> Result<()> {
    for name in recipe::kernel_names()? {
        let recipe = KernelRecipe::load(&name)?;
        let (version, state) = match kernel::cached(&name).filter(|_| !refresh) {
            Some(kernel) => (format!("{} ({})", kernel.release, kernel.suite), "cached"),
            None => match kernel::resolve(&name, &recipe, refresh) {
                Ok((suite, choice)) => (format!("{} ({})", choice.version, suite.name()), "not cached"),
                Err(error) => (format!("{error:#}").lines().next().unwrap_or("").into(), "unknown"),
            },
        };
        say::line(format!("{name:5} {state:10} {version:45} {}", recipe.about));
    }
    let root = if rootfs::cached().is_some() { "cached" } else { "not cached" };
    say::line(format!("root  {root:10}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_words_stay_several_words() {
        let words = ["echo", "a b", "it's"].map(str::to_string);
        assert_eq!(script(&words).unwrap().unwrap(), r"'echo' 'a b' 'it'\''s'");
        let one = ["uname -r; ls".to_string()];
        assert_eq!(script(&one).unwrap().unwrap(), "uname -r; ls");
    }
}
