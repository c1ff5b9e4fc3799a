//! `null:SIZE`: answers everything and stores nothing. For benchmarks: contents are undefined.

use crate::backend::{Backend, Queue, QueueContext};
use crate::error::Result;
use crate::io::extents::{Answer, State};
use crate::io::{Capabilities, Geometry, Io, IoResult, Op};
use crate::payload::Payload;

/// A disk without contents. A read returns whatever the slot's buffer last held, which is memory
/// of this device and of nothing else; by zero copy, where that is allowed, whatever the reader's
/// pages held, which for a page of the kernel's can be anything.
#[derive(Debug)]
pub struct Null {
    geometry: Geometry,
    hidden_payload: bool,
}

impl Null {
    /// A disk of `size` bytes in blocks of `block_size`, which may be served by zero copy or not.
    pub fn new(size: u64, block_size: u32, zero_copy: bool) -> Null {
        Null {
            hidden_payload: zero_copy,
            geometry: Geometry {
                logical_block_size: block_size,
                physical_block_size: block_size.max(4096),
                discard_granularity: block_size,
                ..Geometry::plain(size)
            },
        }
    }
}

/// Nothing to hold.
#[derive(Debug)]
pub struct NullQueue;

impl Backend for Null {
    type Queue = NullQueue;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn capabilities(&self) -> Capabilities {
        let hidden = if self.hidden_payload { Capabilities::HIDDEN_PAYLOAD } else { Capabilities::empty() };
        Capabilities::WRITE | Capabilities::DISCARD | Capabilities::EXTENTS | hidden
    }

    fn open_queue(&self, _context: &QueueContext<'_>) -> Result<NullQueue> {
        Ok(NullQueue)
    }

    fn outlives_process(&self) -> bool {
        true
    }

    fn notes(&self) -> Vec<String> {
        vec!["null: contents are undefined, use it for benchmarks only".into()]
    }
}

impl Queue for NullQueue {
    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        Some(if io.op == Op::Extents { one_hole(io, payload) } else { Ok(()) })
    }

    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        if io.op == Op::Extents { one_hole(&io, &mut payload) } else { Ok(()) }
    }
}

/// It takes no space; but what it reads as nobody knows.
#[cold]
fn one_hole(io: &Io, payload: &mut Payload<'_>) -> IoResult {
    Answer::new(io, payload.bytes_mut()?)?.add(io.len, State::HOLE);
    Ok(())
}
