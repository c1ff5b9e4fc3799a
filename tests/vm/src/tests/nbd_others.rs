//! The kernel's NBD driver as the engine, and others who use it, or the disk, at the same time.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::nbd::{MIB, log};
use super::{Entry, Where, entry};
use crate::blockhaus::Blockhaus;
use crate::check::device::Device;
use crate::outcome::{Context, Outcome};
use crate::run::{Cmd, signal, wait_until};
use crate::{ensure, home, procfs};

pub(super) const TESTS: &[Entry] = &[
    entry("nbd/no-way-to-it", 60, Where::NbdEnds, no_way),
    entry("nbd/mount-while-stopping", 90, Where::NbdNewest, mount_while_stopping),
    entry("nbd/ioctl-taken", 60, Where::NbdNewest, taken_by_ioctl),
    entry("nbd/disconnected-by-another", 60, Where::NbdNewest, disconnected),
    entry("nbd/disconnected-while-open", 90, Where::NbdNewest, disconnected_while_open),
    entry("nbd/taken-by-another", 90, Where::NbdNewest, taken),
];

/// In a container the driver may be loaded and out of reach: FUSE it is then.
fn no_way() -> Outcome {
    let tool = Blockhaus::new();
    let ours = crate::blockhaus::binary().display().to_string();
    let dev = home::scratch().join("dev").display().to_string();
    std::fs::create_dir(&dev).context("mkdir")?;
    for (name, major, minor) in [("null", "1", "3"), ("fuse", "10", "229")] {
        Cmd::new("mknod").args([&format!("{dev}/{name}"), "c", major, minor]).ok()?;
    }
    let inside = |more: &str| {
        let script = format!("mount --bind {dev} /dev && exec {ours} attach ram:16M {more}");
        Cmd::new("unshare").args(["-n", "-m", "sh", "-c", &script]).timeout(40).run()
    };
    let ran = inside("--engine nbd")?;
    ensure!(!ran.status.success(), "it makes an nbd device without a way to the driver");
    ensure!(ran.stderr.contains("cannot reach"), "it says {}", ran.stderr.trim());
    let ran = inside("")?;
    if !ran.status.success() {
        return Err(ran.fail("failed"));
    }
    let why = ran.stderr.lines().find(|line| line.contains("engine fuse: "));
    let why = why.context(format!("attach does not take fuse: {}", ran.stderr))?;
    ensure!(why.contains("cannot reach this kernel's NBD driver"), "attach does not say why: {why}");
    let gone = tool.answer(&["detach", ran.stdout.trim()])?;
    std::fs::remove_dir_all(&dev).context("cannot remove the nodes")?;
    if gone.status.success() { Ok(()) } else { Err(gone.fail("failed")) }
}

/// Between the look at who uses the disk and its end nobody gets to mount it, and lose it then.
fn mount_while_stopping() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach_nbd(&["ram:64M", "--filter", "fault,op=flush,delay_ms=4000"])?;
    // Its last flush takes its time.
    let mut detach = tool.command(&["detach", device.name()]).spawn()?;
    let stopping = || matches!(tool.state_of(device.name()), Ok(Some(state)) if state == "stopping");
    ensure!(wait_until(Duration::from_secs(3), stopping), "it is {:?}", tool.state_of(device.name())?);
    std::thread::sleep(Duration::from_millis(500));
    let claimed = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device.path());
    let was_running = matches!(detach.ended(), Ok(None));
    let ran = detach.wait(Duration::from_secs(20))?;
    ensure!(was_running, "detach did not wait for the flush");
    let refused = claimed.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY));
    ensure!(refused, "a disk that is just being taken away can be mounted");
    if !ran.status.success() {
        return Err(ran.fail("failed"));
    }
    device.assert_gone("detach")?;
    drop(device.forget());
    Ok(())
}

// linux/nbd.h
const NBD_SET_SOCK: libc::c_ulong = 0xab00;
const NBD_SET_BLKSIZE: libc::c_ulong = 0xab01;
const NBD_DO_IT: libc::c_ulong = 0xab03;
const NBD_CLEAR_SOCK: libc::c_ulong = 0xab04;
const NBD_SET_SIZE_BLOCKS: libc::c_ulong = 0xab07;
const NBD_DISCONNECT: libc::c_ulong = 0xab08;

fn ask_driver(node: &File, number: libc::c_ulong, argument: i32) -> Outcome {
    // SAFETY: these requests take a plain number, and the descriptor is open.
    let result = unsafe { libc::ioctl(node.as_raw_fd(), number as _, argument) };
    ensure!(result == 0, "ioctl {number:#x} fails: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A node that another program is just making a disk of, by ioctls as well, is left as it is.
fn taken_by_ioctl() -> Outcome {
    Cmd::new("modprobe").arg("nbd").ok()?;
    let node = OpenOptions::new().read(true).write(true).open("/dev/nbd0").context("open /dev/nbd0")?;
    let (theirs, far) = UnixStream::pair().context("no pair of sockets")?;
    ask_driver(&node, NBD_SET_SOCK, theirs.as_raw_fd())?;
    ask_driver(&node, NBD_SET_BLKSIZE, 512)?;
    ask_driver(&node, NBD_SET_SIZE_BLOCKS, 2048)?;
    let ours = crate::blockhaus::binary().display().to_string();
    let us = std::env::current_exe().context("our own path")?;
    let arguments = ["without-netlink", &ours, "attach", "--engine", "nbd", "--id", "0", "ram:64M"];
    let ran = Cmd::new(&us).args(arguments).timeout(40).run()?;
    ensure!(!ran.status.success(), "attach takes another program's disk");
    ensure!(ran.stderr.contains("--id"), "attach gives no cure: {}", ran.stderr.trim());
    // Without its connection this is EINVAL at once.
    let disk = node.try_clone().context("dup")?;
    let disk = std::thread::spawn(move || ask_driver(&disk, NBD_DO_IT, 0));
    let sectors = || std::fs::read_to_string("/sys/block/nbd0/size").unwrap_or_default().trim().to_owned();
    wait_until(Duration::from_secs(10), || sectors() != "0" || disk.is_finished());
    let (lives, sectors) = (!disk.is_finished(), sectors());
    ask_driver(&node, NBD_DISCONNECT, 0)?;
    // Nobody answers what was asked meanwhile, by udev for one: that fails now.
    drop(far);
    let ended = disk.join();
    ask_driver(&node, NBD_CLEAR_SOCK, 0)?;
    ensure!(lives && sectors == "2048", "the other's disk has {sectors} sectors: {ended:?}");
    Ok(())
}

/// Somebody else takes the disk away: the server notices and ends.
fn disconnected() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach_nbd(&["ram:16M"])?;
    Cmd::new("nbd-client").args(["-d", device.path()]).timeout(20).ok()?;
    let gone = || device.assert_gone("nbd-client -d").is_ok();
    ensure!(wait_until(Duration::from_secs(25), gone), "the server lives on without a disk");
    // A log stays for those who knew the disk, until `gc`.
    let said = log(&device);
    ensure!(said.contains("another program"), "the log does not tell: {said}");
    let name = device.name().to_owned();
    drop(device.forget());
    let gc = tool.answer(&["gc"])?;
    ensure!(gc.status.success(), "gc fails: {}", gc.stderr.trim());
    ensure!(tool.state_of(&name)?.is_none(), "it is still listed after gc");
    Ok(())
}

/// The same while a program has it open, so that the driver still shows it: it is not connected again.
fn disconnected_while_open() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach_nbd(&["ram:16M", "--connections", "2"])?;
    let held = File::open(device.path()).context("open")?;
    Cmd::new("nbd-client").args(["-d", device.path()]).timeout(20).ok()?;
    let ended = || !procfs::alive(device.info.pid);
    ensure!(
        wait_until(Duration::from_secs(25), ended),
        "the server lives on without a disk: {}",
        log(&device)
    );
    ensure!(log(&device).contains("somebody has it open"), "the log does not tell: {}", log(&device));
    drop(held);
    device.assert_gone("nbd-client -d")?;
    drop(device.forget());
    let gc = tool.answer(&["gc"])?;
    if gc.status.success() { Ok(()) } else { Err(gc.fail("failed")) }
}

/// Somebody else takes the disk away and has one of his own by the same number: that one is not the server's to end.
fn taken() -> Outcome {
    let tool = Blockhaus::new();
    let socket = home::scratch().join("another.sock").display().to_string();
    let listen = format!("unix:{socket}");
    let other = tool.command(&["serve", "--listen", &listen, "ram:32M"]).spawn()?;
    let listens = wait_until(Duration::from_secs(20), || !other.stdout_so_far().is_empty());
    ensure!(listens, "the other server does not listen: {}", other.stderr_so_far());
    let device = tool.attach_nbd(&["ram:16M"])?;
    let path = device.path().to_owned();
    let theirs = || -> Outcome {
        Cmd::new("nbd-client").args(["-d", &path]).timeout(20).ok()?;
        Cmd::new("nbd-client").args(["-unix", &socket, &path, "-b", "512"]).timeout(20).ok()?;
        let noticed = wait_until(Duration::from_secs(25), || !procfs::alive(device.info.pid));
        ensure!(noticed, "the server lives on without a disk");
        ensure!(log(&device).contains("another program"), "the log does not tell: {}", log(&device));
        let disk = Device::open(&path)?;
        disk.fill(5, 0, 4 * MIB).context("the other's disk was taken away from him")?;
        disk.expect(5, 0, 4 * MIB, 0)?;
        drop(disk);
        let gc = tool.answer(&["gc"])?;
        ensure!(gc.status.success(), "gc fails: {}", gc.stderr.trim());
        Device::open(&path)?.expect(5, 0, 4 * MIB, 0).context("gc took the other's disk away")
    };
    let outcome = theirs();
    Cmd::new("nbd-client").args(["-d", &path]).timeout(20).ok()?;
    drop(device.forget());
    // The log, which is nobody's while another has the name.
    tool.answer(&["gc"])?;
    signal(other.pid() as i32, libc::SIGTERM);
    other.wait(Duration::from_secs(10))?;
    outcome
}
