//! Where a file's holes are. To ask takes calls that no ring has and that may wait for the disk, so that a
//! thread does it, which all queues of a file share and which is started when one is first asked.

use std::fs::File;
use std::sync::{Arc, OnceLock};

use crate::io::extents::{Answer, State};
use crate::io::{Io, IoResult};
use crate::payload::Payload;
use crate::port::channel::{Receiver, Sender, bounded};
use crate::port::file::{Run, run_at};
use crate::port::remote::Ticket;
use crate::port::ring::Ring;
use crate::port::thread::{self, JoinHandle};

/// Questions that wait at once; who asks one more is told that all is data.
const WAITING: usize = 256;

/// A file whose holes can be asked for.
#[derive(Debug)]
pub(super) struct Holes {
    file: Arc<File>,
    block: u64,
    worker: OnceLock<Option<Worker>>,
}

#[derive(Debug)]
struct Worker {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Job {
    io: Io,
    ticket: Ticket,
}

impl Holes {
    /// Of a disk in blocks of `block` bytes.
    pub fn new(file: Arc<File>, block: u32) -> Holes {
        Holes { file, block: u64::from(block), worker: OnceLock::new() }
    }

    /// Answers a request for the extents of a range.
    pub async fn find(&self, ring: &Ring, io: Io, mut payload: Payload<'_>) -> IoResult {
        let worker = self.worker.get_or_init(|| Worker::start(self.file.clone(), self.block));
        ring.hand_off(&mut payload, move |ticket| {
            let job = Job { io, ticket };
            let left = match worker {
                Some(worker) => worker.jobs.try_send(job).err().map(|error| error.into_inner()),
                None => Some(job),
            };
            // Nobody can look; to take it for data is always right.
            if let Some(Job { mut ticket, .. }) = left {
                let all = Answer::new(&io, ticket.bytes()).map(|mut answer| {
                    answer.add(io.len, State::empty());
                });
                ticket.finish(all);
            }
        })
        .await
    }
}

impl Drop for Holes {
    fn drop(&mut self) {
        if let Some(Worker { jobs, thread }) = self.worker.take().flatten() {
            drop(jobs);
            // A panic aborts the process, so that there is none to report here.
            let _ = thread.join();
        }
    }
}

impl Worker {
    fn start(file: Arc<File>, block: u64) -> Option<Worker> {
        let (jobs, waiting) = bounded(WAITING);
        let thread = thread::spawn("bh-holes".into(), move || work(&file, block, &waiting)).ok()?;
        Some(Worker { jobs, thread })
    }
}

fn work(file: &File, block: u64, jobs: &Receiver<Job>) {
    // Without the permission it works all the same.
    let _ = thread::become_io_flusher();
    while let Ok(Job { io, mut ticket }) = jobs.recv() {
        let result = look(file, block, &io, ticket.bytes());
        ticket.finish(result);
    }
}

/// A file system's blocks may be smaller than ours: one of ours is a hole where it is in one as a whole.
fn look(file: &File, block: u64, io: &Io, bytes: &mut [u8]) -> IoResult {
    let mut answer = Answer::new(io, bytes)?;
    let end = io.offset + io.len;
    let mut at = io.offset;
    while at < end {
        let Run { is_data, end: run_end } = run_at(file, at)?;
        let down = if run_end >= end { end } else { run_end & !(block - 1) };
        let (state, next) = match is_data {
            false if down > at => (State::HOLE | State::ZERO, down),
            false => (State::empty(), at + block),
            true => (State::empty(), if down == run_end { down } else { down.saturating_add(block) }),
        };
        let next = next.clamp(at + 1, end);
        if !answer.add(next - at, state) {
            break;
        }
        at = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::io::extents::{Extent, extents};
    use crate::io::{Flags, Op};

    #[test]
    fn a_block_is_a_hole_where_all_of_it_is() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 4096).unwrap();
        file.write_all_at(&[1; 4096], 512 << 10).unwrap();
        let found = |block: u64, offset: u64, len: u64, flags: Flags| {
            let mut memory = vec![0; 4096];
            let io = Io { op: Op::Extents, flags, offset, len, slot: 0 };
            look(&file, block, &io, &mut memory).unwrap();
            let found: Vec<(u64, bool)> =
                extents(&memory, len).map(|Extent { len, state }| (len, state == State::empty())).collect();
            found
        };
        let all = Flags::empty();
        let k = |number: u64| number << 10;
        if found(512, 0, k(1024), all) == [(k(1024), true)] {
            // A file system without holes.
            return;
        }
        let exact = [(k(4), false), (k(4), true), (k(504), false), (k(4), true), (k(508), false)];
        assert_eq!(found(512, 0, k(1024), all), exact);
        let coarse = [(k(16), true), (k(496), false), (k(16), true), (k(496), false)];
        assert_eq!(found(16384, 0, k(1024), all), coarse);
        assert_eq!(found(512, 512, k(3), all), [(k(3), false)]);
        assert_eq!(found(512, 4096 + 512, k(8), all), [(3584, true), (k(8) - 3584, false)]);
        assert_eq!(found(512, 0, k(1024), Flags::FIRST_EXTENT), [(k(4), false)]);
    }
}
