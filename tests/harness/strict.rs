//! A disk in memory that takes nothing but what its shape allows, and takes its time.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use blockhaus::backend::{Backend, Queue, QueueContext};
use blockhaus::error::Result;
use blockhaus::io::extents::{Answer, State};
use blockhaus::io::{Capabilities, Errno, Flags, Geometry, Io, IoResult, Op};
use blockhaus::payload::Payload;

/// What a discarded byte reads as, so that one too many is seen.
pub const DISCARDED: u8 = 0xdd;

#[derive(Clone)]
pub struct Strict {
    pub geometry: Geometry,
    pub capabilities: Capabilities,
    pub shared: Arc<Shared>,
}

#[derive(Default)]
pub struct Shared {
    pub contents: Mutex<Vec<u8>>,
    /// Where chance is, for how long requests take.
    chance: AtomicU64,
    pub flushes: AtomicU64,
    pub durable_writes: AtomicU64,
    pub served: AtomicU64,
}

impl Strict {
    pub fn new(size: u64, block: u32, memory_alignment: u32) -> Strict {
        let shared = Shared { contents: Mutex::new(vec![0; size as usize]), ..Shared::default() };
        Strict {
            geometry: Geometry {
                logical_block_size: block,
                physical_block_size: block.max(4096),
                memory_alignment,
                discard_granularity: block,
                ..Geometry::plain(size)
            },
            capabilities: Capabilities::all() - Capabilities::DISCARD_ZEROES - Capabilities::ROTATIONAL,
            shared: Arc::new(shared),
        }
    }
}

impl Backend for Strict {
    type Queue = StrictQueue;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn open_queue(&self, _context: &QueueContext<'_>) -> Result<StrictQueue> {
        Ok(StrictQueue(self.clone()))
    }
}

pub struct StrictQueue(Strict);

impl StrictQueue {
    fn check(&self, io: &Io, payload: &Payload<'_>) -> IoResult {
        let Strict { geometry, capabilities, .. } = &self.0;
        let block = u64::from(geometry.logical_block_size);
        if io.op == Op::Flush {
            return Ok(());
        }
        assert!(io.len != 0 && (io.offset | io.len).is_multiple_of(block), "{io:?} in blocks of {block}");
        assert!(io.offset + io.len <= geometry.size, "{io:?} on {} bytes", geometry.size);
        let needed = match io.op {
            Op::Read | Op::Flush => Capabilities::empty(),
            Op::Extents => Capabilities::EXTENTS,
            Op::Write => Capabilities::WRITE,
            Op::Discard => Capabilities::WRITE | Capabilities::DISCARD,
            Op::WriteZeroes => Capabilities::WRITE | Capabilities::WRITE_ZEROES,
        };
        assert!(capabilities.contains(needed), "{io:?}");
        if matches!(io.op, Op::Read | Op::Write) {
            assert_eq!(payload.len() as u64, io.len, "{io:?}");
            let address = payload.bytes()?.as_ptr() as usize;
            assert!(address.is_multiple_of(geometry.memory_alignment as usize), "{io:?} at {address:x}");
        }
        Ok(())
    }

    /// Lets others go first, none to three times.
    async fn dawdle(&self) {
        let chance = self.0.shared.chance.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut times = (chance >> 40) % 4;
        poll_fn(|context| {
            if times == 0 {
                return Poll::Ready(());
            }
            times -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

impl Queue for StrictQueue {
    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        self.check(&io, &payload)?;
        self.dawdle().await;
        let shared = &self.0.shared;
        shared.served.fetch_add(1, Ordering::Relaxed);
        if io.flags.contains(Flags::FUA) {
            shared.durable_writes.fetch_add(1, Ordering::Relaxed);
        }
        if io.op == Op::Flush {
            shared.flushes.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        {
            let mut contents = shared.contents.lock().expect("no panic");
            let range = io.offset as usize..(io.offset + io.len) as usize;
            let range = contents.get_mut(range).ok_or(Errno::EINVAL)?;
            match io.op {
                Op::Read => payload.bytes_mut()?.copy_from_slice(range),
                Op::Write => range.copy_from_slice(payload.bytes()?),
                Op::WriteZeroes => range.fill(0),
                Op::Discard => {
                    let zeroes = self.0.capabilities.contains(Capabilities::DISCARD_ZEROES);
                    range.fill(if zeroes { 0 } else { DISCARDED });
                }
                Op::Extents => {
                    // Block by block, and now and then not all of it.
                    let mut answer = Answer::new(&io, payload.bytes_mut()?)?;
                    let block = self.0.geometry.logical_block_size as usize;
                    let most = 1 + shared.chance.load(Ordering::Relaxed) as usize % 50;
                    for bytes in range.chunks(block).take(most) {
                        let state = match bytes[0] {
                            0 if bytes.iter().all(|&byte| byte == 0) => State::HOLE | State::ZERO,
                            DISCARDED if bytes.iter().all(|&byte| byte == DISCARDED) => State::HOLE,
                            _ => State::empty(),
                        };
                        if !answer.add(bytes.len() as u64, state) {
                            break;
                        }
                    }
                }
                Op::Flush => {}
            }
        }
        self.dawdle().await;
        Ok(())
    }
}
