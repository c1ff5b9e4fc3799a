//! Commands in batches (`UBLK_F_BATCH_IO`): many tags are made ready, fetched and committed at once.

use std::collections::VecDeque;

use blockhaus_uapi::ublk::{
    AutoBufReg, AutoBufRegFlags, BatchFlags, BatchIo, ElemHeader, Features, io_cmd, res,
};

use super::{Device, Life, TagState};
use crate::port::ring::Token;
use crate::port::sim::file::Object;
use crate::port::sim::memory;
use crate::port::sim::schedule::Event;
use crate::port::sim::world::{Bug, State};

/// How often, of a thousand, there is no buffer although the server has provided enough.
const NO_BUFFER: u32 = 20;
/// How often, of a thousand, only a part of a batch is carried out.
const IN_PART: u32 = 50;

/// What a queue in batches has beside its tags.
#[derive(Default)]
pub(super) struct Batch {
    /// Where the fetch is to be completed, while there is one.
    fetch: Option<(usize, Token)>,
    /// Fetches that the server has sent.
    fetches: u32,
    /// Tags with requests that the server does not know of.
    come: VecDeque<u16>,
    over: bool,
}

/// One of a command's elements.
struct Element {
    header: ElemHeader,
    address: u64,
}

impl Device {
    pub(super) fn batches(&self) -> bool {
        self.info.flags.contains(Features::BATCH_IO)
    }

    /// What is wrong with a command for this device, if something is.
    fn wrong_batch(&self, command: &BatchIo) -> Option<&'static str> {
        let flags = match (self.registers(), self.maps()) {
            (true, _) => BatchFlags::AUTO_BUF_REG_FALLBACK,
            (_, true) => BatchFlags::HAS_BUF_ADDR,
            _ => BatchFlags::empty(),
        };
        let element = 8 + 8 * u8::from(flags.contains(BatchFlags::HAS_BUF_ADDR));
        let known = self.queues.get(usize::from(command.q_id)).is_some();
        match () {
            () if !self.batches() => Some("for a device that has none"),
            () if !known => Some("for a queue that is not there"),
            () if command.nr_elem == 0 || command.nr_elem > self.info.queue_depth => {
                Some("of no or too many")
            }
            () if command.flags != flags || command.elem_bytes != element => Some("of another shape"),
            () if command.reserved != 0 || command.reserved2 != 0 => Some("with something unknown"),
            () => None,
        }
    }
}

fn command_of(bytes: [u8; 16]) -> BatchIo {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    BatchIo {
        q_id: word(0),
        flags: BatchFlags::from_bits_retain(word(2)),
        nr_elem: word(4),
        elem_bytes: bytes[6],
        reserved: bytes[7],
        reserved2: u64::from_le_bytes(bytes[8..16].try_into().unwrap_or_default()),
    }
}

fn element_of(bytes: &[u8]) -> Element {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let result = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let header = ElemHeader { tag: word(0), buf_index: word(2), result };
    let address = bytes.get(8..16).and_then(|address| address.try_into().ok()).map_or(0, u64::from_le_bytes);
    Element { header, address }
}

impl State {
    /// PREP_IO_CMDS or COMMIT_IO_CMDS came into a ring.
    pub(super) fn batch_command(
        &mut self,
        ring: usize,
        file: Option<Object>,
        opcode: u32,
        bytes: [u8; 16],
        address: Option<u64>,
        token: Token,
    ) {
        let command = command_of(bytes);
        let (queue, count) = (command.q_id, usize::from(command.nr_elem));
        self.note("batch", [u64::from(opcode & 0xff), queue.into(), count as u64, 0]);
        let device = match file {
            Some(Object::Device(id)) => self.driver.devices.get(&id).map(|device| (id, device)),
            _ => None,
        };
        let Some((id, device)) = device else {
            return self.broken(ring, token, libc::EBADF, "a batch for no device".into());
        };
        if let Some(wrong) = device.wrong_batch(&command) {
            return self.broken(ring, token, libc::EINVAL, format!("a batch {wrong}: {command:?}"));
        }
        let process = self.rings[ring].process;
        if let Some(device) = self.driver.devices.get_mut(&id) {
            device.server = Some(process);
        }
        let len = usize::from(command.elem_bytes);
        // SAFETY: the array of the command, which the server leaves alone until it has completed.
        let array = unsafe { memory::load(address.unwrap_or(0), count * len) };
        let mut elements: Vec<Element> = array.chunks_exact(len).map(element_of).collect();
        let planted = self.config.bug.filter(|_| opcode == io_cmd::COMMIT_IO_CMDS);
        if planted == Some(Bug::BatchShifted) && count > 1 && self.random.chance(100) {
            let first = elements[0].header.result;
            elements[0].header.result = std::mem::replace(&mut elements[1].header.result, first);
        }
        if planted == Some(Bug::DeafWhileStopping)
            && self.driver.devices.get(&id).is_some_and(|device| device.life == Life::Draining)
        {
            return;
        }
        let mut done = 0;
        let part = opcode == io_cmd::COMMIT_IO_CMDS && count > 1 && self.random.chance(IN_PART);
        let stops_at = if part { self.random.between(1, count as u64 - 1) as usize } else { count };
        for element in elements.iter().take(stops_at) {
            let carried_out = match opcode {
                io_cmd::PREP_IO_CMDS => self.prepare_tag(ring, id, queue, element),
                _ => self.commit_tag(ring, id, queue, element),
            };
            if let Err(why) = carried_out {
                return self.broken(ring, token, libc::EINVAL, why);
            }
            done += 1;
        }
        if planted == Some(Bug::PartOfBatchTakenForWhole) {
            done = count;
        }
        let result = if opcode == io_cmd::PREP_IO_CMDS { 0 } else { (done * len) as i32 };
        self.complete(ring, token, result);
        self.look_at_start(id);
        self.pump(id, queue);
        self.look_at_stop(id);
    }

    /// A tag is ready for its first request.
    fn prepare_tag(&mut self, ring: usize, id: u32, queue: u16, element: &Element) -> Result<(), String> {
        let who = format!("tag {} of queue {queue}", element.header.tag);
        let thread = self.rings[ring].thread;
        let Some(device) = self.driver.devices.get(&id) else { return Ok(()) };
        if !matches!(device.life, Life::Added | Life::Starting) {
            return Err(format!("{who} was made ready although the device is {:?}", device.life));
        }
        let needs_address = device.maps();
        let Some(tag) = self.tag(id, queue, element.header.tag) else {
            return Err(format!("there is no {who}"));
        };
        if tag.state != TagState::Empty {
            return Err(format!("{who} was made ready twice"));
        }
        if needs_address != (element.address != 0) {
            return Err(format!("{who} has a buffer that it must not have, or none"));
        }
        (tag.state, tag.ring, tag.thread) = (TagState::Fetched, ring, thread);
        tag.take_element(element);
        Ok(())
    }

    /// The server's result for one tag.
    fn commit_tag(&mut self, ring: usize, id: u32, queue: u16, element: &Element) -> Result<(), String> {
        let ElemHeader { tag: number, result, .. } = element.header;
        let who = format!("tag {number} of queue {queue}");
        let Some(tag) = self.tag(id, queue, number) else { return Err(format!("there is no {who}")) };
        let TagState::InService(key) = tag.state else {
            return Err(format!("{who} was committed without a request in service ({:?})", tag.state));
        };
        if tag.batched {
            return Err(format!("{who} was committed before the server was told of its request"));
        }
        self.note("batched", [key, queue.into(), number.into(), result as u64]);
        if self.slot_in_use(ring, number) {
            return Err(format!("{who} was committed with an operation of its slot in flight"));
        }
        self.take_pages_back(id, queue, number)?;
        let needs_address = self.driver.devices.get(&id).is_some_and(Device::maps);
        if needs_address != (element.address != 0) {
            return Err(format!("{who} has a buffer that it must not have, or none"));
        }
        // Before the data is taken: it is taken from there.
        if let Some(tag) = self.tag(id, queue, number) {
            tag.take_element(element);
        }
        self.commit(id, queue, number, key, result);
        if let Some(tag) = self.tag(id, queue, number) {
            tag.state = TagState::Fetched;
        }
        Ok(())
    }

    /// FETCH_IO_CMDS came into a ring.
    pub fn fetch_command(
        &mut self,
        ring: usize,
        file: Option<Object>,
        opcode: u32,
        bytes: [u8; 16],
        token: Token,
    ) {
        let command = command_of(bytes);
        let queue = usize::from(command.q_id);
        self.note("fetch", [queue as u64, 0, 0, 0]);
        let Some(Object::Device(id)) = file else {
            return self.broken(ring, token, libc::EBADF, "a fetch from no device".into());
        };
        let plain = BatchIo { q_id: command.q_id, elem_bytes: 2, ..BatchIo::default() };
        let bug = self.config.bug;
        let known = self.driver.devices.get_mut(&id).filter(|device| device.batches());
        let Some(of_queue) = known.and_then(|device| device.queues.get_mut(queue)) else {
            return self.broken(ring, token, libc::EINVAL, "a fetch for no queue".into());
        };
        let unready = of_queue.tags.iter().any(|tag| tag.state == TagState::Empty);
        let batch = &mut of_queue.batch;
        if opcode != io_cmd::FETCH_IO_CMDS || command != plain || unready || batch.fetch.is_some() {
            let why = format!("a fetch that is none, too early, or one too many: {command:?}");
            return self.broken(ring, token, libc::EINVAL, why);
        }
        if batch.over {
            return self.complete(ring, token, res::ABORT);
        }
        batch.fetches += 1;
        if bug == Some(Bug::FetchNotRenewed) && batch.fetches > 1 {
            return;
        }
        batch.fetch = Some((ring, token));
        self.bring_tags(id, command.q_id);
    }

    /// A tag has a request that the server is to hear of.
    pub(super) fn has_come(&mut self, id: u32, queue: u16, number: u16) {
        if let Some(tag) = self.tag(id, queue, number) {
            tag.batched = true;
        }
        let Some(device) = self.driver.devices.get_mut(&id) else { return };
        device.queues[usize::from(queue)].batch.come.push_back(number);
        let after = self.latency();
        self.schedule.after(after, Event::Bring { device: id, queue });
    }

    /// The fetch completes with what has come, in as many buffers as that takes.
    pub fn bring_tags(&mut self, id: u32, queue: u16) {
        loop {
            let Some(device) = self.driver.devices.get_mut(&id) else { return };
            let batch = &mut device.queues[usize::from(queue)].batch;
            let Some((ring, token)) = batch.fetch.filter(|_| !batch.come.is_empty()) else { return };
            let refused = self.random.chance(NO_BUFFER);
            let Some(provided) = &mut self.rings[ring].provided else {
                return self.broken(ring, token, libc::ENOBUFS, "a fetch without buffers".into());
            };
            let room = provided.room;
            let Some(buffer) = (if refused { None } else { provided.free.pop_front() }) else {
                batch.fetch = None;
                self.note("no buffer", [queue.into(), 0, 0, 0]);
                return self.complete(ring, token, -libc::ENOBUFS);
            };
            let count = batch.come.len().min(room);
            let mut tags: Vec<u16> = batch.come.drain(..count).collect();
            for &number in &tags {
                if let Some(tag) = self.tag(id, queue, number) {
                    tag.batched = false;
                }
            }
            if self.config.bug == Some(Bug::TagsReadTooLate) && self.random.chance(50) {
                // The next ones are in it by now.
                tags.iter_mut().for_each(|tag| *tag ^= 1);
            }
            self.bring(ring, token, buffer, tags);
        }
    }

    /// The fetch comes back for good: the device is going away.
    pub fn abort_fetch(&mut self, id: u32, queue: u16) {
        let Some(device) = self.driver.devices.get_mut(&id) else { return };
        let of_queue = &mut device.queues[usize::from(queue)];
        of_queue.batch.over = true;
        let fetch = of_queue.batch.fetch.take();
        for tag in of_queue.tags.iter_mut().filter(|tag| tag.state == TagState::Fetched) {
            tag.state = TagState::Aborted;
        }
        if let Some((ring, token)) = fetch {
            self.complete(ring, token, res::ABORT);
        }
        self.look_at_stop(id);
    }
}

impl super::Tag {
    fn take_element(&mut self, element: &Element) {
        self.address = element.address;
        self.buffer = AutoBufReg {
            index: element.header.buf_index,
            flags: AutoBufRegFlags::FALLBACK,
            ..AutoBufReg::default()
        };
    }
}
