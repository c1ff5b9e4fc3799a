//! What a server serves: a backend, alone or below filters.

use std::path::Path;
use std::sync::Arc;

use blockhaus::backend::blocking::Blocking;
use blockhaus::backend::dynamic::Dynamic;
use blockhaus::backend::{Backend, file, ram};
use blockhaus::error::Result;
use blockhaus::filter::blocksize::Blocksize;
use blockhaus::filter::fault::{Fault, Rule, When};
use blockhaus::filter::log::Log;
use blockhaus::filter::offset::Offset;
use blockhaus::filter::stripe::Stripe;
use blockhaus::filter::throttle::{Limits, Throttle};
use blockhaus::io::Errno;
use blockhaus::port::sim::{DiskShape, Random};
use blockhaus::queue::Stack;

use crate::careless::{Careless, Carelessness};
use crate::slow::Slow;

/// Where the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ram,
    File,
    /// Behind the simple door, on threads of its own.
    Slow,
    /// A backend of the tests' own on the same disk, which can be careless.
    Careless(Carelessness),
}

/// What stands on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filters {
    None,
    /// Smaller blocks than the disk has.
    Blocksize,
    /// Smaller blocks of a window of the disk, not too fast.
    Window,
    /// Smaller blocks, written down, and some requests late or, where faults are hard, failed.
    Faulty,
    /// Windows of the disk side by side, each in smaller blocks.
    Striped,
}

/// All of it.
#[derive(Clone, Copy, Debug)]
pub struct Layers {
    pub kind: Kind,
    pub filters: Filters,
    /// Each filter stands on a backend whose type is not known.
    pub dynamic: bool,
    /// Blocks that are shown, where there are filters.
    unit: u32,
    /// First byte of a window.
    start: u64,
    chunk: u32,
    members: u64,
    limits: Limits,
    rule: Rule,
    disk: DiskShape,
    /// Block size that the file is told.
    file_block: Option<u32>,
}

impl Filters {
    /// What may stand on a backend of this kind.
    pub fn choose(random: &mut Random, kind: Kind) -> Filters {
        use Filters::{Blocksize, Faulty, None, Striped, Window};
        *random.pick(match kind {
            // Many threads for each member.
            Kind::Slow => &[None, None, None, Blocksize, Window, Faulty],
            _ => &[None, None, Blocksize, Window, Faulty, Striped],
        })
    }

    /// Sectors of the smallest disk that is large enough.
    pub fn least_sectors(self) -> u64 {
        match self {
            Filters::Striped => 48,
            _ => 16,
        }
    }
}

impl Layers {
    pub fn new(random: &mut Random, disk: DiskShape, kind: Kind, filters: Filters, hard: bool) -> Layers {
        let sector = u64::from(disk.sector);
        let late = Rule {
            when: When::Every(random.between(2, 30)),
            delay_ms: random.between(1, 3),
            ..Rule::default()
        };
        let torn = Rule {
            when: When::Probability(0.01),
            seed: random.number(),
            errno: Some(Errno::EIO),
            torn: true,
            ..Rule::default()
        };
        let iops = random.between(500, 20_000);
        let bandwidth = random.between(1 << 20, 50 << 20);
        Layers {
            kind,
            filters,
            dynamic: random.chance(500),
            unit: *random.pick(&[512, 512, 512, 1024, 4096]),
            start: sector * random.between(0, 8),
            chunk: *random.pick(&[4096, 8192]),
            members: random.between(2, 3),
            limits: Limits {
                iops: Some(iops),
                bandwidth: random.chance(500).then_some(bandwidth),
                burst_ms: random.between(0, 5),
            },
            rule: if hard && random.chance(500) { torn } else { late },
            disk,
            file_block: (!disk.direct).then_some(disk.sector),
        }
    }

    /// What is left of `size` bytes in blocks of ours.
    fn whole(&self, size: u64) -> u64 {
        size - size % u64::from(self.unit.max(self.disk.sector))
    }

    fn member_size(&self) -> u64 {
        let sector = u64::from(self.disk.sector);
        self.disk.size / self.members / sector * sector
    }

    /// Bytes that a client must see.
    pub fn size(&self) -> u64 {
        match self.filters {
            Filters::None => self.disk.size,
            Filters::Blocksize | Filters::Faulty => self.whole(self.disk.size),
            Filters::Window => self.whole(self.disk.size - self.start),
            Filters::Striped => {
                let member = self.whole(self.member_size());
                (member - member % u64::from(self.chunk)) * self.members
            }
        }
    }

    /// Bytes of a block that a client must see.
    pub fn block(&self) -> u32 {
        if self.filters == Filters::None { self.disk.sector } else { self.unit }
    }

    /// Bytes that are written wholly or not at all: larger blocks than the disk's are several of its.
    pub fn atom(&self) -> u32 {
        self.block().min(self.disk.sector)
    }

    /// Whether what is discarded reads as zeros.
    pub fn discard_zeroes(&self) -> bool {
        self.kind != Kind::Slow && self.block() >= self.disk.sector
    }

    /// Whether requests can be served whose bytes nobody can look at.
    pub fn takes_hidden(&self) -> bool {
        self.kind == Kind::File && self.block() >= self.disk.sector
    }

    /// Opens all of it.
    pub fn open(&self, path: &Path, slow: Slow) -> Result<Arc<dyn Stack>> {
        match self.kind {
            Kind::Ram => self.stand_on(ram::Ram::new(self.disk.size, self.disk.sector, false)?),
            Kind::File => {
                let (path, block_size) = (path.to_path_buf(), self.file_block);
                self.stand_on(file::File::open(&file::Options { path, block_size, ..Default::default() })?)
            }
            Kind::Slow => self.stand_on(Blocking::new(slow)),
            Kind::Careless(how) => self.stand_on(Careless::open(path, how)?),
        }
    }

    fn stand_on(&self, backend: impl Backend) -> Result<Arc<dyn Stack>> {
        let sink = || Box::new(std::io::sink());
        Ok(match (self.filters, self.dynamic) {
            (Filters::None, false) => Arc::new(backend),
            (Filters::None, true) => Arc::new(erased(backend)),
            (Filters::Blocksize, false) => Arc::new(Blocksize::new(backend, self.unit)?),
            (Filters::Blocksize, true) => Arc::new(Blocksize::new(erased(backend), self.unit)?),
            (Filters::Window, false) => {
                let window = Offset::new(backend, self.start, None)?;
                Arc::new(Blocksize::new(Throttle::new(window, self.limits)?, self.unit)?)
            }
            (Filters::Window, true) => {
                let window = erased(Offset::new(erased(backend), self.start, None)?);
                let throttled = erased(Throttle::new(window, self.limits)?);
                Arc::new(Blocksize::new(throttled, self.unit)?)
            }
            (Filters::Faulty, false) => {
                let logged = Log::new(Fault::new(backend, self.rule)?, sink(), "nothing")?;
                Arc::new(Blocksize::new(logged, self.unit)?)
            }
            (Filters::Faulty, true) => {
                let faulty = erased(Fault::new(erased(backend), self.rule)?);
                let finer = erased(Blocksize::new(faulty, self.unit)?);
                Arc::new(Log::new(finer, sink(), "nothing")?)
            }
            (Filters::Striped, dynamic) => {
                let disk = erased(backend);
                let size = self.member_size();
                let finer =
                    |number| Blocksize::new(Offset::new(disk.clone(), number * size, Some(size))?, self.unit);
                let members = (0..self.members).map(finer).collect::<Result<Vec<_>>>()?;
                match dynamic {
                    false => Arc::new(Stripe::new(members, self.chunk)?),
                    true => {
                        let members = members.into_iter().map(erased).collect();
                        Arc::new(Stripe::new(members, self.chunk)?)
                    }
                }
            }
        })
    }
}

fn erased(backend: impl Backend) -> Dynamic {
    Dynamic::new(Arc::new(backend))
}
