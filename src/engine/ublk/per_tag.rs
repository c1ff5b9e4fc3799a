//! The front end of one command a tag: fetch, and then commit-and-fetch in one entry of the ring.

use std::fs::File;
use std::os::fd::AsRawFd;

use blockhaus_uapi::ublk::{AutoBufReg, AutoBufRegFlags, IoCmd, io_cmd, res, user_copy_pos};

use super::data_path::DataPath;
use super::descriptors::Descriptors;
use crate::error::{Error, Result};
use crate::io::{Errno, Io, IoResult, Op};
use crate::port::file;
use crate::port::ring::{FixedFile, Ring};
use crate::queue::{Arrival, Buffers, FrontEnd};

/// What a front end of this kind works with.
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
}

/// One queue's tags; a tag's number is its slot's, and that of its registered buffer.
#[derive(Debug)]
pub(super) struct PerTag<'a> {
    seat: Seat<'a>,
    device: FixedFile,
    /// Tags that the driver has given back for good.
    aborted: u16,
}

/// The commands of a tag, told apart by the upper half of their number.
const FETCHED: u32 = 0;
const REGISTERED: u32 = 1 << 16;
const UNREGISTERED: u32 = 2 << 16;

impl<'a> PerTag<'a> {
    /// Registers the device with the ring, and the table of buffers where the data path needs one.
    pub fn new(seat: Seat<'a>, ring: &Ring) -> std::io::Result<PerTag<'a>> {
        let device = ring.register_file(seat.device.as_raw_fd())?;
        if seat.path.hides() {
            ring.register_buffer_table(seat.registered_tags)?;
        }
        Ok(PerTag { seat, device, aborted: 0 })
    }

    fn failed(&self, what: &str, error: std::io::Error) -> Error {
        Error::system(format!("queue {}: {what}", self.seat.queue), error)
    }

    #[inline]
    fn send(&self, ring: &Ring, opcode: u32, tag: u16, result: i32) -> Result<()> {
        let (addr, entry_address) = match self.seat.path {
            DataPath::Copy | DataPath::GetData => (self.seat.buffers.address(tag), None),
            // The driver refuses an address that it would not use.
            DataPath::UserCopy | DataPath::ZeroCopy => (0, None),
            DataPath::AutoBuf => {
                let buffer =
                    AutoBufReg { index: tag, flags: AutoBufRegFlags::FALLBACK, ..AutoBufReg::default() };
                (0, Some(buffer.to_sqe_addr()))
            }
        };
        let command = IoCmd { q_id: self.seat.queue, tag, result, addr };
        self.push(ring, opcode, command, entry_address, FETCHED)
    }

    #[inline]
    fn push(
        &self,
        ring: &Ring,
        opcode: u32,
        command: IoCmd,
        address: Option<u64>,
        number: u32,
    ) -> Result<()> {
        // SAFETY: IoCmd is 16 bytes of plain numbers without padding (asserted in uapi).
        let bytes: [u8; size_of::<IoCmd>()] = unsafe { std::mem::transmute(command) };
        ring.command(self.device, opcode, bytes, address, number | u32::from(command.tag))
            .map_err(|error| self.failed("cannot send a command", error))
    }

    /// REGISTER_IO_BUF or UNREGISTER_IO_BUF: the tag's pages at the tag's place in the ring's table.
    fn buffer_command(&self, ring: &Ring, opcode: u32, tag: u16, number: u32) -> Result<()> {
        let command = IoCmd { q_id: self.seat.queue, tag, result: 0, addr: u64::from(tag) };
        self.push(ring, opcode, command, None, number)
    }

    #[inline]
    fn commit(&self, ring: &Ring, tag: u16, result: i32) -> Result<()> {
        self.send(ring, io_cmd::COMMIT_AND_FETCH_REQ, tag, result)
    }

    #[inline]
    fn refuse(&self, ring: &Ring, tag: u16, errno: Errno) -> Result<Arrival> {
        self.commit(ring, tag, -errno.number())?;
        Ok(Arrival::Nothing)
    }

    /// A request was fetched: makes its data ready, where that is not the driver's work.
    #[inline]
    fn fetched(&self, ring: &Ring, tag: u16) -> Result<Arrival> {
        let (io, unregistered) = match self.seat.descriptors.request(tag) {
            Ok(request) => request,
            Err(errno) => return self.refuse(ring, tag, errno),
        };
        let has_data = matches!(io.op, Op::Read | Op::Write);
        match self.seat.path {
            DataPath::Copy | DataPath::GetData => Ok(Arrival::One(io)),
            DataPath::AutoBuf if has_data => {
                self.seat.buffers.show(tag, unregistered);
                if unregistered { self.copied_in(ring, io) } else { Ok(Arrival::One(io)) }
            }
            DataPath::UserCopy => self.copied_in(ring, io),
            DataPath::ZeroCopy if has_data => {
                self.buffer_command(ring, io_cmd::REGISTER_IO_BUF, tag, REGISTERED)?;
                Ok(Arrival::Nothing)
            }
            DataPath::AutoBuf | DataPath::ZeroCopy => Ok(Arrival::One(io)),
        }
    }

    /// A write's data, read from the character device into the slot's buffer.
    fn copied_in(&self, ring: &Ring, io: Io) -> Result<Arrival> {
        if io.op == Op::Write
            && let Err(errno) = self.user_copy(ring, &io, file::read_exact_at)
        {
            return self.refuse(ring, io.slot, errno);
        }
        Ok(Arrival::One(io))
    }

    /// Moves all bytes of a request between the slot's buffer and the request's pages. It is a copy
    /// in memory, which does not block.
    fn user_copy(
        &self,
        ring: &Ring,
        io: &Io,
        mover: impl FnOnce(&File, &mut [u8], u64) -> std::io::Result<()>,
    ) -> IoResult {
        let mut payload = self.seat.buffers.payload(ring, io)?;
        let position = user_copy_pos(self.seat.queue, io.slot, 0);
        mover(self.seat.device, payload.bytes_mut()?, position).map_err(Errno::from)
    }
}

impl FrontEnd for PerTag<'_> {
    fn start(&mut self, ring: &Ring) -> Result<()> {
        (0..self.seat.depth).try_for_each(|tag| self.send(ring, io_cmd::FETCH_REQ, tag, 0))
    }

    #[inline]
    fn arrived(&mut self, ring: &Ring, number: u32, result: i32) -> Result<Arrival> {
        let tag = number as u16;
        match (number & !0xffff, result) {
            (FETCHED, res::OK) => self.fetched(ring, tag),
            (FETCHED, res::NEED_GET_DATA) => {
                self.send(ring, io_cmd::NEED_GET_DATA, tag, 0)?;
                Ok(Arrival::Nothing)
            }
            (FETCHED, res::ABORT) => {
                self.aborted += 1;
                Ok(Arrival::Nothing)
            }
            (FETCHED, error) => Err(self
                .failed(&format!("the driver refused tag {tag}"), std::io::Error::from_raw_os_error(-error))),
            (REGISTERED, 0..) => match self.seat.descriptors.request(tag) {
                Ok((io, _)) => Ok(Arrival::One(io)),
                Err(errno) => self.refuse(ring, tag, errno),
            },
            (REGISTERED, error) => self.refuse(ring, tag, Errno::new(-error)),
            (_, 0..) => Ok(Arrival::Nothing),
            (_, error) => Err(self.failed(
                &format!("the pages of tag {tag} cannot be given back"),
                std::io::Error::from_raw_os_error(-error),
            )),
        }
    }

    #[inline]
    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        let mut result = result;
        if matches!(io.op, Op::Read | Op::Write) {
            match self.seat.path {
                DataPath::UserCopy | DataPath::AutoBuf
                    if io.op == Op::Read && result.is_ok() && !self.seat.buffers.is_hidden(io.slot) =>
                {
                    result = self.user_copy(ring, io, |file, bytes, at| file::write_all_at(file, bytes, at));
                }
                // Carried out before the commit, which stands behind it in the ring.
                DataPath::ZeroCopy => {
                    self.buffer_command(ring, io_cmd::UNREGISTER_IO_BUF, io.slot, UNREGISTERED)?;
                }
                _ => {}
            }
        }
        let result = match (result, io.op) {
            // A request's bytes fit its slot's buffer, and so an i32; checked where the payload was made.
            (Ok(()), Op::Read | Op::Write) => io.len as i32,
            (Ok(()), _) => 0,
            (Err(errno), _) => -errno.number(),
        };
        self.commit(ring, io.slot, result)
    }

    #[inline]
    fn can_chain(&self, io: &Io) -> bool {
        // Not by other paths that hide nothing: older kernels have these, too, and Linux 6.12 reads a chained
        // command's entry when its turn comes, by when it can be another's: a commit for a wrong tag.
        matches!(io.op, Op::Read | Op::Write)
            && self.seat.path == DataPath::AutoBuf
            && self.seat.buffers.is_hidden(io.slot)
    }

    fn finished(&self) -> bool {
        self.aborted == self.seat.depth
    }
}
