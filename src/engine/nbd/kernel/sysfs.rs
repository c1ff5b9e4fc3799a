//! What /sys says of a device of the NBD driver.

use std::fs;

/// What stands before the number in the identifier that the driver keeps for a device of ours.
const PREFIX: &str = "blockhaus-";

/// Set in the number of each identifier, so that none is ever a process's.
const OURS: u64 = 1 << 63;

fn attribute(id: u32, name: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/sys/block/nbd{id}/{name}")).ok()?.trim().to_owned())
}

/// Whether the device has a server, or had one and has not been disconnected: the driver has this file from the
/// one to the other, and until the last who has it open lets go.
pub fn is_connected(id: u32) -> bool {
    attribute(id, "pid").is_some()
}

/// Tells a device from the next of its number: what the driver was told about its server over netlink; else the
/// thread that made it.
pub fn identity(id: u32) -> Option<u64> {
    let told = attribute(id, "backend").and_then(|text| number(&text));
    told.or_else(|| attribute(id, "pid")?.parse().ok())
}

/// Whether a number is one of `identifier`'s.
pub fn is_ours(identity: u64) -> bool {
    identity & OURS != 0
}

/// A number for a new device, of 64 random bits.
pub(super) fn new_identity(random: u64) -> u64 {
    random | OURS
}

/// The text that the driver keeps.
pub(super) fn identifier(identity: u64) -> String {
    format!("{PREFIX}{identity:016x}")
}

fn number(identifier: &str) -> Option<u64> {
    u64::from_str_radix(identifier.strip_prefix(PREFIX)?, 16).ok().filter(|number| is_ours(*number))
}

/// The process that connected it, 0 where nobody says, and how many queues it has.
pub fn seen(id: u32) -> (i32, u16) {
    let pid = attribute(id, "pid").and_then(|pid| pid.parse().ok()).unwrap_or(0);
    let queues = fs::read_dir(format!("/sys/block/nbd{id}/mq")).map_or(0, Iterator::count);
    (pid, u16::try_from(queues).unwrap_or(u16::MAX))
}

/// Bytes of the disk.
pub(super) fn size(id: u32) -> Option<u64> {
    // In sectors of 512 bytes, whatever the block size.
    attribute(id, "size")?.parse::<u64>().ok()?.checked_mul(512)
}

/// Requests in flight: reads and writes.
pub(super) fn in_flight(id: u32) -> u64 {
    let text = attribute(id, "inflight").unwrap_or_default();
    text.split_whitespace().filter_map(|count| count.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_ours_and_comes_back() {
        for random in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            let identity = new_identity(random);
            assert!(is_ours(identity));
            assert_eq!(number(&identifier(identity)), Some(identity));
        }
        for foreign in
            ["", "blockhaus-", "blockhaus-1", "qemu-8000000000000000", "blockhaus-800000000000000g"]
        {
            assert_eq!(number(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_says_nothing() {
        assert!(!is_connected(u32::MAX) && identity(u32::MAX).is_none());
        assert_eq!((seen(u32::MAX), in_flight(u32::MAX)), ((0, 0), 0));
    }
}
