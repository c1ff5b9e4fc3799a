//! Files and block devices as a backend opens them: direct I/O and its alignment, locks, holes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Whence;

use crate::port::memory::{HugePages, Mapping};

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// For writing as well.
    pub write: bool,
    /// Past the page cache (O_DIRECT).
    pub direct: bool,
    /// It must not exist, and is created.
    pub create: bool,
    /// A block device must have no other user (O_EXCL).
    pub exclusive: bool,
}

/// Opens a file.
pub fn open(path: &Path, how: How) -> io::Result<File> {
    let direct = if how.direct { libc::O_DIRECT } else { 0 };
    let exclusive = if how.exclusive { libc::O_EXCL } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(how.write)
        .create_new(how.create)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC | direct | exclusive)
        .open(path)
}

/// What is known of a path.
pub fn metadata(path: &Path) -> io::Result<std::fs::Metadata> {
    std::fs::metadata(path)
}

/// What kind of thing a path is, as far as a disk can be kept in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

/// What kind of thing this is.
pub fn kind(metadata: &std::fs::Metadata) -> FileKind {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => FileKind::Regular,
        () if kind.is_block_device() => FileKind::BlockDevice,
        () if kind.is_dir() => FileKind::Directory,
        () => FileKind::Other,
    }
}

/// Size in bytes of a regular file or a block device.
pub fn size(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Takes the lock of flock(2), alone or with other readers; false when somebody else has it. It
/// goes with the last descriptor, so a crash leaves none behind.
pub fn try_lock(file: &File, alone: bool) -> io::Result<bool> {
    match if alone { file.try_lock() } else { file.try_lock_shared() } {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// What direct I/O on a file demands, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Of addresses in memory.
    pub memory: u32,
    /// Of offsets and lengths.
    pub offset: u32,
}

/// Asks statx(2) (STATX_DIOALIGN, since 6.1); where the file system does not say, finds out by
/// reading. `None`: no direct I/O on this file. The file was opened for direct I/O.
pub fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    if let Some((memory, offset)) = statx_alignment(file)? {
        return Ok((offset != 0).then_some(DirectAlignment { memory: memory.max(1), offset }));
    }
    let memory = Mapping::anonymous(4096, HugePages::Never)?;
    // SAFETY: a mapping of this function's own, of that length, zeroed by the kernel.
    let bytes = unsafe { std::slice::from_raw_parts_mut(memory.start().as_ptr(), 4096) };
    for offset in [512u32, 4096] {
        // An empty file answers 0 whatever the length; what counts is that EINVAL does not come.
        match file.read_at(&mut bytes[..offset as usize], 0) {
            Ok(_) => return Ok(Some(DirectAlignment { memory: offset, offset })),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// STATX_DIOALIGN of linux/stat.h, and where its two answers lie in struct statx.
const STATX_DIOALIGN: u32 = 0x2000;
const STX_MASK_OFFSET: usize = 0;
const STX_DIO_MEM_ALIGN_OFFSET: usize = 0x98;
const STX_DIO_OFFSET_ALIGN_OFFSET: usize = 0x9c;

fn statx_alignment(file: &File) -> io::Result<Option<(u32, u32)>> {
    // struct statx is 256 bytes by its definition; read by offsets, since libc's does not name the
    // fields on every C library.
    let mut answer = [0u64; 32];
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor; the buffer is all of the struct.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_DIOALIGN,
            answer.as_mut_ptr().cast::<libc::statx>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let word = |offset: usize| {
        let eight = answer[offset / 8].to_ne_bytes();
        let at = offset % 8;
        u32::from_ne_bytes([eight[at], eight[at + 1], eight[at + 2], eight[at + 3]])
    };
    let told = word(STX_MASK_OFFSET) & STATX_DIOALIGN != 0;
    Ok(told.then(|| (word(STX_DIO_MEM_ALIGN_OFFSET), word(STX_DIO_OFFSET_ALIGN_OFFSET))))
}

/// Whether holes can be punched: tried behind the end of the file, where it changes nothing. On a
/// block device there is nothing behind the end, and its queue's limits say what it can do.
pub fn can_punch_holes(file: &File, end: u64) -> bool {
    fallocate_at(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, end)
}

fn fallocate_at(file: &File, mode: i32, offset: u64) -> bool {
    let Ok(offset) = i64::try_from(offset) else { return false };
    // SAFETY: plain numbers and an open descriptor.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, 4096) == 0 }
}

/// A part of a file that has data throughout, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// It has data; else it is a hole, which reads as zeros.
    pub is_data: bool,
    /// Where it ends; beyond the end of the file for its last hole.
    pub end: u64,
}

/// The run that byte `offset` of a regular file is in, by SEEK_DATA and SEEK_HOLE of lseek(2), which moves the
/// descriptor's position. A file system that does not know says that all is data.
pub fn run_at(file: &File, offset: u64) -> io::Result<Run> {
    let seek = |whence| {
        let at = i64::try_from(offset).map_err(|_| nix::Error::EINVAL)?;
        nix::unistd::lseek(file, at, whence).map(|found| u64::try_from(found).unwrap_or(offset))
    };
    let data = Run { is_data: true, end: u64::MAX };
    match seek(Whence::SeekData) {
        Ok(start) if start > offset => Ok(Run { is_data: false, end: start }),
        Ok(_) => match seek(Whence::SeekHole) {
            Ok(end) if end > offset => Ok(Run { is_data: true, end }),
            // It was punched meanwhile.
            Ok(_) => Ok(Run { is_data: true, end: offset + 1 }),
            Err(nix::Error::EINVAL | nix::Error::EOPNOTSUPP) => Ok(data),
            Err(error) => Err(error.into()),
        },
        Err(nix::Error::ENXIO) => Ok(Run { is_data: false, end: u64::MAX }),
        Err(nix::Error::EINVAL | nix::Error::EOPNOTSUPP) => Ok(data),
        Err(error) => Err(error.into()),
    }
}

/// Logical and physical block size of a block device.
pub fn block_sizes(file: &File) -> io::Result<(u32, u32)> {
    let mut logical: libc::c_int = 0;
    let mut physical: libc::c_uint = 0;
    // SAFETY: BLKSSZGET writes an int, BLKPBSZGET an unsigned int (linux/fs.h).
    let result = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET as _, &mut logical)
            | libc::ioctl(file.as_raw_fd(), libc::BLKPBSZGET as _, &mut physical)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((logical.max(512) as u32, physical.max(512)))
}

/// A value of the queue of the disk that a file or block device lies on, from sysfs: `None` where
/// there is no such disk (tmpfs, network) or no such value.
pub fn queue_limit(metadata: &std::fs::Metadata, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(disk_folder(metadata)?.join("queue").join(name)).ok()?;
    text.trim().parse().ok()
}

/// The folder in sysfs of the disk that a file or block device lies on.
fn disk_folder(metadata: &std::fs::Metadata) -> Option<PathBuf> {
    let device = match kind(metadata) {
        FileKind::BlockDevice => metadata.rdev(),
        _ => metadata.dev(),
    };
    let of = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
    // A partition has no queue of its own; its disk is the folder above.
    [of.clone(), of.join("..")].into_iter().find(|folder| folder.join("queue").is_dir())
}

/// Whether the disk below a file or block device cuts what is longer than its limits say. One that
/// makes requests of its own does, and so does one that stands on others. A disk of memory (brd, zram,
/// pmem) takes any length, and its limits are only what nobody has set.
pub fn splits_requests(metadata: &std::fs::Metadata) -> bool {
    disk_folder(metadata).is_some_and(|folder| {
        let stands_on_others =
            || std::fs::read_dir(folder.join("slaves")).is_ok_and(|mut slaves| slaves.next().is_some());
        folder.join("mq").is_dir() || stands_on_others()
    })
}

/// Reads all of `bytes` from `offset`; where there are fewer, it is an error (UnexpectedEof).
pub fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

/// Writes all of `bytes` to `offset`.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

/// fdatasync(2), where no ring is.
pub fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_keeps_a_second_writer_out_and_goes_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let first = open(&path, How { write: true, create: true, ..How::default() }).unwrap();
        let second = open(&path, How { write: true, ..How::default() }).unwrap();
        assert!(try_lock(&first, true).unwrap());
        assert!(!try_lock(&second, true).unwrap());
        assert!(!try_lock(&second, false).unwrap());
        drop(first);
        assert!(try_lock(&second, false).unwrap());
    }

    #[test]
    fn punching_is_tried_where_it_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![7u8; 8192]).unwrap();
        let file = open(&path, How { write: true, ..How::default() }).unwrap();
        let _ = can_punch_holes(&file, 8192);
        assert_eq!(std::fs::read(&path).unwrap(), vec![7u8; 8192]);
        let read_only = open(&path, How::default()).unwrap();
        assert!(!can_punch_holes(&read_only, 8192));
    }

    #[test]
    fn direct_alignment_is_a_power_of_two_where_there_is_one() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![7u8; 8192]).unwrap();
        // A file system without direct I/O refuses the open, which is an answer as well.
        if let Ok(file) = open(&path, How { direct: true, ..How::default() })
            && let Some(alignment) = direct_alignment(&file).unwrap()
        {
            assert!(
                alignment.memory.is_power_of_two() && alignment.offset.is_power_of_two(),
                "{alignment:?}"
            );
        }
    }
}
