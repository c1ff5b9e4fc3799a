//! The control plane: sections "admin commands", `ublksrv_ctrl_cmd`, `ublksrv_ctrl_dev_info` and
//! "device state" of `linux/ublk_cmd.h`.

use super::Features;

/// `UBLK_FEATURES_LEN`: bytes of the buffer GET_FEATURES fills, one [`Features`].
pub const FEATURES_LEN: usize = 8;

/// What [`CtrlCmd::queue_id`] is where a command names no queue: -1 as 16 bits.
pub const NO_QUEUE: u16 = u16::MAX;

/// The device id that lets the driver choose one, in ADD_DEV's command and [`CtrlDevInfo`] both.
pub const NEW_DEV_ID: u32 = u32::MAX;

/// Opcodes of the control commands, `UBLK_U_CMD_*`: the `cmd_op` of a 128-byte SQE on
/// `/dev/ublk-control` that carries a [`CtrlCmd`].
pub mod cmd {
    use super::CtrlCmd;
    use crate::ioctl::{ior, iowr};

    /// Fills a CPU mask at `addr` for the queue `queue_id`; `len` is the mask's size in bytes.
    pub const GET_QUEUE_AFFINITY: u32 = ior::<CtrlCmd>(b'u', legacy::GET_QUEUE_AFFINITY);
    /// Fills a [`CtrlDevInfo`](super::CtrlDevInfo) at `addr`.
    pub const GET_DEV_INFO: u32 = ior::<CtrlCmd>(b'u', legacy::GET_DEV_INFO);
    /// Makes `/dev/ublkcN` from the [`CtrlDevInfo`](super::CtrlDevInfo) at `addr`, and writes
    /// back what the driver made of it.
    pub const ADD_DEV: u32 = iowr::<CtrlCmd>(b'u', legacy::ADD_DEV);
    /// Removes the device, and returns when the last reference to `/dev/ublkcN` is gone.
    pub const DEL_DEV: u32 = iowr::<CtrlCmd>(b'u', legacy::DEL_DEV);
    /// Shows the disk. `data[0]` is the process id of the server; every tag has to be fetched.
    pub const START_DEV: u32 = iowr::<CtrlCmd>(b'u', legacy::START_DEV);
    /// Takes the disk away; `/dev/ublkcN` stays.
    pub const STOP_DEV: u32 = iowr::<CtrlCmd>(b'u', legacy::STOP_DEV);
    /// Sets the [`Params`](crate::ublk::Params) at `addr`, before the start.
    pub const SET_PARAMS: u32 = iowr::<CtrlCmd>(b'u', legacy::SET_PARAMS);
    /// Fills the [`Params`](crate::ublk::Params) at `addr`.
    pub const GET_PARAMS: u32 = ior::<CtrlCmd>(b'u', legacy::GET_PARAMS);
    /// Readies a device whose server has gone for a new one. Since 6.1.
    pub const START_USER_RECOVERY: u32 = iowr::<CtrlCmd>(b'u', legacy::START_USER_RECOVERY);
    /// Lets I/O flow to the new server; `data[0]` is its process id. Since 6.1.
    pub const END_USER_RECOVERY: u32 = iowr::<CtrlCmd>(b'u', legacy::END_USER_RECOVERY);
    /// As [`GET_DEV_INFO`], with the path of `/dev/ublkcN` in front of the buffer, so that the
    /// driver can check the caller's right to it. Since 6.3.
    pub const GET_DEV_INFO2: u32 = ior::<CtrlCmd>(b'u', legacy::GET_DEV_INFO2);
    /// Fills a [`Features`](super::Features) at `addr`; no device is named. Since 6.5.
    pub const GET_FEATURES: u32 = ior::<CtrlCmd>(b'u', 0x13);
    /// As [`DEL_DEV`], without waiting for references to go. Since 6.9.
    pub const DEL_DEV_ASYNC: u32 = ior::<CtrlCmd>(b'u', 0x14);
    /// Resizes a live device to `data[0]` sectors. Since 6.16.
    pub const UPDATE_SIZE: u32 = iowr::<CtrlCmd>(b'u', 0x15);
    /// Parks a device for a new server, waiting at most `data[0]` milliseconds. Since 6.16.
    pub const QUIESCE_DEV: u32 = iowr::<CtrlCmd>(b'u', 0x16);
    /// As [`STOP_DEV`], refused while somebody has the disk open. Since 7.0.
    pub const TRY_STOP_DEV: u32 = iowr::<CtrlCmd>(b'u', 0x17);
    /// Registers the [`ShmemBufReg`](crate::ublk::ShmemBufReg) at `addr`; a result that is not
    /// negative is the buffer's index. Since 7.1.
    pub const REG_BUF: u32 = iowr::<CtrlCmd>(b'u', 0x18);
    /// Forgets the shared memory with index `data[0]`. Since 7.1.
    pub const UNREG_BUF: u32 = iowr::<CtrlCmd>(b'u', 0x19);

    /// `UBLK_CMD_*`: the bare numbers inside the opcodes. A driver before 6.4 takes them as
    /// opcodes; nothing new is ever added here.
    pub mod legacy {
        /// `UBLK_CMD_GET_QUEUE_AFFINITY`.
        pub const GET_QUEUE_AFFINITY: u8 = 0x01;
        /// `UBLK_CMD_GET_DEV_INFO`.
        pub const GET_DEV_INFO: u8 = 0x02;
        /// `UBLK_CMD_ADD_DEV`.
        pub const ADD_DEV: u8 = 0x04;
        /// `UBLK_CMD_DEL_DEV`.
        pub const DEL_DEV: u8 = 0x05;
        /// `UBLK_CMD_START_DEV`.
        pub const START_DEV: u8 = 0x06;
        /// `UBLK_CMD_STOP_DEV`.
        pub const STOP_DEV: u8 = 0x07;
        /// `UBLK_CMD_SET_PARAMS`.
        pub const SET_PARAMS: u8 = 0x08;
        /// `UBLK_CMD_GET_PARAMS`.
        pub const GET_PARAMS: u8 = 0x09;
        /// `UBLK_CMD_START_USER_RECOVERY`.
        pub const START_USER_RECOVERY: u8 = 0x10;
        /// `UBLK_CMD_END_USER_RECOVERY`.
        pub const END_USER_RECOVERY: u8 = 0x11;
        /// `UBLK_CMD_GET_DEV_INFO2`.
        pub const GET_DEV_INFO2: u8 = 0x12;
    }
}

/// States of a device, `UBLK_S_DEV_*`, as in [`CtrlDevInfo::state`].
pub mod state {
    /// No disk is shown: not started yet, or stopped.
    pub const DEAD: u16 = 0;
    /// The disk is there and served.
    pub const LIVE: u16 = 1;
    /// The disk is there, its server is not, and I/O waits.
    pub const QUIESCED: u16 = 2;
    /// The disk is there, its server is not, and I/O fails.
    pub const FAIL_IO: u16 = 3;
}

/// `struct ublksrv_ctrl_cmd`: one control command, in the command area of a 128-byte SQE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CtrlCmd {
    /// The device, N of `/dev/ublkcN`; [`NEW_DEV_ID`] in ADD_DEV for any free one.
    pub dev_id: u32,
    /// The queue, or [`NO_QUEUE`].
    pub queue_id: u16,
    /// Bytes at `addr`.
    pub len: u16,
    /// Address of the command's buffer, in or out as the command has it.
    pub addr: u64,
    /// A number that travels in the command itself; its meaning depends on the opcode.
    pub data: [u64; 1],
    /// Bytes of the path of `/dev/ublkcN` at the front of the buffer, its NUL included: for
    /// unprivileged devices and GET_DEV_INFO2, zero elsewhere.
    pub dev_path_len: u16,
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub reserved: u32,
}

layout!(CtrlCmd, 32, {
    dev_id @ 0: u32,
    queue_id @ 4: u16,
    len @ 6: u16,
    addr @ 8: u64,
    data @ 16: [u64; 1],
    dev_path_len @ 24: u16,
    pad @ 26: u16,
    reserved @ 28: u32,
});

/// `struct ublksrv_ctrl_dev_info`: what ADD_DEV asks for, and what a device has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CtrlDevInfo {
    /// Number of queues, at most [`MAX_NR_QUEUES`](super::MAX_NR_QUEUES); the driver cuts it to
    /// the number of CPUs.
    pub nr_hw_queues: u16,
    /// Tags of each queue, at most [`MAX_QUEUE_DEPTH`](super::MAX_QUEUE_DEPTH).
    pub queue_depth: u16,
    /// One of [`state`].
    pub state: u16,
    /// Bytes from one descriptor of a queue to the next.
    ///
    /// With [`Features::IO_DESC_SIZE`] the server asks for it in ADD_DEV: a multiple of 8, from
    /// the size of [`IoDesc`](super::IoDesc) to 256. Without that flag it is the size of
    /// [`IoDesc`](super::IoDesc), whatever stands here: before 7.3 the field was a pad, `pad0`.
    pub io_desc_size: u16,
    /// Bytes of the largest request.
    pub max_io_buf_bytes: u32,
    /// N of `/dev/ublkcN`; [`NEW_DEV_ID`] in ADD_DEV for any free one.
    pub dev_id: u32,
    /// Process id of the server, as the asking process sees it; -1 while there is none, or none
    /// that it can see.
    pub ublksrv_pid: i32,
    /// Zero.
    pub pad1: u32,
    /// Asked for in ADD_DEV, granted in every answer.
    pub flags: Features,
    /// Kept by the driver for the server, which may put there what it likes.
    pub ublksrv_flags: u64,
    /// The user who made the device; written by the kernel.
    pub owner_uid: u32,
    /// The group of the user who made the device; written by the kernel.
    pub owner_gid: u32,
    /// Zero.
    pub reserved1: u64,
    /// Zero.
    pub reserved2: u64,
}

layout!(CtrlDevInfo, 64, {
    nr_hw_queues @ 0: u16,
    queue_depth @ 2: u16,
    state @ 4: u16,
    io_desc_size @ 6: u16,
    max_io_buf_bytes @ 8: u32,
    dev_id @ 12: u32,
    ublksrv_pid @ 16: i32,
    pad1 @ 20: u32,
    flags @ 24: Features,
    ublksrv_flags @ 32: u64,
    owner_uid @ 40: u32,
    owner_gid @ 44: u32,
    reserved1 @ 48: u64,
    reserved2 @ 56: u64,
});
