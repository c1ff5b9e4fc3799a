//! Feature flags, section "UBLK_F_*" of `linux/ublk_cmd.h`.

bitflags::bitflags! {
    /// `UBLK_F_*`: what GET_FEATURES says the driver knows, what ADD_DEV asks for, and what
    /// [`CtrlDevInfo::flags`](super::CtrlDevInfo::flags) says a device got.
    ///
    /// The driver drops some flags without an error, so the device's own answer is the only one
    /// to act on. "Since" is the first kernel whose driver does what the flag says.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct Features: u64 {
        /// A request's pages can be put into a ring's fixed-buffer table with
        /// [`REGISTER_IO_BUF`](super::io_cmd::REGISTER_IO_BUF) and used without being copied.
        ///
        /// Named in 6.0, works since 6.15. Not for unprivileged devices.
        const SUPPORT_ZERO_COPY = 1 << 0;
        /// Commands complete through io_uring's task work. Since 6.0; always set by now.
        const URING_CMD_COMP_IN_TASK = 1 << 1;
        /// A WRITE arrives without its data; the server names a buffer in a second command,
        /// [`NEED_GET_DATA`](super::io_cmd::NEED_GET_DATA), and the driver copies then. Since 6.0.
        ///
        /// Dropped when another data path (user copy, zero copy, batch) is asked for.
        const NEED_GET_DATA = 1 << 2;
        /// The device outlives its server. I/O that was outstanding fails, new I/O waits for the
        /// next server. Since 6.1.
        const USER_RECOVERY = 1 << 3;
        /// As [`USER_RECOVERY`](Self::USER_RECOVERY), which must be set too, but I/O that was
        /// outstanding is issued again to the next server. Since 6.1.
        const USER_RECOVERY_REISSUE = 1 << 4;
        /// The device belongs to an ordinary user, who may give it every command. Since 6.3.
        const UNPRIVILEGED_DEV = 1 << 5;
        /// Opcodes are encoded as ioctl numbers; those of [`cmd`](super::cmd) and
        /// [`io_cmd`](super::io_cmd) are. Since 6.4; always set by now.
        const CMD_IOCTL_ENCODE = 1 << 6;
        /// The server moves data itself, with pread and pwrite on `/dev/ublkcN` at
        /// [`user_copy_pos`](super::user_copy_pos). Since 6.5. Not for unprivileged devices.
        const USER_COPY = 1 << 7;
        /// The device is zoned, as [`ParamZoned`](super::ParamZoned) describes. Since 6.6.
        const ZONED = 1 << 8;
        /// As [`USER_RECOVERY`](Self::USER_RECOVERY), which must be set too, but new I/O fails
        /// while there is no server. Since 6.13.
        const USER_RECOVERY_FAIL_IO = 1 << 9;
        /// [`UPDATE_SIZE`](super::cmd::UPDATE_SIZE) resizes a live device. Since 6.16.
        const UPDATE_SIZE = 1 << 10;
        /// The driver registers a request's pages in the fetching ring before it delivers the
        /// request, and unregisters them at completion; see [`AutoBufReg`](super::AutoBufReg).
        /// Since 6.16.
        const AUTO_BUF_REG = 1 << 11;
        /// [`QUIESCE_DEV`](super::cmd::QUIESCE_DEV) hands a device over to a new server. Needs
        /// [`USER_RECOVERY`](Self::USER_RECOVERY). Since 6.16.
        const QUIESCE = 1 << 12;
        /// Each tag of a queue may be owned by a thread of its own; otherwise one thread owns the
        /// whole queue. Since 6.16.
        const PER_IO_DAEMON = 1 << 13;
        /// Buffers may be registered and unregistered by any thread, and UNREGISTER_IO_BUF looks
        /// at neither queue nor tag. Since 6.17.
        const BUF_REG_OFF_DAEMON = 1 << 14;
        /// Commands go in batches, [`BatchIo`](super::BatchIo), instead of one for each tag.
        /// Since 7.0.
        const BATCH_IO = 1 << 15;
        /// Requests can carry protection information, as
        /// [`ParamIntegrity`](super::ParamIntegrity) describes. Needs
        /// [`USER_COPY`](Self::USER_COPY). Since 7.0.
        const INTEGRITY = 1 << 16;
        /// [`TRY_STOP_DEV`](super::cmd::TRY_STOP_DEV) stops a device only if nobody has it open.
        /// Since 7.0.
        const SAFE_STOP_DEV = 1 << 17;
        /// No partition scan when the device starts. Since 7.0.
        const NO_AUTO_PART_SCAN = 1 << 18;
        /// Requests whose pages lie in memory registered with
        /// [`REG_BUF`](super::cmd::REG_BUF) are delivered as a
        /// [`ShmemAddr`](super::ShmemAddr) and not copied. Since 7.1.
        const SHMEM_ZC = 1 << 19;
        /// The server chooses the stride between descriptors,
        /// [`CtrlDevInfo::io_desc_size`](super::CtrlDevInfo::io_desc_size); without this flag it
        /// is the size of [`IoDesc`](super::IoDesc). Since 7.3.
        const IO_DESC_SIZE = 1 << 20;
    }
}
