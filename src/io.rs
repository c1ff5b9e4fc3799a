//! The words of the data plane: what one request is, and how it ends.
//!
//! Everything here is small and `Copy`. An [`Io`] says what is wanted and where; it carries no
//! access to memory. Bytes are reached through a [`Payload`](crate::payload::Payload).

use std::fmt;

use bitflags::bitflags;

pub mod extents;

/// Bytes in a sector, the unit the kernel counts block devices in, whatever their block size.
pub const SECTOR_SIZE: u64 = 512;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Fill the payload from the device.
    Read,
    /// Store the payload on the device.
    Write,
    /// Make every acknowledged write durable. Has no range.
    Flush,
    /// The range's content is no longer needed. It may read as anything afterwards.
    Discard,
    /// The range must read as zeros afterwards.
    WriteZeroes,
    /// Which runs of the range take space, and which read as zeros: the payload gets an
    /// [`Answer`](extents::Answer).
    Extents,
}

/// Every kind of request.
pub const OPS: [Op; 6] = [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes, Op::Extents];

impl Op {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Discard => "discard",
            Op::WriteZeroes => "write-zeroes",
            Op::Extents => "extents",
        }
    }

    /// Whether the request changes what the device holds.
    #[inline]
    pub const fn modifies(self) -> bool {
        matches!(self, Op::Write | Op::Discard | Op::WriteZeroes)
    }
}

bitflags! {
    /// Wishes that travel with a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u8 {
        /// Force unit access: be durable before being acknowledged (Write, WriteZeroes).
        const FUA = 1 << 0;
        /// WriteZeroes must keep the space allocated.
        const NO_UNMAP = 1 << 1;
        /// WriteZeroes must fail, with EOPNOTSUPP and at once, where it is no faster than a write.
        const FAST_ZERO = 1 << 2;
        /// Of the runs that Extents finds, the first is all that is wanted.
        const FIRST_EXTENT = 1 << 3;
    }
}

/// One request. Offsets and lengths are in bytes; a [`Op::Flush`] has neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// What is asked for.
    pub op: Op,
    /// How.
    pub flags: Flags,
    /// First byte on the device.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// The slot of the queue that carries this request until it is completed.
    pub slot: u16,
}

/// How a request ends: wholly done, or an errno. There is no partial success in the data plane;
/// a backend that moved fewer bytes continues or fails.
pub type IoResult = Result<(), Errno>;

/// A positive `errno` of Linux, the only error the data plane speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Interrupted before anything happened.
    pub const EINTR: Errno = Errno(4);
    /// Not now.
    pub const EAGAIN: Errno = Errno(11);
    /// Input or output error.
    pub const EIO: Errno = Errno(5);
    /// Operation not permitted.
    pub const EPERM: Errno = Errno(1);
    /// Resource busy.
    pub const EBUSY: Errno = Errno(16);
    /// Bad address: bytes that cannot be looked at.
    pub const EFAULT: Errno = Errno(14);
    /// Invalid argument: a range or memory that the device cannot address.
    pub const EINVAL: Errno = Errno(22);
    /// No space left below the device.
    pub const ENOSPC: Errno = Errno(28);
    /// The device is read-only.
    pub const EROFS: Errno = Errno(30);
    /// The device cannot do this operation.
    pub const EOPNOTSUPP: Errno = Errno(95);

    /// The errno with this number. What is not a number the kernel uses (1 to 4095) becomes EIO,
    /// so that no foreign value can be taken for a success.
    pub const fn new(number: i32) -> Errno {
        if number >= 1 && number <= 4095 { Errno(number) } else { Errno::EIO }
    }

    /// The errno of an error that has one.
    pub fn from_io(error: &std::io::Error) -> Option<Errno> {
        error.raw_os_error().map(Errno::new)
    }

    /// The positive number.
    #[inline]
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Errno {
        use std::io::ErrorKind;
        match (error.raw_os_error(), error.kind()) {
            (Some(number), _) => Errno::new(number),
            (None, ErrorKind::InvalidInput) => Errno::EINVAL,
            (None, ErrorKind::Unsupported) => Errno::EOPNOTSUPP,
            (None, ErrorKind::StorageFull) => Errno::ENOSPC,
            (None, ErrorKind::ReadOnlyFilesystem) => Errno::EROFS,
            (None, ErrorKind::PermissionDenied) => Errno::EPERM,
            _ => Errno::EIO,
        }
    }
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> std::io::Error {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {})", self.0, std::io::Error::from_raw_os_error(self.0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

bitflags! {
    /// What a backend can do beyond reading. Folded down a stack when it is built.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Capabilities: u32 {
        /// Takes writes; without it the device is read-only.
        const WRITE = 1 << 0;
        /// Acknowledged writes may be lost until a flush: the device has a volatile cache.
        const VOLATILE_CACHE = 1 << 1;
        /// Honours FUA by itself. Without it, with a volatile cache, the kernel flushes instead.
        const FUA = 1 << 2;
        /// Discard gives something back.
        const DISCARD = 1 << 3;
        /// A discarded range reads as zeros.
        const DISCARD_ZEROES = 1 << 4;
        /// Zeros a range faster than writes of zeros would.
        const WRITE_ZEROES = 1 << 5;
        /// Seeks cost time; the kernel should order requests.
        const ROTATIONAL = 1 << 6;
        /// Serves payloads that are hidden: it never looks at the bytes of a read or a write.
        const HIDDEN_PAYLOAD = 1 << 7;
        /// Knows which runs take space ([`Op::Extents`]). Without it, all is taken for data.
        const EXTENTS = 1 << 8;
        /// What was read once is sooner read again: there is a cache that a read fills.
        const READ_CACHE = 1 << 9;
    }
}

/// The shape of a disk. Bytes throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk, a multiple of `logical_block_size`.
    pub size: u64,
    /// Smallest unit that can be addressed: a power of two from 512 up.
    pub logical_block_size: u32,
    /// Smallest unit that can be written without reading first.
    pub physical_block_size: u32,
    /// Preferred length of a request, 0 where there is no preference.
    pub optimal_io_size: u32,
    /// Alignment that memory handed to the backend must have.
    pub memory_alignment: u32,
    /// Longest read or write the backend wants in one piece.
    pub max_io_size: u32,
    /// Unit and alignment in which a discard takes effect; 0 where there is no discard.
    pub discard_granularity: u32,
    /// How the memory of one request may be scattered, where the backend cares.
    pub segments: Option<SegmentLimits>,
}

/// Limits on the pieces of memory that one request is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLimits {
    /// No piece crosses a multiple of this, plus one.
    pub boundary_mask: u64,
    /// Longest piece in bytes.
    pub max_size: u32,
    /// Most pieces.
    pub max_count: u16,
}

impl Geometry {
    /// A disk of `size` bytes with everything else at its plainest.
    pub const fn plain(size: u64) -> Geometry {
        Geometry {
            size,
            logical_block_size: 512,
            physical_block_size: 4096,
            optimal_io_size: 0,
            memory_alignment: 1,
            max_io_size: 1 << 20,
            discard_granularity: 0,
            segments: None,
        }
    }
}

/// What may pass the choke point of a queue: the one place where range, alignment, flags and
/// capabilities are checked.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    size: u64,
    block_mask: u64,
    capabilities: Capabilities,
}

impl Admission {
    /// The rules for a disk of this shape.
    pub fn new(geometry: &Geometry, capabilities: Capabilities) -> Admission {
        let block_mask = u64::from(geometry.logical_block_size) - 1;
        Admission { size: geometry.size, block_mask, capabilities }
    }

    /// Passes `io`, or says with which errno it is refused.
    #[inline]
    pub fn check(&self, io: &Io) -> IoResult {
        if io.op == Op::Flush {
            return Ok(());
        }
        if (io.offset | io.len) & self.block_mask != 0 {
            return Err(Errno::EINVAL);
        }
        match io.offset.checked_add(io.len) {
            Some(end) if end <= self.size => {}
            _ => return Err(Errno::EINVAL),
        }
        if io.op.modifies() && !self.capabilities.contains(Capabilities::WRITE) {
            return Err(Errno::EROFS);
        }
        let needed = match io.op {
            Op::Discard => Capabilities::DISCARD,
            Op::WriteZeroes => Capabilities::WRITE_ZEROES,
            Op::Extents => Capabilities::EXTENTS,
            _ => Capabilities::empty(),
        };
        if !self.capabilities.contains(needed) {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(op: Op, offset: u64, len: u64) -> Io {
        Io { op, flags: Flags::empty(), offset, len, slot: 0 }
    }

    #[test]
    fn a_request_past_the_end_is_refused_even_when_the_sum_overflows() {
        let rules = Admission::new(&Geometry::plain(1 << 20), Capabilities::all());
        assert_eq!(rules.check(&io(Op::Read, (1 << 20) - 512, 512)), Ok(()));
        assert_eq!(rules.check(&io(Op::Read, (1 << 20) - 512, 1024)), Err(Errno::EINVAL));
        assert_eq!(rules.check(&io(Op::Read, u64::MAX - 511, 1024)), Err(Errno::EINVAL));
        assert_eq!(rules.check(&io(Op::Read, 100, 512)), Err(Errno::EINVAL));
        assert_eq!(rules.check(&io(Op::Flush, 7, 7)), Ok(()));
    }

    #[test]
    fn what_the_backend_cannot_do_never_reaches_it() {
        let rules = Admission::new(&Geometry::plain(1 << 20), Capabilities::empty());
        for op in [Op::Write, Op::Discard, Op::WriteZeroes] {
            assert_eq!(rules.check(&io(op, 0, 512)), Err(Errno::EROFS));
        }
        let rules = Admission::new(&Geometry::plain(1 << 20), Capabilities::WRITE);
        assert_eq!(rules.check(&io(Op::Write, 0, 512)), Ok(()));
        for op in [Op::Discard, Op::WriteZeroes, Op::Extents] {
            assert_eq!(rules.check(&io(op, 0, 512)), Err(Errno::EOPNOTSUPP));
        }
    }

    #[test]
    fn no_foreign_number_becomes_a_success() {
        for number in [0, -5, 4096, i32::MIN, i32::MAX] {
            assert_eq!(Errno::new(number), Errno::EIO);
        }
        assert_eq!(Errno::from(std::io::Error::other("what")), Errno::EIO);
        assert_eq!(Errno::from(std::io::Error::from_raw_os_error(28)), Errno::ENOSPC);
    }
}
