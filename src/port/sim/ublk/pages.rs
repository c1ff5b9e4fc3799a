//! The pages of a request: what its user wrote, or where what is read goes. They are copied by the
//! driver, copied by the server through the character device, or registered with a ring.

use std::io;

use blockhaus_uapi::ublk::{
    AutoBufReg, AutoBufRegFlags, Features, IO_BUF_OFFSET, IoCmd, QID_OFF, TAG_OFF, io_cmd,
};

use super::{Device, Driver, InFlight, Request, TagState};
use crate::io::Op;
use crate::payload::Place;
use crate::port::ring::Token;
use crate::port::sim::memory;
use crate::port::sim::world::State;

/// What pages hold that nobody has read into.
fn stale(len: usize) -> Vec<u8> {
    [0xa5; 512].repeat(len.div_ceil(512))[..len].to_vec()
}

/// Where the bytes of an operation are.
#[derive(Clone, Copy, Debug)]
pub(in crate::port::sim) enum Memory {
    /// In the server.
    Server(u64),
    /// In the pages of a request, which are registered.
    Pages { request: u64, offset: usize },
}

/// Pages of a tag's request in a ring's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registered {
    ring: usize,
    index: u16,
    by_hand: bool,
}

/// A copy that the server makes through the character device.
pub(in crate::port::sim) enum UserCopy<'a> {
    FromPages(&'a mut [u8]),
    IntoPages(&'a [u8]),
}

impl InFlight {
    pub fn new(mut request: Request, device: u32) -> InFlight {
        let pages = match request.op {
            Op::Read => stale(request.len as usize),
            _ => std::mem::take(&mut request.data),
        };
        InFlight { request, device, pages, result: None, delivered: false }
    }

    pub fn has_data(&self) -> bool {
        matches!(self.request.op, Op::Read | Op::Write)
    }
}

impl Device {
    fn has(&self, features: Features) -> bool {
        self.info.flags.intersects(features)
    }

    /// Whether the driver copies by itself.
    pub fn maps(&self) -> bool {
        !self.has(Features::USER_COPY | Features::SUPPORT_ZERO_COPY | Features::AUTO_BUF_REG)
    }

    /// Whether a write's data is to be asked for.
    pub fn gives_data_when_asked(&self) -> bool {
        self.maps() && self.has(Features::NEED_GET_DATA)
    }

    pub fn registers(&self) -> bool {
        self.has(Features::AUTO_BUF_REG)
    }

    /// What is wrong with a command's addresses, if something is.
    pub fn wrong_address(&self, opcode: u32, command: IoCmd, address: Option<u64>) -> Option<&'static str> {
        let buffer = AutoBufReg::from_sqe_addr(address.unwrap_or(0));
        let known = (buffer.flags - AutoBufRegFlags::FALLBACK).is_empty();
        match (self.maps(), command.addr) {
            _ if address.is_some() && !self.registers() => {
                Some("asks for automatic registration, which it has not got")
            }
            _ if !known || buffer.reserved0 != 0 || buffer.reserved1 != 0 => {
                Some("asks for an automatic registration that there is not")
            }
            (true, 0) if opcode == io_cmd::NEED_GET_DATA || !self.gives_data_when_asked() => {
                Some("has no buffer")
            }
            (false, 1..) => Some("has a buffer that nothing is copied to"),
            _ => None,
        }
    }
}

impl Driver {
    /// Stores bytes that were read from a disk.
    ///
    /// # Safety
    /// As [`memory::store`].
    pub unsafe fn store(&mut self, at: Memory, bytes: &[u8]) {
        match at {
            // SAFETY: the caller's promise.
            Memory::Server(address) => unsafe { memory::store(address, bytes) },
            Memory::Pages { request, offset } => {
                if let Some(in_flight) = self.requests.get_mut(&request) {
                    in_flight.pages[offset..offset + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
    }

    /// Loads bytes that are to be written to a disk.
    ///
    /// # Safety
    /// As [`memory::load`].
    pub unsafe fn load(&self, at: Memory, len: usize) -> Vec<u8> {
        match at {
            // SAFETY: the caller's promise.
            Memory::Server(address) => unsafe { memory::load(address, len) },
            Memory::Pages { request, offset } => match self.requests.get(&request) {
                Some(in_flight) => in_flight.pages[offset..offset + len].to_vec(),
                None => stale(len),
            },
        }
    }
}

impl State {
    /// Where the bytes of an operation are; EFAULT where no such buffer is registered, or one for the
    /// other direction.
    pub fn memory_of(&self, ring: usize, place: &Place, into_memory: bool) -> Result<Memory, i32> {
        let start = place.start as u64;
        let (Some(index), Some(table)) = (place.registered, &self.rings[ring].buffer_table) else {
            return Ok(Memory::Server(start));
        };
        let registered = table.get(usize::from(index)).copied().flatten();
        let request = registered.ok_or(libc::EFAULT)?;
        let pages = self.driver.requests.get(&request).ok_or(libc::EFAULT)?;
        let inside = start.checked_add(place.len as u64).is_some_and(|end| end <= pages.pages.len() as u64);
        if !inside || into_memory != (pages.request.op == Op::Read) {
            return Err(libc::EFAULT);
        }
        Ok(Memory::Pages { request, offset: start as usize })
    }

    /// Puts the pages of a tag's request into a ring's table.
    fn register(&mut self, ring: usize, index: u16, key: u64) -> Result<(), i32> {
        let table = self.rings[ring].buffer_table.as_mut().ok_or(libc::EINVAL)?;
        let place = table.get_mut(usize::from(index)).ok_or(libc::EINVAL)?;
        if place.is_some() {
            return Err(libc::EBUSY);
        }
        *place = Some(key);
        Ok(())
    }

    /// The driver registers the pages of a request that is about to be handed over: true where it could
    /// not, and the server has to see to it.
    pub(super) fn register_by_itself(
        &mut self,
        id: u32,
        queue: u16,
        number: u16,
        key: u64,
    ) -> Result<bool, i32> {
        let Some(device) = self.driver.devices.get_mut(&id) else { return Ok(false) };
        let has_data = self.driver.requests.get(&key).is_some_and(InFlight::has_data);
        if !device.registers() || !has_data {
            return Ok(false);
        }
        let tag = &mut device.queues[usize::from(queue)].tags[usize::from(number)];
        let (ring, buffer) = (tag.ring, tag.buffer);
        let refused = self.random.chance(self.driver.kernel.failed_registrations);
        let result = if refused { Err(libc::ENOMEM) } else { self.register(ring, buffer.index, key) };
        match result {
            Ok(()) => {
                self.note("registered", [key, buffer.index.into(), 0, 0]);
                let registered = Registered { ring, index: buffer.index, by_hand: false };
                if let Some(tag) = self.tag(id, queue, number) {
                    tag.registered = Some(registered);
                }
                Ok(false)
            }
            Err(errno) => {
                self.note("not registered", [key, errno as u64, 0, 0]);
                if buffer.flags.contains(AutoBufRegFlags::FALLBACK) { Ok(true) } else { Err(libc::EIO) }
            }
        }
    }

    /// REGISTER_IO_BUF and UNREGISTER_IO_BUF, for the request that a tag has in service.
    pub(super) fn buffer_command(&mut self, ring: usize, id: u32, opcode: u32, command: IoCmd, token: Token) {
        let (queue, number) = (command.q_id, command.tag);
        let who = format!("tag {number} of queue {queue}");
        let Some(device) = self.driver.devices.get(&id) else { return };
        let by_hand = device.has(Features::SUPPORT_ZERO_COPY);
        let index = command.addr as u16;
        let Some(tag) = self.tag(id, queue, number) else { return };
        let (state, registered) = (tag.state, tag.registered);
        let TagState::InService(key) = state else {
            return self.broken(
                ring,
                token,
                libc::EINVAL,
                format!("a buffer of {who}, which has no request"),
            );
        };
        let has_data = self.driver.requests.get(&key).is_some_and(InFlight::has_data);
        if !by_hand || !has_data || u64::from(index) != command.addr {
            return self.broken(ring, token, libc::EINVAL, format!("a buffer of {who} that it cannot have"));
        }
        let entry = Registered { ring, index, by_hand: true };
        let result = match (opcode, registered) {
            (io_cmd::REGISTER_IO_BUF, None) => self.register(ring, index, key).map(|()| Some(entry)),
            (io_cmd::UNREGISTER_IO_BUF, Some(known)) if known == entry => {
                self.unregister(known);
                Ok(None)
            }
            _ => {
                let why = format!("the pages of {who} were registered twice, or taken out and not in");
                return self.broken(ring, token, libc::EINVAL, why);
            }
        };
        self.note("buffer command", [key, u64::from(opcode & 0xff), index.into(), 0]);
        match result {
            Ok(registered) => {
                if let Some(tag) = self.tag(id, queue, number) {
                    tag.registered = registered;
                }
                self.complete(ring, token, 0);
            }
            Err(errno) => self.complete(ring, token, -errno),
        }
    }

    fn unregister(&mut self, registered: Registered) {
        let table = self.rings[registered.ring].buffer_table.as_mut();
        if let Some(place) = table.and_then(|table| table.get_mut(usize::from(registered.index))) {
            *place = None;
        }
    }

    /// At a commit the driver takes out what it put in. What the server put in it must have taken out,
    /// or its user would wait for that.
    pub(super) fn take_pages_back(&mut self, id: u32, queue: u16, number: u16) -> Result<(), String> {
        let Some(registered) = self.tag(id, queue, number).and_then(|tag| tag.registered.take()) else {
            return Ok(());
        };
        if registered.by_hand {
            return Err(format!("tag {number} of queue {queue} was committed with its pages registered"));
        }
        self.unregister(registered);
        Ok(())
    }

    /// The server copies between its memory and a request's pages.
    pub fn user_copy(&mut self, id: u32, position: u64, copy: UserCopy<'_>) -> io::Result<()> {
        let refused = |state: &mut State, why: &str| {
            state.fail(format!("a rule of the driver was broken: a user copy {why}"));
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        };
        let Some(place) = position.checked_sub(IO_BUF_OFFSET) else {
            return refused(self, "outside the requests");
        };
        let (queue, number) = ((place >> QID_OFF) as u16, (place >> TAG_OFF) as u16);
        let offset = (place & ((1 << TAG_OFF) - 1)) as usize;
        let may = self.driver.devices.get(&id).is_some_and(|device| device.has(Features::USER_COPY));
        let Some(TagState::InService(key)) = self.tag(id, queue, number).map(|tag| tag.state) else {
            return refused(self, "of a tag without a request");
        };
        let lost = matches!(copy, UserCopy::IntoPages(_))
            && self.config.bug == Some(super::super::world::Bug::UserCopyLost)
            && self.random.chance(50);
        let Some(in_flight) = self.driver.requests.get_mut(&key).filter(|_| may) else {
            return refused(self, "on a device that has none");
        };
        let (op, size) = (in_flight.request.op, in_flight.pages.len());
        let len = match (&copy, op) {
            (UserCopy::FromPages(bytes), Op::Write) => bytes.len(),
            (UserCopy::IntoPages(bytes), Op::Read) => bytes.len(),
            _ => return refused(self, "in the wrong direction"),
        };
        if offset + len > size {
            return refused(self, "beyond the request");
        }
        match copy {
            UserCopy::FromPages(bytes) => bytes.copy_from_slice(&in_flight.pages[offset..offset + len]),
            UserCopy::IntoPages(_) if lost => {}
            UserCopy::IntoPages(bytes) => in_flight.pages[offset..offset + len].copy_from_slice(bytes),
        }
        self.note("user copy", [key, offset as u64, len as u64, 0]);
        Ok(())
    }
}
