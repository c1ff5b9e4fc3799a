//! What can be measured: one table, from which come the command line's names, the guest's script and the
//! page's list.

/// Whose a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Blockhaus.
    Ours,
    /// Another server, or the kernel's loop device.
    Peer,
    /// What everybody pays: the block layer, or the file without any device.
    Floor,
}

/// Which runs have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Every run that names no devices.
    Usual,
    /// `--all`, or by name.
    OnDemand,
}

/// What a load runs on.
#[derive(Debug, PartialEq, Eq)]
pub struct Device {
    /// On the command line, in the guest and in the tables.
    pub name: &'static str,
    /// How it is made: a function of `guest/devices.sh` with its words.
    pub start: &'static str,
    /// See [`Owner`].
    pub owner: Owner,
    /// See [`Share`].
    pub share: Share,
}

const fn device(name: &'static str, start: &'static str, owner: Owner, share: Share) -> Device {
    Device { name, start, owner, share }
}

use Owner::{Floor, Ours, Peer};
use Share::{OnDemand, Usual};

/// In the order of the tables.
pub static DEVICES: &[Device] = &[
    device("null-blk", "null_blk", Floor, Usual),
    device("blockhaus-null", "blockhaus null:4G", Ours, Usual),
    // Null is served by zero copy only where that is allowed: what is read is then undefined.
    device("blockhaus-null-zc", "blockhaus null:4G,zero-copy=yes", Ours, Usual),
    device("blockhaus-null-throughput", "blockhaus null:4G,zero-copy=yes --for throughput", Ours, Usual),
    device("blockhaus-null-copy", "blockhaus null:4G --data-path copy", Ours, OnDemand),
    device("blockhaus-null-user-copy", "blockhaus null:4G --data-path user-copy", Ours, OnDemand),
    device("blockhaus-null-get-data", "blockhaus null:4G --data-path get-data", Ours, OnDemand),
    device(
        "blockhaus-null-zero-copy",
        "blockhaus null:4G,zero-copy=yes --data-path zero-copy",
        Ours,
        OnDemand,
    ),
    device("blockhaus-null-auto-buf", "blockhaus null:4G,zero-copy=yes --data-path auto-buf", Ours, OnDemand),
    device("blockhaus-null-batch-copy", "blockhaus null:4G --data-path batch-copy", Ours, Usual),
    device(
        "blockhaus-null-batch-auto-buf",
        "blockhaus null:4G,zero-copy=yes --data-path batch-auto-buf",
        Ours,
        OnDemand,
    ),
    device("rublk-null", "rublk null", Peer, Usual),
    device("kublk-null", "kublk null", Peer, Usual),
    device("kublk-null-zero-copy", "kublk null -z", Peer, Usual),
    device("kublk-null-auto-buf", "kublk null --auto_zc", Peer, Usual),
    device("kublk-null-batch-copy", "kublk null -b", Peer, Usual),
    device("kublk-null-batch-auto-buf", "kublk null --auto_zc -b", Peer, Usual),
    device("nbd-nbdkit-memory", "nbd nbdkit -f -U $socket memory 256M", Peer, Usual),
    device("raw-file", "itself $file", Floor, Usual),
    device("loop-file", "loop $file", Peer, Usual),
    device("blockhaus-file", "blockhaus file:$file", Ours, Usual),
    device("blockhaus-file-latency", "blockhaus file:$file --for latency", Ours, Usual),
    device("blockhaus-file-throughput", "blockhaus file:$file --for throughput", Ours, Usual),
    device("blockhaus-file-copy", "blockhaus file:$file --data-path copy", Ours, OnDemand),
    device("blockhaus-file-user-copy", "blockhaus file:$file --data-path user-copy", Ours, OnDemand),
    device("blockhaus-file-get-data", "blockhaus file:$file --data-path get-data", Ours, OnDemand),
    device("blockhaus-file-zero-copy", "blockhaus file:$file --data-path zero-copy", Ours, OnDemand),
    device("blockhaus-file-auto-buf", "blockhaus file:$file --data-path auto-buf", Ours, OnDemand),
    device("blockhaus-file-batch-copy", "blockhaus file:$file --data-path batch-copy", Ours, OnDemand),
    device("blockhaus-file-batch-auto-buf", "blockhaus file:$file --data-path batch-auto-buf", Ours, Usual),
    device("rublk-file", "rublk loop -f $file", Peer, Usual),
    device("kublk-file", "kublk loop --auto_zc $file", Peer, Usual),
    device("kublk-file-batch-auto-buf", "kublk loop --auto_zc -b $file", Peer, Usual),
    device("nbd-nbdkit-file", "nbd nbdkit -f -U $socket file $file", Peer, Usual),
    device(
        "nbd-qemu-file",
        "nbd qemu-nbd -k $socket -t -f raw --cache=none --aio=io_uring $file",
        Peer,
        Usual,
    ),
];

/// Names of before there was an entry for every data path.
const FORMER: &[(&str, &str)] = &[
    ("blockhaus-null-batch", "blockhaus-null-batch-copy"),
    ("blockhaus-file-batch", "blockhaus-file-batch-auto-buf"),
    ("kublk-null-batch", "kublk-null-batch-copy"),
    ("kublk-file-batch", "kublk-file-batch-auto-buf"),
];

/// The device of this name.
pub fn named(name: &str) -> Option<&'static Device> {
    let name = FORMER.iter().find(|(former, _)| *former == name).map_or(name, |(_, now)| now);
    DEVICES.iter().find(|device| device.name == name)
}

/// [`named`], for the command line.
pub fn parse(name: &str) -> Result<&'static Device, String> {
    named(name).ok_or_else(|| {
        let names: Vec<_> = DEVICES.iter().map(|device| device.name).collect();
        format!("there is no device {name}; there are {}", names.join(", "))
    })
}

impl Device {
    /// `null`, `memory` or `file`: devices with another one cannot be compared.
    pub fn backing(&self) -> &'static str {
        self.name.split('-').find(|word| ["null", "memory", "file"].contains(word)).unwrap_or("null")
    }

    /// Whether the driver lends its server the requests' pages, so that nothing is copied.
    pub fn is_zero_copy(&self) -> bool {
        ["--auto_zc", " -z", "zero-copy", "auto-buf"].iter().any(|word| self.start.contains(word))
    }

    /// The devices of `peer` to set beside this one of ours: that which is driven alike, and what a person
    /// would get from the peer by default.
    pub fn beside(&self, peer: &str) -> Vec<&'static Device> {
        let Some(rest) = self.name.strip_prefix("blockhaus-") else { return Vec::new() };
        let alike = named(&format!("{peer}-{rest}"));
        let by_default = named(&format!("{peer}-{}", self.backing()));
        let mut found: Vec<_> = alike.into_iter().chain(by_default).collect();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(devices: &[&Device]) -> Vec<&'static str> {
        devices.iter().map(|device| device.name).collect()
    }

    #[test]
    fn every_data_path_has_a_null_and_a_file() {
        for path in ["copy", "user-copy", "get-data", "zero-copy", "auto-buf", "batch-copy", "batch-auto-buf"]
        {
            for backing in ["null", "file"] {
                let device = named(&format!("blockhaus-{backing}-{path}")).unwrap();
                assert!(device.start.ends_with(&format!("--data-path {path}")), "{}", device.start);
            }
        }
    }

    #[test]
    fn names_are_unique_and_former_ones_are_still_taken() {
        for (at, device) in DEVICES.iter().enumerate() {
            assert!(!DEVICES[..at].iter().any(|other| other.name == device.name), "{}", device.name);
            assert_eq!(parse(device.name), Ok(device));
        }
        for (former, now) in FORMER {
            assert_eq!(parse(former).unwrap().name, *now);
        }
        assert!(parse("null").unwrap_err().contains("blockhaus-null"));
    }

    #[test]
    fn ours_stand_beside_peers_with_the_same_backing() {
        let beside = |name, peer| names(&named(name).unwrap().beside(peer));
        assert_eq!(beside("blockhaus-null-batch", "rublk"), ["rublk-null"]);
        assert_eq!(beside("blockhaus-file", "loop"), ["loop-file"]);
        assert_eq!(beside("blockhaus-file-batch", "kublk"), ["kublk-file-batch-auto-buf", "kublk-file"]);
        assert_eq!(beside("rublk-file", "kublk"), [""; 0]);
        assert_eq!(named("nbd-nbdkit-memory").unwrap().backing(), "memory");
        assert_eq!(named("null-blk").unwrap().backing(), "null");
    }

    #[test]
    fn who_copies_nothing_is_known() {
        let zero_copy = |name| named(name).unwrap().is_zero_copy();
        assert!(zero_copy("kublk-null-zero-copy") && zero_copy("kublk-null-auto-buf"));
        assert!(zero_copy("kublk-file") && zero_copy("blockhaus-file-batch"));
        assert!(!zero_copy("kublk-null") && !zero_copy("rublk-null") && !zero_copy("kublk-null-batch"));
    }
}
