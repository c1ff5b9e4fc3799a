//! Commands in batches: `ublk_elem_header` and `ublk_batch_io` of `linux/ublk_cmd.h`. Since 7.0.

bitflags::bitflags! {
    /// `UBLK_BATCH_F_*`: what each element of a batch has, and how it is treated.
    ///
    /// An element is an [`ElemHeader`], then, where flagged and in this order, the buffer's
    /// address and the zone's LBA, eight bytes each.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct BatchFlags: u16 {
        /// Each element has a `zone_lba: u64`: the sector a ZONE_APPEND went to. Zoned devices
        /// only.
        const HAS_ZONE_LBA = 1 << 0;
        /// Each element has a `buf_addr: u64`: the buffer data is copied to and from. Only where
        /// the driver does the copying.
        const HAS_BUF_ADDR = 1 << 1;
        /// As [`AutoBufRegFlags::FALLBACK`](super::AutoBufRegFlags::FALLBACK), for every element.
        /// Only with [`Features::AUTO_BUF_REG`](super::Features::AUTO_BUF_REG), and not together
        /// with [`HAS_BUF_ADDR`](Self::HAS_BUF_ADDR).
        const AUTO_BUF_REG_FALLBACK = 1 << 2;
    }
}

/// `struct ublk_batch_io`: one batch command, in the command area of an SQE whose `addr` points
/// to the array of elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BatchIo {
    /// The queue.
    pub q_id: u16,
    /// What the elements have; none for FETCH_IO_CMDS.
    pub flags: BatchFlags,
    /// Number of elements, at most the queue's depth.
    pub nr_elem: u16,
    /// Bytes of one element: 8, 16 or 24 by the flags; 2 for
    /// [`FETCH_IO_CMDS`](super::io_cmd::FETCH_IO_CMDS), which delivers bare tags.
    pub elem_bytes: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero.
    pub reserved2: u64,
}

layout!(BatchIo, 16, {
    q_id @ 0: u16,
    flags @ 2: BatchFlags,
    nr_elem @ 4: u16,
    elem_bytes @ 6: u8,
    reserved @ 7: u8,
    reserved2 @ 8: u64,
});

/// `struct ublk_elem_header`: the part every element of a batch has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ElemHeader {
    /// The tag.
    pub tag: u16,
    /// Index in the ring's fixed-buffer table for the tag's next request, with
    /// [`Features::AUTO_BUF_REG`](super::Features::AUTO_BUF_REG) only.
    pub buf_index: u16,
    /// For a commit: bytes done, or a negative errno.
    pub result: i32,
}

layout!(ElemHeader, 8, {
    tag @ 0: u16,
    buf_index @ 2: u16,
    result @ 4: i32,
});
