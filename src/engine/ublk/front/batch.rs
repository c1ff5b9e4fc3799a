//! The front end of batches (`UBLK_F_BATCH_IO`, since Linux 7.0): one command fetches the tags of many
//! requests for ever, and one command completes all that were served in a turn of the loop.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use blockhaus_uapi::ublk::{BatchFlags, BatchIo, ElemHeader, io_cmd, res};

use super::Seat;
use crate::engine::ublk::data_path::DataPath;
use crate::error::{Error, Result};
use crate::io::{Errno, Io, IoResult};
use crate::port::memory::{HugePages, Mapping};
use crate::port::ring::{Completion, FixedFile, Ring};
use crate::queue::{Arrival, FrontEnd};

/// Arrays of commits that can be on their way at once. The kernel reads one while it is submitted; a second
/// is for a command that it puts off.
const ARRAYS: u16 = 2;

/// Most tags in a completion of the fetch (`MAX_NR_TAG` in the driver).
const TAGS_AT_ONCE: u16 = 128;

/// The commands, told apart by the upper half of their number; the lower one is an array's or a tag's.
const PREPARED: u32 = 1 << 16;
const FETCHED: u32 = 2 << 16;
const COMMITTED: u32 = 3 << 16;
const ALONE: u32 = 4 << 16;

/// One request in a command: `ublk_elem_header`, and the address of its buffer where the driver copies.
#[derive(Clone, Copy)]
#[repr(C)]
struct Element {
    header: ElemHeader,
    address: u64,
}

/// Memory for the elements of commands, which the kernel reads: to be dropped after the ring.
#[derive(Debug)]
pub(in crate::engine::ublk) struct Elements {
    memory: Mapping,
    /// Not to be shared with another thread.
    thread: PhantomData<*mut u8>,
    depth: u16,
    /// The elements have 8 bytes, or 16.
    has_address: bool,
}

impl Elements {
    /// For a queue of this depth and path.
    pub fn new(depth: u16, path: DataPath) -> io::Result<Elements> {
        let has_address = path == DataPath::BatchCopy;
        // The arrays, and for each tag one that goes alone.
        let count = u64::from(depth) * u64::from(ARRAYS + 1);
        let mut memory = Mapping::anonymous(count * size_of::<Element>() as u64, HugePages::Never)?;
        memory.touch();
        Ok(Elements { memory, thread: PhantomData, depth, has_address })
    }

    /// Bytes of one.
    #[inline]
    fn len(&self) -> usize {
        if self.has_address { size_of::<Element>() } else { size_of::<ElemHeader>() }
    }

    /// Address of an element: `at` in `array`, of which the last one is for those that go alone.
    #[inline]
    fn address(&self, array: u16, at: u16) -> u64 {
        let array = usize::from(array) * usize::from(self.depth) * size_of::<Element>();
        (self.memory.start().as_ptr() as usize + array + usize::from(at) * self.len()) as u64
    }

    /// Writes an element, of which the kernel reads nothing at the moment.
    #[inline]
    fn write(&self, array: u16, at: u16, element: &Element) {
        assert!(array <= ARRAYS && at < self.depth, "an element outside its array");
        let to = self.address(array, at) as *mut u64;
        // SAFETY: inside the mapping, by the assertion; a multiple of 8 from its start, and so aligned. Only this
        // thread has the address.
        unsafe {
            to.cast::<ElemHeader>().write(element.header);
            if self.has_address {
                to.add(1).write(element.address);
            }
        }
    }
}

/// A command with an array of elements that is on its way.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    /// How many of the array's elements have been dealt with, and how many there are; none where it is free.
    done: u16,
    count: u16,
}

/// A queue's tags, in batches; a tag's number is its slot's, and that of its registered buffer.
#[derive(Debug)]
pub(in crate::engine::ublk) struct Batch<'a> {
    seat: Seat<'a>,
    device: FixedFile,
    elements: &'a Elements,
    flags: BatchFlags,
    /// Tags with a request, of which so many were looked at already.
    arrived: Vec<u16>,
    looked_at: usize,
    sent: [Sent; ARRAYS as usize],
    /// An array that is not on its way, where there is one, and how many elements it has by now.
    open: Option<u16>,
    filled: u16,
    /// The last of them.
    last: (u16, i32),
    /// What was served while both arrays were on their way.
    waiting: Vec<(u16, i32)>,
    /// The fetch is over for good: the device is going away.
    over: bool,
}

impl<'a> Batch<'a> {
    /// Registers the device with the ring, and what the path needs.
    pub fn new(seat: Seat<'a>, elements: &'a Elements, ring: &Ring) -> io::Result<Batch<'a>> {
        let device = ring.register_file(seat.device.as_raw_fd())?;
        let mut flags = BatchFlags::HAS_BUF_ADDR;
        if seat.path.registers() {
            ring.register_buffer_table(seat.registered_tags)?;
            flags = BatchFlags::AUTO_BUF_REG_FALLBACK;
        }
        // Each completion has a tag at least, and so there is always a buffer, as long as completions fit the
        // ring.
        let tags = seat.depth.min(TAGS_AT_ONCE);
        ring.provide_buffers(seat.depth.next_power_of_two(), u32::from(tags) * size_of::<u16>() as u32)?;
        let depth = usize::from(seat.depth);
        Ok(Batch {
            seat,
            device,
            elements,
            flags,
            arrived: Vec::with_capacity(depth),
            looked_at: 0,
            sent: Default::default(),
            open: Some(0),
            filled: 0,
            last: (0, 0),
            waiting: Vec::with_capacity(depth),
            over: false,
        })
    }

    #[inline]
    fn element(&self, tag: u16, result: i32) -> Element {
        let (address, buf_index) = match self.seat.path.registers() {
            true => (0, tag),
            false => (self.seat.buffers.address(tag), 0),
        };
        Element { header: ElemHeader { tag, buf_index, result }, address }
    }

    #[inline]
    fn command(&self, count: u16) -> [u8; size_of::<BatchIo>()] {
        let command = BatchIo {
            q_id: self.seat.queue,
            flags: self.flags,
            nr_elem: count,
            elem_bytes: self.elements.len() as u8,
            ..BatchIo::default()
        };
        bytes(command)
    }

    #[cold]
    fn failed(&self, what: &str, error: io::Error) -> Error {
        self.seat.failed(what, error)
    }

    /// A result is to be sent at the end of the turn.
    #[inline]
    fn served(&mut self, tag: u16, result: i32) {
        match self.open {
            Some(array) => {
                self.elements.write(array, self.filled, &self.element(tag, result));
                self.filled += 1;
                self.last = (tag, result);
            }
            None => self.served_later(tag, result),
        }
    }

    #[cold]
    fn served_later(&mut self, tag: u16, result: i32) {
        self.waiting.push((tag, result));
    }

    #[cold]
    fn refused(&mut self, tag: u16, errno: Errno) {
        self.served(tag, -errno.number());
    }

    fn fetch(&self, ring: &Ring) -> Result<()> {
        let command =
            BatchIo { q_id: self.seat.queue, elem_bytes: size_of::<u16>() as u8, ..BatchIo::default() };
        ring.multishot_command(self.device, io_cmd::FETCH_IO_CMDS, bytes(command), FETCHED)
            .map_err(|error| self.failed("cannot send a command", error))
    }

    /// Sends what is left of an array.
    #[inline]
    fn commit(&self, ring: &Ring, array: u16) -> Result<()> {
        let Sent { done, count } = self.sent[usize::from(array)];
        let address = self.elements.address(array, done);
        let (opcode, number) = (io_cmd::COMMIT_IO_CMDS, COMMITTED | u32::from(array));
        ring.command(self.device, opcode, self.command(count - done), Some(address), number)
            .map_err(|error| self.failed("cannot send a command", error))
    }

    /// Sends one result. Of one element none or all is dealt with, so that only a failure has something to say.
    #[inline]
    fn commit_one(&self, ring: &Ring, tag: u16, result: i32) -> Result<()> {
        self.elements.write(ARRAYS, tag, &self.element(tag, result));
        let (address, number) = (self.elements.address(ARRAYS, tag), ALONE | u32::from(tag));
        ring.quiet_command(self.device, io_cmd::COMMIT_IO_CMDS, self.command(1), address, number)
            .map_err(|error| self.failed("cannot send a command", error))
    }

    /// A commit came back, with the bytes of its elements that were dealt with: perhaps not all.
    fn committed(&mut self, ring: &Ring, array: u16, result: i32) -> Result<()> {
        let element_len = self.elements.len();
        let Some(sent) = self.sent.get_mut(usize::from(array)) else { return Ok(()) };
        let Ok(bytes) = usize::try_from(result) else {
            return Err(self.failed("the driver took none of a batch", io::Error::from_raw_os_error(-result)));
        };
        sent.done += (bytes / element_len).min(usize::from(sent.count - sent.done)) as u16;
        if sent.done != sent.count {
            // What it stopped at is refused by itself now, if there is a reason.
            return self.commit(ring, array);
        }
        *sent = Sent::default();
        if self.open.is_none() {
            self.open = Some(array);
            for at in 0..self.waiting.len() {
                let (tag, result) = self.waiting[at];
                self.served(tag, result);
            }
            self.waiting.clear();
        }
        Ok(())
    }

    /// The fetch brought tags, or came to an end.
    #[inline]
    fn fetched(&mut self, ring: &Ring, completion: &Completion) -> Result<Arrival> {
        // Where a turn was full there are some that nobody has looked at; there are never more than tags.
        self.arrived.drain(..self.looked_at);
        self.looked_at = 0;
        ring.take_numbers(completion, &mut self.arrived);
        if let Some(&tag) = self.arrived.iter().find(|&&tag| tag >= self.seat.depth) {
            let error = io::Error::other(format!("it names tag {tag}, and there are {}", self.seat.depth));
            return Err(self.failed("the driver brought something strange", error));
        }
        if !completion.more() {
            self.fetch_ended(ring, completion.result)?;
        }
        match self.arrived.len() {
            1 => Ok(self.next(ring)?.map_or(Arrival::Nothing, Arrival::One)),
            _ => Ok(Arrival::Many),
        }
    }

    fn fetch_ended(&mut self, ring: &Ring, result: i32) -> Result<()> {
        /// ENOBUFS: there was no buffer at that moment.
        const NO_BUFFER: i32 = -105;
        match result {
            res::ABORT => self.over = true,
            0.. | NO_BUFFER => self.fetch(ring)?,
            error => {
                return Err(self.failed("the driver ended the fetch", io::Error::from_raw_os_error(-error)));
            }
        }
        Ok(())
    }
}

impl FrontEnd for Batch<'_> {
    fn start(&mut self, ring: &Ring) -> Result<()> {
        for tag in 0..self.seat.depth {
            self.elements.write(0, tag, &self.element(tag, 0));
        }
        let (opcode, address) = (io_cmd::PREP_IO_CMDS, self.elements.address(0, 0));
        ring.command(self.device, opcode, self.command(self.seat.depth), Some(address), PREPARED)
            .map_err(|error| self.failed("cannot send a command", error))
    }

    #[inline]
    fn arrived(&mut self, ring: &Ring, number: u32, completion: &Completion) -> Result<Arrival> {
        match (number & !0xffff, completion.result) {
            (FETCHED, _) => return self.fetched(ring, completion),
            (COMMITTED, result) => self.committed(ring, number as u16, result)?,
            (PREPARED, 0..) => self.fetch(ring)?,
            (kind, error) => {
                let what = match kind {
                    PREPARED => "the driver refused the queue's tags".to_owned(),
                    _ => format!("the driver refused what was served of tag {}", number as u16),
                };
                return Err(self.failed(&what, io::Error::from_raw_os_error(-error)));
            }
        }
        Ok(Arrival::Nothing)
    }

    #[inline]
    fn next(&mut self, ring: &Ring) -> Result<Option<Io>> {
        while let Some(&tag) = self.arrived.get(self.looked_at) {
            self.looked_at += 1;
            match self.seat.request(ring, tag) {
                Ok(io) => return Ok(Some(io)),
                Err(errno) => self.refused(tag, errno),
            }
        }
        Ok(None)
    }

    #[inline]
    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        let result = self.seat.outcome(ring, io, result);
        self.served(io.slot, result);
        Ok(())
    }

    #[inline]
    fn can_chain(&self, io: &Io) -> bool {
        self.seat.hides(io)
    }

    fn chains(&self) -> bool {
        self.seat.path.registers()
    }

    fn chain(&mut self, ring: &Ring, io: &Io) -> Result<()> {
        self.commit_one(ring, io.slot, io.len as i32)
    }

    /// Sends what was served in this turn, or lets it wait for an array: one comes back then.
    #[inline]
    fn end_turn(&mut self, ring: &Ring, _full: bool) -> Result<bool> {
        let Some(array) = self.open.filter(|_| self.filled != 0) else { return Ok(false) };
        let count = std::mem::take(&mut self.filled);
        if count == 1 {
            return self.commit_one(ring, self.last.0, self.last.1).map(|()| false);
        }
        self.sent[usize::from(array)] = Sent { done: 0, count };
        self.open = (0..ARRAYS).find(|&other| self.sent[usize::from(other)].count == 0);
        self.commit(ring, array)?;
        Ok(false)
    }

    fn finished(&self) -> bool {
        self.over && self.filled == 0 && self.waiting.is_empty()
    }
}

fn bytes(command: BatchIo) -> [u8; size_of::<BatchIo>()] {
    // SAFETY: BatchIo is 16 bytes of plain numbers without padding (asserted in uapi).
    unsafe { std::mem::transmute(command) }
}
