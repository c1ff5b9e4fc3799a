//! The front end of batches (`UBLK_F_BATCH_IO`, since Linux 7.0): one command fetches the tags of many
//! requests for ever, and one command completes all that were served in a turn of the loop.

use std::collections::VecDeque;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use blockhaus_uapi::ublk::{BatchFlags, BatchIo, ElemHeader, io_cmd, res};

use super::Seat;
use crate::engine::ublk::data_path::DataPath;
use crate::error::{Error, Result};
use crate::io::{Io, IoResult};
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
    depth: u16,
    /// 8 or 16.
    element_len: u8,
}

impl Elements {
    /// For a queue of this depth and path.
    pub fn new(depth: u16, path: DataPath) -> io::Result<Elements> {
        let element_len =
            if path == DataPath::BatchCopy { size_of::<Element>() } else { size_of::<ElemHeader>() };
        // The arrays, and for each tag one that goes alone.
        let count = u64::from(depth) * u64::from(ARRAYS + 1);
        let mut memory = Mapping::anonymous(count * element_len as u64, HugePages::Never)?;
        memory.touch();
        Ok(Elements { memory, depth, element_len: element_len as u8 })
    }

    /// Address of an element: `at` in `array`, of which the last one is for those that go alone.
    #[inline]
    fn address(&self, array: u16, at: u16) -> u64 {
        let number = usize::from(array) * usize::from(self.depth) + usize::from(at);
        (self.memory.start().as_ptr() as usize + number * usize::from(self.element_len)) as u64
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
            if usize::from(self.element_len) > size_of::<ElemHeader>() {
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
    /// Tags with a request that were not looked at yet.
    arrived: VecDeque<u16>,
    /// Tags in the last completion of the fetch.
    together: usize,
    /// What was served and not yet sent.
    served: Vec<(u16, i32)>,
    sent: [Sent; ARRAYS as usize],
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
        // Each completion has a tag at least, and so there is always a buffer.
        let tags = seat.depth.min(TAGS_AT_ONCE);
        ring.provide_buffers(seat.depth.next_power_of_two(), u32::from(tags) * size_of::<u16>() as u32)?;
        let depth = usize::from(seat.depth);
        Ok(Batch {
            seat,
            device,
            elements,
            flags,
            arrived: VecDeque::with_capacity(depth),
            together: 0,
            served: Vec::with_capacity(depth),
            sent: Default::default(),
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
            elem_bytes: self.elements.element_len,
            ..BatchIo::default()
        };
        bytes(command)
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        self.seat.failed(what, error)
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
        let element_len = usize::from(self.elements.element_len);
        let Some(sent) = self.sent.get_mut(usize::from(array)) else { return Ok(()) };
        let Ok(bytes) = usize::try_from(result) else {
            return Err(self.failed("the driver took none of a batch", io::Error::from_raw_os_error(-result)));
        };
        sent.done += (bytes / element_len).min(usize::from(sent.count - sent.done)) as u16;
        match sent.done == sent.count {
            true => *sent = Sent::default(),
            // What it stopped at is refused by itself now, if there is a reason.
            false => return self.commit(ring, array),
        }
        Ok(())
    }

    /// The fetch brought tags, or came to an end.
    #[inline]
    fn fetched(&mut self, ring: &Ring, completion: &Completion) -> Result<Arrival> {
        /// ENOBUFS: there was no buffer at that moment.
        const NO_BUFFER: i32 = -105;
        let before = self.arrived.len();
        ring.take_numbers(completion, &mut self.arrived);
        self.together = self.arrived.len() - before;
        if let Some(&tag) = self.arrived.range(before..).find(|&&tag| tag >= self.seat.depth) {
            let error = io::Error::other(format!("it names tag {tag}, and there are {}", self.seat.depth));
            return Err(self.failed("the driver brought something strange", error));
        }
        if !completion.more() {
            match completion.result {
                res::ABORT => self.over = true,
                0.. | NO_BUFFER => self.fetch(ring)?,
                error => {
                    let error = io::Error::from_raw_os_error(-error);
                    return Err(self.failed("the driver ended the fetch", error));
                }
            }
        }
        Ok(Arrival::Many)
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
        while let Some(tag) = self.arrived.pop_front() {
            match self.seat.request(ring, tag) {
                Ok(io) => return Ok(Some(io)),
                Err(errno) => self.served.push((tag, -errno.number())),
            }
        }
        Ok(None)
    }

    #[inline]
    fn complete(&mut self, ring: &Ring, io: &Io, result: IoResult) -> Result<()> {
        let result = self.seat.outcome(ring, io, result);
        self.served.push((io.slot, result));
        Ok(())
    }

    #[inline]
    fn can_chain(&self, io: &Io) -> bool {
        self.together == 1 && self.seat.hides(io)
    }

    fn chain(&mut self, ring: &Ring, io: &Io) -> Result<()> {
        self.commit_one(ring, io.slot, io.len as i32)
    }

    /// Sends what was served in this turn, or lets it wait for an array: one comes back then.
    #[inline]
    fn end_turn(&mut self, ring: &Ring, _full: bool) -> Result<bool> {
        match self.served[..] {
            [] => return Ok(false),
            [(tag, result)] => {
                self.served.clear();
                return self.commit_one(ring, tag, result).map(|()| false);
            }
            _ => {}
        }
        let Some(array) = self.sent.iter().position(|sent| sent.count == 0) else { return Ok(false) };
        let array = array as u16;
        for (at, &(tag, result)) in (0u16..).zip(&self.served) {
            self.elements.write(array, at, &self.element(tag, result));
        }
        self.sent[usize::from(array)] = Sent { done: 0, count: self.served.len() as u16 };
        self.served.clear();
        self.commit(ring, array)?;
        Ok(false)
    }

    fn finished(&self) -> bool {
        self.over && self.served.is_empty()
    }
}

fn bytes(command: BatchIo) -> [u8; size_of::<BatchIo>()] {
    // SAFETY: BatchIo is 16 bytes of plain numbers without padding (asserted in uapi).
    unsafe { std::mem::transmute(command) }
}
