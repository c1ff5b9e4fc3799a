//! `linux/ublk_cmd.h`: a block device whose server is a process.
//!
//! * [`features`](Features): what a device and its driver can do, `UBLK_F_*`.
//! * Control plane, commands to `/dev/ublk-control`: opcodes in [`cmd`], [`CtrlCmd`],
//!   [`CtrlDevInfo`], device [`state`]s, and [`Params`] with its parts.
//! * Data plane, commands to `/dev/ublkcN`: opcodes in [`io_cmd`], [`IoCmd`] one way and
//!   [`IoDesc`] the other, request kinds in [`op`], [`IoFlags`], results in [`res`].
//! * Ways to the data: the user-copy file position ([`user_copy_pos`]), automatic buffer
//!   registration ([`AutoBufReg`]), shared memory ([`ShmemBufReg`], [`ShmemAddr`]).
//! * Commands in batches: [`BatchIo`], [`ElemHeader`].
//!
//! A sector is 512 bytes everywhere in this interface, whatever the logical block size.

mod batch;
mod control;
mod data;
mod features;
mod integrity;
mod io;
mod params;
mod shmem;

pub use batch::{BatchFlags, BatchIo, ElemHeader};
pub use control::{CtrlCmd, CtrlDevInfo, FEATURES_LEN, NEW_DEV_ID, NO_QUEUE, cmd, state};
pub use data::{
    CMD_BUF_OFFSET, INTEGRITY_FLAG_OFF, IO_BUF_BITS, IO_BUF_BITS_MASK, IO_BUF_OFF, IO_BUF_OFFSET,
    IO_BUF_TOTAL_BITS, IO_BUF_TOTAL_SIZE, IO_INTEGRITY_FLAG, MAX_NR_QUEUES, MAX_QUEUE_DEPTH, QID_BITS,
    QID_BITS_MASK, QID_OFF, TAG_BITS, TAG_BITS_MASK, TAG_OFF, user_copy_pos,
};
pub use features::Features;
pub use integrity::{IntegrityCaps, pi_csum};
pub use io::{AutoBufReg, AutoBufRegFlags, IoCmd, IoDesc, IoFlags, io_cmd, op, res};
pub use params::{
    Attributes, MIN_SEGMENT_SIZE, ParamBasic, ParamDevt, ParamDiscard, ParamDmaAlign, ParamIntegrity,
    ParamSegment, ParamTypes, ParamZoned, Params,
};
pub use shmem::{
    SHMEM_ZC_IDX_MASK, SHMEM_ZC_IDX_OFF, SHMEM_ZC_OFF_MASK, ShmemAddr, ShmemBufFlags, ShmemBufReg,
};
