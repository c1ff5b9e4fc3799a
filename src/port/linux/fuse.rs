//! A mount that shows one file, by FUSE (include/uapi/linux/fuse.h) through the crate `fuser`.
//!
//! Threads of the session take requests from the kernel. What concerns the file as a file (its name, size and
//! owner, opening it) is answered here; what concerns its bytes goes to a [`Handler`], with a [`Reply`] that any
//! thread may send. Nothing is cached: every file that is open has FOPEN_DIRECT_IO, so that what the handler is told
//! is what a program has asked for.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request as Origin, TimeOrNow, WriteFlags,
};
use nix::errno::Errno as SystemErrno;
use nix::mount::{MntFlags, umount2};

use super::thread::{AbortOnPanic, touch_stack};
use crate::io::{Errno, Flags, Op};

/// The device that sessions talk through.
pub const DEVICE: &str = "/dev/fuse";

/// The setuid program that mounts for those who may not.
const HELPER: &str = "fusermount3";

/// What the file is called in its mount.
pub const FILE_NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);

/// Nothing that the kernel remembers ever changes.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// The file, and how it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes.
    pub size: u64,
    /// It takes no writes.
    pub read_only: bool,
    /// What a program had best ask for at once, in bytes; for a loop device, the unit of its discards.
    pub unit: u32,
    /// Longest read or write, in bytes.
    pub max_transfer: u32,
    /// Requests that nobody waits for, which the kernel has under way at once.
    pub max_background: u16,
    /// Threads that take requests from the kernel, at least one.
    pub threads: u16,
}

/// What the kernel asks for on behalf of whoever has the file open. Inside the file, but for `Op::Flush`.
#[derive(Debug)]
pub struct Request<'a> {
    /// What.
    pub op: Op,
    /// How.
    pub flags: Flags,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// What a write writes: `len` bytes, which are the session's again when the handler returns.
    pub data: &'a [u8],
    /// The way back.
    pub reply: Reply,
}

/// Answers one request, from any thread. One that is dropped answers EIO.
#[derive(Debug)]
pub struct Reply(Kind);

#[derive(Debug)]
enum Kind {
    Data(ReplyData),
    Written(ReplyWrite, u32),
    Done(ReplyEmpty),
}

impl Reply {
    /// The request was served; `bytes` are what was read, and empty where nothing was.
    pub fn done(self, bytes: &[u8]) {
        match self.0 {
            Kind::Data(reply) => reply.data(bytes),
            Kind::Written(reply, len) => reply.written(len),
            Kind::Done(reply) => reply.ok(),
        }
    }

    /// It was not.
    pub fn failed(self, errno: Errno) {
        let errno = fuser::Errno::from_i32(errno.number());
        match self.0 {
            Kind::Data(reply) => reply.error(errno),
            Kind::Written(reply, _) => reply.error(errno),
            Kind::Done(reply) => reply.error(errno),
        }
    }
}

/// Who serves the file's bytes.
pub trait Handler: Send + Sync + 'static {
    /// Takes a request that came on the session's thread number `lane`. May wait: until it returns the kernel
    /// keeps what would be this thread's next request.
    fn handle(&self, lane: usize, request: Request<'_>);
}

/// A mount, and the threads that there will be to serve it.
#[derive(Debug)]
pub struct Session(fuser::Session<OneFile>);

impl Session {
    /// Mounts on the folder, by itself or through fusermount3. From here on the kernel has requests; they wait
    /// for [`serve`](Self::serve).
    pub fn mount(folder: &Path, shape: Shape, handler: Arc<dyn Handler>) -> io::Result<Session> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("blockhaus".into()),
            MountOption::Subtype("blockhaus".into()),
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
        ];
        if shape.read_only {
            config.mount_options.push(MountOption::RO);
        }
        config.n_threads = Some(usize::from(shape.threads.max(1)));
        // A descriptor for each thread, so that replies do not meet in one list.
        config.clone_fd = shape.threads > 1;
        let lanes = AtomicUsize::new(0);
        let file = OneFile { shape, handler, lanes, made: SystemTime::now() };
        fuser::Session::new(file, folder, &config).map(Session)
    }

    /// Serves until the file is unmounted or its connection is cut. The threads inherit what this one is.
    pub fn serve(self) -> io::Result<()> {
        self.0.run()
    }
}

/// Ends the mount at `folder`; ResourceBusy while somebody has the file open.
pub fn unmount(folder: &Path) -> io::Result<()> {
    match umount2(folder, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(SystemErrno::EPERM) => by_helper(folder, &["-u"]),
        Err(error) => Err(error.into()),
    }
}

/// Cuts the mount's connection, so that everything that is asked of it fails at once: what its server asks of itself,
/// too. Whoever has the file open has it still.
pub fn cut(folder: &Path) {
    let Some(number) = connection(folder) else { return };
    // Where the control file system is mounted, the mount's owner may do that.
    let _ = std::fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1");
    // And where it is not, root can: this cuts first and then refuses, where the file is in use.
    let _ = umount2(folder, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW);
}

/// Cuts the mount's connection and takes the mount out of sight, whoever has the file open. One that is not mounted
/// is as it should be.
pub fn force_unmount(folder: &Path) -> io::Result<()> {
    cut(folder);
    if !is_mounted(folder) {
        return Ok(());
    }
    match umount2(folder, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(SystemErrno::EPERM) => by_helper(folder, &["-u", "-z"]),
        Err(error) => Err(error.into()),
    }
}

/// Whether something of FUSE is mounted at `folder`. Asks nobody who serves it.
pub fn is_mounted(folder: &Path) -> bool {
    connection(folder).is_some()
}

/// The number of the connection behind a mount (Documentation/filesystems/fuse/fuse.rst): the minor number of its
/// device.
fn connection(folder: &Path) -> Option<u32> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().rev().find_map(|line| connection_in(line, folder))
}

/// In one line of proc_pid_mountinfo(5).
fn connection_in(line: &str, folder: &Path) -> Option<u32> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let number = fields.nth(2)?;
    let at = fields.nth(1)?;
    // Spaces and their kin are in octal there.
    let wanted: String = folder.to_str()?.chars().map(escaped).collect();
    let is_it = at == wanted && after.starts_with("fuse");
    is_it.then(|| number.split_once(':')?.1.parse().ok()).flatten()
}

fn escaped(letter: char) -> String {
    match letter {
        ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", letter as u32),
        letter => letter.into(),
    }
}

/// Whether fusermount3 is there to be run.
pub fn has_helper() -> bool {
    let version = Command::new(HELPER).arg("-V").stdin(Stdio::null()).output();
    version.is_ok_and(|output| output.status.success())
}

fn by_helper(folder: &Path, options: &[&str]) -> io::Result<()> {
    let output = Command::new(HELPER).args(options).arg("--").arg(folder).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.success() {
        true => Ok(()),
        // It says why in words alone.
        false if said.contains("busy") => Err(io::ErrorKind::ResourceBusy.into()),
        false => Err(io::Error::other(said)),
    }
}

/// Where the file is in a mount at `folder`.
pub fn file_in(folder: &Path) -> PathBuf {
    folder.join(FILE_NAME)
}

struct OneFile {
    shape: Shape,
    handler: Arc<dyn Handler>,
    /// Threads that have taken a request so far.
    lanes: AtomicUsize,
    made: SystemTime,
}

impl std::fmt::Debug for OneFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OneFile").field("shape", &self.shape).finish_non_exhaustive()
    }
}

thread_local! {
    /// Which of its session's threads this one is, once it has taken a request.
    static LANE: Cell<Option<usize>> = const { Cell::new(None) };
}

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size, nlink) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0, 2),
            FILE if self.shape.read_only => (FileType::RegularFile, 0o400, self.shape.size, 1),
            FILE => (FileType::RegularFile, 0o600, self.shape.size, 1),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            crtime: self.made,
            kind,
            perm,
            nlink,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            rdev: 0,
            blksize: self.shape.unit,
            flags: 0,
        })
    }

    fn lane(&self) -> usize {
        LANE.get().unwrap_or_else(|| {
            touch_stack();
            let lane = self.lanes.fetch_add(1, Ordering::Relaxed);
            LANE.set(Some(lane));
            lane
        })
    }

    #[inline]
    fn pass_on(&self, request: Request<'_>) {
        // Half of a disk's threads gone is worse than all of them.
        let _guard = AbortOnPanic;
        self.handler.handle(self.lane(), request);
    }

    /// Whether a range is inside the file.
    fn holds(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.shape.size)
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _origin: &Origin, config: &mut KernelConfig) -> io::Result<()> {
        let largest = self.shape.max_transfer;
        // Each is refused only if it is more than the kernel or fuser has room for, with the most that they have.
        if let Err(most) = config.set_max_write(largest) {
            let _ = config.set_max_write(most.min(largest));
        }
        if let Err(most) = config.set_max_readahead(largest) {
            let _ = config.set_max_readahead(most.min(largest));
        }
        let background = self.shape.max_background.max(1);
        let _ = config.set_max_background(background);
        let _ = config.set_congestion_threshold(background);
        // Without it an asynchronous request of a loop device is a synchronous one.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _origin: &Origin, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attributes) if parent == INodeNo::ROOT && name == FILE_NAME => {
                reply.entry(&FOR_EVER, &attributes, Generation(0));
            }
            _ => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _origin: &Origin, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _origin: &Origin,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.attributes(inode) {
            None => reply.error(fuser::Errno::ENOENT),
            // A disk has one size, as ftruncate(2) of a block device says.
            Some(attributes) if size.is_some_and(|size| size != attributes.size) => {
                reply.error(fuser::Errno::EINVAL);
            }
            Some(_) if mode.is_some() || uid.is_some() || gid.is_some() => {
                reply.error(fuser::Errno::EPERM);
            }
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
        }
    }

    fn open(&self, _origin: &Origin, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if inode != FILE {
            return reply.error(fuser::Errno::EISDIR);
        }
        if self.shape.read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(fuser::Errno::EROFS);
        }
        // NOFLUSH: there is nothing to flush at a close, and a process that ends waits for nobody then.
        let how = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), how);
    }

    fn read(
        &self,
        _origin: &Origin,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Shorter at the end of the file, and nothing behind it.
        let len = u64::from(size.min(self.shape.max_transfer)).min(self.shape.size.saturating_sub(offset));
        if len == 0 {
            return reply.data(&[]);
        }
        let reply = Reply(Kind::Data(reply));
        self.pass_on(Request { op: Op::Read, flags: Flags::empty(), offset, len, data: &[], reply });
    }

    fn write(
        &self,
        _origin: &Origin,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if data.is_empty() {
            return reply.written(0);
        }
        if !self.holds(offset, data.len() as u64) {
            // As a block device says it.
            return reply.error(fuser::Errno::ENOSPC);
        }
        if data.len() > self.shape.max_transfer as usize {
            return reply.error(fuser::Errno::EINVAL);
        }
        // The kernel leaves O_DSYNC, which O_SYNC includes, to whoever serves a file with direct I/O.
        let durable = flags.0 & libc::O_DSYNC != 0;
        let flags = if durable { Flags::FUA } else { Flags::empty() };
        // At most max_transfer, and so a u32.
        let reply = Reply(Kind::Written(reply, data.len() as u32));
        self.pass_on(Request { op: Op::Write, flags, offset, len: data.len() as u64, data, reply });
    }

    fn flush(
        &self,
        _origin: &Origin,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // close(2), by kernels before 5.16, which do not know NOFLUSH. It promises nothing about the disk.
        reply.ok();
    }

    fn release(
        &self,
        _origin: &Origin,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _origin: &Origin,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let reply = Reply(Kind::Done(reply));
        let flags = Flags::empty();
        self.pass_on(Request { op: Op::Flush, flags, offset: 0, len: 0, data: &[], reply });
    }

    fn fallocate(
        &self,
        _origin: &Origin,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let flags = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            // fallocate(2): "subsequent reads from this range will return zeros", which a discard does not promise.
            libc::FALLOC_FL_PUNCH_HOLE if keeps_size => Flags::empty(),
            libc::FALLOC_FL_ZERO_RANGE => Flags::NO_UNMAP,
            _ => return reply.error(fuser::Errno::EOPNOTSUPP),
        };
        if self.shape.read_only {
            return reply.error(fuser::Errno::EROFS);
        }
        if !keeps_size && !self.holds(offset, len) {
            return reply.error(fuser::Errno::ENOSPC);
        }
        let len = len.min(self.shape.size.saturating_sub(offset));
        if len == 0 {
            return reply.ok();
        }
        let reply = Reply(Kind::Done(reply));
        self.pass_on(Request { op: Op::WriteZeroes, flags, offset, len, data: &[], reply });
    }

    fn readdir(
        &self,
        _origin: &Origin,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode != INodeNo::ROOT {
            return reply.error(fuser::Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, FILE_NAME),
        ];
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (inode, kind, name)) in entries.into_iter().enumerate().skip(skip) {
            if reply.add(inode, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _origin: &Origin, _inode: INodeNo, reply: ReplyStatfs) {
        let unit = self.shape.unit;
        // What the loop driver takes for the unit of a discard.
        reply.statfs(self.shape.size / u64::from(unit.max(1)), 0, 0, 1, 0, unit, 255, unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_folder_and_its_kind() {
        let line =
            "331 29 0:57 / /run/block\\040haus/fuse0 rw,nosuid - fuse.blockhaus blockhaus rw,user_id=0";
        assert_eq!(connection_in(line, Path::new("/run/block haus/fuse0")), Some(57));
        assert_eq!(connection_in(line, Path::new("/run/block haus/fuse")), None);
        let other = "331 29 0:57 / /mnt rw - tmpfs fuse rw";
        assert_eq!(connection_in(other, Path::new("/mnt")), None);
        assert_eq!(connection_in("", Path::new("/mnt")), None);
    }
}
