//! Where the session's threads leave requests for a queue's thread.

use std::sync::Arc;

use crate::io::{Errno, Flags, Op};
use crate::port::channel::{Receiver, Sender, bounded};
use crate::port::fuse::{Handler, Reply, Request};
use crate::port::remote::Remote;

/// A free slot of the queue, with the memory in which a write's bytes get there.
#[derive(Debug)]
pub(super) struct Place {
    pub slot: u16,
    pub bytes: Box<[u8]>,
}

/// A request that has a slot.
#[derive(Debug)]
pub(super) struct Order {
    pub place: Place,
    pub op: Op,
    pub flags: Flags,
    pub offset: u64,
    pub len: u64,
    pub reply: Reply,
}

/// The session's end of a line.
#[derive(Debug)]
pub(super) struct Line {
    free: Receiver<Place>,
    orders: Sender<Order>,
    remote: Arc<Remote>,
}

/// The queue's end. When it is dropped, whoever waits at the other and whoever still comes hears EIO.
#[derive(Debug)]
pub(super) struct Counter {
    pub free: Sender<Place>,
    pub orders: Receiver<Order>,
}

/// A line to the queue that `remote` calls, with so many slots that each hold `slot_size` bytes. Nothing is
/// allocated after this; memory that no write has used yet is not there either.
pub(super) fn line(depth: u16, slot_size: u32, remote: Arc<Remote>) -> (Line, Counter) {
    let (free, places) = bounded(depth.into());
    let (orders, taken) = bounded(depth.into());
    for slot in 0..depth {
        let place = Place { slot, bytes: vec![0; slot_size as usize].into_boxed_slice() };
        // There is room for all of them, and the other end is a few lines above.
        let _ = free.send(place);
    }
    (Line { free: places, orders, remote }, Counter { free, orders: taken })
}

/// All lines of a disk: a session's thread always goes to the same.
#[derive(Debug)]
pub(super) struct Lines(pub Vec<Line>);

impl Handler for Lines {
    fn handle(&self, lane: usize, request: Request<'_>) {
        let Request { op, flags, offset, len, data, reply } = request;
        let Some(line) = self.0.get(lane % self.0.len().max(1)) else { return reply.failed(Errno::EIO) };
        // Waits for a free one, while the kernel keeps what comes next.
        let Ok(mut place) = line.free.recv() else { return reply.failed(Errno::EIO) };
        // The session lets nothing longer pass.
        if let Some(bytes) = place.bytes.get_mut(..data.len()) {
            bytes.copy_from_slice(data);
        }
        // An order that nobody takes any more is dropped with its reply, which says EIO.
        if line.orders.send(Order { place, op, flags, offset, len, reply }).is_ok() {
            line.remote.notify_front();
        }
    }
}
