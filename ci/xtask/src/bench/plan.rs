//! What is measured: devices, columns, how many I/Os, and the guest's script.

use clap::ValueEnum;

/// The guest's part; [`Plan::script`] puts the settings before it.
const GUEST: &str = include_str!("guest.sh");

/// What a load runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Device {
    /// The block layer and fio alone
    NullBlk,
    /// `blockhaus attach null:4G`
    BlockhausNull,
    /// `blockhaus attach null:4G --data-path batch-copy`
    BlockhausNullBatch,
    /// `rublk add null`
    RublkNull,
    /// `kublk add -t null`
    KublkNull,
    /// `kublk add -t null -b`
    KublkNullBatch,
    /// A file itself: 256 MiB on ext4 on brd, O_DIRECT
    RawFile,
    /// The kernel's loop device over it, direct I/O
    LoopFile,
    /// `blockhaus attach file:FILE`
    BlockhausFile,
    /// `blockhaus attach file:FILE --data-path batch-auto-buf`
    BlockhausFileBatch,
    /// `rublk add loop -f FILE`
    RublkFile,
    /// `kublk add -t loop --auto_zc FILE`: the driver registers the requests' pages
    KublkFile,
    /// `kublk add -t loop --auto_zc -b FILE`
    KublkFileBatch,
}

impl Device {
    /// Its name on the command line, in the guest and in the table.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }

    /// The devices of the same backing that `peer` serves, the one that is most alike first.
    fn beside(self, peer: &str) -> Vec<Self> {
        let name = self.name();
        let Some(rest) = name.strip_prefix("blockhaus-") else { return Vec::new() };
        let alike = format!("{peer}-{rest}");
        let backing = format!("{peer}-{}", rest.split('-').next().unwrap_or(rest));
        let of_backing = Self::value_variants().iter().copied().filter(|o| o.name().starts_with(&backing));
        let mut found: Vec<Self> = of_backing.collect();
        found.sort_by_key(|other| other.name() != alike);
        found
    }
}

/// The loads, in the order of the table.
pub const COLUMNS: [&str; 5] =
    ["4k-randread-qd64", "4k-randwrite-qd64", "4k-randread-qd1", "128k-read-qd16", "128k-write-qd16"];

/// All of one measurement.
#[derive(Debug)]
pub struct Plan {
    /// What is measured, in the order of the table.
    pub devices: Vec<Device>,
    /// How often each cell is.
    pub runs: u32,
    /// I/Os of one cell: 4k at depth 64, 4k at depth 1, 128k.
    pub counts: [u32; 3],
    /// The loads.
    pub columns: Vec<&'static str>,
    /// Where the instructions go is wanted: by the difference between so few I/Os and so many.
    pub map: Option<[u32; 2]>,
}

impl Plan {
    /// All devices, or `only` those. Each load is about half a second of the
    /// guest's time, which fio tells in milliseconds; a `quick` one a fifth.
    pub fn new(quick: bool, runs: u32, only: &[Device]) -> Self {
        let all = Device::value_variants().iter().copied();
        Self {
            devices: all.filter(|device| only.is_empty() || only.contains(device)).collect(),
            runs: if quick { 1 } else { runs },
            counts: if quick { [10_000, 6_000, 2_500] } else { [40_000, 25_000, 10_000] },
            columns: COLUMNS.to_vec(),
            map: None,
        }
    }

    /// How many measurements that makes.
    pub fn cells(&self) -> usize {
        self.devices.len() * COLUMNS.len() * self.runs as usize
    }

    /// Whether any device's name has `word` in it.
    pub fn has(&self, word: &str) -> bool {
        self.devices.iter().any(|device| device.name().contains(word))
    }

    /// Ours and `peer`'s devices with the same backing.
    pub fn compared(&self, peer: &str) -> impl Iterator<Item = (Device, Device)> {
        let pairs = |ours: Device| ours.beside(peer).into_iter().map(move |theirs| (ours, theirs));
        self.devices.iter().copied().flat_map(pairs).filter(|(_, theirs)| self.devices.contains(theirs))
    }

    /// What the guest runs.
    pub fn script(&self) -> String {
        let names: Vec<String> = self.devices.iter().map(|device| device.name()).collect();
        let [count_4k, count_qd1, count_128k] = self.counts;
        format!(
            "devices='{}'\ncolumns='{}'\nruns={}\n\
             count_4k={count_4k} count_qd1={count_qd1} count_128k={count_128k}\nmap='{}'\n{GUEST}",
            names.join(" "),
            self.columns.join(" "),
            self.runs,
            self.map.map_or(String::new(), |counts| counts.map(|count| count.to_string()).join(" ")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_stand_beside_the_peers_with_the_same_backing() {
        let plan = Plan::new(false, 3, &[]);
        let pairs: Vec<_> = plan.compared("rublk").collect();
        assert_eq!(
            pairs,
            [
                (Device::BlockhausNull, Device::RublkNull),
                (Device::BlockhausNullBatch, Device::RublkNull),
                (Device::BlockhausFile, Device::RublkFile),
                (Device::BlockhausFileBatch, Device::RublkFile),
            ]
        );
        let pairs: Vec<_> = plan.compared("loop").collect();
        assert_eq!(pairs[0], (Device::BlockhausFile, Device::LoopFile));
        let batch = |(ours, _): &(Device, Device)| *ours == Device::BlockhausFileBatch;
        let peers: Vec<_> = plan.compared("kublk").filter(batch).map(|(_, theirs)| theirs).collect();
        assert_eq!(peers, [Device::KublkFileBatch, Device::KublkFile]);
    }

    #[test]
    fn only_some_devices_means_fewer_cells() {
        let plan = Plan::new(true, 3, &[Device::BlockhausNull, Device::NullBlk]);
        assert_eq!(plan.cells(), 10);
        assert!(plan.script().starts_with("devices='null-blk blockhaus-null'\n"));
        assert!(!plan.has("rublk"));
        assert_eq!(plan.compared("rublk").count(), 0);
    }

    #[test]
    fn the_guest_knows_every_device_and_column() {
        for name in Device::value_variants().iter().map(|device| device.name()) {
            assert!(GUEST.contains(&format!("{name})")), "{name}");
        }
        for column in COLUMNS {
            assert!(GUEST.contains(&format!("{column})")), "{column}");
        }
    }
}
