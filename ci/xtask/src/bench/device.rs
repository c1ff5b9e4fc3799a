//! What can be measured: one table, from which come the command line's names, the guest's script and what is
//! set beside what.

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
    /// `--nbd`, which has nothing else: a server, and no block device.
    Served,
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
    /// Whether the driver lends its server the requests' pages, so that nothing is copied.
    pub is_zero_copy: bool,
    /// For one of ours, the peers' to set beside it: the same behind them and driven alike, or as that peer always is.
    pub alike: &'static [&'static str],
}

const fn device(name: &'static str, start: &'static str, owner: Owner, share: Share) -> Device {
    Device { name, start, owner, share, is_zero_copy: false, alike: &[] }
}

impl Device {
    const fn zero_copy(self) -> Device {
        Device { is_zero_copy: true, ..self }
    }

    const fn alike(self, alike: &'static [&'static str]) -> Device {
        Device { alike, ..self }
    }
}

use Owner::{Floor, Ours, Peer};
use Share::{OnDemand, Served, Usual};

/// In the order of the tables.
pub static DEVICES: &[Device] = &[
    device("null-blk", "null_blk", Floor, Usual),
    device("blockhaus-null", "blockhaus null:4G", Ours, Usual).alike(&["rublk-null", "kublk-null"]),
    // Null is served by zero copy only where that is allowed: what is read is then undefined.
    device("blockhaus-null-zc", "blockhaus null:4G,zero-copy=yes", Ours, Usual)
        .zero_copy()
        .alike(&["kublk-null-auto-buf", "kublk-null-zero-copy"]),
    device("blockhaus-null-throughput", "blockhaus null:4G,zero-copy=yes --for throughput", Ours, Usual)
        .zero_copy()
        .alike(&["kublk-null-batch-auto-buf"]),
    device("blockhaus-null-copy", "blockhaus null:4G --data-path copy", Ours, OnDemand)
        .alike(&["rublk-null", "kublk-null"]),
    device("blockhaus-null-user-copy", "blockhaus null:4G --data-path user-copy", Ours, OnDemand),
    device("blockhaus-null-get-data", "blockhaus null:4G --data-path get-data", Ours, OnDemand),
    device(
        "blockhaus-null-zero-copy",
        "blockhaus null:4G,zero-copy=yes --data-path zero-copy",
        Ours,
        OnDemand,
    )
    .zero_copy()
    .alike(&["kublk-null-zero-copy"]),
    device("blockhaus-null-auto-buf", "blockhaus null:4G,zero-copy=yes --data-path auto-buf", Ours, OnDemand)
        .zero_copy()
        .alike(&["kublk-null-auto-buf"]),
    device("blockhaus-null-batch-copy", "blockhaus null:4G --data-path batch-copy", Ours, Usual)
        .alike(&["kublk-null-batch-copy"]),
    device(
        "blockhaus-null-batch-auto-buf",
        "blockhaus null:4G,zero-copy=yes --data-path batch-auto-buf",
        Ours,
        OnDemand,
    )
    .zero_copy()
    .alike(&["kublk-null-batch-auto-buf"]),
    device("rublk-null", "rublk null", Peer, Usual),
    device("kublk-null", "kublk null", Peer, Usual),
    device("kublk-null-zero-copy", "kublk null -z", Peer, Usual).zero_copy(),
    device("kublk-null-auto-buf", "kublk null --auto_zc", Peer, Usual).zero_copy(),
    device("kublk-null-batch-copy", "kublk null -b", Peer, Usual),
    device("kublk-null-batch-auto-buf", "kublk null --auto_zc -b", Peer, Usual).zero_copy(),
    device("nbd-nbdkit-memory", "nbd nbdkit -f -U $socket memory 256M", Peer, Usual),
    device("blockhaus-memory-nbd", "blockhaus ram:256M --engine nbd", Ours, Usual)
        .alike(&["nbd-nbdkit-memory"]),
    device("raw-file", "itself $file", Floor, Usual),
    device("loop-file", "loop $file", Peer, Usual),
    device("blockhaus-file", "blockhaus file:$file", Ours, Usual).zero_copy().alike(&[
        "loop-file",
        "rublk-file",
        "kublk-file",
    ]),
    device("blockhaus-file-latency", "blockhaus file:$file --for latency", Ours, Usual).zero_copy().alike(&[
        "loop-file",
        "rublk-file",
        "kublk-file",
    ]),
    device("blockhaus-file-throughput", "blockhaus file:$file --for throughput", Ours, Usual)
        .zero_copy()
        .alike(&["loop-file", "rublk-file", "kublk-file-batch-auto-buf"]),
    device("blockhaus-file-spin", "blockhaus file:$file --spin-us 200", Ours, OnDemand).zero_copy(),
    device("blockhaus-file-copy", "blockhaus file:$file --data-path copy", Ours, OnDemand)
        .alike(&["rublk-file"]),
    device("blockhaus-file-user-copy", "blockhaus file:$file --data-path user-copy", Ours, OnDemand),
    device("blockhaus-file-get-data", "blockhaus file:$file --data-path get-data", Ours, OnDemand),
    device("blockhaus-file-zero-copy", "blockhaus file:$file --data-path zero-copy", Ours, OnDemand)
        .zero_copy(),
    device("blockhaus-file-auto-buf", "blockhaus file:$file --data-path auto-buf", Ours, OnDemand)
        .zero_copy()
        .alike(&["loop-file", "kublk-file"]),
    device("blockhaus-file-batch-copy", "blockhaus file:$file --data-path batch-copy", Ours, OnDemand),
    device("blockhaus-file-batch-auto-buf", "blockhaus file:$file --data-path batch-auto-buf", Ours, Usual)
        .zero_copy()
        .alike(&["loop-file", "kublk-file-batch-auto-buf"]),
    device("rublk-file", "rublk loop -f $file", Peer, Usual),
    device("kublk-file", "kublk loop --auto_zc $file", Peer, Usual).zero_copy(),
    device("kublk-file-batch-auto-buf", "kublk loop --auto_zc -b $file", Peer, Usual).zero_copy(),
    device("nbd-nbdkit-file", "nbd nbdkit -f -U $socket file $file", Peer, Usual),
    device(
        "nbd-qemu-file",
        "nbd qemu-nbd -k $socket -t -f raw --cache=none --aio=io_uring $file",
        Peer,
        Usual,
    ),
    device("blockhaus-file-nbd", "blockhaus file:$file --engine nbd", Ours, Usual)
        .alike(&["nbd-nbdkit-file", "nbd-qemu-file"]),
    device("blockhaus-file-fuse", "blockhaus file:$file --engine fuse", Ours, OnDemand),
    device("nbdkit-memory-serve", "serve nbdkit -f -U $socket memory 4G", Peer, Served),
    device(
        "blockhaus-memory-serve",
        "serve $payload/blockhaus serve --listen unix:$socket disk=ram:4G",
        Ours,
        Served,
    )
    .alike(&["nbdkit-memory-serve"]),
    device("nbdkit-file-serve", "serve nbdkit -f -U $socket file $file", Peer, Served),
    device(
        "qemu-file-serve",
        "serve qemu-nbd -k $socket -x disk -e 8 -t -f raw --aio=io_uring $file",
        Peer,
        Served,
    ),
    device(
        "blockhaus-file-serve",
        "serve $payload/blockhaus serve --listen unix:$socket disk=file:$file",
        Ours,
        Served,
    )
    .alike(&["nbdkit-file-serve", "qemu-file-serve"]),
    device("responder-null-serve", "serve $payload/responder $socket 4294967296", Floor, Served),
];

/// The device of this name.
pub fn named(name: &str) -> Option<&'static Device> {
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

    /// The devices of `peer` to set beside this one of ours.
    pub fn beside(&self, peer: &str) -> impl Iterator<Item = &'static Device> {
        let of_peer = move |name: &&&str| name.split('-').next() == Some(peer);
        self.alike.iter().filter(of_peer).filter_map(|name| named(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn names_are_unique() {
        for (at, device) in DEVICES.iter().enumerate() {
            assert!(!DEVICES[..at].iter().any(|other| other.name == device.name), "{}", device.name);
            assert_eq!(parse(device.name), Ok(device));
        }
        assert!(parse("null").unwrap_err().contains("blockhaus-null"));
    }

    #[test]
    fn like_is_set_beside_like() {
        for device in DEVICES {
            assert!(device.alike.is_empty() || device.owner == Owner::Ours, "{}", device.name);
            for name in device.alike {
                let other = named(name).unwrap_or_else(|| panic!("{}: {name}", device.name));
                assert_eq!(other.owner, Owner::Peer, "{name}");
                assert_eq!(other.backing(), device.backing(), "{} and {name}", device.name);
            }
        }
        let beside =
            |name, peer| named(name).unwrap().beside(peer).map(|device| device.name).collect::<Vec<_>>();
        assert_eq!(beside("blockhaus-null-zc", "kublk"), ["kublk-null-auto-buf", "kublk-null-zero-copy"]);
        assert_eq!(beside("blockhaus-null-zc", "rublk"), [""; 0], "it copies");
        assert_eq!(beside("blockhaus-file", "loop"), ["loop-file"]);
    }

    #[test]
    fn every_device_has_something_behind_it_or_nothing() {
        assert_eq!(named("nbd-nbdkit-memory").unwrap().backing(), "memory");
        assert_eq!(named("null-blk").unwrap().backing(), "null");
    }

    #[test]
    fn zero_copy_is_what_its_command_asks_for() {
        // By default a file of ours is served so, and null where it is allowed.
        let asks = |start: &str| {
            let chosen = ["--data-path", "--engine"].iter().any(|option| start.contains(option));
            let by_default = start.starts_with("blockhaus file") && !chosen;
            by_default
                || ["--auto_zc", " -z", "zero-copy", "auto-buf"].iter().any(|word| start.contains(word))
        };
        for device in DEVICES {
            assert_eq!(device.is_zero_copy, asks(device.start), "{}", device.name);
        }
    }
}
