//! The front ends: how a queue's requests come from the driver and go back to it. What they share is where
//! a request's bytes are and how they get there.

use std::fs::File;

use blockhaus_uapi::ublk::user_copy_pos;

use super::data_path::DataPath;
use super::descriptors::Descriptors;
use crate::error::Error;
use crate::io::{Errno, Io, IoResult, Op};
use crate::metrics::QueueMetrics;
use crate::port::file;
use crate::port::ring::Ring;
use crate::queue::Buffers;

mod batch;
mod per_tag;

pub(super) use batch::{Batch, Elements};
pub(super) use per_tag::PerTag;

/// What a front end works with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat<'a> {
    pub device: &'a File,
    pub queue: u16,
    pub depth: u16,
    pub path: DataPath,
    /// Tags from here on have no place in the ring's table of buffers: the driver cannot register
    /// theirs. All have one, but in tests.
    pub registered_tags: u16,
    pub descriptors: &'a Descriptors,
    pub buffers: &'a Buffers,
    /// For what fails here, where the loop of the queue does not see it: before it has the request, and after.
    pub metrics: &'a QueueMetrics,
}

impl Seat<'_> {
    #[cold]
    fn failed(&self, what: &str, error: std::io::Error) -> Error {
        Error::system(format!("queue {}: {what}", self.queue), error)
    }

    /// The request of a tag, its data in place where neither the driver nor a command of the front end puts
    /// it there.
    #[inline]
    fn request(&self, ring: &Ring, tag: u16) -> Result<Io, Errno> {
        let (io, unregistered) = self.descriptors.request(tag)?;
        if !matches!(io.op, Op::Read | Op::Write) {
            return Ok(io);
        }
        let copies = if self.path.registers() {
            self.buffers.show(tag, unregistered);
            unregistered
        } else {
            self.path == DataPath::UserCopy
        };
        if copies && io.op == Op::Write {
            self.copy_from_user(ring, &io)?;
        }
        Ok(io)
    }

    /// How a request ended, as the driver wants to know it; what was read is given to it where it does not
    /// take it by itself.
    #[inline]
    fn outcome(&self, ring: &Ring, io: &Io, mut result: IoResult) -> i32 {
        let has_data = matches!(io.op, Op::Read | Op::Write);
        let copies = io.op == Op::Read
            && (self.path == DataPath::UserCopy || self.path.registers() && !self.buffers.is_hidden(io.slot));
        if copies && result.is_ok() {
            result = self.copy_to_user(ring, io);
        }
        match result {
            // A request's bytes fit its slot's buffer, and so an i32; checked where the payload was made.
            Ok(()) if has_data => io.len as i32,
            Ok(()) => 0,
            Err(errno) => -errno.number(),
        }
    }

    /// Whether nobody here touches the bytes of a request: they are hidden, and stay where they are.
    #[inline]
    fn hides(&self, io: &Io) -> bool {
        matches!(io.op, Op::Read | Op::Write) && self.buffers.is_hidden(io.slot)
    }

    /// A request of this tag is refused, since its pages could not be registered.
    #[cold]
    fn count_unregistered(&self, tag: u16) {
        if let Ok((io, _)) = self.descriptors.request(tag) {
            self.metrics.refuse(io.op, io.len);
        }
    }

    // Not inlined, so that the ways without a copy stay short.
    #[inline(never)]
    fn copy_from_user(&self, ring: &Ring, io: &Io) -> IoResult {
        let copied = self.user_copy(ring, io, file::read_exact_at);
        copied.inspect_err(|_| self.metrics.refuse(io.op, io.len))
    }

    #[inline(never)]
    fn copy_to_user(&self, ring: &Ring, io: &Io) -> IoResult {
        let copied = self.user_copy(ring, io, |file, bytes, at| file::write_all_at(file, bytes, at));
        copied.inspect_err(|_| self.metrics.fail(io.op))
    }

    /// Moves all bytes of a request between the slot's buffer and the request's pages. It is a copy
    /// in memory, which does not block.
    fn user_copy(
        &self,
        ring: &Ring,
        io: &Io,
        mover: impl FnOnce(&File, &mut [u8], u64) -> std::io::Result<()>,
    ) -> IoResult {
        let mut payload = self.buffers.payload(ring, io)?;
        let position = user_copy_pos(self.queue, io.slot, 0);
        mover(self.device, payload.bytes_mut()?, position).map_err(Errno::from)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
    use std::sync::Arc;

    use blockhaus_uapi::ublk::op;

    use super::*;
    use crate::metrics::{OpStats, Stats};
    use crate::port::remote::Remote;

    /// A file as the device: it has a descriptor, and neither the pages of the request nor room for any.
    #[test]
    fn what_fails_before_and_after_the_loop_of_the_queue_is_counted() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let device = File::open(file.path()).unwrap();
        file.write_all(&[0; 1 << 16]).unwrap();
        let (ring, metrics) = (Ring::new(1, Remote::new(1).unwrap()).unwrap(), Arc::new(QueueMetrics::new()));
        let descriptors = Descriptors::map(&device, 0, 1, 24).unwrap();
        let buffers = Buffers::new(1, 4096).unwrap();
        let seat = Seat {
            device: &device,
            queue: 0,
            depth: 1,
            path: DataPath::UserCopy,
            registered_tags: 1,
            descriptors: &descriptors,
            buffers: &buffers,
            metrics: &metrics,
        };
        let mut describe = |op: u8| {
            file.seek(SeekFrom::Start(0)).unwrap();
            file.write_all(&[u32::from(op), 8].map(u32::to_le_bytes).concat()).unwrap();
        };
        let counted = |op: Op| {
            let stats = Stats::of(std::slice::from_ref(&metrics));
            let OpStats { requests, bytes, errors, .. } = stats.ops[op as usize];
            (requests, bytes, errors, stats.in_flight())
        };
        describe(op::WRITE);
        assert_eq!(seat.request(&ring, 0), Err(Errno::EIO));
        assert_eq!(counted(Op::Write), (1, 4096, 1, 0));
        seat.count_unregistered(0);
        assert_eq!(counted(Op::Write), (2, 8192, 2, 0));
        describe(op::READ);
        let io = seat.request(&ring, 0).unwrap();
        // As the loop counts what it has served.
        metrics.take();
        metrics.complete(io.op, io.len, false);
        assert!(seat.outcome(&ring, &io, Ok(())) < 0, "the file is not open for writing");
        assert_eq!(counted(Op::Read), (1, 4096, 1, 0));
    }
}
