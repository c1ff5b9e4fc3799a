//! The front end of one command a tag: fetch, and then commit-and-fetch in one entry of the ring.

use blockhaus_uapi::ublk::{IoCmd, io_cmd, res};

use super::descriptors::Descriptors;
use crate::error::{Error, Result};
use crate::io::{Io, IoResult, Op};
use crate::port::ring::{FixedFile, Ring};
use crate::queue::{Arrival, Buffers, FrontEnd};

/// One queue's tags; a tag's number is its slot's.
#[derive(Debug)]
pub(super) struct PerTag<'a> {
    device: FixedFile,
    queue: u16,
    depth: u16,
    descriptors: &'a Descriptors,
    buffers: &'a Buffers,
    /// Tags that the driver has given back for good.
    aborted: u16,
}

impl<'a> PerTag<'a> {
    pub fn new(
        device: FixedFile,
        queue: u16,
        depth: u16,
        descriptors: &'a Descriptors,
        buffers: &'a Buffers,
    ) -> PerTag<'a> {
        PerTag { device, queue, depth, descriptors, buffers, aborted: 0 }
    }

    #[inline]
    fn send(&self, ring: &Ring, opcode: u32, tag: u16, result: i32) -> Result<()> {
        let command = IoCmd { q_id: self.queue, tag, result, addr: self.buffers.address(tag) };
        // SAFETY: IoCmd is 16 bytes of plain numbers without padding (asserted in uapi).
        let bytes: [u8; size_of::<IoCmd>()] = unsafe { std::mem::transmute(command) };
        ring.command(self.device, opcode, bytes, u32::from(tag))
            .map_err(|error| Error::system(format!("cannot send a command of queue {}", self.queue), error))
    }
}

impl FrontEnd for PerTag<'_> {
    fn start(&mut self, ring: &Ring) -> Result<()> {
        (0..self.depth).try_for_each(|tag| self.send(ring, io_cmd::FETCH_REQ, tag, 0))
    }

    #[inline]
    fn arrived(&mut self, ring: &Ring, number: u32, result: i32) -> Result<Arrival> {
        let tag = number as u16;
        match result {
            res::OK => match self.descriptors.request(tag) {
                Ok(io) => Ok(Arrival::One(io)),
                Err(errno) => {
                    self.send(ring, io_cmd::COMMIT_AND_FETCH_REQ, tag, -errno.number())?;
                    Ok(Arrival::Nothing)
                }
            },
            res::ABORT => {
                self.aborted += 1;
                Ok(Arrival::Nothing)
            }
            _ => Err(Error::system(
                format!("the driver refused tag {tag} of queue {}", self.queue),
                std::io::Error::from_raw_os_error(-result),
            )),
        }
    }

    #[inline]
    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        let result = match (result, io.op) {
            // The buffer holds a u32 of bytes at most, checked where the payload was made.
            (Ok(()), Op::Read | Op::Write) => io.len as i32,
            (Ok(()), _) => 0,
            (Err(errno), _) => -errno.number(),
        };
        self.send(ring, io_cmd::COMMIT_AND_FETCH_REQ, io.slot, result)
    }

    fn finished(&self) -> bool {
        self.aborted == self.depth
    }
}
