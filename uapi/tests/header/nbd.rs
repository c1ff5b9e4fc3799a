//! `linux/nbd-netlink.h`, and the ioctls and flags of `linux/nbd.h`: what goes over the connections is not the
//! kernel's own.

use blockhaus_uapi::nbd::{self, ClientFlags, GENL_FAMILY_NAME, GENL_MCAST_GROUP_NAME, ServerFlags};

use super::parse::{self, Header};
use super::table::{Ours, flags, incomplete, numbers};
use super::{c, include, read};

/// What `linux/nbd-netlink.h` has.
fn of_netlink() -> Ours {
    let mut t = Vec::new();
    numbers!(t, "NBD_", nbd: GENL_VERSION);
    numbers!(t, "NBD_CMD_", nbd::cmd: UNSPEC CONNECT DISCONNECT RECONFIGURE LINK_DEAD STATUS MAX);
    numbers!(t, "NBD_ATTR_", nbd::attr:
        UNSPEC INDEX SIZE_BYTES BLOCK_SIZE_BYTES TIMEOUT SERVER_FLAGS CLIENT_FLAGS SOCKETS DEAD_CONN_TIMEOUT DEVICE_LIST
        BACKEND_IDENTIFIER MAX);
    numbers!(t, "NBD_DEVICE_", nbd::device_item: ITEM);
    numbers!(t, "NBD_DEVICE_ITEM_", nbd::device_item: UNSPEC MAX);
    numbers!(t, "NBD_DEVICE_", nbd::device: UNSPEC INDEX CONNECTED ATTR_MAX);
    numbers!(t, "NBD_SOCK_", nbd::sock_item: ITEM);
    numbers!(t, "NBD_SOCK_ITEM_", nbd::sock_item: UNSPEC MAX);
    numbers!(t, "NBD_SOCK_", nbd::sock: UNSPEC FD MAX);
    Ours { numbers: t, ..Ours::default() }
}

/// What `linux/nbd.h` has of ioctls and flags.
fn of_ioctls() -> Ours {
    let mut t: Vec<_> = flags::<ServerFlags>("NBD_FLAG_").collect();
    numbers!(t, "NBD_", nbd::ioctl:
        SET_SOCK SET_BLKSIZE SET_SIZE DO_IT CLEAR_SOCK CLEAR_QUE PRINT_DEBUG SET_SIZE_BLOCKS DISCONNECT SET_TIMEOUT
        SET_FLAGS);
    t.extend(flags::<ClientFlags>("NBD_CFLAG_"));
    Ours { numbers: t, ..Ours::default() }
}

#[test]
fn netlink_numbers_and_texts_agree_and_none_is_missing() {
    const HEADER: &str = "linux/nbd-netlink.h";
    let include = include();
    let text = read(&include, HEADER);
    let mut header = parse::header(&text).expect("this test can parse the header");
    let defines = parse::defines(&text);
    for (name, ours) in
        [("NBD_GENL_FAMILY_NAME", GENL_FAMILY_NAME), ("NBD_GENL_MCAST_GROUP_NAME", GENL_MCAST_GROUP_NAME)]
    {
        assert_eq!(defines.get(name), Some(&format!("\"{ours}\"")), "{name}");
        header.numbers.remove(name);
    }
    // What C counts with, and the guard.
    header.numbers.retain(|name| !name.starts_with("__") && name != "LINUX_NBD_NETLINK_H");
    let ours = of_netlink();
    assert_eq!(incomplete(&header, &ours), [""; 0]);
    assert_eq!(c::differences(&include, &include.join(HEADER), &ours, "nbd-netlink"), [""; 0]);
}

#[test]
fn ioctls_and_flags_agree_and_none_is_missing() {
    const HEADER: &str = "linux/nbd.h";
    let include = include();
    let spoken = parse::defines(&read(&include, HEADER)).into_iter().filter(|(name, value)| {
        value.starts_with("_IO") || name.starts_with("NBD_FLAG_") || name.starts_with("NBD_CFLAG_")
    });
    let header = Header { numbers: spoken.map(|(name, _)| name).collect(), ..Header::default() };
    let ours = of_ioctls();
    assert_eq!(incomplete(&header, &ours), [""; 0]);
    assert_eq!(c::differences(&include, &include.join(HEADER), &ours, "nbd"), [""; 0]);
}
