//! Zero copy through memory shared with the device's user: `ublk_shmem_buf_reg` and
//! `UBLK_SHMEM_*` of `linux/ublk_cmd.h`. Since 7.1.

bitflags::bitflags! {
    /// `UBLK_SHMEM_BUF_*`: how shared memory is pinned.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct ShmemBufFlags: u32 {
        /// Pin without write access, as a write-sealed memfd needs; serves WRITE only, since the
        /// kernel may not put data there.
        const READ_ONLY = 1 << 0;
    }
}

/// `struct ublk_shmem_buf_reg`: what [`REG_BUF`](super::cmd::REG_BUF) registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ShmemBufReg {
    /// Address of the shared memory in the caller, at a page's beginning.
    pub addr: u64,
    /// Its size in bytes, whole pages, at most 4 GiB.
    pub len: u64,
    /// How to pin it.
    pub flags: ShmemBufFlags,
    /// Zero.
    pub reserved: u32,
}

layout!(ShmemBufReg, 24, {
    addr @ 0: u64,
    len @ 8: u64,
    flags @ 16: ShmemBufFlags,
    reserved @ 20: u32,
});

/// `UBLK_SHMEM_ZC_OFF_MASK`: the byte offset of a [`ShmemAddr`], which begins at bit 0.
pub const SHMEM_ZC_OFF_MASK: u64 = 0xffff_ffff;
/// `UBLK_SHMEM_ZC_IDX_OFF`: lowest bit of the buffer index of a [`ShmemAddr`].
pub const SHMEM_ZC_IDX_OFF: u32 = 32;
/// `UBLK_SHMEM_ZC_IDX_MASK`: the buffer index of a [`ShmemAddr`], unshifted.
pub const SHMEM_ZC_IDX_MASK: u64 = 0xffff;

/// What [`IoDesc::addr`](super::IoDesc::addr) holds with
/// [`IoFlags::SHMEM_ZC`](super::IoFlags::SHMEM_ZC): a place in registered memory. Bits 48 to 63
/// are zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ShmemAddr(pub u64);

impl ShmemAddr {
    /// The header's `ublk_shmem_zc_addr`.
    #[inline]
    #[must_use]
    pub const fn new(index: u16, offset: u32) -> Self {
        Self((index as u64) << SHMEM_ZC_IDX_OFF | offset as u64)
    }

    /// Index of the buffer, as REG_BUF returned it. The header's `ublk_shmem_zc_index`.
    #[inline]
    #[must_use]
    pub const fn index(self) -> u16 {
        ((self.0 >> SHMEM_ZC_IDX_OFF) & SHMEM_ZC_IDX_MASK) as u16
    }

    /// Byte offset within the buffer. The header's `ublk_shmem_zc_offset`.
    #[inline]
    #[must_use]
    pub const fn offset(self) -> u32 {
        (self.0 & SHMEM_ZC_OFF_MASK) as u32
    }
}
