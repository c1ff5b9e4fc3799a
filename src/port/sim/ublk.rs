//! The ublk driver: devices, their queues, and who uses their disks. The rules are the kernel's
//! (drivers/block/ublk_drv.c); a server that breaks one fails the run.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;

use blockhaus_uapi::ublk::{AutoBufReg, CtrlDevInfo, Features, Params};

use super::schedule::ThreadId;
use crate::io::{Flags, Op};
use crate::port::ring::Token;

mod batch;
mod client;
mod control;
mod lifetime;
mod pages;
mod queue;

use control::Command;
pub(super) use pages::{Memory, UserCopy};

/// What a kernel's driver is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its version, times a hundred: 612 is 6.12.
    pub version: u32,
    /// Whether the device node is there a while after its device only, and udev opens it.
    pub udev: bool,
    /// How often, of a thousand, a control command that only asks is handed to a worker that never
    /// runs it.
    pub lost_commands: u32,
    /// How many of the queues that were asked for a device gets at most.
    pub queues_max: u16,
    /// How often, of a thousand, it cannot register a request's pages by itself.
    pub failed_registrations: u32,
}

impl Kernel {
    /// What its driver offers.
    pub fn features(self) -> Features {
        let known = match self.version {
            ..613 => 0x1ff,
            613..616 => 0x3ff,
            616 => 0x3fff,
            617..700 => 0x7fff,
            700 => 0x7_ffff,
            701..703 => 0xf_ffff,
            _ => 0x1f_ffff,
        };
        Features::from_bits_truncate(known)
    }
}

/// A request to a disk, as a user of it makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's own number, below 2⁶³.
    pub number: u64,
    /// The processor that it comes from.
    pub cpu: u16,
    /// What is asked for. A flush has neither offset nor length.
    pub op: Op,
    /// How.
    pub flags: Flags,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// What is to be written.
    pub data: Vec<u8>,
}

/// What a disk is to its users, from the parameters that the server set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes.
    pub size: u64,
    /// Logical block size.
    pub block: u32,
    /// Longest read or write.
    pub max_io: u32,
    /// Whether flushes are needed.
    pub volatile_cache: bool,
    /// Whether FUA is understood.
    pub fua: bool,
    /// Whether discards are.
    pub discard: bool,
    /// Whether write-zeroes is.
    pub write_zeroes: bool,
    /// Queues.
    pub queues: u16,
}

/// What a client does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This.
    Request(Request),
    /// Nothing for so many nanoseconds, unless an answer comes before.
    Wait(u64),
    /// Nothing until an answer comes.
    Idle,
}

/// Who uses a disk: asked for requests when it becomes live and after every answer.
pub trait Client: Send {
    /// The disk can be used.
    fn live(&mut self, shape: Shape);
    /// What to do now.
    fn next(&mut self) -> Next;
    /// A request came back: with data where it was a read, or with an errno. `delivered` tells
    /// whether the server may have seen it.
    fn answered(&mut self, number: u64, result: Result<Vec<u8>, i32>, delivered: bool);
    /// The disk is being taken away: what is to be written should be written now.
    fn stopping(&mut self);
}

/// A request on its way.
struct InFlight {
    request: Request,
    device: u32,
    /// What is written, or where what is read goes.
    pages: Vec<u8>,
    result: Option<Result<Vec<u8>, i32>>,
    delivered: bool,
}

/// A tag, from the driver's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TagState {
    /// Never fetched.
    Empty,
    /// A command waits for a request.
    Fetched,
    /// A request is being handed over.
    Delivering(u64),
    /// The server knows of a write, and has not asked for its data.
    WithoutData(u64),
    /// The server has a request.
    InService(u64),
    /// Given back for good.
    Aborted,
}

struct Tag {
    state: TagState,
    /// Whose command waits, and where it is to be completed.
    ring: usize,
    thread: ThreadId,
    token: Token,
    address: u64,
    /// Where the driver is to register the next request's pages, and where it has.
    buffer: AutoBufReg,
    registered: Option<pages::Registered>,
    /// The data of the request that is being handed over was asked for.
    asked: bool,
    /// Its request waits for a batch that takes it to the server.
    batched: bool,
}

struct Queue {
    tags: Vec<Tag>,
    waiting: VecDeque<u64>,
    batch: batch::Batch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Added,
    /// START_DEV waits for fetches or for the partition scan.
    Starting,
    Live,
    /// STOP_DEV: dirty pages are written back, then what is in flight ends, then fetches are aborted.
    Syncing,
    Draining,
    Aborting,
    Dead,
    /// Gone but for those who still hold it.
    Deleted,
}

struct Device {
    info: CtrlDevInfo,
    params: Option<Params>,
    life: Life,
    node_at_ns: u64,
    opened: Vec<RawFd>,
    queues: Vec<Queue>,
    /// Commands that wait for something of this device.
    start: Option<u64>,
    stop: Vec<u64>,
    /// The partition scan's request, while START_DEV waits for it.
    scan: Option<u64>,
    /// Whose process serves it.
    server: Option<usize>,
    disk_open_from_ns: u64,
    /// Refusals of TRY_STOP_DEV that are still to come, from whoever looks at a new disk.
    busy: u32,
}

/// The driver.
pub(super) struct Driver {
    kernel: Kernel,
    devices: BTreeMap<u32, Device>,
    requests: BTreeMap<u64, InFlight>,
    commands: BTreeMap<u64, Command>,
    numbered: u64,
}

impl Driver {
    pub fn new(kernel: Kernel) -> Driver {
        Driver {
            kernel,
            devices: BTreeMap::new(),
            requests: BTreeMap::new(),
            commands: BTreeMap::new(),
            numbered: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    fn device(&mut self, id: u32) -> Option<&mut Device> {
        self.devices.get_mut(&id)
    }
}

impl Device {
    fn all_fetched(&self) -> bool {
        self.queues.iter().flat_map(|queue| &queue.tags).all(|tag| tag.state == TagState::Fetched)
    }

    fn shape(&self) -> Option<Shape> {
        use blockhaus_uapi::ublk::{Attributes, ParamTypes};
        let params = self.params?;
        let discard = params.types.contains(ParamTypes::DISCARD);
        let cache = params.basic.attrs.contains(Attributes::VOLATILE_CACHE);
        Some(Shape {
            size: params.basic.dev_sectors * 512,
            block: 1 << params.basic.logical_bs_shift,
            max_io: params.basic.max_sectors * 512,
            volatile_cache: cache,
            fua: cache && params.basic.attrs.contains(Attributes::FUA),
            discard: discard && params.discard.max_discard_sectors > 0,
            write_zeroes: discard && params.discard.max_write_zeroes_sectors > 0,
            queues: self.info.nr_hw_queues,
        })
    }
}
