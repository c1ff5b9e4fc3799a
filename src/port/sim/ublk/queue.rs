//! A device's queues: commands of the server, and the rules that they obey.

use std::io;
use std::os::unix::fs::FileExt;

use blockhaus_uapi::ublk::{
    AutoBufReg, CMD_BUF_OFFSET, IoCmd, IoDesc, IoFlags, MAX_QUEUE_DEPTH, io_cmd, op, res,
};

use super::{Device, Life, Request, Tag, TagState};
use crate::io::{Flags, Op};
use crate::port::ring::Token;
use crate::port::sim::file::Object;
use crate::port::sim::memory;
use crate::port::sim::schedule::Event;
use crate::port::sim::world::{Bug, State};
use crate::port::system::page_size;

/// Bytes of a descriptor. (A device that chose another size is for the day a server asks for one.)
const DESCRIPTOR: usize = size_of::<IoDesc>();

/// How far apart the descriptors of two queues lie, whatever their depth.
fn stride() -> u64 {
    (usize::from(MAX_QUEUE_DEPTH) * DESCRIPTOR).next_multiple_of(page_size()) as u64
}

impl Device {
    /// Bytes of the file that the descriptors are mapped from.
    pub(super) fn node_size(queues: u16) -> u64 {
        CMD_BUF_OFFSET + u64::from(queues) * stride()
    }
}

impl State {
    /// Where in the file a mapping of descriptors begins, by the driver's rule for mmap(2).
    pub fn descriptors_offset(&mut self, id: u32, offset: u64, len: u64) -> io::Result<u64> {
        let refused = Err(io::Error::from_raw_os_error(libc::EINVAL));
        let bug = self.config.bug == Some(Bug::StrideOfOwnDepth);
        let Some(device) = self.driver.device(id) else { return refused };
        let page = page_size() as u64;
        let own = (u64::from(device.info.queue_depth) * DESCRIPTOR as u64).next_multiple_of(page);
        let offset = if bug { offset / stride() * own } else { offset };
        let queue = (offset - CMD_BUF_OFFSET) / stride();
        if queue >= u64::from(device.info.nr_hw_queues) || len.next_multiple_of(page) != own {
            return refused;
        }
        Ok(CMD_BUF_OFFSET + queue * stride())
    }

    /// A command came into a ring.
    pub fn command(
        &mut self,
        ring: usize,
        file: Option<Object>,
        opcode: u32,
        bytes: [u8; 16],
        address: Option<u64>,
        token: Token,
    ) {
        if matches!(opcode, io_cmd::PREP_IO_CMDS | io_cmd::COMMIT_IO_CMDS) {
            return self.batch_command(ring, file, opcode, bytes, address, token);
        }
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let result = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let mut command = IoCmd { q_id: word(0), tag: word(2), result, addr: 0 };
        command.addr = u64::from_le_bytes(bytes[8..16].try_into().unwrap_or_default());
        let commits = opcode == io_cmd::COMMIT_AND_FETCH_REQ;
        let planted = commits.then_some(self.config.bug).flatten();
        let strikes = planted.is_some() && self.random.chance(50);
        match planted.filter(|_| strikes) {
            Some(Bug::CommitTwice) => {
                self.obey(ring, file, opcode, command, address, token);
            }
            Some(Bug::CommitForAnother) => command.tag ^= 1,
            Some(Bug::CommitLost) => return,
            Some(Bug::CommitShort) if command.result >= 1024 => command.result -= 512,
            _ => {}
        }
        if planted == Some(Bug::DeafWhileStopping)
            && self.driver.devices.values().any(|device| device.life == Life::Draining)
        {
            return;
        }
        self.obey(ring, file, opcode, command, address, token);
    }

    fn obey(
        &mut self,
        ring: usize,
        file: Option<Object>,
        opcode: u32,
        command: IoCmd,
        address: Option<u64>,
        token: Token,
    ) {
        let (queue, tag) = (command.q_id, command.tag);
        self.note("command", [u64::from(opcode & 0xff), queue.into(), tag.into(), command.result as u64]);
        let who = format!("tag {tag} of queue {queue}");
        let Some(Object::Device(id)) = file else {
            return self.broken(ring, token, libc::EBADF, format!("a command for {who} to another file"));
        };
        let Some(device) = self.driver.devices.get(&id) else {
            return self.broken(ring, token, libc::ENODEV, format!("a command for {who} of no device"));
        };
        let by_buffer = matches!(opcode, io_cmd::REGISTER_IO_BUF | io_cmd::UNREGISTER_IO_BUF);
        if let Some(wrong) = device.wrong_address(opcode, command, address).filter(|_| !by_buffer) {
            return self.broken(ring, token, libc::EINVAL, format!("a command for {who} {wrong}"));
        }
        if device.batches() {
            return self.broken(ring, token, libc::EINVAL, format!("a command for {who} alone"));
        }
        let life = device.life;
        let known = device.queues.get(usize::from(queue)).and_then(|known| known.tags.get(usize::from(tag)));
        let Some(known) = known else {
            return self.broken(ring, token, libc::EINVAL, format!("there is no {who}"));
        };
        let (state, owner) = (known.state, known.thread);
        let thread = self.rings[ring].thread;
        if state != TagState::Empty && owner != thread {
            let why = format!("{who} had a command from another thread than fetched it");
            return self.broken(ring, token, libc::EINVAL, why);
        }
        if by_buffer {
            return self.buffer_command(ring, id, opcode, command, token);
        }
        let mut next = TagState::Fetched;
        match opcode {
            io_cmd::FETCH_REQ => {
                let early = matches!(life, Life::Added | Life::Starting);
                if state != TagState::Empty || !early {
                    let why = format!("{who} was fetched again ({state:?}, the device is {life:?})");
                    return self.broken(ring, token, libc::EBUSY, why);
                }
            }
            io_cmd::COMMIT_AND_FETCH_REQ => {
                let TagState::InService(request) = state else {
                    let why = format!("{who} was committed without a request in service ({state:?})");
                    return self.broken(ring, token, libc::EINVAL, why);
                };
                if self.slot_in_use(ring, tag) {
                    let why = format!("{who} was committed with an operation of its slot in flight");
                    return self.broken(ring, token, libc::EINVAL, why);
                }
                if let Err(why) = self.take_pages_back(id, queue, tag) {
                    return self.broken(ring, token, libc::EINVAL, why);
                }
                // The data is taken from the address in this command, not from the one before.
                if let Some(known) = self.tag(id, queue, tag) {
                    known.address = command.addr;
                }
                self.commit(id, queue, tag, request, command.result);
            }
            io_cmd::NEED_GET_DATA => {
                let TagState::WithoutData(request) = state else {
                    let why = format!("data of {who} was asked for, which has none to give ({state:?})");
                    return self.broken(ring, token, libc::EINVAL, why);
                };
                self.note("data asked for", [request, 0, 0, 0]);
                next = TagState::Delivering(request);
            }
            _ => {
                let why = format!("a command for {who} that this driver does not have: {opcode:#x}");
                return self.broken(ring, token, libc::EINVAL, why);
            }
        }
        let process = self.rings[ring].process;
        let Some(device) = self.driver.devices.get_mut(&id) else { return };
        device.server = Some(process);
        let known = &mut device.queues[usize::from(queue)].tags[usize::from(tag)];
        known.state = next;
        (known.ring, known.thread, known.token, known.address) = (ring, thread, token, command.addr);
        known.buffer = AutoBufReg::from_sqe_addr(address.unwrap_or(0));
        if next != TagState::Fetched {
            known.asked = true;
            let after = self.latency();
            return self.schedule.after(after, Event::Deliver { device: id, queue, tag });
        }
        self.look_at_start(id);
        self.pump(id, queue);
        self.look_at_stop(id);
    }

    /// The server broke a rule: the run has failed.
    pub(super) fn broken(&mut self, ring: usize, token: Token, errno: i32, why: String) {
        self.fail(format!("a rule of the driver was broken: {why}"));
        self.complete(ring, token, -errno);
    }

    /// The server's result for the request of a tag.
    pub(super) fn commit(&mut self, id: u32, queue: u16, tag: u16, key: u64, result: i32) {
        let Some(device) = self.driver.devices.get(&id) else { return };
        let (maps, address) =
            (device.maps(), device.queues[usize::from(queue)].tags[usize::from(tag)].address);
        let Some(in_flight) = self.driver.requests.get_mut(&key) else { return };
        let (op, len) = (in_flight.request.op, in_flight.request.len as i32);
        let moves = matches!(op, Op::Read | Op::Write);
        if result > 0 && (!moves || result != len) || result == 0 && moves && len != 0 {
            // The driver would fail a read of nothing, repeat a write of nothing, and ask again for
            // what is left of either; a request here is done or fails.
            return self.fail(format!(
                "a rule of the driver was broken: {op:?} of {len} bytes was committed with {result}"
            ));
        }
        let outcome = match result {
            ..0 => Err(-result),
            // SAFETY: the tag's buffer, which the server gave away with this commit, holds that many
            // bytes and was initialised when it was made.
            _ if op == Op::Read && maps => Ok(unsafe { memory::load(address, len as usize) }),
            _ if op == Op::Read => Ok(std::mem::take(&mut in_flight.pages)),
            _ => Ok(Vec::new()),
        };
        self.finish(key, outcome);
    }

    /// A request is handed to the server: its descriptor, its data, and the completion.
    pub fn deliver(&mut self, id: u32, queue: u16, number: u16) {
        let Some(device) = self.driver.devices.get_mut(&id) else { return };
        let (maps, when_asked) = (device.maps(), device.gives_data_when_asked());
        let size = device.info.max_io_buf_bytes as usize;
        let tag = &mut device.queues[usize::from(queue)].tags[usize::from(number)];
        let TagState::Delivering(key) = tag.state else { return };
        let asked = std::mem::take(&mut tag.asked);
        let (ring, token, address) = (tag.ring, tag.token, tag.address);
        let Some(in_flight) = self.driver.requests.get_mut(&key) else { return };
        in_flight.delivered = true;
        debug_assert!(in_flight.pages.len() <= size, "a client obeys the disk's limits");
        let op = in_flight.request.op;
        let withheld = when_asked && op == Op::Write && !asked;
        tag.state = if withheld { TagState::WithoutData(key) } else { TagState::InService(key) };
        if maps && op == Op::Write && !withheld {
            // SAFETY: the buffer that the command named, of the size the device was made with; the
            // server leaves it alone until this command completes.
            unsafe { memory::store(address, &in_flight.pages) };
        }
        let mut flags = IoFlags::empty();
        match self.register_by_itself(id, queue, number, key) {
            Ok(true) if self.config.bug == Some(Bug::FallbackLost) => {}
            Ok(unregistered) => flags.set(IoFlags::NEED_REG_BUF, unregistered),
            Err(errno) => {
                // Without the fallback the server never hears of it.
                if let Some(tag) = self.tag(id, queue, number) {
                    tag.state = TagState::Fetched;
                }
                return self.finish(key, Err(errno));
            }
        }
        let Some(in_flight) = self.driver.requests.get(&key) else { return };
        let descriptor = descriptor(&in_flight.request, flags, address);
        let at = CMD_BUF_OFFSET + u64::from(queue) * stride() + u64::from(number) * DESCRIPTOR as u64;
        let node = std::path::PathBuf::from(format!("/dev/ublkc{id}"));
        let written = self.files.get(&node).map(|file| file.write_all_at(&descriptor, at));
        if !matches!(written, Some(Ok(()))) {
            return self.fail(format!("the world cannot write a descriptor: {written:?}"));
        }
        self.note("deliver", [key, queue.into(), number.into(), 0]);
        if self.driver.devices.get(&id).is_some_and(Device::batches) {
            return self.has_come(id, queue, number);
        }
        self.complete(ring, token, if withheld { res::NEED_GET_DATA } else { res::OK });
    }

    pub(super) fn tag(&mut self, id: u32, queue: u16, number: u16) -> Option<&mut Tag> {
        let device = self.driver.devices.get_mut(&id)?;
        device.queues.get_mut(usize::from(queue))?.tags.get_mut(usize::from(number))
    }

    /// A fetch comes back without a request: the device is going away.
    pub fn abort(&mut self, id: u32, queue: u16, number: u16) {
        let Some(device) = self.driver.devices.get_mut(&id) else { return };
        let tag = &mut device.queues[usize::from(queue)].tags[usize::from(number)];
        tag.state = TagState::Aborted;
        let (ring, token) = (tag.ring, tag.token);
        self.complete(ring, token, res::ABORT);
        self.look_at_stop(id);
    }

    /// All fetches come back, each in its own time.
    pub(super) fn abort_all(&mut self, id: u32) {
        let Some(device) = self.driver.devices.get(&id) else { return };
        let mut events = Vec::new();
        for (queue, of) in (0u16..).zip(&device.queues) {
            if device.batches() {
                events.push(Event::AbortFetch { device: id, queue });
                continue;
            }
            for (tag, known) in (0u16..).zip(&of.tags) {
                if known.state == TagState::Fetched {
                    events.push(Event::Abort { device: id, queue, tag });
                }
            }
        }
        for event in events {
            let after = self.latency();
            self.schedule.after(after, event);
        }
    }
}

fn descriptor(request: &Request, mut flags: IoFlags, address: u64) -> [u8; DESCRIPTOR] {
    let op = match request.op {
        Op::Read => op::READ,
        Op::Write => op::WRITE,
        Op::Flush => op::FLUSH,
        Op::Discard => op::DISCARD,
        Op::WriteZeroes => op::WRITE_ZEROES,
        Op::Extents => unreachable!("the kernel does not ask for extents"),
    };
    flags.set(IoFlags::FUA, request.flags.contains(Flags::FUA));
    flags.set(IoFlags::NOUNMAP, request.flags.contains(Flags::NO_UNMAP));
    let sector = if request.op == Op::Flush { u64::MAX } else { request.offset / 512 };
    let mut bytes = [0; DESCRIPTOR];
    bytes[0..4].copy_from_slice(&(u32::from(op) | flags.bits()).to_le_bytes());
    bytes[4..8].copy_from_slice(&(request.len / 512).to_le_bytes());
    bytes[8..16].copy_from_slice(&sector.to_le_bytes());
    bytes[16..24].copy_from_slice(&address.to_le_bytes());
    bytes
}
