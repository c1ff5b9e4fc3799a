//! Limits, and the file positions of `/dev/ublkcN`: the section between the results and the
//! feature flags of `linux/ublk_cmd.h`.
//!
//! A position of `/dev/ublkcN` from [`IO_BUF_OFFSET`] up names a byte of a request:
//!
//! ```text
//!  62        52      41 40    25 24      0
//! +--+------+----------+--------+---------+
//! |pi|  0   |  queue   |  tag   |  byte   |   + IO_BUF_OFFSET
//! +--+------+----------+--------+---------+
//! ```

/// `UBLKSRV_CMD_BUF_OFFSET`: where the mapping of queue 0's descriptors begins in `/dev/ublkcN`.
pub const CMD_BUF_OFFSET: u64 = 0;
/// `UBLKSRV_IO_BUF_OFFSET`: the file position added to every encoded request byte.
pub const IO_BUF_OFFSET: u64 = 0x8000_0000;

/// `UBLK_MAX_QUEUE_DEPTH`: most tags of a queue. The mappings of two queues' descriptors lie as
/// far apart as this many need, rounded up to pages, however deep the queues are.
pub const MAX_QUEUE_DEPTH: u16 = 4096;
/// `UBLK_MAX_NR_QUEUES`: most queues of a device.
pub const MAX_NR_QUEUES: u16 = 1 << QID_BITS;

/// `UBLK_IO_BUF_OFF`: lowest bit of the byte within a request.
pub const IO_BUF_OFF: u32 = 0;
/// `UBLK_IO_BUF_BITS`: width of the byte within a request; a request is at most 32 MiB.
pub const IO_BUF_BITS: u32 = 25;
/// `UBLK_IO_BUF_BITS_MASK`: [`IO_BUF_BITS`] ones, unshifted.
pub const IO_BUF_BITS_MASK: u64 = (1 << IO_BUF_BITS) - 1;

/// `UBLK_TAG_OFF`: lowest bit of the tag.
pub const TAG_OFF: u32 = IO_BUF_BITS;
/// `UBLK_TAG_BITS`: width of the tag.
pub const TAG_BITS: u32 = 16;
/// `UBLK_TAG_BITS_MASK`: [`TAG_BITS`] ones, unshifted.
pub const TAG_BITS_MASK: u64 = (1 << TAG_BITS) - 1;

/// `UBLK_QID_OFF`: lowest bit of the queue.
pub const QID_OFF: u32 = TAG_OFF + TAG_BITS;
/// `UBLK_QID_BITS`: width of the queue.
pub const QID_BITS: u32 = 12;
/// `UBLK_QID_BITS_MASK`: [`QID_BITS`] ones, unshifted.
pub const QID_BITS_MASK: u64 = (1 << QID_BITS) - 1;

/// `UBLKSRV_IO_BUF_TOTAL_BITS`: width of byte, tag and queue together.
pub const IO_BUF_TOTAL_BITS: u32 = QID_OFF + QID_BITS;
/// `UBLKSRV_IO_BUF_TOTAL_SIZE`: bytes of the whole range, from [`IO_BUF_OFFSET`].
pub const IO_BUF_TOTAL_SIZE: u64 = 1 << IO_BUF_TOTAL_BITS;

/// `UBLK_INTEGRITY_FLAG_OFF`: the bit that turns a position to the request's protection
/// information instead of its data.
pub const INTEGRITY_FLAG_OFF: u32 = 62;
/// `UBLKSRV_IO_INTEGRITY_FLAG`: that bit as a mask. Since 7.0.
pub const IO_INTEGRITY_FLAG: u64 = 1 << INTEGRITY_FLAG_OFF;

/// The position in `/dev/ublkcN` of byte `offset` of the request `tag` on queue `q_id`, for
/// [`Features::USER_COPY`](super::Features::USER_COPY). Add [`IO_INTEGRITY_FLAG`] for its
/// protection information.
///
/// Bits of `q_id` and `offset` that do not fit their fields are cut off.
#[inline]
#[must_use]
pub const fn user_copy_pos(q_id: u16, tag: u16, offset: u32) -> u64 {
    IO_BUF_OFFSET
        + (((q_id as u64 & QID_BITS_MASK) << QID_OFF)
            | ((tag as u64) << TAG_OFF)
            | (offset as u64 & IO_BUF_BITS_MASK))
}
