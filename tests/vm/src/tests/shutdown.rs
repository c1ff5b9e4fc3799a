//! Signals to the server: an orderly end, a refusal while mounted, force.

use std::time::Duration;

use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, run_dir};
use crate::check::device::Device;
use crate::check::model::Target;
use crate::home::Mounted;
use crate::outcome::{Context, Outcome};
use crate::run::{Cmd, signal, wait_until};
use crate::{ensure, home, procfs};

pub(super) const TESTS: &[Entry] = &[
    entry("life/foreground-sigterm", 60, Where::Ublk, || foreground(libc::SIGTERM)),
    entry("life/foreground-sigint", 60, Where::Ends, || foreground(libc::SIGINT)),
    entry("life/foreground-detach", 60, Where::Ends, foreground_detach),
    entry("life/background-sigterm", 60, Where::Ends, background_sigterm),
    entry("life/sigterm-refused-while-mounted-then-forced", 90, Where::Ends, refused_then_forced),
];

const MIB: u64 = 1 << 20;

/// Starts `attach --foreground` and waits for the path.
fn start(tool: &Blockhaus, spec: &str) -> Outcome<(crate::run::Background, String)> {
    let mut server = tool.command(&["attach", spec, "--foreground"]).spawn()?;
    wait_until(Duration::from_secs(20), || {
        server.stdout_so_far().ends_with('\n') || !matches!(server.ended(), Ok(None))
    });
    let path = server.stdout_so_far().trim().to_string();
    ensure!(
        path.starts_with("/dev/ublkb"),
        "attach --foreground printed {path:?} and {}",
        server.stderr_so_far().trim()
    );
    Ok((server, path))
}

fn foreground(number: i32) -> Outcome {
    let tool = Blockhaus::new();
    let file = home::path("foreground.img");
    let (server, path) = start(&tool, &format!("file:{file},size=32M"))?;
    let disk = Device::open(&path)?;
    disk.fill(3, MIB, 4 * MIB)?;
    drop(disk);
    let listed = tool
        .list()?
        .into_iter()
        .find(|listed| listed.device == path)
        .context("the foreground device is not in list")?;
    ensure!(
        listed.pid == Some(server.pid()),
        "the server is {:?}, not the calling process {}",
        listed.pid,
        server.pid()
    );
    signal(server.pid() as i32, number);
    let ran = server.wait(Duration::from_secs(10))?;
    if !ran.status.success() {
        return Err(ran.fail(&format!("does not end well on signal {number}")));
    }
    gone(&path, "the server's orderly end")?;
    ensure!(ran.stdout.lines().count() == 1, "it printed more than the path: {:?}", ran.stdout);
    // What was written is in the file.
    let device = tool.attach(&[&format!("file:{file}")])?;
    Device::open(device.path())?.expect(3, MIB, 4 * MIB, MIB)?;
    device.detach()
}

fn gone(path: &str, after: &str) -> Outcome {
    let control = path.replace("ublkb", "ublkc");
    for node in [path, &control] {
        ensure!(!std::path::Path::new(node).exists(), "{node} is still there after {after}");
    }
    Ok(())
}

fn foreground_detach() -> Outcome {
    let tool = Blockhaus::new();
    let (server, path) = start(&tool, "ram:32M")?;
    tool.answer(&["detach", &path])?.done()?;
    gone(&path, "detach")?;
    let ran = server.wait(Duration::from_secs(5))?;
    if ran.status.success() { Ok(()) } else { Err(ran.fail("ends badly when its device is detached")) }
}

fn background_sigterm() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:32M"])?;
    let disk = Device::open(device.path())?;
    disk.fill(3, 0, 4 * MIB)?;
    disk.flush().context("flush")?;
    drop(disk);
    signal(device.info.pid as i32, libc::SIGTERM);
    let ended = wait_until(Duration::from_secs(10), || device.assert_gone("SIGTERM").is_ok());
    ensure!(
        ended,
        "10 s after SIGTERM: {}",
        device.assert_gone("SIGTERM").err().map_or_else(String::new, |fail| fail.why)
    );
    drop(device.forget());
    Ok(())
}

fn refused_then_forced() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:64M"])?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", device.path()]).timeout(60).ok()?;
    let mounted = Mounted::new(device.path(), "signalled")?;
    let pid = device.info.pid;
    signal(pid as i32, libc::SIGTERM);
    let log = run_dir().join(format!("{}.log", device.name()));
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let place = mounted.path().display().to_string();
    ensure!(
        wait_until(Duration::from_secs(5), || said().contains(&place)),
        "{} does not name {place} after SIGTERM: {:?}",
        log.display(),
        said()
    );
    ensure!(procfs::alive(pid), "the server ended on SIGTERM while its disk was mounted");
    std::fs::write(mounted.path().join("file"), [1u8; 100_000]).context("write after a refused SIGTERM")?;
    Cmd::new("sync").arg("-f").arg(mounted.path()).timeout(10).ok()?;
    let state = tool.state(device.id())?;
    ensure!(state.as_deref() == Some("live"), "after a refused SIGTERM the device is {state:?}");
    signal(pid as i32, libc::SIGTERM);
    let node = device.path().to_string();
    ensure!(
        wait_until(Duration::from_secs(10), || !std::path::Path::new(&node).exists()),
        "{node} is still there 10 s after the second SIGTERM"
    );
    mounted.unmount()?;
    let all_gone = || device.assert_gone("the second SIGTERM and umount");
    if !wait_until(Duration::from_secs(10), || all_gone().is_ok()) {
        tool.answer(&["gc"])?;
        all_gone()?;
    }
    drop(device.forget());
    Ok(())
}
