//! A queue's request descriptors, mapped from the character device.

use std::fs::File;
use std::io;
use std::mem::size_of;

use blockhaus_uapi::ublk::{CMD_BUF_OFFSET, IoDesc, IoFlags, MAX_QUEUE_DEPTH, op};

use crate::io::{Errno, Flags, Io, Op, SECTOR_SIZE};
use crate::port::memory::Mapping;
use crate::port::system::page_size;

/// The mapped descriptors of one queue: the driver writes one before it hands over its tag.
#[derive(Debug)]
pub(super) struct Descriptors {
    mapping: Mapping,
    depth: u16,
    descriptor_size: usize,
}

impl Descriptors {
    /// Maps those of `queue`. Queues lie as far apart as if each had the greatest depth there is,
    /// whatever theirs; `descriptor_size` is what the driver said, 24 before 7.3.
    pub fn map(device: &File, queue: u16, depth: u16, descriptor_size: usize) -> io::Result<Descriptors> {
        if descriptor_size < size_of::<IoDesc>() || !descriptor_size.is_multiple_of(align_of::<IoDesc>()) {
            return Err(io::Error::other(format!("the driver's descriptors have {descriptor_size} bytes")));
        }
        let stride = (usize::from(MAX_QUEUE_DEPTH) * descriptor_size).next_multiple_of(page_size());
        let offset = CMD_BUF_OFFSET + u64::from(queue) * stride as u64;
        let mapping =
            Mapping::shared_read_only(device, offset, (usize::from(depth) * descriptor_size) as u64)?;
        Ok(Descriptors { mapping, depth, descriptor_size })
    }

    /// The request that arrived with this tag, and whether the driver failed to register its pages
    /// (`UBLK_IO_F_NEED_REG_BUF`).
    #[inline]
    pub fn request(&self, tag: u16) -> Result<(Io, bool), Errno> {
        debug_assert!(tag < self.depth);
        let place = self.mapping.start().as_ptr() as usize + usize::from(tag) * self.descriptor_size;
        // SAFETY: tags are below the depth, which the front end checked; so the descriptor is inside
        // the mapping, and aligned (map checked). The driver wrote it before the tag's completion
        // and leaves it alone until the commit; volatile, since it is the driver who writes it.
        let descriptor = unsafe { (place as *const IoDesc).read_volatile() };
        let unregistered = descriptor.flags().contains(IoFlags::NEED_REG_BUF);
        translate(&descriptor, tag).map(|io| (io, unregistered))
    }
}

/// A descriptor in our words. What this engine does not know is refused.
#[inline]
fn translate(descriptor: &IoDesc, tag: u16) -> Result<Io, Errno> {
    let op = match descriptor.op() {
        op::READ => Op::Read,
        op::WRITE => Op::Write,
        op::FLUSH => Op::Flush,
        op::DISCARD => Op::Discard,
        op::WRITE_ZEROES => Op::WriteZeroes,
        _ => return Err(Errno::EOPNOTSUPP),
    };
    let told = descriptor.flags();
    let mut flags = Flags::empty();
    flags.set(Flags::FUA, told.contains(IoFlags::FUA));
    flags.set(Flags::NO_UNMAP, told.contains(IoFlags::NOUNMAP));
    if op == Op::Flush {
        // A flush has no range; the driver leaves sector -1 there.
        return Ok(Io { op, flags, offset: 0, len: 0, slot: tag });
    }
    let offset = descriptor.start_sector.checked_mul(SECTOR_SIZE).ok_or(Errno::EINVAL)?;
    Ok(Io { op, flags, offset, len: u64::from(descriptor.nr_sectors) * SECTOR_SIZE, slot: tag })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_become_bytes_and_unknown_operations_errors() {
        let descriptor = IoDesc {
            op_flags: u32::from(op::WRITE) | IoFlags::FUA.bits(),
            nr_sectors: u32::MAX,
            start_sector: 3,
            addr: 0,
        };
        let io = translate(&descriptor, 9).unwrap();
        assert_eq!((io.op, io.offset, io.len, io.slot), (Op::Write, 1536, u64::from(u32::MAX) * 512, 9));
        assert_eq!(io.flags, Flags::FUA);
        let flush = IoDesc { op_flags: u32::from(op::FLUSH), nr_sectors: 0, start_sector: u64::MAX, addr: 0 };
        assert_eq!(translate(&flush, 1).map(|io| (io.op, io.offset, io.len)), Ok((Op::Flush, 0, 0)));
        let zone_append = IoDesc { op_flags: u32::from(op::ZONE_APPEND), ..descriptor };
        assert_eq!(translate(&zone_append, 0), Err(Errno::EOPNOTSUPP));
        let far = IoDesc { start_sector: u64::MAX, ..descriptor };
        assert_eq!(translate(&far, 0), Err(Errno::EINVAL));
    }
}
