//! The front end of one command a tag: fetch, and then commit-and-fetch in one entry of the ring.

use std::os::fd::AsRawFd;

use blockhaus_uapi::ublk::{AutoBufReg, AutoBufRegFlags, IoCmd, io_cmd, res};

use super::Seat;
use crate::engine::ublk::data_path::DataPath;
use crate::error::Result;
use crate::io::{Errno, Io, IoResult, Op};
use crate::port::ring::{Completion, FixedFile, Ring};
use crate::queue::{Arrival, FrontEnd};

/// One queue's tags; a tag's number is its slot's, and that of its registered buffer.
#[derive(Debug)]
pub(in crate::engine::ublk) struct PerTag<'a> {
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

    #[inline]
    fn send(&self, ring: &Ring, opcode: u32, tag: u16, result: i32) -> Result<()> {
        let (addr, entry_address) = match self.seat.path {
            DataPath::Copy | DataPath::GetData => (self.seat.buffers.address(tag), None),
            // The driver refuses an address that it would not use.
            DataPath::UserCopy | DataPath::ZeroCopy => (0, None),
            DataPath::AutoBuf | DataPath::BatchCopy | DataPath::BatchAutoBuf => {
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
            .map_err(|error| self.seat.failed("cannot send a command", error))
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

    /// A request was fetched: makes its data ready, where that is not the driver's work and was not asked for
    /// already.
    #[inline]
    fn fetched(&self, ring: &Ring, tag: u16) -> Result<Arrival> {
        match self.seat.request(ring, tag) {
            Ok(io) if self.seat.path == DataPath::ZeroCopy && matches!(io.op, Op::Read | Op::Write) => {
                self.buffer_command(ring, io_cmd::REGISTER_IO_BUF, tag, REGISTERED)?;
                Ok(Arrival::Coming(tag))
            }
            Ok(io) if self.seat.path == DataPath::GetData && io.op == Op::Write => Ok(Arrival::Ready(io)),
            Ok(io) => Ok(Arrival::One(io)),
            Err(errno) => self.refuse(ring, tag, errno),
        }
    }
}

impl FrontEnd for PerTag<'_> {
    fn start(&mut self, ring: &Ring) -> Result<()> {
        (0..self.seat.depth).try_for_each(|tag| self.send(ring, io_cmd::FETCH_REQ, tag, 0))
    }

    #[inline]
    fn arrived(&mut self, ring: &Ring, number: u32, completion: &Completion) -> Result<Arrival> {
        let tag = number as u16;
        match (number & !0xffff, completion.result) {
            (FETCHED, res::OK) => self.fetched(ring, tag),
            (FETCHED, res::NEED_GET_DATA) => {
                self.send(ring, io_cmd::NEED_GET_DATA, tag, 0)?;
                Ok(Arrival::Coming(tag))
            }
            (FETCHED, res::ABORT) => {
                self.aborted += 1;
                Ok(Arrival::Nothing)
            }
            (FETCHED, error) => Err(self
                .seat
                .failed(&format!("the driver refused tag {tag}"), std::io::Error::from_raw_os_error(-error))),
            (REGISTERED, 0..) => match self.seat.request(ring, tag) {
                Ok(io) => Ok(Arrival::Ready(io)),
                Err(errno) => self.refuse(ring, tag, errno),
            },
            (REGISTERED, error) => {
                self.seat.count_unregistered(tag);
                self.refuse(ring, tag, Errno::new(-error))
            }
            (_, 0..) => Ok(Arrival::Nothing),
            (_, error) => Err(self.seat.failed(
                &format!("the pages of tag {tag} cannot be given back"),
                std::io::Error::from_raw_os_error(-error),
            )),
        }
    }

    #[inline]
    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        let result = self.seat.outcome(ring, io, result);
        // Carried out before the commit, which stands behind it in the ring.
        if self.seat.path == DataPath::ZeroCopy && matches!(io.op, Op::Read | Op::Write) {
            self.buffer_command(ring, io_cmd::UNREGISTER_IO_BUF, io.slot, UNREGISTERED)?;
        }
        self.commit(ring, io.slot, result)
    }

    #[inline]
    fn can_chain(&self, io: &Io) -> bool {
        self.chains() && self.seat.hides(io)
    }

    #[inline]
    fn chains(&self) -> bool {
        // Not by other paths that hide nothing: older kernels have these, too, and Linux 6.12 reads a chained
        // command's entry when its turn comes, by when it can be another's: a commit for a wrong tag.
        self.seat.path == DataPath::AutoBuf
    }

    fn finished(&self) -> bool {
        self.aborted == self.seat.depth
    }
}
