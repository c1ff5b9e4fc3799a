//! What the disk has promised to those who opened it, and a server must keep when it is back.

use super::connect::Connected;
use crate::io::{Capabilities, Geometry};
use crate::nbd::client::Negotiated;
use crate::nbd::{BlockSizes, ExportFlags, MAX_PAYLOAD};

/// The smallest unit in bytes that is asked for where the server does not say which it takes.
const USUAL_MINIMUM: u32 = 512;

/// Longest read or write in one piece, in bytes: more at once gains nothing.
const LONGEST: u32 = 1 << 20;

/// Largest block that is shown as the one that is written without reading first.
const LARGEST_PHYSICAL: u32 = 64 << 10;

/// An export as it was when the disk was opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    told: Negotiated,
    /// Bytes of a block of the disk.
    block: u32,
}

impl Promise {
    /// A disk whose clients count in units of `unit` bytes, or more where the server has larger blocks.
    pub fn new(told: Negotiated, unit: u32) -> Promise {
        Promise { told, block: minimum(&told).max(unit) }
    }

    pub fn told(&self) -> &Negotiated {
        &self.told
    }

    /// Bytes at the end of the export that are less than a block.
    pub fn left_over(&self) -> u64 {
        self.told.size % u64::from(self.block)
    }

    pub fn can_flush(&self) -> bool {
        self.told.flags.contains(ExportFlags::SEND_FLUSH)
    }

    pub fn knows_fast_zero(&self) -> bool {
        self.takes(ExportFlags::SEND_FAST_ZERO)
    }

    pub fn geometry(&self) -> Geometry {
        let block = self.block;
        let preferred = self.told.block.map_or(4096, |block| block.preferred);
        let physical = if preferred.is_power_of_two() { preferred } else { 4096 };
        let longest = self.longest_payload(&self.told).min(LONGEST);
        Geometry {
            logical_block_size: block,
            physical_block_size: physical.min(LARGEST_PHYSICAL).max(block),
            max_io_size: (longest - longest % block).max(block),
            discard_granularity: if self.takes(ExportFlags::SEND_TRIM) { block } else { 0 },
            ..Geometry::plain(self.told.size - self.left_over())
        }
    }

    fn takes(&self, flag: ExportFlags) -> bool {
        self.told.flags.contains(flag) && !self.told.flags.contains(ExportFlags::READ_ONLY)
    }

    pub fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::empty();
        let writable = !self.told.flags.contains(ExportFlags::READ_ONLY);
        capabilities.set(Capabilities::WRITE, writable);
        for (flag, capability) in [
            (ExportFlags::SEND_FLUSH, Capabilities::VOLATILE_CACHE),
            (ExportFlags::SEND_FUA, Capabilities::FUA),
            (ExportFlags::SEND_TRIM, Capabilities::DISCARD),
            (ExportFlags::SEND_WRITE_ZEROES, Capabilities::WRITE_ZEROES),
        ] {
            capabilities.set(capability, self.takes(flag));
        }
        capabilities.set(Capabilities::EXTENTS, self.told.allocation.is_some());
        capabilities.set(Capabilities::ROTATIONAL, self.told.flags.contains(ExportFlags::ROTATIONAL));
        capabilities
    }

    /// Longest read or write of one request, a multiple of every block.
    pub fn longest_payload(&self, told: &Negotiated) -> u32 {
        let most = told.block.map_or(MAX_PAYLOAD, |block| block.maximum).min(MAX_PAYLOAD);
        (most - most % self.block).max(self.block)
    }

    /// Whether the export is larger than it was.
    pub fn has_grown(&self, told: &Negotiated) -> bool {
        told.size > self.told.size
    }

    /// Whether the export that was found again can be the disk; the error says why not.
    pub fn check(&self, connected: &[Connected]) -> Result<(), String> {
        let told = connected.first().map(|connected| connected.told).ok_or("no connection was made")?;
        self.check_told(&told)
    }

    fn check_told(&self, told: &Negotiated) -> Result<(), String> {
        if told.size < self.told.size {
            return Err(format!(
                "the export has {} bytes and had {}: it is another, or was cut",
                told.size, self.told.size
            ));
        }
        let kept = [
            (ExportFlags::SEND_FLUSH, "FLUSH"),
            (ExportFlags::SEND_FUA, "FUA"),
            (ExportFlags::SEND_TRIM, "TRIM"),
            (ExportFlags::SEND_WRITE_ZEROES, "WRITE_ZEROES"),
            (ExportFlags::SEND_FAST_ZERO, "FAST_ZERO"),
        ];
        for (flag, name) in kept {
            if self.takes(flag) && !told.flags.contains(flag) {
                return Err(format!("the export does not take {name} any more"));
            }
        }
        let read_only = |told: &Negotiated| told.flags.contains(ExportFlags::READ_ONLY);
        if read_only(told) && !read_only(&self.told) {
            return Err("the export is read-only now".into());
        }
        if minimum(told) > self.block {
            return Err(format!("the export has blocks of {} bytes now", minimum(told)));
        }
        Ok(())
    }
}

fn minimum(told: &Negotiated) -> u32 {
    told.block.map_or(USUAL_MINIMUM, |BlockSizes { minimum, .. }| minimum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::Headers;

    fn told(size: u64, flags: ExportFlags, block: Option<[u32; 3]>) -> Negotiated {
        let block = block.map(|[minimum, preferred, maximum]| BlockSizes { minimum, preferred, maximum });
        Negotiated {
            size,
            flags: flags | ExportFlags::HAS_FLAGS,
            block,
            headers: Headers::Simple,
            allocation: None,
        }
    }

    #[test]
    fn the_shape_of_a_disk_follows_from_what_the_server_takes() {
        let all = ExportFlags::all() - ExportFlags::READ_ONLY;
        for (size, block, unit, expected) in [
            (1 << 20, None, 512, (1 << 20, 512, 4096, 1 << 20)),
            (1 << 20, None, 1, (1 << 20, 512, 4096, 1 << 20)),
            ((1 << 20) + 700, None, 512, ((1 << 20) + 512, 512, 4096, 1 << 20)),
            (1001, Some([1, 4096, 1 << 25]), 1, (1001, 1, 4096, 1 << 20)),
            (1 << 20, Some([4096, 65536, 1 << 25]), 512, (1 << 20, 4096, 65536, 1 << 20)),
            (1 << 20, Some([512, 1 << 20, 1 << 25]), 512, (1 << 20, 512, 65536, 1 << 20)),
            (1 << 20, Some([1, 512, 100_000]), 512, (1 << 20, 512, 512, 99_840)),
            (1 << 20, Some([1, 3, u32::MAX]), 4096, (1 << 20, 4096, 4096, 1 << 20)),
            (1 << 20, Some([1, 1, 1]), 4096, (1 << 20, 4096, 4096, 4096)),
        ] {
            let geometry = Promise::new(told(size, all, block), unit).geometry();
            let shape = (
                geometry.size,
                geometry.logical_block_size,
                geometry.physical_block_size,
                geometry.max_io_size,
            );
            assert_eq!(shape, expected, "{size} {block:?} {unit}");
        }
    }

    #[test]
    fn what_a_disk_can_do_follows_from_what_was_offered() {
        use Capabilities as C;
        let capabilities = |flags| Promise::new(told(1 << 20, flags, None), 512).capabilities();
        let all = ExportFlags::all();
        assert_eq!(capabilities(ExportFlags::empty()), C::WRITE);
        assert_eq!(capabilities(all), C::ROTATIONAL, "read-only");
        let expected = C::WRITE | C::VOLATILE_CACHE | C::FUA | C::DISCARD | C::WRITE_ZEROES | C::ROTATIONAL;
        assert_eq!(capabilities(all - ExportFlags::READ_ONLY), expected);
    }

    #[test]
    fn an_export_that_is_less_than_it_was_is_not_taken_for_the_disk() {
        let all = ExportFlags::all() - ExportFlags::READ_ONLY;
        let promise = Promise::new(told(1 << 20, all, Some([512, 4096, 1 << 20])), 512);
        let check = |size, flags, block| promise.check_told(&told(size, flags, block));
        assert_eq!(check(1 << 20, all, None), Ok(()));
        assert_eq!(check(1 << 21, all - ExportFlags::CAN_MULTI_CONN, Some([1, 1, 512])), Ok(()));
        for (size, flags, block, why) in [
            (1 << 19, all, None, "cut"),
            (1 << 20, all - ExportFlags::SEND_FLUSH, None, "FLUSH"),
            (1 << 20, all - ExportFlags::SEND_TRIM, None, "TRIM"),
            (1 << 20, ExportFlags::all(), None, "read-only"),
            (1 << 20, all, Some([4096, 4096, 1 << 20]), "4096"),
        ] {
            let said = check(size, flags, block).expect_err(why);
            assert!(said.contains(why), "{said}");
        }
        assert!(promise.has_grown(&told(1 << 21, all, None)));
    }
}
