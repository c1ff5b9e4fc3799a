//! What is asked for: which requests, how long, how many at once.

use serde::Serialize;

use super::Disk;
use crate::engine::seating::MAX_DEPTH;
use crate::error::{Error, Kind, Result};

/// Most threads that make requests.
pub const MAX_JOBS: u16 = 256;

/// Most bytes of buffers that all jobs have together.
const MAX_BUFFERS: u64 = 4 << 30;

/// What the requests do, and in which order they go over the disk; called as fio calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
    /// Reads one behind the other.
    Read,
    /// Writes one behind the other.
    Write,
}

impl Pattern {
    /// Whether it changes what the disk holds.
    pub fn writes(self) -> bool {
        matches!(self, Pattern::RandWrite | Pattern::Write)
    }

    /// Whether the requests go anywhere.
    pub fn is_random(self) -> bool {
        matches!(self, Pattern::RandRead | Pattern::RandWrite)
    }

    /// In words: `random read`.
    pub fn words(self) -> &'static str {
        match self {
            Pattern::RandRead => "random read",
            Pattern::RandWrite => "random write",
            Pattern::Read => "sequential read",
            Pattern::Write => "sequential write",
        }
    }
}

/// One load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Which requests.
    pub pattern: Pattern,
    /// Bytes of each; they start at multiples of this.
    pub block_size: u32,
    /// Requests that a job has in flight.
    pub depth: u16,
    /// Threads that make requests, each with a queue of its own.
    pub jobs: u16,
}

impl Load {
    /// Passes a load that this disk can be put under.
    pub fn check(&self, disk: &Disk) -> Result<()> {
        let invalid = |why: String| Error::invalid("cannot measure", why);
        let (block, unit) = (self.block_size, disk.logical_block_size);
        if self.pattern.writes() && disk.read_only {
            let what = format!("cannot measure a {}", self.pattern.words());
            return Err(Error::new(Kind::Unsupported, what, "the disk takes no writes")
                .cure("measure reads alone, without --write"));
        }
        if disk.size == 0 {
            return Err(invalid("the disk has a size of 0".into()));
        }
        let nearest = || format!("give --block-size {}", disk.nearest(block));
        if block == 0 || !block.is_multiple_of(unit) {
            return Err(
                invalid(format!("requests of {block} bytes on a disk in blocks of {unit}")).cure(nearest())
            );
        }
        if block > disk.longest() {
            let why = format!("requests of {block} bytes, and the disk takes at most {}", disk.longest());
            return Err(invalid(why).cure(nearest()));
        }
        if self.depth == 0 || self.depth > MAX_DEPTH {
            let depth = self.depth.clamp(1, MAX_DEPTH);
            let why = format!("a depth of {} is outside 1 to {MAX_DEPTH}", self.depth);
            return Err(invalid(why).cure(format!("give --depth {depth}")));
        }
        if self.jobs == 0 || self.jobs > MAX_JOBS {
            let jobs = self.jobs.clamp(1, MAX_JOBS);
            return Err(invalid(format!("{} jobs are outside 1 to {MAX_JOBS}", self.jobs))
                .cure(format!("give --jobs {jobs}")));
        }
        let buffers = u64::from(block) * u64::from(self.depth) * u64::from(self.jobs);
        if buffers > MAX_BUFFERS {
            let why = format!("{buffers} bytes of buffers for what is in flight are more than {MAX_BUFFERS}");
            return Err(invalid(why).cure("give a smaller --block-size, --depth or --jobs"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Disk = Disk {
        size: 1 << 20,
        logical_block_size: 4096,
        max_io_size: 256 << 10,
        read_only: true,
        has_volatile_cache: false,
        is_rotational: false,
        memory_used: None,
    };

    #[test]
    fn what_a_disk_cannot_do_is_refused_with_what_it_can() {
        let load = Load { pattern: Pattern::RandRead, block_size: 4096, depth: 1, jobs: 1 };
        load.check(&DISK).unwrap();
        let said = |load: Load| load.check(&DISK).unwrap_err().to_string();
        assert!(said(Load { pattern: Pattern::Write, ..load }).contains("takes no writes"));
        assert!(said(Load { block_size: 512, ..load }).contains("--block-size 4096"));
        assert!(said(Load { block_size: 6144, ..load }).contains("--block-size 4096"));
        assert!(said(Load { block_size: 0, ..load }).contains("--block-size 4096"));
        assert!(said(Load { block_size: 1 << 20, ..load }).contains("--block-size 262144"));
        assert!(said(Load { depth: 0, ..load }).contains("--depth 1"));
        assert!(said(Load { depth: 5000, ..load }).contains("--depth 4096"));
        assert!(said(Load { jobs: 0, ..load }).contains("--jobs 1"));
        assert!(said(Load { jobs: 300, ..load }).contains("--jobs 256"));
        let much = Load { block_size: 256 << 10, depth: 4096, jobs: 8, ..load };
        assert!(said(much).contains("smaller"));
        let empty = Disk { size: 0, ..DISK };
        assert!(load.check(&empty).unwrap_err().to_string().contains("size of 0"));
    }
}
