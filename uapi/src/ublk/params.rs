//! Parameters of the disk: `ublk_params` and its parts in `linux/ublk_cmd.h`.

use super::IntegrityCaps;

bitflags::bitflags! {
    /// `UBLK_ATTR_*`: attributes of the disk, in [`ParamBasic::attrs`].
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct Attributes: u32 {
        /// Writes are refused.
        const READ_ONLY = 1 << 0;
        /// The medium turns.
        const ROTATIONAL = 1 << 1;
        /// There is a cache that loses its content; FLUSH is sent only with this.
        const VOLATILE_CACHE = 1 << 2;
        /// FUA is understood; counts only with
        /// [`VOLATILE_CACHE`](Self::VOLATILE_CACHE).
        const FUA = 1 << 3;
    }
}

bitflags::bitflags! {
    /// `UBLK_PARAM_TYPE_*`: which parts of a [`Params`] hold something.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct ParamTypes: u32 {
        /// [`Params::basic`].
        const BASIC = 1 << 0;
        /// [`Params::discard`].
        const DISCARD = 1 << 1;
        /// [`Params::devt`]; answers only.
        const DEVT = 1 << 2;
        /// [`Params::zoned`]. Since 6.6.
        const ZONED = 1 << 3;
        /// [`Params::dma`]. Since 6.15.
        const DMA_ALIGN = 1 << 4;
        /// [`Params::seg`]. Since 6.15.
        const SEGMENT = 1 << 5;
        /// [`Params::integrity`]; needs
        /// [`Features::INTEGRITY`](super::Features::INTEGRITY). Since 7.0.
        const INTEGRITY = 1 << 6;
    }
}

/// `struct ublk_param_basic`: size, blocks and limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ParamBasic {
    /// Attributes of the disk.
    pub attrs: Attributes,
    /// Logical block size, as the power of two of its bytes: 9 to the page's, and no more than
    /// the physical one.
    pub logical_bs_shift: u8,
    /// Physical block size, as the power of two of its bytes: at most 28, as the next two.
    pub physical_bs_shift: u8,
    /// Preferred request size, as the power of two of its bytes.
    pub io_opt_shift: u8,
    /// Smallest request that costs no more than it should, as the power of two of its bytes.
    pub io_min_shift: u8,
    /// Sectors of the largest request: at least a page, no more than
    /// [`CtrlDevInfo::max_io_buf_bytes`](super::CtrlDevInfo::max_io_buf_bytes) holds.
    pub max_sectors: u32,
    /// Sectors that no request may straddle a multiple of; 0 for none. For a zoned disk, the
    /// size of a zone.
    pub chunk_sectors: u32,
    /// Size of the disk in sectors.
    pub dev_sectors: u64,
    /// A boundary in memory, minus one, that no gap may lie off; 0 for none. In bytes.
    pub virt_boundary_mask: u64,
}

layout!(ParamBasic, 32, {
    attrs @ 0: Attributes,
    logical_bs_shift @ 4: u8,
    physical_bs_shift @ 5: u8,
    io_opt_shift @ 6: u8,
    io_min_shift @ 7: u8,
    max_sectors @ 8: u32,
    chunk_sectors @ 12: u32,
    dev_sectors @ 16: u64,
    virt_boundary_mask @ 24: u64,
});

/// `struct ublk_param_discard`: DISCARD and WRITE_ZEROES.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ParamDiscard {
    /// Bytes by which the first discardable unit is off.
    pub discard_alignment: u32,
    /// Bytes of a discardable unit; not 0.
    pub discard_granularity: u32,
    /// Sectors of the largest DISCARD; 0 for no DISCARD.
    pub max_discard_sectors: u32,
    /// Sectors of the largest WRITE_ZEROES; 0 for no WRITE_ZEROES.
    pub max_write_zeroes_sectors: u32,
    /// Ranges of a DISCARD; 1, unless there is no DISCARD.
    pub max_discard_segments: u16,
    /// Zero.
    pub reserved0: u16,
}

layout!(ParamDiscard, 20, {
    discard_alignment @ 0: u32,
    discard_granularity @ 4: u32,
    max_discard_sectors @ 8: u32,
    max_write_zeroes_sectors @ 12: u32,
    max_discard_segments @ 16: u16,
    reserved0 @ 18: u16,
});

/// `struct ublk_param_devt`: device numbers; the driver fills it, nobody sets it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ParamDevt {
    /// Major of `/dev/ublkcN`.
    pub char_major: u32,
    /// Minor of `/dev/ublkcN`.
    pub char_minor: u32,
    /// Major of `/dev/ublkbN`, once it is started.
    pub disk_major: u32,
    /// Minor of `/dev/ublkbN`, once it is started.
    pub disk_minor: u32,
}

layout!(ParamDevt, 16, {
    char_major @ 0: u32,
    char_minor @ 4: u32,
    disk_major @ 8: u32,
    disk_minor @ 12: u32,
});

/// `struct ublk_param_zoned`: limits of a zoned disk. Since 6.6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ParamZoned {
    /// Zones that may be open at once; 0 for no limit.
    pub max_open_zones: u32,
    /// Zones that may be active at once; 0 for no limit.
    pub max_active_zones: u32,
    /// Sectors of the largest ZONE_APPEND.
    pub max_zone_append_sectors: u32,
    /// Zero.
    pub reserved: [u8; 20],
}

layout!(ParamZoned, 32, {
    max_open_zones @ 0: u32,
    max_active_zones @ 4: u32,
    max_zone_append_sectors @ 8: u32,
    reserved @ 12: [u8; 20],
});

/// `struct ublk_param_dma_align`: alignment of requests' memory. Since 6.15.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ParamDmaAlign {
    /// A power of two of bytes up to a page, minus one: a mask.
    pub alignment: u32,
    /// Zero.
    pub pad: [u8; 4],
}

layout!(ParamDmaAlign, 8, {
    alignment @ 0: u32,
    pad @ 4: [u8; 4],
});

/// `UBLK_MIN_SEGMENT_SIZE`: bytes; the least that [`ParamSegment`] may ask for.
pub const MIN_SEGMENT_SIZE: u32 = 4096;

/// `struct ublk_param_segment`: limits of the pieces of memory a request is made of. Set all
/// three or none. Since 6.15.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ParamSegment {
    /// Bytes, a power of two minus one: a boundary no piece may cross; at least
    /// [`MIN_SEGMENT_SIZE`] - 1.
    pub seg_boundary_mask: u64,
    /// Bytes of the largest piece, at least [`MIN_SEGMENT_SIZE`];
    /// [`ParamBasic::virt_boundary_mask`] can override it.
    pub max_segment_size: u32,
    /// Pieces of a request.
    pub max_segments: u16,
    /// Zero.
    pub pad: [u8; 2],
}

layout!(ParamSegment, 16, {
    seg_boundary_mask @ 0: u64,
    max_segment_size @ 8: u32,
    max_segments @ 12: u16,
    pad @ 14: [u8; 2],
});

/// `struct ublk_param_integrity`: protection information. Since 7.0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ParamIntegrity {
    /// What the disk can do with it.
    pub flags: IntegrityCaps,
    /// Pieces of a request's protection information; 0 for no limit.
    pub max_integrity_segments: u16,
    /// Bytes of data one unit protects, as a power of two: 9 to the logical block's.
    pub interval_exp: u8,
    /// Bytes of metadata for each unit; not 0, and enough for the protection information at its
    /// place.
    pub metadata_size: u8,
    /// Where in the metadata the protection information begins, in bytes.
    pub pi_offset: u8,
    /// One of [`pi_csum`](super::pi_csum).
    pub csum_type: u8,
    /// Bytes of the tag the application may use.
    pub tag_size: u8,
    /// Zero.
    pub pad: [u8; 5],
}

layout!(ParamIntegrity, 16, {
    flags @ 0: IntegrityCaps,
    max_integrity_segments @ 4: u16,
    interval_exp @ 6: u8,
    metadata_size @ 7: u8,
    pi_offset @ 8: u8,
    csum_type @ 9: u8,
    tag_size @ 10: u8,
    pad @ 11: [u8; 5],
});

/// `struct ublk_params`: what SET_PARAMS sets and GET_PARAMS fills.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Params {
    /// Bytes of this structure as the caller knows it; the driver may lower it to what it knows.
    pub len: u32,
    /// Parts that hold something.
    pub types: ParamTypes,
    /// Size, blocks and limits.
    pub basic: ParamBasic,
    /// DISCARD and WRITE_ZEROES.
    pub discard: ParamDiscard,
    /// Device numbers.
    pub devt: ParamDevt,
    /// Zones.
    pub zoned: ParamZoned,
    /// Alignment of memory.
    pub dma: ParamDmaAlign,
    /// A hole in the C structure, which aligns `seg`. Zero.
    pub hole0: u32,
    /// Pieces of memory.
    pub seg: ParamSegment,
    /// Protection information.
    pub integrity: ParamIntegrity,
}

layout!(Params, 152, {
    len @ 0: u32,
    types @ 4: ParamTypes,
    basic @ 8: ParamBasic,
    discard @ 40: ParamDiscard,
    devt @ 60: ParamDevt,
    zoned @ 76: ParamZoned,
    dma @ 108: ParamDmaAlign,
    hole0 @ 116: u32,
    seg @ 120: ParamSegment,
    integrity @ 136: ParamIntegrity,
});
