//! The kinds of measurement, and what each of them counts.

use super::device::{self, Device, Owner, Share};

/// A kind of measurement. Each has a machine, columns and figures of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Instructions per I/O, in the counting machine.
    Count,
    /// The same over depths and numbers of devices.
    CountScale,
    /// Wall clock, on two CPUs.
    Clock,
    /// The same over jobs, queues and devices.
    ClockScale,
    /// NBD servers by the clock, on this machine, with fio and nbdcopy as their clients.
    Nbd,
}

/// One figure of a cell.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// In the guest's lines and in the JSON.
    pub name: &'static str,
    /// For people, with the unit.
    pub title: &'static str,
    /// Whether less is better.
    pub lower_is_better: bool,
}

const fn metric(name: &'static str, title: &'static str, lower_is_better: bool) -> Metric {
    Metric { name, title, lower_is_better }
}

const COUNTED: &[Metric] = &[metric("instructions", "Instructions per I/O", true)];

const COUNTED_SCALE: &[Metric] = &[
    metric("instructions", "Instructions per I/O", true),
    metric("idle_instructions", "Instructions of 16 idle servers in 10 s", true),
    metric("idle_switches", "Context switches of 16 idle servers in 10 s", true),
];

const CLOCKED: &[Metric] = &[
    metric("iops", "I/Os per second", false),
    metric("mib_per_second", "MiB per second", false),
    metric("p50_us", "Latency p50, µs", true),
    metric("p99_us", "Latency p99, µs", true),
    metric("p999_us", "Latency p99.9, µs", true),
    metric("cpu_us", "CPU time per I/O, µs", true),
];

const SERVED: &[Metric] =
    &[metric("iops", "I/Os per second", false), metric("gib_per_second", "GiB per second", false)];

/// The loads on one device, in the order of the tables.
pub const LOADS: [&str; 5] =
    ["4k-randread-qd64", "4k-randwrite-qd64", "4k-randread-qd1", "128k-read-qd16", "128k-write-qd16"];

/// Depths, and devices of which one or all are loaded, or none.
const COUNT_SCALE_COLUMNS: &[&str] = &[
    "depth-64",
    "depth-128",
    "depth-256",
    "depth-512",
    "one-of-1",
    "one-of-4",
    "one-of-16",
    "all-of-4",
    "all-of-16",
    IDLE,
];

/// Nobody asks anything of sixteen devices.
pub const IDLE: &str = "none-of-16";

/// Loads by shape: one job on one device with one queue; two jobs; two jobs on two queues; and one job on
/// each of several devices.
const CLOCK_SCALE_COLUMNS: &[&str] = &[
    "4k-randread-qd64/jobs-1",
    "4k-randread-qd64/jobs-2",
    "4k-randread-qd64/queues-2",
    "4k-randread-qd64/devices-2",
    "4k-randread-qd64/devices-4",
    "4k-randwrite-qd64/jobs-1",
    "4k-randwrite-qd64/jobs-2",
    "4k-randwrite-qd64/queues-2",
    "4k-randwrite-qd64/devices-2",
    "4k-randwrite-qd64/devices-4",
];

/// A disk is written whole first, so that each block has its memory.
const NBD_COLUMNS: &[&str] = &[
    "copy-in",
    "4k-randread-qd64/connections-1",
    "4k-randwrite-qd64/connections-1",
    "4k-randread-qd64/connections-4",
    "4k-randwrite-qd64/connections-4",
    "copy-out",
];

const COUNT_NOTE: &str = "\
Instructions of the whole guest: fio, block layer, driver and server together; one CPU, lower is better. \
They do not show waiting, several CPUs or memory bandwidth. A peer has its own defaults.";

const CLOCK_NOTE: &str = "\
Latency is fio's `lat`: from the making of an I/O to its completion. CPU time is that of all CPUs (/proc/stat \
without idle and iowait) while the load runs, per I/O: fio, kernel and server together. In a machine that QEMU \
translates (TCG), every figure is of that machine: system calls, atomics and wake-ups cost other than on a real \
CPU. Compare within a run.";

const SCALE_NOTE: &str = "\
4 KiB random reads. `depth-N`: N requests under way on a device of depth 512. `one-of-N`: depth 64 on one of N \
devices. `all-of-N`: depth 64 on each of N devices at once, instructions of all per I/O. `none-of-16`: the servers \
of 16 devices that nobody uses, instructions and context switches of all their threads in 10 s.";

const CLOCK_SCALE_NOTE: &str = "\
`jobs-N`: N jobs of depth 64 on a device with one queue. `queues-2`: two jobs on a device with two queues (loop \
has no such choice). `devices-N`: a job on each of N devices.";

const NBD_NOTE: &str = "\
fio's nbd engine and nbdcopy over a Unix socket, clients and server on the same processors; disks and source lie in memory (/dev/shm). \
`copy-in` and `copy-out`: nbdcopy of 4 GiB of random bytes to the server, and from it to nowhere. `responder` has nothing behind it \
and keeps nothing (benches/nbd_responder.rs).";

impl Mode {
    /// Its name in files and markers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::CountScale => "count-scale",
            Self::Clock => "clock",
            Self::ClockScale => "clock-scale",
            Self::Nbd => "nbd",
        }
    }

    /// For a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Count => "Instructions per I/O",
            Self::CountScale => "Instructions per I/O over depths and devices",
            Self::Clock => "Wall clock",
            Self::ClockScale => "Wall clock over jobs, queues and devices",
            Self::Nbd => "NBD servers",
        }
    }

    /// Whether the guest's clock counts instructions.
    pub fn counts(self) -> bool {
        matches!(self, Self::Count | Self::CountScale)
    }

    /// Whether one device is looked at under many shapes of load.
    pub fn scales(self) -> bool {
        matches!(self, Self::CountScale | Self::ClockScale)
    }

    /// Its figures, the main one first.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Count => COUNTED,
            Self::CountScale => COUNTED_SCALE,
            Self::Clock | Self::ClockScale => CLOCKED,
            Self::Nbd => SERVED,
        }
    }

    /// Its columns.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Count | Self::Clock => &LOADS,
            Self::CountScale => COUNT_SCALE_COLUMNS,
            Self::ClockScale => CLOCK_SCALE_COLUMNS,
            Self::Nbd => NBD_COLUMNS,
        }
    }

    /// How often each cell is measured when nothing else is said.
    pub fn runs(self) -> u32 {
        if self.counts() { 3 } else { 5 }
    }

    /// How many files there are, and MiB of each. Several devices have one each, all of them in memory.
    pub fn files(self) -> (u32, u32) {
        match self {
            Self::Count | Self::Clock => (1, 256),
            Self::ClockScale => (4, 64),
            Self::CountScale => (16, 64),
            Self::Nbd => (1, 4096),
        }
    }

    /// The figures that charts show.
    pub fn charted(self) -> &'static [&'static str] {
        match self {
            Self::Count | Self::CountScale => &["instructions"],
            Self::Clock => &["iops", "p99_us", "cpu_us"],
            Self::ClockScale | Self::Nbd => &["iops"],
        }
    }

    /// The devices when none are named; `all` is for every data path.
    pub fn devices(self, all: bool) -> Vec<&'static Device> {
        let names: &[&str] = match self {
            Self::Count | Self::Clock => {
                let wanted = |device: &&Device| match device.share {
                    Share::Usual => true,
                    Share::OnDemand => all,
                    Share::Served => false,
                };
                return device::DEVICES.iter().filter(wanted).collect();
            }
            Self::Nbd => {
                return device::DEVICES.iter().filter(|device| device.share == Share::Served).collect();
            }
            Self::CountScale => &["blockhaus-null", "loop-file", "blockhaus-file"],
            Self::ClockScale => &["loop-file", "blockhaus-file"],
        };
        names.iter().filter_map(|name| device::named(name)).collect()
    }

    /// Whether it can measure this device, and make several of it with the depth and queues that it wants.
    pub fn takes(self, device: &Device) -> bool {
        (device.share == Share::Served) == (self == Self::Nbd)
            && (!self.scales() || device.owner == Owner::Ours || device.name == "loop-file")
    }

    /// Whether `device` has this column: the kernel's loop device has neither queues to choose nor a server
    /// to watch.
    pub fn has(self, device: &Device, column: &str) -> bool {
        device.owner == Owner::Ours || !(column == IDLE || column.ends_with("/queues-2"))
    }

    /// What the figures are, and what not.
    pub fn notes(self) -> &'static [&'static str] {
        match self {
            Self::Count => &[COUNT_NOTE],
            Self::CountScale => &[COUNT_NOTE, SCALE_NOTE],
            Self::Clock => &[CLOCK_NOTE],
            Self::ClockScale => &[CLOCK_NOTE, CLOCK_SCALE_NOTE],
            Self::Nbd => &[NBD_NOTE],
        }
    }

    /// The guest's part after `devices.sh`.
    pub fn guest(self) -> &'static str {
        match self {
            Self::Count => include_str!("guest/count.sh"),
            Self::CountScale => include_str!("guest/count-scale.sh"),
            Self::Clock | Self::ClockScale => include_str!("guest/clock.sh"),
            Self::Nbd => include_str!("guest/nbd.sh"),
        }
    }
}
