//! A plan carried out: in virtual machines, or on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::mode::Mode;
use super::plan::{Place, Plan};
use super::results::Results;
use super::servers::{self, Ours, Server};
use crate::host::{self, Need};
use crate::vm::{Machine, Payload};
use crate::{paths, run, say};

/// Long enough for a host that does much else besides.
pub const TIMEOUT: Duration = Duration::from_secs(3 * 3600);

/// How often a round by the clock is tried: with a host thread for each CPU, QEMU's guests panic now and then.
const ATTEMPTS: u32 = 3;

/// What the host must have to be measured itself.
const HERE: &[Need] = &[
    Need::new("fio", "fio"),
    Need::new("jq", "jq"),
    Need::new("losetup", "mount"),
    Need::new("udevadm", "udev"),
    Need::new("nbd-client", "nbd-client"),
    Need::new("nbdkit", "nbdkit"),
    Need::new("qemu-nbd", "qemu-utils"),
];

/// What NBD servers and their clients need.
const HERE_NBD: &[Need] = &[
    Need::new("fio", "fio"),
    Need::new("jq", "jq"),
    Need::new("nbdcopy", "libnbd-bin"),
    Need::new("nbdkit", "nbdkit"),
    Need::new("qemu-nbd", "qemu-utils"),
];

/// Figures, and the words for what they were measured on.
pub type Measured = (Results, String);

/// Measure `plan` in virtual machines with this kernel.
pub fn in_machines(kernel: &str, plan: &Plan) -> Result<Measured> {
    let mut results = Results::default();
    let machine = Machine {
        kernel: kernel.to_string(),
        cpus: if plan.mode.counts() { 1 } else { 2 },
        icount: plan.mode.counts(),
        parallel: !plan.mode.counts(),
        payload: payload(plan, &mut results)?,
        timeout: Some(TIMEOUT),
        ..Machine::default()
    };
    machine.prepare(false)?;
    let about = machine.about()?;
    say::step(format!("measuring {} cells: {about}", plan.cells()));
    // A machine that counts is the same for all runs. By the clock each run has one of its own, so that one
    // which dies takes no other's figures along.
    let (rounds, runs) = if plan.mode.counts() { (1, plan.runs) } else { (plan.runs, 1) };
    for round in 0..rounds {
        let script = plan.script(Place::Guest, runs, round % 2 == 1);
        for attempt in 1.. {
            let mut found = Results::default();
            let mut said = String::new();
            let before = results.taken();
            let status = machine.run(&script, |line| take(line, plan, before, &mut found, &mut said));
            match ended(status.map(|status| status.success()), plan, &found, runs, &said) {
                Ok(()) => {
                    results.append(found);
                    break;
                }
                Err(error) if plan.mode.counts() || attempt == ATTEMPTS => return Err(error),
                Err(error) => say::step(format!("round {} begins anew: {error:#}", round + 1)),
            }
        }
    }
    Ok((results, about))
}

/// Measure `plan` on this machine, with its own ublk where that is wanted.
pub fn here(plan: &Plan) -> Result<Measured> {
    if plan.mode.counts() {
        bail!("instructions are counted in a virtual machine only; --host goes with --clock");
    }
    let served = plan.mode == Mode::Nbd;
    if let Some(why) = refusal(served || Path::new("/dev/ublk-control").exists(), served || run::is_root()) {
        bail!("{why}");
    }
    host::ensure(if served { HERE_NBD } else { HERE })?;
    let mut results = Results::default();
    // Where files are served by whoever, a disk below would be what is measured.
    let parent = if served { PathBuf::from("/dev/shm") } else { paths::workspace().join("target/bench") };
    let folder = paths::Scratch::new_in(&parent)?;
    for item in payload(plan, &mut results)? {
        let to = folder.path().join(&item.name);
        std::fs::copy(&item.path, &to).with_context(|| format!("cannot copy {}", item.name))?;
    }
    let place = folder.path().to_string_lossy().into_owned();
    say::step(format!("measuring {} cells on this machine", plan.cells()));
    for round in 0..plan.runs {
        let script = plan.script(Place::Here(&place), 1, round % 2 == 1);
        let mut found = Results::default();
        let mut said = String::new();
        let before = results.taken();
        let success = run_here(&script, |line| take(line, plan, before, &mut found, &mut said));
        ended(success, plan, &found, 1, &said)?;
        results.append(found);
        // The next round makes its files anew.
        let files = folder.path().join("bench-fs");
        if files.exists() {
            std::fs::remove_dir_all(&files).context("cannot remove the round's files")?;
        }
    }
    let where_to =
        if served { "files lie in memory" } else { "its own kernel and ublk; the file lies on its disk" };
    Ok((results, format!("this machine itself, {where_to}")))
}

/// Why this machine cannot be measured, if so.
fn refusal(has_ublk: bool, is_root: bool) -> Option<&'static str> {
    match (has_ublk, is_root) {
        (false, _) => Some(
            "this machine has no ublk (there is no /dev/ublk-control). Load it with `modprobe ublk_drv` if its \
             kernel has it, or leave out --host to measure in a virtual machine",
        ),
        (true, false) => Some("--host makes devices on this machine, which takes root: run it with sudo"),
        (true, true) => None,
    }
}

/// One line of the script's.
fn take(line: &str, plan: &Plan, before: usize, found: &mut Results, said: &mut String) {
    match found.take(line) {
        Ok(Some(progress)) => {
            say::step(format!("[{}/{}] {progress}", before + found.taken(), plan.cells()));
        }
        Ok(None) => {}
        Err(other) => {
            say::step(&other);
            *said += &other;
            said.push('\n');
        }
    }
}

/// Whether a script measured all that it had to.
fn ended(success: Result<bool>, plan: &Plan, found: &Results, runs: u32, said: &str) -> Result<()> {
    let success = success?;
    let said = run::last_lines(said, 15);
    if !success {
        bail!("the measurement ended early, after {} cells: {said}", found.taken());
    }
    if let Some(cell) = found.lacking(plan, runs) {
        bail!("the measurement is not whole: {cell} {said}");
    }
    if found.taken() == 0 {
        let why: Vec<String> = found.missing.iter().map(|(device, why)| format!("{device}: {why}")).collect();
        bail!("nothing was measured: {}", why.join("; "));
    }
    Ok(())
}

/// The servers that the plan needs, for the guest.
fn payload(plan: &Plan, results: &mut Results) -> Result<Vec<Payload>> {
    let servers = servers::build(plan, Ours::AsUsual)?;
    for server in &servers {
        server.version.iter().for_each(|version| results.add_version(server.name, version));
    }
    Ok(servers.iter().map(Server::payload).collect())
}

/// Run the script by this machine's shell, and pass on its lines as they come.
fn run_here(script: &str, mut on_line: impl FnMut(&str)) -> Result<bool> {
    use std::io::{BufRead, BufReader};
    let mut shell = Command::new("bash");
    // One pipe for both, so that what went wrong is heard in its place.
    shell.args(["-c", &format!("exec 2>&1\n{script}")]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = run::die_with_us(&mut shell).spawn().context("cannot start bash")?;
    let output = child.stdout.take().context("the shell has no output")?;
    for line in BufReader::new(output).lines() {
        on_line(&line.context("cannot read the shell's output")?);
    }
    Ok(child.wait().context("cannot wait for the shell")?.success())
}

#[cfg(test)]
mod tests {
    use super::super::device::named;
    use super::*;

    #[test]
    fn a_run_with_nothing_measured_fails() {
        let plan = Plan::new(Mode::Count, vec![named("loop-file").unwrap()], true, None);
        let mut found = Results::default();
        let judge = |success: bool, found: &Results| ended(Ok(success), &plan, found, 1, "words");
        assert!(judge(true, &found).unwrap_err().to_string().contains("not whole"));
        assert!(judge(false, &found).unwrap_err().to_string().contains("words"));
        found.take("@missing loop-file no loop here").unwrap();
        let error = judge(true, &found).unwrap_err().to_string();
        assert!(error.contains("nothing was measured") && error.contains("no loop here"), "{error}");
    }

    #[test]
    fn a_machine_without_ublk_says_so() {
        assert!(refusal(false, true).unwrap().contains("modprobe ublk_drv"));
        assert!(refusal(true, false).unwrap().contains("sudo"));
        assert_eq!(refusal(true, true), None);
    }

    #[test]
    fn lines_of_a_script_come_with_its_errors() {
        let mut lines = Vec::new();
        let success =
            run_here("echo one; echo two >&2; exit 3", |line| lines.push(line.to_string())).unwrap();
        assert!(!success);
        assert_eq!(lines, ["one", "two"]);
    }
}
