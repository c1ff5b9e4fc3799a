//! Servers that die or stop answering, under load.

use std::path::Path;
use std::time::Duration;

use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, Device as Attached};
use crate::check::fio::Load;
use crate::home::Mounted;
use crate::outcome::{Context, Outcome};
use crate::run::{Cmd, signal, wait_until};
use crate::{ensure, home, procfs};

pub(super) const TESTS: &[Entry] = &[
    entry("crash/kill9-ram", 120, Where::Ublk, || kill9("ram:128M")),
    entry("crash/kill9-file", 120, Where::Ends, kill9_file),
    entry("crash/kill9-mounted", 120, Where::Ends, kill9_mounted),
    entry("crash/kill9-idle", 60, Where::Ends, kill9_idle),
    entry("crash/kill9-one-of-three", 60, Where::Ends, one_of_three),
    entry("crash/sigstop-force", 150, Where::Ublk, sigstop_force),
    entry("crash/sigstop-continue", 150, Where::Ends, sigstop_continue),
];

fn kill9_file() -> Outcome {
    kill9(&format!("file:{},size=128M", home::path("crash.img")))
}

/// Under load: the load fails, `list` says dead, `gc` removes.
fn kill9(spec: &str) -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&[spec, "--queues", "2", "--depth", "64"])?;
    let load = Load::start(device.path(), 300, 2000, || device.requests())?;
    signal(device.info.pid as i32, libc::SIGKILL);
    load.ends_in_error(30)?;
    dead_then_collected(&tool, device)
}

/// What every crash comes to: listed as dead, removed by gc, the id free again.
fn dead_then_collected(tool: &Blockhaus, device: Attached) -> Outcome {
    let id = device.id();
    let pid = device.info.pid;
    ensure!(
        wait_until(Duration::from_secs(10), || !procfs::alive(pid)),
        "the killed server does not go away: {:?}",
        procfs::stuck()
    );
    let state = tool.state(id)?;
    ensure!(state.as_deref() == Some("dead"), "list says {state:?} of a device whose server was killed");
    let status = tool.answer(&["status", &id.to_string()])?;
    let text = format!("{}{}", status.stdout, status.stderr);
    ensure!(
        text.contains("dead") || text.contains("gc"),
        "status does not tell that the server is dead: {text}"
    );
    let status = tool.answer(&["status", &id.to_string(), "--json"])?;
    let said: serde_json::Value = serde_json::from_str(&status.stdout).context("what status says")?;
    let running = [&said["memory"]["locked_buffers"], &said["memory"]["resident"], &said["uptime_s"]];
    ensure!(
        running.iter().all(|value| value.is_null()) && said["queue_threads"] == serde_json::json!([]),
        "status tells of memory, threads or time of a server that is dead: {said}"
    );
    let metrics = tool.answer(&["metrics"])?.stdout;
    let line = format!("blockhaus_server_answers{{about=\"{}\",pid=\"{pid}\"}} 0", device.path());
    ensure!(metrics.contains(&line), "no {line} in {metrics}");
    let ran = tool.answer(&["gc"])?.done()?;
    ensure!(
        ran.stdout.contains(&format!("ublkb{id}")) || ran.stdout.contains(&format!("ublkc{id}")),
        "gc does not say that it removed device {id}: {:?}",
        ran.stdout
    );
    device.assert_gone("gc")?;
    ensure!(tool.state(id)?.is_none(), "device {id} is still listed after gc");
    let again = tool.attach(&["ram:8M", "--id", &id.to_string()])?;
    drop(device.forget());
    again.detach()
}

fn kill9_idle() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:32M"])?;
    signal(device.info.pid as i32, libc::SIGKILL);
    dead_then_collected(&tool, device)
}

fn kill9_mounted() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:64M"])?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", device.path()]).timeout(60).ok()?;
    let mounted = Mounted::new(device.path(), "crashed")?;
    std::fs::write(mounted.path().join("file"), [1u8; 1_000_000]).context("write")?;
    signal(device.info.pid as i32, libc::SIGKILL);
    // sync has to come back, with an error; the file system then has to let go.
    Cmd::new("sync").arg("-f").arg(mounted.path()).timeout(30).run()?;
    mounted.unmount()?;
    dead_then_collected(&tool, device)
}

/// A crash takes one disk; the others work on and gc leaves them alone.
fn one_of_three() -> Outcome {
    let tool = Blockhaus::new();
    let mut devices = Vec::new();
    for _ in 0..3 {
        devices.push(tool.attach(&["ram:16M"])?);
    }
    let victim = devices.remove(1);
    signal(victim.info.pid as i32, libc::SIGKILL);
    dead_then_collected(&tool, victim)?;
    for device in devices {
        let disk = crate::check::device::Device::open(device.path())?;
        disk.fill(5, 0, 1 << 20)?;
        disk.expect(5, 0, 1 << 20, 0)?;
        drop(disk);
        device.detach()?;
    }
    Ok(())
}

/// Stops a server under load and has every verb answer in time. Returns what `list` said.
fn stopped(tool: &Blockhaus) -> Outcome<(Attached, Load)> {
    let device = tool.attach(&["ram:128M", "--queues", "2", "--depth", "64"])?;
    let load = Load::start(device.path(), 45, 2000, || device.requests())?;
    signal(device.info.pid as i32, libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(500));
    let id = device.id().to_string();
    let list = tool.answer(&["list", "--json"])?;
    ensure!(list.status.success(), "list fails while a server is stopped: {}", list.stderr.trim());
    ensure!(
        list.stdout.contains("hung"),
        "list does not say that a stopped server hangs: {}",
        list.stdout.trim()
    );
    let status = tool.answer(&["status", &id])?;
    let text = format!("{}{}", status.stdout, status.stderr);
    ensure!(
        text.contains("hung") || text.contains("does not answer"),
        "status does not tell that the server hangs: {text}"
    );
    let detach = tool.answer(&["detach", &id])?;
    ensure!(!detach.status.success(), "detach without --force succeeds under load of a stopped server");
    ensure!(
        detach.stderr.contains("--force") || detach.stderr.contains("kill"),
        "detach gives no cure: {}",
        detach.stderr.trim()
    );
    // Another device is not taken along: the kernel's global lock must not be held.
    let other = tool.attach(&["ram:8M"]).context("attach of another device while one server is stopped")?;
    other.detach().context("detach of another device while one server is stopped")?;
    Ok((device, load))
}

fn sigstop_force() -> Outcome {
    let tool = Blockhaus::new();
    let (device, load) = stopped(&tool)?;
    let ran = tool.answer(&["detach", &device.id().to_string(), "--force"])?;
    if !ran.status.success() {
        return Err(ran.fail("cannot remove the device of a stopped server"));
    }
    load.ends(30)?;
    let all_gone = || device.assert_gone("detach --force");
    ensure!(
        wait_until(Duration::from_secs(5), || all_gone().is_ok()),
        "{}",
        all_gone().err().map_or_else(String::new, |fail| fail.why)
    );
    ensure!(
        !Path::new(&format!("/sys/class/ublk-char/ublkc{}", device.id())).exists(),
        "ublkc is still in sysfs"
    );
    drop(device.forget());
    Ok(())
}

fn sigstop_continue() -> Outcome {
    let tool = Blockhaus::new();
    let (device, load) = stopped(&tool)?;
    signal(device.info.pid as i32, libc::SIGCONT);
    let live = || matches!(tool.state(device.id()), Ok(Some(state)) if state == "live");
    ensure!(
        wait_until(Duration::from_secs(10), live),
        "a server that goes on is {:?} after 10 s",
        tool.state(device.id())?
    );
    let before = device.requests()?;
    ensure!(
        wait_until(Duration::from_secs(10), || device.requests().is_ok_and(|now| now > before + 100)),
        "no I/O is served after SIGCONT"
    );
    load.ends_well(90)?;
    device.detach()
}
