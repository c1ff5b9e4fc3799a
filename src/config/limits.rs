//! The numbers that a disk may have, the same for the command line and the file of `up`.

use super::parse_size;

/// Deepest queue that the driver takes.
pub const MAX_DEPTH: u16 = blockhaus_uapi::ublk::MAX_QUEUE_DEPTH;

/// Longest that a thread looks for work, in microseconds: what is longer gives a processor away.
pub const MAX_SPIN_US: u16 = 1000;

/// Most connections between the kernel's NBD driver and a server.
pub const MAX_NBD_CONNECTIONS: u16 = 16;

/// Longest that a request may take before its connection counts as dead, in seconds.
pub const MAX_TIMEOUT_S: u32 = 3600;

/// Longest that requests may wait for a server, in seconds.
pub const MAX_DEAD_CONNECTION_S: u32 = 86_400;

/// One more than the highest id that the driver takes (UBLK_MINORS).
pub const IDS: u32 = 1 << 20;

/// Queues of an export of which nobody says how many it is to have, at most: each has buffers of its own.
const MOST_EXPORT_QUEUES: u16 = 4;

/// What this machine sets bounds with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Its processors: the most queues of a disk.
    pub cpus: u16,
    /// Bytes in a page: the largest logical block.
    pub page_size: u32,
}

/// A wish that no disk can meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// What cannot be: "cannot have 9 queues".
    pub what: String,
    /// Why not.
    pub why: String,
    /// Values that could be asked for instead; none where it is best to ask for nothing.
    pub instead: Vec<String>,
}

impl Limits {
    /// A number of queues.
    pub fn queues(&self, wanted: u64) -> Result<u16, Outside> {
        let cpus = self.cpus;
        u16::try_from(wanted).ok().filter(|queues| (1..=cpus).contains(queues)).ok_or_else(|| Outside {
            what: format!("cannot have {wanted} queues"),
            why: format!("this machine has {cpus} CPUs, a disk has 1 to {cpus} queues"),
            instead: vec![wanted.clamp(1, u64::from(cpus).max(1)).to_string()],
        })
    }

    /// The queues of an export of which nobody says how many it is to have: its clients are many, or have many connections.
    pub fn export_queues(&self) -> u16 {
        self.cpus.clamp(1, MOST_EXPORT_QUEUES)
    }

    /// Requests that a queue takes at once.
    pub fn depth(&self, wanted: u64) -> Result<u16, Outside> {
        u16::try_from(wanted).ok().filter(|depth| (1..=MAX_DEPTH).contains(depth)).ok_or_else(|| Outside {
            what: format!("cannot have depth {wanted}"),
            why: format!("a queue takes 1 to {MAX_DEPTH} requests at once"),
            instead: vec![wanted.clamp(1, u64::from(MAX_DEPTH)).to_string()],
        })
    }

    /// N of /dev/ublkbN or /dev/nbdN.
    pub fn id(&self, wanted: u64) -> Result<u32, Outside> {
        u32::try_from(wanted).ok().filter(|id| *id < IDS).ok_or_else(|| Outside {
            what: format!("cannot have id {wanted}"),
            why: format!("ids are 0 to {}", IDS - 1),
            instead: Vec::new(),
        })
    }

    /// Connections between the kernel's NBD driver and the server.
    pub fn connections(&self, wanted: u64) -> Result<u16, Outside> {
        let most = MAX_NBD_CONNECTIONS;
        u16::try_from(wanted).ok().filter(|count| (1..=most).contains(count)).ok_or_else(|| Outside {
            what: format!("cannot have {wanted} connections"),
            why: format!("a disk has 1 to {most} of them"),
            instead: vec![wanted.clamp(1, most.into()).to_string()],
        })
    }

    /// How long a request may take, in seconds.
    pub fn timeout_s(&self, wanted: u64) -> Result<u32, Outside> {
        u32::try_from(wanted).ok().filter(|time| (1..=MAX_TIMEOUT_S).contains(time)).ok_or_else(|| Outside {
            what: format!("cannot have a timeout of {wanted} s"),
            why: format!("a request may take 1 to {MAX_TIMEOUT_S} s"),
            instead: vec![wanted.clamp(1, MAX_TIMEOUT_S.into()).to_string()],
        })
    }

    /// How long requests wait for a server, in seconds.
    pub fn dead_connection_s(&self, wanted: u64) -> Result<u32, Outside> {
        u32::try_from(wanted).ok().filter(|time| *time <= MAX_DEAD_CONNECTION_S).ok_or_else(|| Outside {
            what: format!("cannot wait {wanted} s for a server"),
            why: format!("requests may wait 0 to {MAX_DEAD_CONNECTION_S} s"),
            instead: vec![MAX_DEAD_CONNECTION_S.to_string()],
        })
    }

    /// How long a queue's thread looks for work before it sleeps, in microseconds.
    pub fn spin_us(&self, wanted: u64) -> Result<u16, Outside> {
        u16::try_from(wanted).ok().filter(|spin_us| *spin_us <= MAX_SPIN_US).ok_or_else(|| Outside {
            what: format!("cannot look for work for {wanted} us"),
            why: format!("a thread may look for 0 to {MAX_SPIN_US} us before it sleeps"),
            instead: vec![wanted.clamp(0, u64::from(MAX_SPIN_US)).to_string()],
        })
    }

    /// Bytes in a logical block.
    pub fn block_size(&self, wanted: &str) -> Result<u32, Outside> {
        let page = self.page_size;
        let outside = |why| Outside {
            what: format!("cannot have blocks of {wanted}"),
            why,
            instead: vec!["512".into(), page.to_string()],
        };
        let size = parse_size(wanted).map_err(outside)?;
        let size = u32::try_from(size).ok();
        size.filter(|size| size.is_power_of_two() && *size >= 512 && *size <= page).ok_or_else(|| {
            outside(format!(
                "a block is a power of two from 512 to {page} bytes, the page size of this machine"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { cpus: 4, page_size: 4096 };

    #[test]
    fn the_ends_are_inside_and_what_lies_beyond_is_not() {
        assert_eq!((LIMITS.queues(1), LIMITS.queues(4)), (Ok(1), Ok(4)));
        assert_eq!((LIMITS.depth(1), LIMITS.depth(4096)), (Ok(1), Ok(4096)));
        assert_eq!((LIMITS.id(0), LIMITS.id(1_048_575)), (Ok(0), Ok(1_048_575)));
        assert_eq!((LIMITS.block_size("512"), LIMITS.block_size("4K")), (Ok(512), Ok(4096)));
        assert!(LIMITS.queues(0).is_err() && LIMITS.depth(0).is_err());
        assert_eq!((LIMITS.connections(1), LIMITS.connections(16)), (Ok(1), Ok(16)));
        assert_eq!((LIMITS.timeout_s(1), LIMITS.timeout_s(3600)), (Ok(1), Ok(3600)));
        assert_eq!((LIMITS.dead_connection_s(0), LIMITS.dead_connection_s(86_400)), (Ok(0), Ok(86_400)));
        assert!(LIMITS.connections(0).is_err() && LIMITS.connections(17).is_err());
        assert!(LIMITS.timeout_s(0).is_err() && LIMITS.dead_connection_s(86_401).is_err());
        assert!(LIMITS.id(1_048_576).unwrap_err().instead.is_empty());
        for size in ["256", "8K", "513", "x", ""] {
            assert!(LIMITS.block_size(size).is_err(), "{size}");
        }
    }

    proptest! {
        #[test]
        fn what_is_advised_instead_can_be_had(wanted: u64) {
            if let Err(outside) = LIMITS.queues(wanted) {
                prop_assert!(LIMITS.queues(outside.instead[0].parse().unwrap()).is_ok());
            }
            if let Err(outside) = LIMITS.depth(wanted) {
                prop_assert!(LIMITS.depth(outside.instead[0].parse().unwrap()).is_ok());
            }
        }
    }
}
