//! A faulty disk below a file: operations that are slow, short, out of order or fail, a cache that
//! loses its contents with the power, and writes that are torn by that.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::file::Object;
use super::random::Random;
use super::schedule::Event;
use super::ublk::Memory;
use super::world::{Bug, State};
use crate::port::linux::file::Run;
use crate::port::ring::{AllocateMode, Entry, Token};

/// What a disk is.
#[derive(Clone, Copy, Debug)]
pub struct DiskShape {
    /// Bytes.
    pub size: u64,
    /// Bytes that are written wholly or not at all, and what direct I/O demands.
    pub sector: u32,
    /// Whether holes can be punched.
    pub punches: bool,
    /// Whether a range can be zeroed.
    pub zeroes: bool,
    /// Whether it takes direct I/O.
    pub direct: bool,
}

/// How often, of a thousand operations, something goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Fewer bytes than asked for are read or written.
    pub short: u32,
    /// EINTR or EAGAIN, and nothing was done.
    pub interrupted: u32,
    /// EIO; of a write or a flush anything may have been done.
    pub failed: u32,
    /// ENOSPC; of a write anything may have been done.
    pub full: u32,
    /// Takes a thousand times as long.
    pub slow: u32,
}

/// What a loss of power leaves of what was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLoss {
    /// Nothing.
    Nothing,
    /// Any of the contents that each sector has had since the last flush.
    Any,
    /// All that was written before some moment.
    Beginning,
    /// Everything: the cache had been written out by chance.
    Everything,
}

/// One content of a sector; no bytes stand for zeros.
struct Version {
    bytes: Option<Box<[u8]>>,
    /// The operation that wrote it.
    by: u64,
    /// When the server heard of it.
    acknowledged: Option<u64>,
}

/// A disk: of each sector the content that is durable, and all that came after it.
pub(super) struct Disk {
    shape: DiskShape,
    sectors: Vec<Vec<Version>>,
    dirty: BTreeSet<usize>,
    errors: u64,
}

/// An operation on its way.
pub(super) struct Operation {
    pub ring: usize,
    pub process: usize,
    token: Token,
    disk: usize,
    entry: Entry,
    memory: Memory,
    submitted: u64,
    /// What came of it, once it has happened.
    result: Option<i32>,
    /// The slot was told that it is over, though it is not.
    lied: bool,
}

// SAFETY: the address in the entry is the server's memory, which the entry's slot keeps until the
// operation is complete, whatever thread carries it out.
unsafe impl Send for Operation {}

impl Disk {
    fn new(shape: DiskShape) -> Disk {
        let blank = || vec![Version { bytes: None, by: 0, acknowledged: Some(0) }];
        let count = shape.size / u64::from(shape.sector);
        Disk { shape, sectors: (0..count).map(|_| blank()).collect(), dirty: BTreeSet::new(), errors: 0 }
    }

    pub fn shape(&self) -> DiskShape {
        self.shape
    }

    pub fn errors(&self) -> u64 {
        self.errors
    }

    fn sector(&self) -> usize {
        self.shape.sector as usize
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let size = self.sector();
        let first = offset as usize / size;
        let mut bytes = vec![0; len];
        for (number, versions) in self.sectors[first..first + len / size].iter().enumerate() {
            if let Some(content) = versions.last().and_then(|version| version.bytes.as_deref()) {
                bytes[number * size..(number + 1) * size].copy_from_slice(content);
            }
        }
        bytes
    }

    /// Which part of the disk a byte is in: one of contents, or one that was never written or is zeros since.
    pub fn run_at(&self, offset: u64) -> Run {
        let first = offset as usize / self.sector();
        let is_data = |sector: usize| {
            let versions = self.sectors.get(sector);
            versions.and_then(|versions| versions.last()).is_some_and(|version| version.bytes.is_some())
        };
        let is_first_data = is_data(first);
        let last = (first..self.sectors.len()).find(|&sector| is_data(sector) != is_first_data);
        let end = last.map_or(self.shape.size, |sector| (sector * self.sector()) as u64);
        Run { is_data: is_first_data, end }
    }

    /// Writes whole sectors; no bytes stand for zeros. Durable ones replace all that was there.
    fn write(&mut self, by: u64, offset: u64, len: usize, bytes: Option<&[u8]>, durable: bool) {
        let size = self.sector();
        let first = offset as usize / size;
        for number in 0..len / size {
            let content = bytes.map(|bytes| bytes[number * size..(number + 1) * size].into());
            let versions = &mut self.sectors[first + number];
            if durable {
                versions.clear();
                self.dirty.remove(&(first + number));
            } else {
                self.dirty.insert(first + number);
            }
            versions.push(Version { bytes: content, by, acknowledged: None });
        }
    }

    fn acknowledge(&mut self, by: u64, offset: u64, len: usize, now: u64) {
        let size = self.sector();
        let first = offset as usize / size;
        for versions in &mut self.sectors[first..first + len.div_ceil(size)] {
            for version in versions.iter_mut().filter(|version| version.by == by) {
                version.acknowledged = Some(now);
            }
        }
    }

    /// What was acknowledged at `since` or earlier is durable; what came later may be.
    fn flush(&mut self, since: u64, random: &mut Random) {
        self.dirty.retain(|&number| {
            let versions = &mut self.sectors[number];
            let acknowledged = |version: &Version| version.acknowledged.is_some_and(|at| at <= since);
            let least = versions.iter().rposition(acknowledged).unwrap_or(0);
            let most = versions.len() - 1;
            let kept = random.between(least as u64, most as u64) as usize;
            versions.drain(..kept);
            versions.len() > 1
        });
    }

    fn lose_power(&mut self, how: PowerLoss, random: &mut Random) {
        let numbers: Vec<u64> = self.sectors.iter().flatten().map(|version| version.by).collect();
        let moment = random.below(numbers.into_iter().max().unwrap_or(0) + 1);
        for number in std::mem::take(&mut self.dirty) {
            let versions = &mut self.sectors[number];
            let last = versions.len() - 1;
            let kept = match how {
                PowerLoss::Nothing => 0,
                PowerLoss::Any => random.below(versions.len() as u64) as usize,
                PowerLoss::Beginning => {
                    versions.iter().rposition(|version| version.by <= moment).unwrap_or(0)
                }
                PowerLoss::Everything => last,
            };
            versions.truncate(kept + 1);
            versions.drain(..kept);
        }
    }
}

/// Where on the disk an entry works: an offset and a length.
fn range(entry: &Entry) -> Option<(u64, usize)> {
    match entry {
        Entry::Read { place, offset, .. } | Entry::Write { place, offset, .. } => Some((*offset, place.len)),
        Entry::Allocate { offset, len, .. } => Some((*offset, *len as usize)),
        _ => None,
    }
}

impl State {
    pub fn add_disk(&mut self, shape: DiskShape) -> io::Result<PathBuf> {
        let path = PathBuf::from(format!("/sim/disk/{}", self.disks.len()));
        self.files.add(&path, Object::Disk(self.disks.len()), shape.size)?;
        self.disks.push(Disk::new(shape));
        Ok(path)
    }

    /// Whether the disk under this path takes direct I/O.
    pub fn direct(&self, path: &Path) -> bool {
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<usize>().ok());
        number.and_then(|number| self.disks.get(number)).is_some_and(|disk| disk.shape.direct)
    }

    pub fn lose_power(&mut self, disk: usize, how: PowerLoss) {
        let unflushed = self.disks[disk].dirty.len() as u64;
        self.note("power lost", [disk as u64, how as u64, unflushed, 0]);
        if unflushed > 0 {
            self.note("unflushed at power loss", [unflushed, 0, 0, 0]);
        }
        let random = &mut self.random;
        self.disks[disk].lose_power(how, random);
    }

    /// fdatasync(2), where no ring is.
    pub fn sync_whole_disk(&mut self, disk: usize) -> io::Result<()> {
        let fails = self.random.chance(self.config.faults.failed);
        let now = self.schedule.now_ns;
        self.note("sync", [disk as u64, u64::from(fails), 0, 0]);
        if fails {
            self.disks[disk].errors += 1;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.disks[disk].flush(now, &mut self.random);
        Ok(())
    }

    /// An operation came into a ring.
    pub fn operate(&mut self, ring: usize, disk: usize, entry: Entry, token: Token) {
        self.numbered += 1;
        let number = self.numbered;
        let (offset, len) = range(&entry).unwrap_or((0, 0));
        self.note("operation", [number, offset, len as u64, kind_of(&entry)]);
        let shape = self.disks[disk].shape;
        if let Some(result) = refused(&entry, shape) {
            return self.complete(ring, token, result);
        }
        let memory = match &entry {
            Entry::Read { place, .. } => self.memory_of(ring, place, true),
            Entry::Write { place, .. } => self.memory_of(ring, place, false),
            _ => Ok(Memory::Server(0)),
        };
        let memory = match memory {
            Ok(memory) => memory,
            Err(errno) => {
                self.note("no such buffer", [number, errno as u64, 0, 0]);
                return self.complete(ring, token, -errno);
            }
        };
        let slow = self.random.chance(self.config.faults.slow);
        let base = self.random.between(3_000, 120_000);
        let after = if slow { base * self.random.between(10, 1000) } else { base };
        self.schedule.after(after, Event::DiskEffect(number));
        let data = matches!(entry, Entry::Read { .. } | Entry::Write { .. });
        let lied = self.config.bug == Some(Bug::SlotReusedEarly) && data && self.random.chance(100);
        if lied {
            self.complete(ring, token, len as i32);
        }
        let process = self.rings[ring].process;
        let submitted = self.schedule.now_ns;
        let operation =
            Operation { ring, process, token, disk, entry, memory, submitted, result: None, lied };
        self.operations.insert(number, operation);
    }

    /// Slots of a ring with an operation on its way.
    pub fn slot_in_use(&self, ring: usize, slot: u16) -> bool {
        let of_slot = |token: &Token| match token {
            Token::Operation { slot: used, .. } | Token::Single(used) | Token::Chained(used) => *used == slot,
            Token::Front(_) | Token::Quiet(_) | Token::Wake => false,
        };
        self.operations.values().any(|operation| operation.ring == ring && of_slot(&operation.token))
            || self.rings[ring].has_timer(of_slot)
    }

    /// The operation happens.
    pub fn disk_effect(&mut self, number: u64) {
        let Some(mut operation) = self.operations.remove(&number) else { return };
        let result = self.carry_out(number, &operation);
        operation.result = Some(result);
        self.note("effect", [number, result as u64, 0, 0]);
        self.operations.insert(number, operation);
        let after = self.latency();
        self.schedule.after(after, Event::DiskDone(number));
    }

    /// Its completion is there.
    pub fn disk_done(&mut self, number: u64) {
        let Some(operation) = self.operations.remove(&number) else { return };
        if let (Some((offset, len)), false) =
            (range(&operation.entry), matches!(operation.entry, Entry::Read { .. }))
        {
            let now = self.schedule.now_ns;
            self.disks[operation.disk].acknowledge(number, offset, len, now);
        }
        if !operation.lied {
            let result = operation.result.unwrap_or(-libc::EIO);
            self.complete(operation.ring, operation.token, result);
        }
    }

    fn carry_out(&mut self, number: u64, operation: &Operation) -> i32 {
        let faults = self.config.faults;
        let random = &mut self.random;
        let disk = &mut self.disks[operation.disk];
        if random.chance(faults.interrupted) {
            let errno = *random.pick(&[libc::EINTR, libc::EAGAIN]);
            self.note("disk interrupted", [number, errno as u64, 0, 0]);
            return -errno;
        }
        let sector = disk.shape.sector;
        let error = match operation.entry {
            Entry::Write { .. } | Entry::Allocate { .. } if random.chance(faults.full) => Some(libc::ENOSPC),
            _ if random.chance(faults.failed) => Some(libc::EIO),
            _ => None,
        };
        disk.errors += u64::from(error.is_some());
        let (offset, len) = range(&operation.entry).unwrap_or((0, 0));
        let sectors = len as u64 / u64::from(sector);
        // Of what fails, a piece from the beginning may be done; of what is short, it is.
        let short = sectors > 1 && random.chance(faults.short);
        let done = match (error, short) {
            (None, false) => len,
            (None, true) => random.between(1, sectors - 1) as usize * sector as usize,
            (Some(_), _) => random.between(0, sectors) as usize * sector as usize,
        };
        let result = match operation.entry {
            Entry::Read { .. } => {
                let bytes = disk.read(offset, done);
                // SAFETY: the slot keeps the memory for this operation, which is in flight.
                unsafe { self.driver.store(operation.memory, &bytes) };
                done as i32
            }
            Entry::Write { durable, .. } => {
                // SAFETY: as above; slots' buffers are initialised when they are made.
                let bytes = unsafe { self.driver.load(operation.memory, done) };
                disk.write(number, offset, done, Some(&bytes), durable && error.is_none());
                done as i32
            }
            Entry::Allocate { .. } => {
                let done = if error.is_some() { done } else { len };
                disk.write(number, offset, done, None, false);
                0
            }
            Entry::SyncData { .. } => {
                if error.is_none() {
                    disk.flush(operation.submitted, random);
                }
                0
            }
            Entry::Command { .. }
            | Entry::Multishot { .. }
            | Entry::Timeout { .. }
            | Entry::Receive { .. }
            | Entry::Send { .. }
            | Entry::Wake => 0,
        };
        match (error, short) {
            (Some(errno), _) => {
                self.note("disk error", [number, errno as u64, done as u64, 0]);
                -errno
            }
            (None, true) => {
                self.note("disk short", [number, result as u64, 0, 0]);
                result
            }
            (None, false) => result,
        }
    }

    /// A process is gone: what it had under way has happened or not.
    pub fn forget_memory_of(&mut self, process: usize) {
        let numbers: Vec<u64> = self.operations.keys().copied().collect();
        for number in numbers {
            let begun = self.operations.get(&number).is_some_and(|operation| operation.process == process);
            if begun
                && let Some(operation) = self.operations.remove(&number)
                && operation.result.is_none()
            {
                self.note("operation of the dead", [number, 0, 0, 0]);
                if self.random.chance(500) {
                    self.carry_out(number, &operation);
                }
            }
        }
    }
}

fn kind_of(entry: &Entry) -> u64 {
    match entry {
        Entry::Read { .. } => 0,
        Entry::Write { durable: false, .. } => 1,
        Entry::Write { durable: true, .. } => 2,
        Entry::SyncData { .. } => 3,
        Entry::Allocate { mode: AllocateMode::PunchHole, .. } => 4,
        Entry::Allocate { mode: AllocateMode::ZeroRange, .. } => 5,
        Entry::Command { .. } => 6,
        Entry::Timeout { .. } => 7,
        Entry::Receive { .. } => 8,
        Entry::Send { .. } => 9,
        Entry::Wake => 10,
        Entry::Multishot { .. } => 11,
    }
}

/// What a file answers at once.
fn refused(entry: &Entry, shape: DiskShape) -> Option<i32> {
    if let Entry::Allocate { mode, .. } = entry {
        let can = match mode {
            AllocateMode::PunchHole => shape.punches,
            AllocateMode::ZeroRange => shape.zeroes,
        };
        if !can {
            return Some(-libc::EOPNOTSUPP);
        }
    }
    let (offset, len) = range(entry)?;
    let aligned = offset.is_multiple_of(u64::from(shape.sector)) && len.is_multiple_of(shape.sector as usize);
    match offset.checked_add(len as u64) {
        // The server asked for its disk's geometry, so that it never comes here.
        Some(end) if aligned && end <= shape.size => None,
        _ => Some(-libc::EINVAL),
    }
}
