//! Many disks from one file and one process: readiness, reload, detach of one, the end, a crash.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::{Entry, Where, entry};
use crate::blockhaus::{Blockhaus, binary};
use crate::check::device::Device;
use crate::check::fio::Load;
use crate::home::Mounted;
use crate::outcome::{Context, Fail, Outcome};
use crate::run::{Background, Cmd, Ran, signal, wait_until};
use crate::{ensure, home, procfs};

pub(super) const TESTS: &[Entry] = &[
    entry("up/three-reload-down", 180, Where::Ublk, three_reload_down),
    entry("up/mounted-is-left", 120, Where::Ends, mounted_is_left),
    entry("up/sigterm-twice", 120, Where::Ends, sigterm_twice),
    entry("up/kill9-gc", 120, Where::Ublk, kill9),
    entry("up/all-or-none", 90, Where::Ends, all_or_none),
    entry("up/hung", 120, Where::Ends, hung),
];

const MIB: u64 = 1 << 20;

/// An `up` and what it tells its service manager. Taken down by force when dropped.
pub(super) struct Up {
    pub(super) tool: Blockhaus,
    config: String,
    manager: UnixDatagram,
    server: Option<Background>,
}

impl Up {
    /// Starts it and waits for its READY.
    pub(super) fn new(name: &str, devices: &[String]) -> Outcome<Up> {
        let up = Up::start(name, devices)?;
        let said = up.hears().context(format!("no word from up; it says {}", up.log()))?;
        ensure!(said.contains("READY=1"), "the first word of up is {said:?}");
        Ok(up)
    }

    fn start(name: &str, devices: &[String]) -> Outcome<Up> {
        let config = home::path(&format!("{name}.toml"));
        write(&config, devices)?;
        let socket = home::scratch().join(format!("{name}.sock"));
        // Of an earlier run, if it is there.
        drop(std::fs::remove_file(&socket));
        let manager = UnixDatagram::bind(&socket).context("cannot make a manager's socket")?;
        manager.set_read_timeout(Some(Duration::from_secs(30))).context("cannot set a timeout")?;
        let server = Cmd::new("env")
            .arg(format!("NOTIFY_SOCKET={}", socket.display()))
            .arg(binary())
            .args(["up", &config])
            .spawn()?;
        Ok(Up { tool: Blockhaus::new(), config, manager, server: Some(server) })
    }

    /// The next thing it tells its manager.
    fn hears(&self) -> Outcome<String> {
        let mut bytes = [0; 4096];
        let len = self.manager.recv(&mut bytes).context("up says nothing for 30 s")?;
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    fn server(&self) -> Outcome<&Background> {
        self.server.as_ref().context("the server was waited for")
    }

    fn pid(&self) -> Outcome<u32> {
        Ok(self.server()?.pid())
    }

    pub(super) fn log(&self) -> String {
        self.server.as_ref().map(Background::stderr_so_far).unwrap_or_default()
    }

    /// What it printed, a path or a URI a line, when it is so many lines or has had its time.
    pub(super) fn paths(&self, lines: usize) -> Outcome<Vec<String>> {
        let server = self.server()?;
        // Read by a thread, which may be later than the word to the manager.
        wait_until(Duration::from_secs(3), || lines > 0 && server.stdout_so_far().lines().count() >= lines);
        Ok(server.stdout_so_far().lines().map(str::to_owned).collect())
    }

    pub(super) fn reload(&self, devices: &[String]) -> Outcome {
        write(&self.config, devices)?;
        signal(self.pid()? as i32, libc::SIGHUP);
        let said = self.hears()?;
        let time = said.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        ensure!(
            said.contains("RELOADING=1") && time.is_some_and(|time| time.parse::<u64>().is_ok()),
            "the first word after SIGHUP is {said:?}"
        );
        let said = self.hears()?;
        ensure!(said.contains("READY=1"), "the second word after SIGHUP is {said:?}");
        Ok(())
    }

    pub(super) fn down(&self, more: &[&str]) -> Outcome<Ran> {
        self.tool.answer(&[&["down", self.config.as_str()], more].concat())
    }

    /// Waits for its end, which must be a good one.
    pub(super) fn ends(mut self) -> Outcome {
        let server = self.server.take().context("the server was waited for")?;
        let ran = server.wait(Duration::from_secs(15))?;
        if !ran.status.success() {
            return Err(ran.fail("did not end well"));
        }
        let said = self.hears()?;
        ensure!(said.contains("STOPPING=1"), "the last word of up is {said:?}");
        Ok(())
    }

    /// Ids and states of the devices that its process serves.
    fn listed(&self) -> Outcome<Vec<(u32, String)>> {
        let pid = self.pid()?;
        let listed = self.tool.list()?.into_iter().filter(|listed| listed.pid == Some(pid));
        Ok(listed.map(|listed| (listed.id, listed.state)).collect())
    }

    pub(super) fn serves(&self, ids: &[u32]) -> Outcome {
        let wanted: Vec<(u32, String)> = ids.iter().map(|id| (*id, "live".to_owned())).collect();
        let listed = self.listed()?;
        ensure!(listed == wanted, "list says {listed:?} instead of {ids:?}; up says {}", self.log());
        Ok(())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.server.is_some() {
            // Best effort on the way out of a failed test; the runner cleans up what remains.
            drop(self.tool.command(&["down", &self.config, "--force"]).timeout(15).run());
        }
    }
}

fn write(config: &str, devices: &[String]) -> Outcome {
    std::fs::write(config, devices.concat()).context(format!("cannot write {config}"))
}

pub(super) fn device(id: u32, spec: &str) -> String {
    format!("[[device]]\nspec = \"{spec}\"\nid = {id}\nqueues = 2\ndepth = 32\n")
}

pub(super) fn path(id: u32) -> String {
    format!("/dev/ublkb{id}")
}

pub(super) fn nothing_left(ids: &[u32]) -> Outcome {
    for id in ids {
        for path in [format!("/dev/ublkb{id}"), format!("/dev/ublkc{id}"), format!("/sys/block/ublkb{id}")] {
            ensure!(!std::path::Path::new(&path).exists(), "{path} is still there");
        }
    }
    Ok(())
}

/// Requests that a disk has completed.
pub(super) fn requests(id: u32) -> Outcome<u64> {
    let stat = std::fs::read_to_string(format!("/sys/block/ublkb{id}/stat")).context("no stat")?;
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match fields[..] {
        [reads, _, _, _, writes, ..] => Ok(reads + writes),
        _ => Err(Fail::new(format!("cannot read the disk's stat: {stat:?}"))),
    }
}

/// The whole life: three devices, a reload under load, a file that is wrong, one detached, the end.
fn three_reload_down() -> Outcome {
    let file = home::path("up.img");
    let (one, two, three) =
        (device(20, "ram:128M"), device(21, "ram:32M"), device(22, &format!("file:{file},size=64M")));
    let up = Up::new("up", &[one.clone(), two, three.clone()])?;
    let paths = up.paths(3)?;
    ensure!(paths == [path(20), path(21), path(22)], "up printed {paths:?}");
    up.serves(&[20, 21, 22])?;
    Device::open(&path(22))?.fill(4, 0, 8 * MIB)?;
    let again = up.tool.answer(&["up", &up.config])?;
    ensure!(
        !again.status.success() && again.stderr.contains("is up already"),
        "a second up of the same file: {}",
        again.stderr.trim()
    );
    // 21 goes, 23 comes, 22 changes its depth on the same file, and 20 works on.
    let load = Load::start(&path(20), 20, 1000, || requests(20))?;
    let four = device(23, "ram:16M");
    let changed = three.replace("depth = 32", "depth = 16");
    up.reload(&[four.clone(), one.clone(), changed.clone()])?;
    up.serves(&[20, 22, 23])?;
    nothing_left(&[21])?;
    ensure!(up.tool.status(22)?.depth == 16, "device 22 has not changed");
    Device::open(&path(22))?.expect(4, 0, 8 * MIB, 0).context("what was written before the reload")?;
    Device::open(&path(23))?.fill(5, 0, MIB)?;
    // What is wrong changes nothing.
    for wrong in ["[[device]]\nspec = \"rma:1M\"\n".to_owned(), "[[device\n".to_owned(), four.repeat(2)] {
        up.reload(&[one.clone(), wrong])?;
        up.serves(&[20, 22, 23])?;
    }
    ensure!(up.log().contains("did you mean ram?"), "the log does not say what is wrong: {}", up.log());
    let before = requests(20)?;
    ensure!(
        wait_until(Duration::from_secs(5), || requests(20).is_ok_and(|now| now > before + 100)),
        "device 20 was to go on under load"
    );
    load.ends_well(60).context("the load on the device that no reload was about")?;
    // One goes by itself, and comes back with the next reload.
    up.tool.answer(&["detach", "23"])?.done()?;
    nothing_left(&[23])?;
    up.serves(&[20, 22])?;
    up.reload(&[four, one, changed])?;
    up.serves(&[20, 22, 23])?;
    up.down(&[])?.done()?;
    nothing_left(&[20, 22, 23])?;
    let tool = up.tool.clone();
    up.ends()?;
    // What was written is in the file.
    let device = tool.attach(&[&format!("file:{file}")])?;
    Device::open(device.path())?.expect(4, 0, 8 * MIB, 0)?;
    device.detach()
}

/// `down` touches nothing while one disk is mounted; neither does a reload touch that disk.
fn mounted_is_left() -> Outcome {
    let (one, two) = (device(20, "ram:64M"), device(21, "ram:16M"));
    let up = Up::new("mounted", &[one, two.clone()])?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", &path(20)]).timeout(60).ok()?;
    let mounted = Mounted::new(&path(20), "up-mounted")?;
    let refused = up.down(&[])?;
    ensure!(
        !refused.status.success() && refused.stderr.contains("mounted at"),
        "down of a mounted disk: {}",
        refused.stderr.trim()
    );
    up.serves(&[20, 21])?;
    up.reload(std::slice::from_ref(&two))?;
    up.serves(&[20, 21]).context("after a reload without the mounted disk")?;
    ensure!(up.log().contains("mounted at"), "the log does not name the mount: {}", up.log());
    std::fs::write(mounted.path().join("file"), [1u8; 100_000]).context("a write to the mounted disk")?;
    mounted.unmount()?;
    up.reload(&[two])?;
    up.serves(&[21])?;
    up.down(&[])?.done()?;
    nothing_left(&[20, 21])?;
    up.ends()
}

/// The first SIGTERM takes what is idle, the second the rest.
fn sigterm_twice() -> Outcome {
    let up = Up::new("sigterm", &[device(20, "ram:64M"), device(21, "ram:16M")])?;
    Cmd::new("mkfs.ext4").args(["-q", "-F", &path(20)]).timeout(60).ok()?;
    let mounted = Mounted::new(&path(20), "up-sigterm")?;
    let pid = up.pid()? as i32;
    signal(pid, libc::SIGTERM);
    let alone = || up.listed().is_ok_and(|listed| listed == [(20, "live".to_owned())]);
    ensure!(wait_until(Duration::from_secs(15), alone), "after SIGTERM list says {:?}", up.listed()?);
    ensure!(up.log().contains("mounted at"), "the log does not name the mount: {}", up.log());
    nothing_left(&[21])?;
    signal(pid, libc::SIGTERM);
    ensure!(
        wait_until(Duration::from_secs(15), || !procfs::alive(pid as u32)),
        "it still runs after the second SIGTERM: {}",
        up.log()
    );
    mounted.unmount()?;
    up.ends()?;
    nothing_left(&[20])
}

/// A crash takes all of them, `list` says so of each, and `gc` removes each.
fn kill9() -> Outcome {
    let up = Up::new("kill9", &[device(20, "ram:64M"), device(21, "ram:16M"), device(22, "null:1G")])?;
    let other = up.tool.attach(&["ram:8M"])?;
    let status = up.tool.answer(&["status", "20"])?;
    ensure!(status.stdout.contains("both of the process, which serves 3 disks"), "{}", status.stdout);
    let mut load = Load::start(&path(20), 60, 1000, || requests(20))?;
    let pid = up.pid()?;
    signal(pid as i32, libc::SIGKILL);
    let failed = wait_until(Duration::from_secs(25), || load.has_ended());
    // Linux 6.12 was seen to keep requests of a killed server until its device goes.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read osrelease")?;
    ensure!(failed || release.starts_with("6.12"), "the I/O of a killed server does not end");
    ensure!(
        wait_until(Duration::from_secs(10), || !procfs::alive(pid)),
        "the killed server does not go away"
    );
    let dead = |id: u32| up.tool.state(id).is_ok_and(|state| state.as_deref() == Some("dead"));
    ensure!([20, 21, 22].into_iter().all(dead), "list says {:?}", up.tool.list()?);
    let ran = up.tool.answer(&["gc"])?;
    for id in [20, 21, 22] {
        ensure!(ran.stdout.contains(&path(id)), "gc does not name {}: {}", path(id), ran.stdout);
    }
    ran.done()?;
    load.ends_in_error(20)?;
    nothing_left(&[20, 21, 22])?;
    ensure!(up.tool.state(other.id())?.as_deref() == Some("live"), "gc has touched a living disk");
    other.detach()?;
    // The same file can be up again at once, and what a dead one left is taken by `down` as well.
    let again = Up::new("kill9", &[device(20, "ram:64M"), device(21, "ram:16M")])?;
    signal(again.pid()? as i32, libc::SIGKILL);
    let pid = again.pid()?;
    ensure!(
        wait_until(Duration::from_secs(10), || !procfs::alive(pid)),
        "the killed server does not go away"
    );
    again.down(&[])?.done()?;
    nothing_left(&[20, 21])
}

/// When one cannot be had there is none, and nothing is left.
fn all_or_none() -> Outcome {
    let tool = Blockhaus::new();
    let taken = tool.attach(&["ram:8M", "--id", "21"])?;
    let new = home::path("never.img");
    let up = Up::start("none", &[device(20, &format!("file:{new},size=8M")), device(21, "ram:8M")])?;
    let pid = up.pid()?;
    ensure!(
        wait_until(Duration::from_secs(30), || !procfs::alive(pid)),
        "up goes on although an id is taken: {}",
        up.log()
    );
    ensure!(up.log().contains("id 21 is in use"), "up does not say why: {}", up.log());
    let paths = up.paths(0)?;
    ensure!(paths.is_empty(), "up printed {paths:?}");
    nothing_left(&[20])?;
    ensure!(tool.state(21)?.as_deref() == Some("live"), "the disk that had the id before is gone");
    taken.detach()
}

/// A server that does not answer: `detach` of one device does not kill the others, `down --force` does.
fn hung() -> Outcome {
    let up = Up::new("hung", &[device(20, "ram:32M"), device(21, "ram:32M")])?;
    let pid = up.pid()?;
    signal(pid as i32, libc::SIGSTOP);
    let detach = up.tool.answer(&["detach", "20", "--force"])?;
    ensure!(
        !detach.status.success() && detach.stderr.contains("down --force"),
        "detach --force of one of two: {}",
        detach.stderr.trim()
    );
    let refused = up.down(&[])?;
    ensure!(
        !refused.status.success() && refused.stderr.contains("does not answer"),
        "down of a stopped server: {}",
        refused.stderr.trim()
    );
    ensure!(procfs::alive(pid), "it was killed without --force");
    up.down(&["--force"])?.done()?;
    ensure!(wait_until(Duration::from_secs(5), || !procfs::alive(pid)), "the server still runs");
    nothing_left(&[20, 21])
}
