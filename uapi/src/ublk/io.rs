//! The data plane, one command a tag: sections "IO commands", `UBLK_IO_OP_*`, `UBLK_IO_F_*`,
//! `ublksrv_io_desc`, `ublk_auto_buf_reg` and `ublksrv_io_cmd` of `linux/ublk_cmd.h`.

/// Opcodes of the I/O commands, `UBLK_U_IO_*`: the `cmd_op` of an SQE on `/dev/ublkcN`.
///
/// The first five carry an [`IoCmd`], the batch ones a
/// [`BatchIo`](crate::ublk::BatchIo); both are 16 bytes.
pub mod io_cmd {
    use super::IoCmd;
    use crate::ioctl::iowr;
    use crate::ublk::BatchIo;

    /// Fetches the first request of a tag; completes when there is one.
    pub const FETCH_REQ: u32 = iowr::<IoCmd>(b'u', legacy::FETCH_REQ);
    /// Completes a tag's request with [`IoCmd::result`] and fetches its next one.
    pub const COMMIT_AND_FETCH_REQ: u32 = iowr::<IoCmd>(b'u', legacy::COMMIT_AND_FETCH_REQ);
    /// Names the buffer a WRITE's data is to be copied to, after
    /// [`res::NEED_GET_DATA`](super::res::NEED_GET_DATA).
    pub const NEED_GET_DATA: u32 = iowr::<IoCmd>(b'u', legacy::NEED_GET_DATA);
    /// Puts a request's pages into this ring's fixed-buffer table at index [`IoCmd::addr`].
    /// Since 6.15.
    pub const REGISTER_IO_BUF: u32 = iowr::<IoCmd>(b'u', 0x23);
    /// Takes them out again; a request is done when it is committed and in no table. Since 6.15.
    pub const UNREGISTER_IO_BUF: u32 = iowr::<IoCmd>(b'u', 0x24);
    /// Readies many tags at once, before the start. All or none. Since 7.0.
    pub const PREP_IO_CMDS: u32 = iowr::<BatchIo>(b'u', 0x25);
    /// Completes many requests at once. The result is the number of **bytes** of the array that
    /// were handled, possibly not all; negative if none was. Since 7.0.
    pub const COMMIT_IO_CMDS: u32 = iowr::<BatchIo>(b'u', 0x26);
    /// Delivers tags, as `u16`s, into provided buffers, as a multishot command. Since 7.0.
    pub const FETCH_IO_CMDS: u32 = iowr::<BatchIo>(b'u', 0x27);

    /// `UBLK_IO_*`: the bare numbers inside the first three opcodes. A driver before 6.4 takes
    /// them as opcodes.
    pub mod legacy {
        /// `UBLK_IO_FETCH_REQ`.
        pub const FETCH_REQ: u8 = 0x20;
        /// `UBLK_IO_COMMIT_AND_FETCH_REQ`.
        pub const COMMIT_AND_FETCH_REQ: u8 = 0x21;
        /// `UBLK_IO_NEED_GET_DATA`.
        pub const NEED_GET_DATA: u8 = 0x22;
    }
}

/// Results of a fetch, `UBLK_IO_RES_*`: the `res` of its CQE.
pub mod res {
    /// A request is in the tag's descriptor.
    pub const OK: i32 = 0;
    /// A WRITE is in the tag's descriptor, and its data is to be asked for.
    pub const NEED_GET_DATA: i32 = 1;
    /// -ENODEV: the device is going away; do not fetch again.
    pub const ABORT: i32 = -19;
}

/// Kinds of request, `UBLK_IO_OP_*`, as [`IoDesc::op`] gives them.
pub mod op {
    /// Data to the device's user. A result of 0 bytes counts as an I/O error.
    pub const READ: u8 = 0;
    /// Data from the device's user.
    pub const WRITE: u8 = 1;
    /// All acknowledged writes are to be made durable.
    pub const FLUSH: u8 = 2;
    /// The range's content is no longer needed.
    pub const DISCARD: u8 = 3;
    /// Numbered, never sent.
    pub const WRITE_SAME: u8 = 4;
    /// The range is to read as zeros; see
    /// [`IoFlags::NOUNMAP`](super::IoFlags::NOUNMAP).
    pub const WRITE_ZEROES: u8 = 5;
    /// Opens the zone that begins at the start sector.
    pub const ZONE_OPEN: u8 = 10;
    /// Closes the zone.
    pub const ZONE_CLOSE: u8 = 11;
    /// Moves the zone's write pointer to its end.
    pub const ZONE_FINISH: u8 = 12;
    /// Writes at the zone's write pointer; where that was goes back in
    /// [`IoCmd::addr`](super::IoCmd::addr).
    pub const ZONE_APPEND: u8 = 13;
    /// Resets every zone.
    pub const ZONE_RESET_ALL: u8 = 14;
    /// Moves the zone's write pointer to its beginning.
    pub const ZONE_RESET: u8 = 15;
    /// Wants an array of `struct blk_zone` (`linux/blkzoned.h`) for at most
    /// [`IoDesc::nr_zones`](super::IoDesc::nr_zones) zones from the start sector on; a shorter
    /// answer ends with a zeroed entry.
    pub const REPORT_ZONES: u8 = 18;
}

bitflags::bitflags! {
    /// `UBLK_IO_F_*`: flags of a request, at their places in [`IoDesc::op_flags`] (bits 8 to 31).
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct IoFlags: u32 {
        /// Do not retry after an error of the device.
        const FAILFAST_DEV = 1 << 8;
        /// Do not retry after an error of the transport.
        const FAILFAST_TRANSPORT = 1 << 9;
        /// Do not retry after an error of the driver.
        const FAILFAST_DRIVER = 1 << 10;
        /// Metadata of a file system.
        const META = 1 << 11;
        /// Durable before it is acknowledged.
        const FUA = 1 << 13;
        /// WRITE_ZEROES must not free the space.
        const NOUNMAP = 1 << 15;
        /// Swap.
        const SWAP = 1 << 16;
        /// Automatic registration failed; the server has to register the buffer itself. Only
        /// where it asked for [`AutoBufRegFlags::FALLBACK`]. Since 6.16.
        const NEED_REG_BUF = 1 << 17;
        /// The request has protection information. Since 7.0.
        const INTEGRITY = 1 << 18;
        /// [`IoDesc::addr`] is a [`ShmemAddr`](crate::ublk::ShmemAddr). Since 7.1.
        const SHMEM_ZC = 1 << 19;
    }
}

/// `struct ublksrv_io_desc`: one request, in the mapped array of its queue, at its tag. Written
/// by the driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IoDesc {
    /// The kind in bits 0 to 7, [`IoFlags`] above.
    pub op_flags: u32,
    /// Length in sectors. For REPORT_ZONES the same word is `nr_zones`.
    pub nr_sectors: u32,
    /// First sector.
    pub start_sector: u64,
    /// Address of the buffer in the server's memory, or with [`IoFlags::SHMEM_ZC`] a
    /// [`ShmemAddr`](crate::ublk::ShmemAddr).
    pub addr: u64,
}

layout!(IoDesc, 24, {
    op_flags @ 0: u32,
    nr_sectors @ 4: u32,
    start_sector @ 8: u64,
    addr @ 16: u64,
});

impl IoDesc {
    /// The kind of request, one of [`op`].
    #[inline]
    #[must_use]
    pub const fn op(&self) -> u8 {
        (self.op_flags & 0xff) as u8
    }

    /// The flags, in place: not moved down by eight bits, as the header's
    /// `ublksrv_get_flags` does, but as `UBLK_IO_F_*` are written. Unknown ones are kept.
    #[inline]
    #[must_use]
    pub const fn flags(&self) -> IoFlags {
        IoFlags::from_bits_retain(self.op_flags & !0xff)
    }

    /// Most zones a REPORT_ZONES wants: the other name of `nr_sectors`.
    #[inline]
    #[must_use]
    pub const fn nr_zones(&self) -> u32 {
        self.nr_sectors
    }
}

/// `struct ublksrv_io_cmd`: one I/O command, in the command area of an SQE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IoCmd {
    /// The queue.
    pub q_id: u16,
    /// The tag.
    pub tag: u16,
    /// For a commit: bytes done, or a negative errno.
    pub result: i32,
    /// A union in C, three things by opcode:
    ///
    /// * fetching or asking for data: address of the buffer data is copied to and from; 0 where
    ///   the data goes another way (user copy, automatic registration);
    /// * registering or unregistering: index in the ring's fixed-buffer table;
    /// * committing a ZONE_APPEND: `zone_append_lba`, the sector the data went to.
    pub addr: u64,
}

layout!(IoCmd, 16, {
    q_id @ 0: u16,
    tag @ 2: u16,
    result @ 4: i32,
    addr @ 8: u64,
});

bitflags::bitflags! {
    /// `UBLK_AUTO_BUF_REG_*`: how automatic registration behaves. Since 6.16.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct AutoBufRegFlags: u8 {
        /// If a buffer cannot be registered, deliver the request with
        /// [`IoFlags::NEED_REG_BUF`] instead of failing it unseen.
        const FALLBACK = 1 << 0;
    }
}

/// `struct ublk_auto_buf_reg`: where a request's pages are to be registered. It travels in the
/// SQE's `addr`, as [`to_sqe_addr`](Self::to_sqe_addr) packs it. Since 6.16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AutoBufReg {
    /// Index in the ring's fixed-buffer table.
    pub index: u16,
    /// What to do on failure.
    pub flags: AutoBufRegFlags,
    /// Zero.
    pub reserved0: u8,
    /// Zero.
    pub reserved1: u32,
}

layout!(AutoBufReg, 8, {
    index @ 0: u16,
    flags @ 2: AutoBufRegFlags,
    reserved0 @ 3: u8,
    reserved1 @ 4: u32,
});

impl AutoBufReg {
    /// Packs for an SQE's `addr`: index in bits 0 to 15, flags in 16 to 23, `reserved0` in 24 to
    /// 31, `reserved1` above. The header's `ublk_auto_buf_reg_to_sqe_addr`.
    #[inline]
    #[must_use]
    pub const fn to_sqe_addr(self) -> u64 {
        self.index as u64
            | (self.flags.bits() as u64) << 16
            | (self.reserved0 as u64) << 24
            | (self.reserved1 as u64) << 32
    }

    /// Takes apart what [`to_sqe_addr`](Self::to_sqe_addr) packed. The header's
    /// `ublk_sqe_addr_to_auto_buf_reg`.
    #[inline]
    #[must_use]
    pub const fn from_sqe_addr(sqe_addr: u64) -> Self {
        Self {
            index: sqe_addr as u16,
            flags: AutoBufRegFlags::from_bits_retain((sqe_addr >> 16) as u8),
            reserved0: (sqe_addr >> 24) as u8,
            reserved1: (sqe_addr >> 32) as u32,
        }
    }
}
