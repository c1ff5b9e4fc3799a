//! `linux/nbd-netlink.h` and, of `linux/nbd.h`, what a server of this machine's kernel needs: the ioctls and
//! the flags. What goes over the connections is the NBD protocol's own and not here.

use bitflags::bitflags;

/// The family's name: `NBD_GENL_FAMILY_NAME`.
pub const GENL_FAMILY_NAME: &str = "nbd";
/// `NBD_GENL_VERSION`.
pub const GENL_VERSION: u8 = 1;
/// The group that hears of dead connections: `NBD_GENL_MCAST_GROUP_NAME`.
pub const GENL_MCAST_GROUP_NAME: &str = "nbd_mc_group";

/// Commands of the family, `NBD_CMD_*` of `linux/nbd-netlink.h`.
pub mod cmd {
    /// `NBD_CMD_UNSPEC`.
    pub const UNSPEC: u8 = 0;
    /// Makes a disk of sockets.
    pub const CONNECT: u8 = 1;
    /// Ends one.
    pub const DISCONNECT: u8 = 2;
    /// Gives one new sockets for dead ones, another size, other timeouts.
    pub const RECONFIGURE: u8 = 3;
    /// Said to the group when a connection is dead.
    pub const LINK_DEAD: u8 = 4;
    /// Asks whether disks are connected.
    pub const STATUS: u8 = 5;
    /// The last one.
    pub const MAX: u8 = STATUS;
}

/// Attributes of a command, `NBD_ATTR_*`.
pub mod attr {
    /// `NBD_ATTR_UNSPEC`.
    pub const UNSPEC: u16 = 0;
    /// N of /dev/nbdN, 32 bits; without it CONNECT takes a free one.
    pub const INDEX: u16 = 1;
    /// 64 bits.
    pub const SIZE_BYTES: u16 = 2;
    /// 64 bits.
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    /// Seconds that a request may take, 64 bits; 0 for ever.
    pub const TIMEOUT: u16 = 4;
    /// [`ServerFlags`](super::ServerFlags), 64 bits.
    pub const SERVER_FLAGS: u16 = 5;
    /// [`ClientFlags`](super::ClientFlags), 64 bits.
    pub const CLIENT_FLAGS: u16 = 6;
    /// A list of [`sock_item::ITEM`](super::sock_item::ITEM).
    pub const SOCKETS: u16 = 7;
    /// Seconds that requests wait for a connection while there is none, 64 bits.
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    /// A list of [`device_item::ITEM`](super::device_item::ITEM).
    pub const DEVICE_LIST: u16 = 9;
    /// A text that RECONFIGURE has to repeat, since 5.14; /sys/block/nbdN/backend shows it.
    pub const BACKEND_IDENTIFIER: u16 = 10;
    /// The last one.
    pub const MAX: u16 = BACKEND_IDENTIFIER;
}

/// In a list of devices, `NBD_DEVICE_ITEM*`.
pub mod device_item {
    /// `NBD_DEVICE_ITEM_UNSPEC`.
    pub const UNSPEC: u16 = 0;
    /// A device, with attributes of [`device`](super::device).
    pub const ITEM: u16 = 1;
    /// The last one.
    pub const MAX: u16 = ITEM;
}

/// Of one device, `NBD_DEVICE_*`.
pub mod device {
    /// `NBD_DEVICE_UNSPEC`.
    pub const UNSPEC: u16 = 0;
    /// Its number, 32 bits.
    pub const INDEX: u16 = 1;
    /// Whether it is connected, 8 bits.
    pub const CONNECTED: u16 = 2;
    /// The last one.
    pub const ATTR_MAX: u16 = CONNECTED;
}

/// In a list of sockets, `NBD_SOCK_ITEM*`.
pub mod sock_item {
    /// `NBD_SOCK_ITEM_UNSPEC`.
    pub const UNSPEC: u16 = 0;
    /// A socket, with attributes of [`sock`](super::sock).
    pub const ITEM: u16 = 1;
    /// The last one.
    pub const MAX: u16 = ITEM;
}

/// Of one socket, `NBD_SOCK_*`.
pub mod sock {
    /// `NBD_SOCK_UNSPEC`.
    pub const UNSPEC: u16 = 0;
    /// Its descriptor in the process that sends the command, 32 bits.
    pub const FD: u16 = 1;
    /// The last one.
    pub const MAX: u16 = FD;
}

/// Ioctls of /dev/nbdN, `NBD_*` of `linux/nbd.h`.
pub mod ioctl {
    use crate::ioctl::io;

    /// Adds a connection: its descriptor.
    pub const SET_SOCK: u32 = io(0xab, 0);
    /// Bytes in a block.
    pub const SET_BLKSIZE: u32 = io(0xab, 1);
    /// Bytes of the disk.
    pub const SET_SIZE: u32 = io(0xab, 2);
    /// Is the disk, until it is disconnected.
    pub const DO_IT: u32 = io(0xab, 3);
    /// Forgets the connections.
    pub const CLEAR_SOCK: u32 = io(0xab, 4);
    /// Does nothing any more.
    pub const CLEAR_QUE: u32 = io(0xab, 5);
    /// Does nothing any more.
    pub const PRINT_DEBUG: u32 = io(0xab, 6);
    /// Blocks of the disk.
    pub const SET_SIZE_BLOCKS: u32 = io(0xab, 7);
    /// Ends it in order.
    pub const DISCONNECT: u32 = io(0xab, 8);
    /// Seconds that a request may take.
    pub const SET_TIMEOUT: u32 = io(0xab, 9);
    /// [`ServerFlags`](super::ServerFlags).
    pub const SET_FLAGS: u32 = io(0xab, 10);
}

bitflags! {
    /// What the server can do, `NBD_FLAG_*` of `linux/nbd.h`: those that the driver knows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ServerFlags: u64 {
        /// There are flags.
        const HAS_FLAGS = 1 << 0;
        /// Nothing can be written.
        const READ_ONLY = 1 << 1;
        /// Takes FLUSH.
        const SEND_FLUSH = 1 << 2;
        /// Takes FUA.
        const SEND_FUA = 1 << 3;
        /// Seeks cost time.
        const ROTATIONAL = 1 << 4;
        /// Takes TRIM.
        const SEND_TRIM = 1 << 5;
        /// Takes WRITE_ZEROES. Since 6.12.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// Connections may be many.
        const CAN_MULTI_CONN = 1 << 8;
    }
}

bitflags! {
    /// How the driver behaves, `NBD_CFLAG_*` of `linux/nbd.h`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientFlags: u64 {
        /// The device is deleted when it is disconnected.
        const DESTROY_ON_DISCONNECT = 1 << 0;
        /// It is disconnected when the last who has it open closes it.
        const DISCONNECT_ON_CLOSE = 1 << 1;
    }
}
