//! A disk's shape as the driver's parameters.

use blockhaus_uapi::ublk::{
    Attributes, ParamBasic, ParamDiscard, ParamDmaAlign, ParamSegment, ParamTypes, Params,
};

use super::data_path::DataPath;
use crate::error::{Error, Result};
use crate::io::{Capabilities, Geometry, SECTOR_SIZE};
use crate::port::system::page_size;

/// Most sectors in one discard or write-zeroes: the kernel counts a request's bytes in 32 bits.
const RANGE_MAX_SECTORS: u32 = u32::MAX >> 9;

/// Where data is copied, memory of any alignment the block layer knows is fine.
const COPY_DMA_ALIGNMENT: u32 = 4;

/// The parameters of a device with this shape and these capabilities, for requests of at most
/// `max_io_size` bytes that travel by `data_path`.
pub(super) fn params(
    geometry: &Geometry,
    capabilities: Capabilities,
    max_io_size: u32,
    data_path: DataPath,
) -> Params {
    // A request's own pages reach the backend as they are: they must be as it takes them.
    let memory_alignment = match data_path.hides() {
        true => geometry.memory_alignment.next_power_of_two().min(page_size() as u32),
        false => COPY_DMA_ALIGNMENT,
    };
    let mut attrs = Attributes::empty();
    attrs.set(Attributes::READ_ONLY, !capabilities.contains(Capabilities::WRITE));
    attrs.set(Attributes::ROTATIONAL, capabilities.contains(Capabilities::ROTATIONAL));
    attrs.set(Attributes::VOLATILE_CACHE, capabilities.contains(Capabilities::VOLATILE_CACHE));
    // The driver ignores FUA on a device without a volatile cache, where it means nothing.
    attrs.set(Attributes::FUA, capabilities.contains(Capabilities::VOLATILE_CACHE | Capabilities::FUA));
    let physical = geometry.physical_block_size.max(geometry.logical_block_size);
    let optimal =
        if geometry.optimal_io_size.is_power_of_two() { geometry.optimal_io_size } else { physical };
    let basic = ParamBasic {
        attrs,
        logical_bs_shift: shift(geometry.logical_block_size),
        physical_bs_shift: shift(physical),
        io_opt_shift: shift(optimal.max(physical)),
        io_min_shift: shift(physical),
        max_sectors: (u64::from(max_io_size) / SECTOR_SIZE) as u32,
        dev_sectors: geometry.size / SECTOR_SIZE,
        ..ParamBasic::default()
    };
    let mut params = Params {
        len: size_of::<Params>() as u32,
        types: ParamTypes::BASIC | ParamTypes::DMA_ALIGN,
        basic,
        dma: ParamDmaAlign {
            alignment: memory_alignment.max(COPY_DMA_ALIGNMENT) - 1,
            ..ParamDmaAlign::default()
        },
        ..Params::default()
    };
    let discard = capabilities.contains(Capabilities::DISCARD);
    let write_zeroes = capabilities.contains(Capabilities::WRITE_ZEROES);
    if discard || write_zeroes {
        params.types |= ParamTypes::DISCARD;
        params.discard = ParamDiscard {
            discard_granularity: geometry.discard_granularity.max(geometry.logical_block_size),
            max_discard_sectors: if discard { RANGE_MAX_SECTORS } else { 0 },
            max_write_zeroes_sectors: if write_zeroes { RANGE_MAX_SECTORS } else { 0 },
            max_discard_segments: 1,
            ..ParamDiscard::default()
        };
    }
    if let Some(segments) = geometry.segments.filter(|_| data_path.hides()) {
        params.types |= ParamTypes::SEGMENT;
        params.seg = ParamSegment {
            seg_boundary_mask: segments.boundary_mask,
            max_segment_size: segments.max_size,
            max_segments: segments.max_count,
            ..ParamSegment::default()
        };
    }
    params
}

fn shift(bytes: u32) -> u8 {
    bytes.trailing_zeros() as u8
}

/// Whether ublk can show a disk of this shape.
pub(super) fn check(geometry: &Geometry) -> Result<()> {
    let block = geometry.logical_block_size;
    let what = "cannot show this disk through ublk";
    if !block.is_power_of_two() || u64::from(block) < SECTOR_SIZE || block as usize > page_size() {
        let why =
            format!("its block size is {block}, and ublk takes a power of two from 512 to {}", page_size());
        return Err(Error::invalid(what, why).cure("give another --block-size"));
    }
    if !geometry.physical_block_size.is_power_of_two() {
        return Err(Error::invalid(
            what,
            format!("its physical block size {} is no power of two", geometry.physical_block_size),
        ));
    }
    if geometry.size == 0 || !geometry.size.is_multiple_of(u64::from(block)) {
        let why =
            format!("its size of {} bytes is 0 or no multiple of the block size {block}", geometry.size);
        return Err(Error::invalid(what, why).cure("give a size that is a multiple"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_disk_without_cache_says_so() {
        let geometry = Geometry::plain(1 << 20);
        let params = params(&geometry, Capabilities::FUA, 1 << 18, DataPath::Copy);
        assert_eq!(params.basic.attrs, Attributes::READ_ONLY);
        assert_eq!(params.types, ParamTypes::BASIC | ParamTypes::DMA_ALIGN);
        assert_eq!((params.basic.dev_sectors, params.basic.max_sectors), (2048, 512));
        assert_eq!((params.basic.logical_bs_shift, params.basic.physical_bs_shift), (9, 12));
    }

    #[test]
    fn sizes_that_no_disk_has_are_refused() {
        for (size, block) in [(0, 512), (1000, 512), (1 << 20, 500), (1 << 20, 1 << 21), (1 << 20, 0)] {
            let geometry = Geometry { logical_block_size: block, ..Geometry::plain(size) };
            assert!(check(&geometry).is_err(), "{size} {block}");
        }
    }
}
