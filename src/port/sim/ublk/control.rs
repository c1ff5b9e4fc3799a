//! Control commands: what `/dev/ublk-control` answers.

use std::path::PathBuf;

use blockhaus_uapi::ublk::{
    AutoBufReg, CtrlCmd, CtrlDevInfo, Features, MAX_QUEUE_DEPTH, NEW_DEV_ID, ParamTypes, Params, cmd, state,
};

use super::{Device, Life, Queue, Tag, TagState};
use crate::port::ring::Token;
use crate::port::sim::file::Object;
use crate::port::sim::memory;
use crate::port::sim::schedule::{Event, ThreadId};
use crate::port::sim::world::State;
use crate::port::system::page_size;

/// A control command on its way.
pub(in crate::port::sim) struct Command {
    thread: ThreadId,
    opcode: u32,
    header: CtrlCmd,
    answer: Option<i32>,
    answered: bool,
}

/// How often a deletion looks whether the last reference is gone.
const LOOK_EVERY_NS: u64 = 1_000_000;

/// What an answer is: now, or when something has happened.
enum Answer {
    Now(i32),
    Later,
}

fn no(errno: i32) -> Answer {
    Answer::Now(-errno)
}

impl State {
    /// A command is sent; its number asks for the answer.
    pub fn send_control(&mut self, thread: ThreadId, opcode: u32, bytes: &[u8; 80]) -> u64 {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let eight = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let header = CtrlCmd {
            dev_id: eight(0) as u32,
            queue_id: half(4),
            len: half(6),
            addr: eight(8),
            data: [eight(16)],
            dev_path_len: half(24),
            ..CtrlCmd::default()
        };
        let number = self.driver.number();
        self.note("control", [number, u64::from(opcode & 0xff), header.dev_id.into(), header.len.into()]);
        let asks = matches!(
            opcode,
            cmd::GET_FEATURES
                | cmd::GET_DEV_INFO
                | cmd::GET_PARAMS
                | cmd::GET_QUEUE_AFFINITY
                | cmd::SET_PARAMS
        );
        if asks && self.random.chance(self.driver.kernel.lost_commands) {
            self.note("control lost", [number, 0, 0, 0]);
        } else {
            let after = self.latency();
            self.schedule.after(after, Event::Control(number));
        }
        let command = Command { thread, opcode, header, answer: None, answered: false };
        self.driver.commands.insert(number, command);
        number
    }

    /// The answer, once it is there.
    pub fn take_control_answer(&mut self, number: u64) -> Option<i32> {
        let answer = self.driver.commands.get(&number)?.answer?;
        self.driver.commands.remove(&number);
        Some(answer)
    }

    pub(super) fn answer_control(&mut self, number: u64, result: i32) {
        if let Some(command) = self.driver.commands.get_mut(&number) {
            command.answered = true;
            command.header.data = [result as u64];
            let after = self.latency();
            self.schedule.after(after, Event::ControlAnswer(number));
        }
    }

    pub fn control_answer(&mut self, number: u64) {
        let Some(command) = self.driver.commands.get_mut(&number) else { return };
        let (thread, result) = (command.thread, command.header.data[0] as i32);
        command.answer = Some(result);
        self.note("control answer", [number, result as u64, 0, 0]);
        self.schedule.wake(thread, 1000);
    }

    /// The driver takes up a command.
    pub fn control(&mut self, number: u64) {
        let Some(command) = self.driver.commands.get(&number) else { return };
        if command.answered || self.dead(command.thread) {
            return;
        }
        let (opcode, header) = (command.opcode, command.header);
        if let Answer::Now(result) = self.obey_control(number, opcode, header) {
            self.answer_control(number, result);
        }
    }

    fn obey_control(&mut self, number: u64, opcode: u32, header: CtrlCmd) -> Answer {
        let id = header.dev_id;
        match opcode {
            cmd::GET_FEATURES => {
                let features = self.driver.kernel.features();
                return self.give(header, &features.bits().to_le_bytes());
            }
            cmd::ADD_DEV => return self.add_device(header),
            _ => {}
        }
        self.purge(id);
        if self.driver.device(id).is_none() {
            return no(libc::ENODEV);
        }
        match opcode {
            cmd::GET_DEV_INFO => self.device_info(id, header),
            cmd::SET_PARAMS => self.set_params(id, header),
            cmd::GET_PARAMS => {
                let params = self.driver.device(id).and_then(|device| device.params);
                // SAFETY: Params is plain numbers without padding (asserted in uapi).
                let bytes = params.map(|params| unsafe {
                    std::mem::transmute::<Params, [u8; size_of::<Params>()]>(params)
                });
                bytes.map_or_else(|| no(libc::EINVAL), |bytes| self.give(header, &bytes))
            }
            cmd::GET_QUEUE_AFFINITY => {
                let queues = self.driver.device(id).map_or(0, |device| device.info.nr_hw_queues);
                if header.data[0] >= u64::from(queues) || !header.len.is_multiple_of(8) {
                    return no(libc::EINVAL);
                }
                self.give(header, &u64::MAX.to_le_bytes())
            }
            cmd::START_DEV => self.start_device(number, id, header),
            cmd::STOP_DEV => self.stop_device(number, id),
            cmd::TRY_STOP_DEV if self.driver.kernel.version >= 700 => {
                let Some(device) = self.driver.device(id) else { return no(libc::ENODEV) };
                if device.busy > 0 {
                    device.busy -= 1;
                    self.note("stop refused", [id.into(), 0, 0, 0]);
                    return no(libc::EBUSY);
                }
                self.stop_device(number, id)
            }
            cmd::DEL_DEV => self.delete_device(id, Some(number)),
            cmd::DEL_DEV_ASYNC if self.driver.kernel.version >= 609 => self.delete_device(id, None),
            _ => no(libc::EOPNOTSUPP),
        }
    }

    /// Fills the buffer of a command.
    fn give(&mut self, header: CtrlCmd, bytes: &[u8]) -> Answer {
        if usize::from(header.len) < bytes.len() || header.addr == 0 {
            return no(libc::EINVAL);
        }
        // SAFETY: the sender waits for this command with a buffer of that length; it is alive, or
        // the command would not have been taken up.
        unsafe { memory::store(header.addr, bytes) };
        Answer::Now(0)
    }

    /// Loads what a command carries.
    fn carried<const LEN: usize>(&mut self, header: CtrlCmd) -> Option<[u8; LEN]> {
        if usize::from(header.len) < LEN || header.addr == 0 {
            return None;
        }
        // SAFETY: as in `give`; the sender made the buffer of a value.
        unsafe { memory::load(header.addr, LEN) }.try_into().ok()
    }

    fn add_device(&mut self, header: CtrlCmd) -> Answer {
        let Some(bytes) = self.carried::<{ size_of::<CtrlDevInfo>() }>(header) else {
            return no(libc::EINVAL);
        };
        // SAFETY: CtrlDevInfo is plain numbers without padding (asserted in uapi).
        let mut info: CtrlDevInfo = unsafe { std::mem::transmute(bytes) };
        let kernel = self.driver.kernel;
        if header.dev_id != info.dev_id
            || info.nr_hw_queues == 0
            || !(1..=MAX_QUEUE_DEPTH).contains(&info.queue_depth)
            || info.flags.contains(Features::BATCH_IO) && info.queue_depth < 2
            || (info.max_io_buf_bytes as usize) < page_size()
        {
            return no(libc::EINVAL);
        }
        let taken = |id: &u32| self.driver.devices.contains_key(id);
        info.dev_id = match info.dev_id {
            NEW_DEV_ID => (0..).find(|id| !taken(id)).unwrap_or(0),
            id if taken(&id) => return no(libc::EEXIST),
            id => id,
        };
        let other_path =
            Features::USER_COPY | Features::SUPPORT_ZERO_COPY | Features::AUTO_BUF_REG | Features::BATCH_IO;
        if info.flags.intersects(other_path) {
            info.flags -= Features::NEED_GET_DATA;
        }
        let always = Features::CMD_IOCTL_ENCODE | Features::URING_CMD_COMP_IN_TASK;
        let per_io = kernel.version >= 616 && !info.flags.contains(Features::BATCH_IO);
        let always = if per_io { always | Features::PER_IO_DAEMON } else { always };
        info.flags = (info.flags & kernel.features()) | always;
        info.nr_hw_queues = info.nr_hw_queues.min(self.config.cpus).min(kernel.queues_max);
        info.state = state::DEAD;
        info.ublksrv_pid = -1;
        let id = info.dev_id;
        let path = PathBuf::from(format!("/dev/ublkc{id}"));
        let size = Device::node_size(info.nr_hw_queues);
        if let Err(error) = self.files.add(&path, Object::Device(id), size) {
            self.fail(format!("the world cannot make a device node: {error}"));
        }
        let appears = if kernel.udev { self.random.between(0, 60_000_000) } else { 0 };
        let tag = || Tag {
            state: TagState::Empty,
            ring: 0,
            thread: 0,
            token: Token::Wake,
            address: 0,
            buffer: AutoBufReg::default(),
            registered: None,
            asked: false,
            batched: false,
        };
        let queue = |_| Queue {
            tags: (0..info.queue_depth).map(|_| tag()).collect(),
            waiting: std::collections::VecDeque::new(),
            batch: super::batch::Batch::default(),
        };
        let device = Device {
            info,
            params: None,
            life: Life::Added,
            node_at_ns: self.schedule.now_ns + appears,
            opened: Vec::new(),
            queues: (0..info.nr_hw_queues).map(queue).collect(),
            start: None,
            stop: Vec::new(),
            scan: None,
            server: None,
            disk_open_from_ns: 0,
            busy: 0,
        };
        self.driver.devices.insert(id, device);
        // SAFETY: as above.
        let bytes: [u8; size_of::<CtrlDevInfo>()] = unsafe { std::mem::transmute(info) };
        self.give(header, &bytes)
    }

    fn device_info(&mut self, id: u32, header: CtrlCmd) -> Answer {
        let Some(device) = self.driver.device(id) else { return no(libc::ENODEV) };
        let mut info = device.info;
        info.state = match device.life {
            Life::Live | Life::Syncing | Life::Draining => state::LIVE,
            _ => state::DEAD,
        };
        // SAFETY: CtrlDevInfo is plain numbers without padding (asserted in uapi).
        let bytes: [u8; size_of::<CtrlDevInfo>()] = unsafe { std::mem::transmute(info) };
        self.give(header, &bytes)
    }

    fn set_params(&mut self, id: u32, header: CtrlCmd) -> Answer {
        let Some(bytes) = self.carried::<{ size_of::<Params>() }>(header) else { return no(libc::EINVAL) };
        // SAFETY: Params is plain numbers, its types flags of which every bit may be set.
        let mut params: Params = unsafe { std::mem::transmute(bytes) };
        let mut known = ParamTypes::BASIC | ParamTypes::DISCARD | ParamTypes::ZONED;
        if self.driver.kernel.version >= 615 {
            known |= ParamTypes::DMA_ALIGN | ParamTypes::SEGMENT;
        }
        let Some(device) = self.driver.device(id) else { return no(libc::ENODEV) };
        if device.life != Life::Added {
            return no(libc::EACCES);
        }
        params.types &= known;
        let (basic, discard) = (params.basic, params.discard);
        let shift = basic.logical_bs_shift;
        let fits = basic.max_sectors <= device.info.max_io_buf_bytes / 512;
        let well = params.types.contains(ParamTypes::BASIC)
            && (9..=page_size().trailing_zeros() as u8).contains(&shift)
            && shift <= basic.physical_bs_shift
            && fits
            && (basic.dev_sectors << 9).is_multiple_of(1 << shift)
            && (!params.types.contains(ParamTypes::DISCARD)
                || discard.discard_granularity != 0 && discard.max_discard_segments <= 1);
        if !well {
            return no(libc::EINVAL);
        }
        device.params = Some(params);
        Answer::Now(0)
    }

    fn start_device(&mut self, number: u64, id: u32, header: CtrlCmd) -> Answer {
        let Some(device) = self.driver.device(id) else { return no(libc::ENODEV) };
        if device.params.is_none() || header.data[0] != u64::from(std::process::id()) {
            return no(libc::EINVAL);
        }
        if device.life != Life::Added {
            return no(libc::EEXIST);
        }
        device.life = Life::Starting;
        device.start = Some(number);
        self.look_at_start(id);
        Answer::Later
    }

    fn stop_device(&mut self, number: u64, id: u32) -> Answer {
        let Some(device) = self.driver.device(id) else { return no(libc::ENODEV) };
        match device.life {
            Life::Dead | Life::Deleted => return Answer::Now(0),
            Life::Live => device.life = Life::Syncing,
            Life::Added | Life::Starting => device.life = Life::Aborting,
            Life::Syncing | Life::Draining | Life::Aborting => {}
        }
        device.stop.push(number);
        self.begin_stop(id);
        Answer::Later
    }

    fn delete_device(&mut self, id: u32, waits: Option<u64>) -> Answer {
        let Some(device) = self.driver.device(id) else { return no(libc::ENODEV) };
        let unused = device.life == Life::Added
            && device.queues.iter().flat_map(|queue| &queue.tags).all(|tag| tag.state == TagState::Empty);
        match device.life {
            Life::Dead | Life::Deleted => {}
            _ if unused => {}
            life => {
                // It would stop the device under a lock that every other device waits for.
                self.fail(format!("device {id} was deleted while it was {life:?}: STOP comes first"));
            }
        }
        let Some(device) = self.driver.device(id) else { return no(libc::ENODEV) };
        device.life = Life::Deleted;
        self.files.remove(&PathBuf::from(format!("/dev/ublkc{id}")));
        self.purge(id);
        match waits {
            Some(number) if self.driver.device(id).is_some() => {
                self.schedule.after(LOOK_EVERY_NS, Event::Control(number));
                Answer::Later
            }
            _ => Answer::Now(0),
        }
    }
}
