//! A disk against a model of it: random reads, writes, discards, write-zeroes and flushes from
//! several threads, every read compared with what the model allows.
//!
//! The model is a generation number per sector. Threads own interleaved stripes whose borders lie
//! within 4 KiB blocks wherever the disk's blocks are smaller: neighbours then meet in the
//! read-modify-write of a coarser backend, which is where sectors get lost.

use std::fmt;
use std::io;
use std::thread;

use super::device::Aligned;
use super::pattern::{self, Random, SECTOR};

/// What is verified: a disk, or a test's fake.
pub trait Target: Sync {
    fn size(&self) -> u64;
    /// The smallest unit it takes.
    fn block(&self) -> u64;
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
    fn write(&self, at: u64, bytes: &[u8], fua: bool) -> io::Result<()>;
    fn flush(&self) -> io::Result<()>;
    fn discard(&self, at: u64, len: u64) -> io::Result<()>;
    fn zero(&self, at: u64, len: u64) -> io::Result<()>;
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub threads: usize,
    /// Operations of each thread.
    pub operations: u32,
    /// Where on the disk, in bytes; rounded to whole stripes.
    pub start: u64,
    pub len: u64,
}

/// What was found that may not be.
#[derive(Debug)]
pub struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was done, so that a test can require that it was not nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub reads: u64,
    pub writes: u64,
    pub discards: u64,
    pub zeroes: u64,
    pub flushes: u64,
}

/// A sector's state: 0 reads zeros, otherwise the generation that wrote it; with `DISCARDED` zeros
/// are allowed as well.
type State = u32;
const DISCARDED: State = 1 << 31;

/// The state of the whole region after a run: can be checked again, after a restart for instance.
pub struct Model {
    plan: Plan,
    layout: Layout,
    /// By thread, the sectors of its stripes one after another.
    states: Vec<Vec<State>>,
    pub tally: Tally,
}

#[derive(Clone, Copy)]
struct Layout {
    /// In sectors, all three.
    start: u64,
    stripe: u64,
    block: u64,
    stripes: u64,
}

impl Layout {
    fn new(plan: &Plan, block: u64) -> Self {
        let block = (block / SECTOR as u64).max(1);
        // One block more than 1 MiB: the largest I/O fits at two places.
        let stripe = (2048 / block + 1) * block;
        let start = (plan.start / SECTOR as u64).next_multiple_of(block);
        Self { start, stripe, block, stripes: plan.len / SECTOR as u64 / stripe }
    }

    fn first_sector(&self, stripe: u64) -> u64 {
        self.start + stripe * self.stripe
    }
}

/// Runs the plan. The region's old contents are lost.
pub fn verify(target: &dyn Target, plan: Plan) -> Result<Model, Mismatch> {
    let layout = Layout::new(&plan, target.block());
    let end = layout.first_sector(layout.stripes) * SECTOR as u64;
    if layout.stripes < plan.threads as u64 || end > target.size() {
        return Err(Mismatch(format!("a disk of {} bytes is too small for {plan:?}", target.size())));
    }
    let start = layout.start * SECTOR as u64;
    target
        .zero(start, end - start)
        .map_err(|error| Mismatch(format!("write-zeroes of the region: {error}")))?;
    let results: Vec<Result<Worker<'_>, Mismatch>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut worker = Worker::new(target, plan, layout, thread);
                    worker.run().map(|()| worker)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Mismatch("a verifying thread panicked".into())))
            })
            .collect()
    });
    let mut model = Model { plan, layout, states: Vec::new(), tally: Tally::default() };
    for result in results {
        let worker = result?;
        model.tally.reads += worker.tally.reads;
        model.tally.writes += worker.tally.writes;
        model.tally.discards += worker.tally.discards;
        model.tally.zeroes += worker.tally.zeroes;
        model.tally.flushes += worker.tally.flushes;
        model.states.push(worker.states);
    }
    Ok(model)
}

impl Model {
    /// Reads everything again and compares.
    pub fn check(&self, target: &dyn Target) -> Result<(), Mismatch> {
        for (thread, states) in self.states.iter().enumerate() {
            let mut worker = Worker::new(target, self.plan, self.layout, thread);
            worker.states.clone_from(states);
            worker.read_all()?;
        }
        Ok(())
    }
}

struct Worker<'t> {
    target: &'t dyn Target,
    plan: Plan,
    layout: Layout,
    thread: usize,
    random: Random,
    states: Vec<State>,
    generation: u32,
    buffer: Aligned,
    tally: Tally,
}

/// Part of a stripe, in sectors.
#[derive(Clone, Copy)]
struct Span {
    /// On the disk.
    first: u64,
    /// In `states`.
    index: usize,
    count: usize,
}

impl<'t> Worker<'t> {
    fn new(target: &'t dyn Target, plan: Plan, layout: Layout, thread: usize) -> Self {
        let own = (layout.stripes - thread as u64).div_ceil(plan.threads as u64);
        Self {
            target,
            plan,
            layout,
            thread,
            random: Random::new(plan.seed ^ ((thread as u64 + 1) << 48)),
            states: vec![0; (own * layout.stripe) as usize],
            generation: 0,
            // Room to start anywhere in a page.
            buffer: Aligned::new((layout.stripe as usize + 8) * SECTOR),
            tally: Tally::default(),
        }
    }

    fn run(&mut self) -> Result<(), Mismatch> {
        // Data almost everywhere, so that what reaches too far hits some.
        let half = self.layout.stripe / self.layout.block / 2 * self.layout.block;
        for own in 0..self.states.len() as u64 / self.layout.stripe {
            self.write(self.span(own, 0, half), false)?;
            self.write(self.span(own, half, self.layout.stripe - half - self.layout.block), false)?;
        }
        for _ in 0..self.plan.operations {
            let span = self.pick();
            let kind = self.random.below(100);
            match kind {
                0..45 => self.write(span, false)?,
                45..50 => self.write(span, true)?,
                50..75 => self.read(span)?,
                75..85 => self.discard(span)?,
                85..93 => self.zero(span)?,
                _ => {
                    self.tally.flushes += 1;
                    self.target.flush().map_err(|error| self.failed("flush", span, &error))?;
                }
            }
            // What reaches too far is seen before something else covers it.
            if (75..93).contains(&kind) || self.random.below(2) == 0 {
                self.read(self.widened(span))?;
            }
        }
        self.read_all()
    }

    /// The span and the block on either side, as far as they are this thread's.
    fn widened(&self, span: Span) -> Span {
        let (block, stripe) = (self.layout.block as usize, self.layout.stripe as usize);
        let offset = span.index % stripe;
        let before = block.min(offset);
        let after = block.min(stripe - offset - span.count);
        Span {
            first: span.first - before as u64,
            index: span.index - before,
            count: before + span.count + after,
        }
    }

    /// A length of each magnitude is equally likely; a third are whole powers of two.
    fn pick(&mut self) -> Span {
        let blocks = self.layout.stripe / self.layout.block;
        let scale = 1 << self.random.below(u64::from(blocks.ilog2()) + 1);
        let blocks_wanted = if self.random.below(3) == 0 { scale } else { 1 + self.random.below(scale) };
        let count = blocks_wanted.min(blocks - 1);
        let offset = self.random.below(blocks - count + 1) * self.layout.block;
        let own = self.random.below(self.states.len() as u64 / self.layout.stripe);
        self.span(own, offset, count * self.layout.block)
    }

    fn span(&self, own: u64, offset: u64, count: u64) -> Span {
        let stripe = own * self.plan.threads as u64 + self.thread as u64;
        Span {
            first: self.layout.first_sector(stripe) + offset,
            index: (own * self.layout.stripe + offset) as usize,
            count: count as usize,
        }
    }

    /// Memory for a span, at a place in a page that changes.
    fn memory(&mut self, span: Span) -> std::ops::Range<usize> {
        let shift = self.random.below(8) as usize / self.layout.block as usize * self.layout.block as usize;
        shift * SECTOR..(shift + span.count) * SECTOR
    }

    fn write(&mut self, span: Span, fua: bool) -> Result<(), Mismatch> {
        self.tally.writes += 1;
        self.generation += 1;
        let generation = self.generation;
        let place = self.memory(span);
        pattern::sectors(self.plan.seed, span.first, generation, &mut self.buffer[place.clone()]);
        self.target
            .write(span.first * SECTOR as u64, &self.buffer[place], fua)
            .map_err(|error| self.failed(if fua { "FUA write" } else { "write" }, span, &error))?;
        self.states[span.index..span.index + span.count].fill(generation);
        Ok(())
    }

    fn discard(&mut self, span: Span) -> Result<(), Mismatch> {
        self.tally.discards += 1;
        self.target
            .discard(span.first * SECTOR as u64, span.count as u64 * SECTOR as u64)
            .map_err(|error| self.failed("discard", span, &error))?;
        for state in &mut self.states[span.index..span.index + span.count] {
            if *state != 0 {
                *state |= DISCARDED;
            }
        }
        Ok(())
    }

    fn zero(&mut self, span: Span) -> Result<(), Mismatch> {
        self.tally.zeroes += 1;
        self.target
            .zero(span.first * SECTOR as u64, span.count as u64 * SECTOR as u64)
            .map_err(|error| self.failed("write-zeroes", span, &error))?;
        self.states[span.index..span.index + span.count].fill(0);
        Ok(())
    }

    fn read(&mut self, span: Span) -> Result<(), Mismatch> {
        self.tally.reads += 1;
        let place = self.memory(span);
        let (seed, at) = (self.plan.seed, span.first * SECTOR as u64);
        // What the device does not fill must not look right by chance.
        self.buffer[place.clone()].fill(0xa5);
        self.target
            .read(at, &mut self.buffer[place.clone()])
            .map_err(|error| self.failed("read", span, &error))?;
        let mut good = [0u8; SECTOR];
        for (i, found) in self.buffer[place].chunks_exact(SECTOR).enumerate() {
            let (number, state) = (span.first + i as u64, self.states[span.index + i]);
            let zeros_do = state == 0 || state & DISCARDED != 0;
            if zeros_do && found.iter().all(|&byte| byte == 0) {
                continue;
            }
            let generation = state & !DISCARDED;
            if generation != 0 {
                pattern::sector(seed, number, generation, &mut good);
                if found == good {
                    continue;
                }
            }
            let expected = match (generation, zeros_do) {
                (0, _) => "zeros".to_string(),
                (generation, true) => format!("generation {generation} or zeros, as it was discarded"),
                (generation, false) => format!("generation {generation}"),
            };
            return Err(Mismatch(format!(
                "sector {number} (byte {}, sector {i} of {} in a read by thread {}): expected {expected}, found {}",
                number * SECTOR as u64,
                span.count,
                self.thread,
                pattern::describe(seed, found)
            )));
        }
        Ok(())
    }

    fn read_all(&mut self) -> Result<(), Mismatch> {
        let half = self.layout.stripe / self.layout.block / 2 * self.layout.block;
        for own in 0..self.states.len() as u64 / self.layout.stripe {
            self.read(self.span(own, 0, half))?;
            self.read(self.span(own, half, self.layout.stripe - half))?;
        }
        Ok(())
    }

    fn failed(&self, what: &str, span: Span, error: &io::Error) -> Mismatch {
        Mismatch(format!(
            "{what} of {} bytes at {} by thread {}: {error}",
            span.count * SECTOR,
            span.first * SECTOR as u64,
            self.thread
        ))
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
