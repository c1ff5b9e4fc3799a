//! `linux/loop.h`: files as block devices.

use bitflags::bitflags;

/// Commands for /dev/loop-control.
pub mod control {
    /// Makes the device with a number: the argument.
    pub const ADD: u32 = 0x4c80;
    /// Yields the number of a device without a file, made for this where there is none.
    pub const GET_FREE: u32 = 0x4c82;
}

/// Commands for /dev/loopN.
pub mod cmd {
    /// Takes the file away; where somebody else has the device open, when they close it.
    pub const CLR_FD: u32 = 0x4c01;
    /// Changes what may be changed of a device with a file: [`Info64`](super::Info64).
    pub const SET_STATUS64: u32 = 0x4c04;
    /// What there is to know of a device with a file: [`Info64`](super::Info64).
    pub const GET_STATUS64: u32 = 0x4c05;
    /// Gives the device a file and all that goes with it in one step (since 5.8): [`Config`](super::Config).
    pub const CONFIGURE: u32 = 0x4c0a;
}

bitflags! {
    /// `LO_FLAGS_*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Flags: u32 {
        /// It takes no writes.
        const READ_ONLY = 1;
        /// The file goes when nobody has the device open any more.
        const AUTOCLEAR = 4;
        /// The kernel looks for partitions.
        const PARTSCAN = 8;
        /// The file is read and written past the page cache.
        const DIRECT_IO = 16;
        // What a newer kernel knows is kept.
        const _ = !0;
    }
}

/// `struct loop_info64`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Info64 {
    /// The file's device; read only, as are the next two.
    pub device: u64,
    /// The file's inode.
    pub inode: u64,
    /// The file's own device number.
    pub rdevice: u64,
    /// Where in the file the disk begins.
    pub offset: u64,
    /// Bytes of the disk; 0 for all of the file.
    pub sizelimit: u64,
    /// N of /dev/loopN; read only.
    pub number: u32,
    /// Of no use any more, as is what follows it.
    pub encrypt_type: u32,
    /// Of no use any more.
    pub encrypt_key_size: u32,
    /// What it is like.
    pub flags: Flags,
    /// What `losetup` shows where it cannot know better.
    pub file_name: [u8; 64],
    /// Of no use any more.
    pub crypt_name: [u8; 64],
    /// Of no use any more.
    pub encrypt_key: [u8; 32],
    /// Of no use any more.
    pub init: [u64; 2],
}

layout!(Info64, 232, {
    device @ 0: u64,
    inode @ 8: u64,
    rdevice @ 16: u64,
    offset @ 24: u64,
    sizelimit @ 32: u64,
    number @ 40: u32,
    encrypt_type @ 44: u32,
    encrypt_key_size @ 48: u32,
    flags @ 52: Flags,
    file_name @ 56: [u8; 64],
    crypt_name @ 120: [u8; 64],
    encrypt_key @ 184: [u8; 32],
    init @ 216: [u64; 2],
});

impl Default for Info64 {
    fn default() -> Info64 {
        Info64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: Flags::empty(),
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Config {
    /// The file.
    pub fd: u32,
    /// Bytes of a logical block; 0 leaves it to the kernel.
    pub block_size: u32,
    /// Everything else.
    pub info: Info64,
    /// Zero.
    pub reserved: [u64; 8],
}

layout!(Config, 304, {
    fd @ 0: u32,
    block_size @ 4: u32,
    info @ 8: Info64,
    reserved @ 240: [u64; 8],
});
