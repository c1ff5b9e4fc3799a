//! What one run measures, and the script that does it.

use super::device::{Device, Owner};
use super::mode::Mode;

/// The guest's part that every mode has; [`Plan::script`] puts the settings before it.
const DEVICES: &str = include_str!("guest/devices.sh");

/// Where the script finds things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// In a virtual machine.
    Guest,
    /// On this machine: binaries and scratch files are in this folder.
    Here(&'a str),
}

/// All of one measurement.
#[derive(Debug)]
pub struct Plan {
    /// See [`Mode`].
    pub mode: Mode,
    /// What is measured, in the order of the table.
    pub devices: Vec<&'static Device>,
    /// The columns of the table.
    pub columns: Vec<&'static str>,
    /// How often each cell is.
    pub runs: u32,
    /// I/Os of one cell that counts: 4k at depth 64, 4k at depth 1, 128k.
    pub counts: [u32; 3],
    /// How long one load runs by the clock.
    pub seconds: u32,
    /// Where the instructions go is wanted: by the difference between so few I/Os and so many.
    pub map: Option<[u32; 2]>,
}

impl Plan {
    /// `devices` once each. Each load that counts is about half a second of the guest's time, which fio
    /// tells in milliseconds; a `quick` one a fifth.
    pub fn new(mode: Mode, devices: Vec<&'static Device>, quick: bool, runs: Option<u32>) -> Self {
        Self {
            mode,
            devices,
            columns: mode.columns().to_vec(),
            runs: if quick { 1 } else { runs.unwrap_or_else(|| mode.runs()) },
            counts: if quick { [10_000, 6_000, 2_500] } else { [40_000, 25_000, 10_000] },
            seconds: if quick { 1 } else { 3 },
            map: None,
        }
    }

    /// The columns that this device has.
    pub fn columns_of(&self, device: &'static Device) -> impl Iterator<Item = &'static str> {
        self.columns.iter().copied().filter(move |column| self.mode.has(device, column))
    }

    /// How many measurements that makes.
    pub fn cells(&self) -> usize {
        let cells: usize = self.devices.iter().map(|device| self.columns_of(device).count()).sum();
        cells * self.runs as usize
    }

    /// Whether any device needs `word`: a server, or a kind of file.
    pub fn has(&self, word: &str) -> bool {
        self.devices.iter().any(|device| device.start.contains(word))
    }

    /// Ours and `peer`'s devices with the same backing.
    pub fn compared(&self, peer: &str) -> impl Iterator<Item = (&'static Device, &'static Device)> {
        let pairs = |ours: &&'static Device| {
            let ours = *ours;
            ours.beside(peer).map(move |theirs| (ours, theirs))
        };
        self.devices.iter().flat_map(pairs).filter(|(_, theirs)| self.devices.contains(theirs))
    }

    /// Whether there is anything of ours to judge.
    pub fn has_ours(&self) -> bool {
        self.devices.iter().any(|device| device.owner == Owner::Ours)
    }

    /// What is run, `runs` times each cell; by turns in one order and in the other, so that a machine that
    /// becomes slower or faster is no gain to anybody.
    pub fn script(&self, place: Place<'_>, runs: u32, backwards: bool) -> String {
        let mut names: Vec<&str> = self.devices.iter().map(|device| device.name).collect();
        if backwards {
            names.reverse();
        }
        let cases =
            self.devices.iter().map(|device| format!("        {}) {} ;;\n", device.name, device.start));
        let (payload, work, here) = match place {
            Place::Guest => ("/payload", "/tmp", ""),
            Place::Here(folder) => (folder, folder, "yes"),
        };
        let [count_4k, count_qd1, count_128k] = self.counts;
        let (files, file_mib) = self.mode.files();
        let lacking = self.devices.iter().flat_map(|device| {
            let lacks = |column: &&&'static str| !self.mode.has(device, column);
            self.columns
                .iter()
                .filter(lacks)
                .map(|column| format!("        '{} {column}') return 1 ;;\n", device.name))
        });
        format!(
            "payload='{payload}' work='{work}' here='{here}'\n\
             devices='{}'\ncolumns='{}'\nruns={runs} seconds={}\n\
             count_4k={count_4k} count_qd1={count_qd1} count_128k={count_128k}\n\
             file_mib={file_mib} files={files}\nmap='{}'\n\
             make() {{\n    case $1 in\n{}    esac\n}}\n\
             has() {{\n    case \"$1 $2\" in\n{}    esac\n}}\n{DEVICES}{}",
            names.join(" "),
            self.columns.join(" "),
            self.seconds,
            self.map.map_or(String::new(), |counts| counts.map(|count| count.to_string()).join(" ")),
            cases.collect::<String>(),
            lacking.collect::<String>(),
            self.mode.guest(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::{DEVICES as ALL, named};
    use super::super::mode::LOADS;
    use super::*;

    fn plan(mode: Mode, names: &[&str]) -> Plan {
        Plan::new(mode, names.iter().map(|name| named(name).unwrap()).collect(), true, None)
    }

    #[test]
    fn ours_stand_beside_the_peers_with_the_same_backing() {
        let plan = Plan::new(Mode::Count, Mode::Count.devices(false), false, None);
        let pairs: Vec<_> = plan.compared("rublk").map(|(ours, theirs)| (ours.name, theirs.name)).collect();
        assert!(pairs.contains(&("blockhaus-null", "rublk-null")));
        assert!(pairs.contains(&("blockhaus-file-latency", "rublk-file")));
        assert!(pairs.iter().all(|(ours, theirs)| ours.contains("null") == theirs.contains("null")));
        assert_eq!(plan.compared("loop").next().unwrap().0.name, "blockhaus-file");
    }

    #[test]
    fn only_some_devices_means_fewer_cells() {
        let plan = plan(Mode::Count, &["null-blk", "blockhaus-null"]);
        assert_eq!(plan.cells(), 10);
        assert!(plan.script(Place::Guest, 1, false).contains("\ndevices='null-blk blockhaus-null'\n"));
        assert!(plan.script(Place::Guest, 1, true).contains("\ndevices='blockhaus-null null-blk'\n"));
        assert!(!plan.has("rublk"));
        assert_eq!(plan.compared("rublk").count(), 0);
    }

    #[test]
    fn loop_has_no_queues_to_choose_and_no_server_to_watch() {
        assert_eq!(plan(Mode::CountScale, &["loop-file"]).cells() + 1, Mode::CountScale.columns().len());
        assert_eq!(plan(Mode::ClockScale, &["blockhaus-file"]).cells(), Mode::ClockScale.columns().len());
        assert_eq!(plan(Mode::ClockScale, &["loop-file"]).cells() + 2, Mode::ClockScale.columns().len());
    }

    #[test]
    fn the_usual_devices_have_every_peer() {
        let plan = Plan::new(Mode::Clock, Mode::Clock.devices(false), false, None);
        for word in ["null_blk", "loop ", "rublk", "kublk", "nbdkit", "qemu-nbd"] {
            assert!(plan.has(word), "{word}");
        }
        assert!(plan.devices.len() < Mode::Clock.devices(true).len());
        assert_eq!(Mode::Clock.devices(true).len() + Mode::Nbd.devices(false).len(), ALL.len());
    }

    #[test]
    fn the_guest_knows_every_device_and_column() {
        for device in ALL {
            let function = device.start.split(' ').next().unwrap();
            assert!(DEVICES.contains(&format!("\n{function}() {{")), "{function}");
        }
        for mode in [Mode::Count, Mode::Clock, Mode::ClockScale, Mode::CountScale] {
            let script = plan(mode, &["blockhaus-file"]).script(Place::Guest, 1, false);
            assert!(script.contains("blockhaus-file) blockhaus file:$file ;;"), "{script}");
            for column in mode.columns() {
                // A load, a shape of it with a number at its end, or a shape alone.
                let (load, shape) = column.split_once('/').map_or((*column, None), |(a, b)| (a, Some(b)));
                let without_number = |shape: &str| shape.rsplit_once('-').unwrap().0.to_owned();
                let mut wanted: Vec<String> =
                    shape.map(|shape| format!("*/{}-*)", without_number(shape))).into_iter().collect();
                wanted.push(match LOADS.contains(&load) {
                    true => format!(" {load})"),
                    false => format!(" {}-*)", without_number(load)),
                });
                assert!(wanted.iter().all(|words| script.contains(words)), "{column}: {wanted:?}");
            }
        }
    }
}
