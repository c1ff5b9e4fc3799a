//! Requests: from whoever uses a disk to a tag, and the answers back.

use super::{InFlight, Life, Next, Request, TagState};
use crate::io::{Flags, Op};
use crate::port::sim::schedule::Event;
use crate::port::sim::world::{State, Waiting};

/// Requests of the kernel's own have numbers from here up.
const OWN: u64 = 1 << 63;

impl State {
    /// Lets the client do what it wants to do now.
    pub fn ask_client(&mut self, device: u32) {
        let usable = self.driver.device(device).is_some_and(|device| {
            matches!(device.life, Life::Live | Life::Syncing | Life::Draining | Life::Aborting)
        });
        let Some(mut client) = self.client.take() else { return };
        while let Some(next) = usable.then(|| client.next()) {
            match next {
                Next::Request(request) => self.request(device, request),
                Next::Wait(after) => {
                    self.schedule.after(after, Event::Client(device));
                    break;
                }
                Next::Idle => break,
            }
        }
        self.client = Some(client);
        self.wake_all(Waiting::Client);
    }

    /// A user's request enters the block layer.
    fn request(&mut self, id: u32, request: Request) {
        let key = request.number;
        self.note("request", [key, request.op as u64, request.offset, u64::from(request.len)]);
        let Some(device) = self.driver.devices.get_mut(&id) else { return };
        let queue = request.cpu % device.info.nr_hw_queues;
        let shape = device.shape();
        let refused = !matches!(device.life, Life::Live | Life::Syncing);
        let nothing_to_flush = request.op == Op::Flush && !shape.is_some_and(|shape| shape.volatile_cache);
        let result = match () {
            () if refused => Some(Err(libc::ENODEV)),
            () if nothing_to_flush => Some(Ok(Vec::new())),
            () => None,
        };
        let waits = result.is_none();
        let in_flight = InFlight { result, ..InFlight::new(request, id) };
        self.driver.requests.insert(key, in_flight);
        if refused {
            self.note("request refused", [key, 0, 0, 0]);
        }
        if waits {
            if let Some(device) = self.driver.devices.get_mut(&id) {
                device.queues[usize::from(queue)].waiting.push_back(key);
            }
            self.pump(id, queue);
        } else {
            let after = self.latency();
            self.schedule.after(after, Event::Answer(key));
        }
    }

    /// The kernel reads the beginning of a new disk to look for partitions.
    pub(super) fn scan(&mut self, id: u32) -> u64 {
        let key = OWN | self.driver.number();
        let request = Request {
            number: key,
            cpu: self.random.below(4) as u16,
            op: Op::Read,
            flags: Flags::empty(),
            offset: 0,
            len: 4096,
            data: Vec::new(),
        };
        let Some(device) = self.driver.devices.get_mut(&id) else { return key };
        let queue = request.cpu % device.info.nr_hw_queues;
        device.queues[usize::from(queue)].waiting.push_back(key);
        self.driver.requests.insert(key, InFlight::new(request, id));
        self.pump(id, queue);
        key
    }

    /// Gives waiting requests to tags that are free.
    pub(super) fn pump(&mut self, id: u32, number: u16) {
        loop {
            let Some(device) = self.driver.devices.get_mut(&id) else { return };
            let queue = &mut device.queues[usize::from(number)];
            let free: Vec<usize> =
                (0..queue.tags.len()).filter(|&tag| queue.tags[tag].state == TagState::Fetched).collect();
            if free.is_empty() {
                return;
            }
            let Some(key) = queue.waiting.pop_front() else { return };
            let tag = *self.random.pick(&free);
            queue.tags[tag].state = TagState::Delivering(key);
            let after = self.latency();
            self.schedule.after(after, Event::Deliver { device: id, queue: number, tag: tag as u16 });
        }
    }

    /// A request has ended: its user hears of it after a while.
    pub(super) fn finish(&mut self, key: u64, result: Result<Vec<u8>, i32>) {
        let Some(request) = self.driver.requests.get_mut(&key) else { return };
        request.result = Some(result);
        let after = self.latency();
        self.schedule.after(after, Event::Answer(key));
    }

    /// The user hears of it.
    pub fn answer(&mut self, key: u64) {
        let Some(in_flight) = self.driver.requests.remove(&key) else { return };
        let result = in_flight.result.unwrap_or(Err(libc::EIO));
        self.note("answer", [key, result.as_ref().err().copied().unwrap_or(0) as u64, 0, 0]);
        if let Ok(bytes) = &result {
            self.note_bytes(bytes);
        }
        let id = in_flight.device;
        if key & OWN != 0 {
            self.scanned(id, key);
        } else {
            if let Some(client) = &mut self.client {
                client.answered(key, result, in_flight.delivered);
            }
            self.ask_client(id);
        }
        self.look_at_stop(id);
    }
}
