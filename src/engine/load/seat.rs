//! One thread a job: its memory near, its ring its own.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::Serialize;

use super::front::{self, Front};
use super::offsets::Offsets;
use super::tally::Tally;
use super::window::Window;
use super::{Disk, Load};
use crate::backend::QueueContext;
use crate::error::{Error, Result};
use crate::io::Op;
use crate::metrics::QueueMetrics;
use crate::port::channel::Receiver;
use crate::port::clock::Instant;
use crate::port::remote::Remote;
use crate::port::thread;
use crate::queue::{Buffers, Stack};
use crate::random::Random;

/// How a job's ring was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ring {
    /// Set-up flags that the kernel took.
    pub flags: Vec<String>,
    /// Whether the kernel looks up the buffers' pages once, and not for each request.
    pub registered_buffers: bool,
}

/// What a thread needs to be a job.
pub(super) struct Seat {
    pub stack: Arc<dyn Stack>,
    pub load: Load,
    pub disk: Disk,
    pub job: u16,
    pub seed: u64,
    pub remote: Arc<Remote>,
    pub window: Arc<Window>,
    pub ended: Arc<AtomicU64>,
}

impl Seat {
    /// Makes memory and ring, calls `seated`, waits for the word to begin, and makes requests until the window has
    /// ended. Without a word (nobody can give it any more) it makes none.
    pub fn work(self, seated: impl FnOnce(Ring), word: &Receiver<()>) -> Result<Tally> {
        thread::touch_stack();
        let Load { pattern, block_size, depth, .. } = self.load;
        let failed =
            |why: &'static str| move |error| Error::system(format!("job {}: {why}", self.job), error);
        // Declared in this order, so that the ring is dropped before the memory it works on.
        let buffers = Buffers::new(depth, block_size).map_err(failed("no memory for the buffers"))?;
        let ring = crate::port::ring::Ring::new(depth, self.remote.clone())
            .map_err(failed("cannot make an io_uring"))?;
        // SAFETY: the ring and all its clones are gone before the buffers, by the order above and
        // since the backend's queue, which has a clone, lives inside `Stack::serve`.
        let registered_buffers = unsafe { buffers.register(&ring) };
        let op = if pattern.writes() { Op::Write } else { Op::Read };
        if op == Op::Write {
            let mut random = Random::of_part(!self.seed, self.job);
            front::fill(&buffers, &ring, depth, block_size, &mut random)
                .map_err(|errno| failed("cannot fill the buffers")(errno.into()))?;
        }
        let offsets = Offsets::new(&self.load, &self.disk, self.job, self.seed);
        let mut front = Front::new(&buffers, &self.window, &self.ended, op, block_size, depth, offsets)?;
        let flags = ring.setup().split(' ').map(str::to_string).collect();
        seated(Ring { flags, registered_buffers });
        if word.recv().is_ok() {
            let context = QueueContext { ring: &ring, index: self.job, depth, max_io_size: block_size };
            let (began, waited) = (Instant::now(), thread::waited_for_processor());
            self.stack.serve(&context, &buffers, &mut front, &QueueMetrics::default())?;
            let mut tally = front.into_tally();
            tally.worked = began.elapsed();
            tally.waited = thread::waited_for_processor().saturating_sub(waited);
            return Ok(tally);
        }
        Ok(front.into_tally())
    }
}
