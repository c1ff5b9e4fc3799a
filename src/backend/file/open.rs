//! Opening a file as a disk: what it is, how it is opened, who else has it, what it can do.

use std::fs::{File as StdFile, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{Created, Direct, File, Holes, Options};
use crate::error::{Error, Kind, Result};
use crate::holders::{self, Holder};
use crate::io::{Capabilities, Errno, Geometry, SegmentLimits};
use crate::port::clock::{Deadline, Duration, sleep};
use crate::port::file::{self, DirectAlignment, FileKind, How};

/// How long the lock of a block device is waited for: udev holds it for as long as it looks at one.
const UDEV_LOCK: Duration = Duration::from_secs(2);
/// And that of a file: of a server that was killed, the kernel closes the files of its rings when the
/// process has long ended.
const KILLED_LOCK: Duration = Duration::from_millis(500);
/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(20);

/// Shortest piece of memory that a limit may force: a page of the smallest kind.
const SMALLEST_SEGMENT: u32 = 4096;

/// A file that was opened and locked, and whether past the page cache.
struct Opened {
    file: StdFile,
    direct: Option<DirectAlignment>,
}

pub(super) fn open(options: &Options) -> Result<File> {
    let path = options.path.as_path();
    let mut notes = Vec::new();
    let unlocked = create_if_asked(options)?;
    let metadata = file::metadata(path).map_err(|error| {
        let error = failed(path, error);
        match error.kind() {
            Kind::NotFound => {
                error.cure(format!("to create it, say how large: file:{},size=10G", path.display()))
            }
            _ => error,
        }
    })?;
    let kind = check_kind(path, &metadata)?;
    let opened = open_locked(options, kind, &mut notes);
    let Opened { file, direct } = match opened {
        Err(error) => {
            if let Some(created) = unlocked {
                remove_unused(created, path);
            }
            return Err(error);
        }
        Ok(opened) => opened,
    };
    // Behind the file, so that after a failure it is removed while the file is still locked.
    let mut created = unlocked;
    if file::size(&file).is_ok_and(|size| size != 0)
        && let Some(created) = created.take()
    {
        // Somebody had a disk in it before the lock was ours.
        created.keep();
    }
    let file_size = settle_size(&file, options, kind, created.as_ref(), &mut notes)?;
    // Where direct I/O was insisted on, its blocks may be larger than those that were asked for.
    let mut needed = direct.map_or(options.unit, |needed| needed.offset.max(512));
    let mut physical = 4096;
    if kind == FileKind::BlockDevice {
        // The page cache reads and writes any bytes of one; a discard and write-zeroes it hands down.
        let (logical, its_physical) = file::block_sizes(&file).map_err(|error| failed(path, error))?;
        (needed, physical) = (needed.max(logical), its_physical);
    }
    let logical_block_size = options.block_size.map_or(needed, |wanted| wanted.max(needed));
    let size = whole_blocks(path, file_size, logical_block_size)?;

    let discard_granularity = match discard_granularity(&file, &metadata, kind, file_size) {
        Some(granularity) if !options.read_only => granularity.max(logical_block_size),
        _ => 0,
    };
    // Everything it does with data, it lets the kernel do.
    let mut capabilities = Capabilities::HIDDEN_PAYLOAD;
    if !options.read_only {
        capabilities |= Capabilities::WRITE
            | Capabilities::VOLATILE_CACHE
            | Capabilities::FUA
            | Capabilities::WRITE_ZEROES;
        match discard_granularity {
            0 => {
                notes.push("file: no discard, since nothing there can be discarded and read as zeros".into())
            }
            _ => capabilities |= Capabilities::DISCARD | Capabilities::DISCARD_ZEROES,
        }
    }
    if file::queue_limit(&metadata, "rotational") == Some(1) {
        capabilities |= Capabilities::ROTATIONAL;
    }
    // Through the page cache the disk below sees other requests than ours.
    let is_limited = direct.is_some() && file::splits_requests(&metadata);
    let geometry = Geometry {
        logical_block_size,
        physical_block_size: physical.max(logical_block_size),
        memory_alignment: direct.map_or(1, |needed| needed.memory),
        discard_granularity,
        max_io_size: longest_request(&metadata).filter(|_| is_limited).unwrap_or(1 << 20),
        segments: segment_limits(&metadata).filter(|_| is_limited),
        ..Geometry::plain(size)
    };
    if kind == FileKind::Regular {
        capabilities |= Capabilities::EXTENTS;
    }
    if direct.is_none() {
        capabilities |= Capabilities::READ_CACHE;
    }
    let created = Mutex::new(created);
    let file = Arc::new(file);
    let holes = Arc::new(Holes::new(file.clone(), logical_block_size));
    Ok(File { file, holes, path: path.to_path_buf(), geometry, capabilities, notes, created })
}

/// Longest request that the disk below takes whole, in bytes.
fn longest_request(metadata: &Metadata) -> Option<u32> {
    let kibibytes = file::queue_limit(metadata, "max_sectors_kb")?;
    u32::try_from(kibibytes.checked_mul(1024)?).ok().filter(|&bytes| bytes >= SMALLEST_SEGMENT)
}

/// Into how few pieces of memory, and how long ones, the disk below wants a request to fall.
fn segment_limits(metadata: &Metadata) -> Option<SegmentLimits> {
    let limit = |name| file::queue_limit(metadata, name);
    let max_size = u32::try_from(limit("max_segment_size")?).unwrap_or(u32::MAX);
    let max_count = u16::try_from(limit("max_segments")?).unwrap_or(u16::MAX);
    if max_size < SMALLEST_SEGMENT || max_count == 0 {
        return None;
    }
    Some(SegmentLimits { boundary_mask: u64::from(u32::MAX), max_size, max_count })
}

fn what(path: &Path) -> String {
    format!("cannot use {} as a disk", path.display())
}

fn failed(path: &Path, error: impl Into<std::io::Error>) -> Error {
    let error = Error::system(what(path), error);
    match error.kind() {
        Kind::Permission => error.cure("run as a user who may, or attach with --read-only"),
        _ => error,
    }
}

/// With `size=` a file that is not there is made, empty until it is locked. The guard removes it again
/// unless it is kept.
fn create_if_asked(options: &Options) -> Result<Option<Created>> {
    let path = options.path.as_path();
    let Some(size) = options.size else { return Ok(None) };
    if size == 0 {
        return Err(Error::invalid(what(path), "size=0 is no disk").cure("give a size such as size=10G"));
    }
    if options.read_only || path.exists() {
        return Ok(None);
    }
    let how = How { write: true, create: true, ..How::default() };
    match file::open(path, how) {
        Ok(_) => Ok(Some(Created::new(path))),
        // Somebody else was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(failed(path, error)),
    }
}

/// Removes a file that was made for a disk which never came to be, unless somebody else has one in it by now.
fn remove_unused(created: Created, path: &Path) {
    let is_unused = |file: &StdFile| {
        matches!(file::try_lock(file, true), Ok(true))
            && leads_to(path, file)
            && file::size(file).is_ok_and(|size| size == 0)
    };
    match file::open(path, How { write: true, ..How::default() }) {
        // While it is locked, so that nobody gets it who would have nothing then.
        Ok(file) if is_unused(&file) => drop(created),
        _ => created.keep(),
    }
}

fn check_kind(path: &Path, metadata: &Metadata) -> Result<FileKind> {
    match file::kind(metadata) {
        FileKind::Directory => Err(Error::invalid(what(path), "it is a directory")
            .cure(format!("name a file in it, such as file:{}/disk.img,size=10G", path.display()))),
        FileKind::Other => Err(Error::invalid(what(path), "it is neither a regular file nor a block device")
            .cure("name one that is")),
        kind => Ok(kind),
    }
}

/// Past the page cache where that is wanted and can be had, and locked.
fn open_locked(options: &Options, kind: FileKind, notes: &mut Vec<String>) -> Result<Opened> {
    let path = options.path.as_path();
    let why = match options.direct {
        Direct::No => "as asked for (direct=no)".to_string(),
        Direct::Auto | Direct::Yes => match try_direct(options, kind)? {
            Ok(opened) => {
                notes.push("file: direct I/O, past the page cache".into());
                return Ok(opened);
            }
            Err(why) if options.direct == Direct::Yes => {
                return Err(Error::new(Kind::Unsupported, what(path), why)
                    .cure("leave direct=yes away, or say direct=auto"));
            }
            Err(why) => format!("since {why}"),
        },
    };
    notes.push(format!("file: through the page cache, {why}"));
    let file =
        file::open(path, how(options, kind, false)).map_err(|error| open_failed(options, kind, error))?;
    lock(&file, options, kind)?;
    Ok(Opened { file, direct: None })
}

/// The inner error says why direct I/O cannot be had.
fn try_direct(options: &Options, kind: FileKind) -> Result<Result<Opened, String>> {
    let path = options.path.as_path();
    let file = match file::open(path, how(options, kind, true)) {
        Ok(file) => file,
        Err(error) if Errno::from_io(&error) == Some(Errno::EINVAL) => {
            return Ok(Err("its file system does not take direct I/O".into()));
        }
        Err(error) => return Err(open_failed(options, kind, error)),
    };
    lock(&file, options, kind)?;
    match file::direct_alignment(&file).map_err(|error| failed(path, error))? {
        None => Ok(Err("its file system does not take direct I/O on it".into())),
        Some(needed) if options.direct == Direct::Auto => match better_cached(options, &file, needed)? {
            Some(why) => Ok(Err(why)),
            None => Ok(Ok(Opened { file, direct: Some(needed) })),
        },
        Some(needed) => Ok(Ok(Opened { file, direct: Some(needed) })),
    }
}

/// Why the page cache serves a file better than direct I/O in blocks that large, if it does.
fn better_cached(options: &Options, file: &StdFile, needed: DirectAlignment) -> Result<Option<String>> {
    let block = needed.offset;
    if let Some(wanted) = options.block_size
        && block > wanted
    {
        return Ok(Some(format!("direct I/O on it needs blocks of {block} bytes, not {wanted}")));
    }
    let size = file::size(file).map_err(|error| failed(&options.path, error))?.max(options.size.unwrap_or(0));
    // What is no whole number of blocks in either way is refused later.
    let is_odd = !size.is_multiple_of(u64::from(block)) && size.is_multiple_of(u64::from(options.unit));
    Ok(is_odd
        .then(|| format!("direct I/O on it needs blocks of {block} bytes, and its {size} are no multiple")))
}

fn how(options: &Options, kind: FileKind, direct: bool) -> How {
    let exclusive = kind == FileKind::BlockDevice && !options.read_only;
    How { write: !options.read_only, direct, create: false, exclusive }
}

fn open_failed(options: &Options, kind: FileKind, error: std::io::Error) -> Error {
    let path = options.path.as_path();
    if kind == FileKind::BlockDevice && Errno::from_io(&error) == Some(Errno::EBUSY) {
        let users = holders::holders(path);
        let why = match users.is_empty() {
            true => "it is in use: mounted, swapped to, or held by another device".to_string(),
            false => format!("it is in use: {}", holders::describe(&users)),
        };
        let mounted = users.iter().find_map(|user| match user {
            Holder::Mount { at, .. } => Some(at),
            _ => None,
        });
        let release = mounted.map_or_else(|| "release it".to_string(), |at| format!("run umount {at}"));
        return Error::new(Kind::Busy, what(path), why)
            .cure(format!("{release} first, or attach with --read-only"));
    }
    failed(path, error)
}

/// A writer is alone; readers share.
fn lock(file: &StdFile, options: &Options, kind: FileKind) -> Result<()> {
    let path = options.path.as_path();
    let attempt = || file::try_lock(file, !options.read_only);
    let until = Deadline::after(if kind == FileKind::BlockDevice { UDEV_LOCK } else { KILLED_LOCK });
    let mut locked = attempt();
    while matches!(locked, Ok(false)) && !until.passed() {
        sleep(RETRY);
        locked = attempt();
    }
    match locked {
        Ok(true) if kind == FileKind::Regular && !leads_to(path, file) => {
            // Whoever made it had a disk that never came to be.
            Err(Error::new(Kind::Busy, what(path), "it was removed or replaced while it was opened")
                .cure("try again"))
        }
        Ok(true) => Ok(()),
        Ok(false) => {
            let why = match options.read_only {
                true => "somebody has it locked to write to it: another process, or another disk of this one",
                false => {
                    "it is locked: another process has it attached, or another disk of this one lies on it"
                }
            };
            Err(Error::new(Kind::Busy, what(path), why)
                .cure("see `blockhaus list` and detach it there, or attach both with --read-only"))
        }
        Err(error) => Err(Error::system(format!("cannot lock {}", path.display()), error)),
    }
}

/// Whether what the path names is this file.
fn leads_to(path: &Path, file: &StdFile) -> bool {
    match (file::metadata(path), file.metadata()) {
        (Ok(named), Ok(opened)) => (named.dev(), named.ino()) == (opened.dev(), opened.ino()),
        _ => false,
    }
}

/// The disk's size, after `size=` made the file larger if it had to.
fn settle_size(
    file: &StdFile,
    options: &Options,
    kind: FileKind,
    created: Option<&Created>,
    notes: &mut Vec<String>,
) -> Result<u64> {
    let path = options.path.as_path();
    let size = file::size(file).map_err(|error| {
        Error::system(what(path), error)
            .cure("its size cannot be told; name a regular file or a block device")
    })?;
    let as_it_is = "leave size= away to use it as it is";
    match options.size {
        Some(wanted) if wanted < size => {
            let why = format!("it has {size} bytes already, and size={wanted} would shrink it");
            Err(Error::invalid(what(path), why).cure(as_it_is))
        }
        Some(wanted) if wanted > size && (kind == FileKind::BlockDevice || options.read_only) => {
            let why = format!("it has {size} bytes and cannot be made {wanted} large");
            Err(Error::invalid(what(path), why).cure(as_it_is))
        }
        Some(wanted) if wanted > size => {
            file.set_len(wanted).map_err(|error| {
                Error::system(format!("cannot make {} {wanted} bytes large", path.display()), error)
                    .cure("give a smaller size, or a file system that takes files that large")
            })?;
            match created {
                None => notes.push(format!("file: made larger, from {size} to {wanted} bytes")),
                Some(created) => {
                    notes.push(format!("file: created {}, {wanted} bytes, sparse", path.display()));
                    if let Err(error) = created.sync_name() {
                        notes.push(format!(
                            "file: its folder cannot be synced, and a crash can lose it: {error}"
                        ));
                    }
                }
            }
            Ok(wanted)
        }
        _ => Ok(size),
    }
}

/// The size, a whole number of blocks.
fn whole_blocks(path: &Path, size: u64, block_size: u32) -> Result<u64> {
    let block = u64::from(block_size);
    if size == 0 {
        return Err(Error::invalid(what(path), "it is empty, its size is 0")
            .cure(format!("say how large the disk is to be: file:{},size=10G", path.display())));
    }
    if !size.is_multiple_of(block) {
        let next = size.next_multiple_of(block);
        let why = format!("its {size} bytes are no multiple of the block size {block}");
        return Err(Error::invalid(what(path), why)
            .cure(format!("make it larger with size={next}, or give a smaller --block-size")));
    }
    Ok(size)
}

/// Unit of a discard, `None` where there is none to be had. `file_size` is all that the file has, since a
/// hole is punched behind it to see whether that works.
fn discard_granularity(file: &StdFile, metadata: &Metadata, kind: FileKind, file_size: u64) -> Option<u32> {
    match kind {
        FileKind::BlockDevice => discard_unit(|limit| file::queue_limit(metadata, limit)),
        _ => file::can_punch_holes(file, file_size).then_some(4096),
    }
}

/// The same of a block device, by its queue's limits. To punch a hole is to have the device write zeros,
/// and unmap what it can: one that only discards refuses it.
fn discard_unit(limit: impl Fn(&str) -> Option<u64>) -> Option<u32> {
    let can = |most: &str| limit(most).is_some_and(|bytes| bytes > 0);
    let unit = limit("discard_granularity").and_then(|unit| u32::try_from(unit).ok());
    unit.filter(|_| can("discard_max_bytes") && can("write_zeroes_max_bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_goes_in_a_moment_is_waited_for() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        image.as_file().lock().unwrap();
        let options = Options { path: image.path().into(), ..Options::default() };
        let error = open(&options).unwrap_err();
        assert!(error.kind() == Kind::Busy && error.to_string().contains("of this one"), "{error}");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sleep(KILLED_LOCK / 5);
                image.as_file().unlock().unwrap();
            });
            open(&options).unwrap();
        });
    }

    #[test]
    fn a_block_device_that_only_discards_is_not_asked_to() {
        let unit = |discard: u64, zeroes: u64| {
            discard_unit(|limit| match limit {
                "discard_granularity" => Some(4096),
                "discard_max_bytes" => Some(discard),
                "write_zeroes_max_bytes" => Some(zeroes),
                _ => None,
            })
        };
        assert_eq!(unit(1 << 30, 1 << 30), Some(4096));
        assert_eq!(unit(1 << 30, 0), None);
        assert_eq!(unit(0, 1 << 30), None);
        assert_eq!(discard_unit(|_| None), None);
    }
}
