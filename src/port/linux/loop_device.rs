//! Loop devices: a file as /dev/loopN (drivers/block/loop.c).
//!
//! Everything here may wait for whoever serves the file: the kernel reads partitions when a device is made, and
//! writes back what is dirty when one is closed. So a process that serves the file itself has another one do it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use blockhaus_uapi::loop_device::{Config, Flags, Info64, cmd, control};

use super::clock::{Deadline, Duration};

/// The device that hands out the others.
const CONTROL_PATH: &str = "/dev/loop-control";

/// How long the node of a device that was just made may take to appear, and a device to be gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often another program may be faster than we are in taking a free device.
const TRIES: u32 = 64;

/// What a device is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// N of /dev/loopN; the lowest free one where none is given.
    pub number: Option<u32>,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// It takes no writes.
    pub read_only: bool,
    /// The kernel looks for partitions.
    pub partition_scan: bool,
}

/// A device that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// N of /dev/loopN.
    pub number: u32,
    /// The kernel reads and writes the file past the page cache, as it was asked to.
    pub direct: bool,
}

/// The path of the device with this number.
pub fn path(number: u32) -> PathBuf {
    format!("/dev/loop{number}").into()
}

/// Whether this machine has loop devices that this process may make.
pub fn is_available() -> bool {
    OpenOptions::new().read(true).write(true).open(CONTROL_PATH).is_ok()
}

/// The file of a device, if it has one; asks nobody who serves it.
pub fn backing_file(number: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).ok()?;
    Some(text.trim_end_matches('\n').into())
}

/// The devices that have `file`.
pub fn devices_of(file: &Path) -> Vec<u32> {
    let mut found: Vec<u32> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("loop")?.parse().ok())
        .filter(|&number| backing_file(number).as_deref() == Some(file))
        .collect();
    found.sort_unstable();
    found
}

/// Makes a device of `file`, and returns when it can be opened.
pub fn configure(file: &Path, wish: &Wish) -> io::Result<Made> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL_PATH)?;
    let backing = OpenOptions::new().read(true).write(!wish.read_only).open(file)?;
    let mut flags = Flags::DIRECT_IO;
    flags.set(Flags::READ_ONLY, wish.read_only);
    flags.set(Flags::PARTSCAN, wish.partition_scan);
    let mut info = Info64 { flags, ..Info64::default() };
    let name = file.as_os_str().as_encoded_bytes();
    // The last is a NUL.
    let len = name.len().min(info.file_name.len() - 1);
    info.file_name[..len].copy_from_slice(&name[..len]);
    let config =
        Config { fd: backing.as_raw_fd() as u32, block_size: wish.block_size, info, ..Config::default() };
    for _ in 0..TRIES {
        let number = match wish.number {
            Some(number) => {
                // One that is there already is as good.
                let _ = number_command(&control, control::ADD, number);
                number
            }
            None => number_command(&control, control::GET_FREE, 0)?,
        };
        let device = open(number, wish.read_only, 0)?;
        // SAFETY: CONFIGURE reads a Config, which lives until the call returns.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), cmd::CONFIGURE as _, &config) };
        match io::Error::last_os_error() {
            _ if result == 0 => {
                // From there, since the device's own answer asks who serves the file.
                let direct = fs::read_to_string(format!("/sys/block/loop{number}/loop/dio"));
                return Ok(Made { number, direct: direct.is_ok_and(|text| text.trim() == "1") });
            }
            error if error.raw_os_error() == Some(libc::EBUSY) && wish.number.is_none() => {}
            error => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Takes `file` away from the device, which is nobody's then. ResourceBusy with `only_if_idle` where somebody
/// has it open, and then it is as before. By force it goes when they close it; whether they have is what is returned.
pub fn release(number: u32, file: &Path, only_if_idle: bool) -> io::Result<bool> {
    let is_ours = || backing_file(number).as_deref() == Some(file);
    if !is_ours() {
        return Ok(true);
    }
    // Alone where it is to be idle: a mount and its kin refuse that.
    let exclusive = if only_if_idle { libc::O_EXCL } else { 0 };
    let device = open(number, true, exclusive)?;
    if !only_if_idle {
        // What programs have written and nobody has sent yet goes now or never. Where nobody serves the file any
        // more it fails at once.
        let _ = device.sync_data();
    }
    clear(&device)?;
    drop(device);
    // Who has it open for a moment, as udev does, lets go of it.
    if Deadline::after(PATIENCE).wait_until(|| !is_ours()) {
        return Ok(true);
    }
    if only_if_idle {
        return stay(number, file);
    }
    Ok(false)
}

/// The device stays although it was to go: undoes that it goes with its last user.
fn stay(number: u32, file: &Path) -> io::Result<bool> {
    let device = open(number, true, 0)?;
    let mut info = match status(&device) {
        Ok(info) => info,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(true),
        Err(error) => return Err(error),
    };
    info.flags -= Flags::AUTOCLEAR;
    // SAFETY: SET_STATUS64 reads an Info64, which lives until the call returns.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), cmd::SET_STATUS64 as _, &info) };
    match io::Error::last_os_error() {
        _ if result == 0 => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        // It has gone meanwhile.
        _ if backing_file(number).as_deref() != Some(file) => Ok(true),
        error => Err(error),
    }
}

fn clear(device: &File) -> io::Result<()> {
    // SAFETY: CLR_FD takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), cmd::CLR_FD as _, 0) };
    match io::Error::last_os_error() {
        // It has none any more.
        error if result != 0 && error.raw_os_error() != Some(libc::ENXIO) => Err(error),
        _ => Ok(()),
    }
}

fn status(device: &File) -> io::Result<Info64> {
    let mut info = Info64::default();
    // SAFETY: GET_STATUS64 writes an Info64, which every bit pattern is one of.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), cmd::GET_STATUS64 as _, &mut info) };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// A command of the control device, whose answer is a number.
fn number_command(control: &File, command: u32, argument: u32) -> io::Result<u32> {
    // SAFETY: these commands take a plain number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), command as _, libc::c_ulong::from(argument)) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Opens the node, for which devtmpfs or udev may need a moment.
fn open(number: u32, read_only: bool, flags: i32) -> io::Result<File> {
    let path = path(number);
    let deadline = Deadline::after(PATIENCE);
    let mut opened = Err(io::ErrorKind::NotFound.into());
    deadline.wait_until(|| {
        opened = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(&path);
        !opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    });
    opened
}
