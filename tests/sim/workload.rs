//! Who uses the disk: many requests in flight, each answer held against the model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockhaus::io::{Flags, Op};
use blockhaus::port::sim::{Client, Next, Random, Request, Shape};

use crate::model::{Content, Model};
use crate::pattern;

/// Numbers of reads and flushes begin here; those of writes are the writes' own.
const NOT_A_WRITE: u64 = 1 << 40;

/// What a workload is like.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Requests in flight at once.
    pub in_flight: usize,
    /// Longest request, in blocks.
    pub longest: u64,
    /// Most requests begin in so many blocks, so that they meet.
    pub crowded: u64,
    /// Out of a thousand requests, how many are flushes.
    pub flushes: u64,
    /// Whether discards read as zeros.
    pub discard_zeroes: bool,
    /// Size of the disk and of a block that it must have, in bytes.
    pub shape: (u64, u32),
    /// Whether the disk below may answer EIO and ENOSPC.
    pub hard_faults: bool,
}

pub struct Workload {
    random: Random,
    habits: Habits,
    pub model: Model,
    shape: Option<Shape>,
    outstanding: BTreeMap<u64, Op>,
    writes: u32,
    others: u64,
    /// The next block of the read of everything that a life begins with.
    check_from: Option<u64>,
    /// Requests that are still to be made.
    left: u32,
    pub answers: u64,
    /// Answers in this server's life to requests that it had got.
    pub delivered: u64,
    /// The server is being killed: errors are no news.
    pub dying: bool,
    pub failure: Option<String>,
}

/// The workload, shared between the world and the test.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Workload>>);

impl Shared {
    pub fn new(seed: u64, habits: Habits, model: Model) -> Shared {
        Shared(Arc::new(Mutex::new(Workload {
            random: Random::new(seed),
            habits,
            model,
            shape: None,
            outstanding: BTreeMap::new(),
            writes: 0,
            others: NOT_A_WRITE,
            check_from: None,
            left: 0,
            answers: 0,
            delivered: 0,
            dying: false,
            failure: None,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Workload> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Workload {
    /// A server's life begins: everything is read, and then `requests` are made.
    pub fn begin(&mut self, requests: u32) {
        self.check_from = Some(0);
        self.left = requests;
        self.delivered = 0;
        self.dying = false;
        self.shape = None;
    }

    /// Whether all that was to be done is done.
    pub fn done(&self) -> bool {
        self.failure.is_some()
            || self.shape.is_some() && self.idle() && self.left == 0 && self.check_from.is_none()
    }

    /// The same, where so many answers will never come.
    pub fn done_but_for(&self, lost: usize) -> bool {
        self.failure.is_some()
            || self.shape.is_some()
                && self.outstanding.len() <= lost
                && self.left == 0
                && self.check_from.is_none()
    }

    pub fn idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    fn request(&mut self, shape: &Shape) -> Request {
        let block = u64::from(shape.block);
        let blocks = shape.size / block;
        if let Some(from) = self.check_from {
            let count = (blocks - from).min(self.habits.longest).min(u64::from(shape.max_io) / block);
            self.check_from = Some(from + count).filter(|&next| next < blocks);
            return self.read(from * block, count * block);
        }
        self.left -= 1;
        let longest = self.habits.longest.min(blocks).min(u64::from(shape.max_io) / block);
        let count =
            if self.random.chance(600) { self.random.between(1, 2) } else { self.random.between(1, longest) };
        let count = count.min(longest);
        let places = blocks - count + 1;
        let places = if self.random.chance(800) { places.min(self.habits.crowded) } else { places };
        let offset = self.random.below(places) * block;
        let len = count * block;
        let kind = self.random.below(1000);
        let flushes = self.habits.flushes;
        match kind {
            _ if kind < flushes => self.flush(),
            _ if kind < flushes + 350 => self.read(offset, len),
            _ if kind < flushes + 420 && shape.discard => self.discard(offset, len),
            _ if kind < flushes + 490 && shape.write_zeroes => {
                let mut flags = Flags::empty();
                flags.set(Flags::NO_UNMAP, self.random.chance(500));
                flags.set(Flags::FUA, shape.fua && self.random.chance(200));
                self.change(Op::WriteZeroes, offset, len, Content::Zeros, flags)
            }
            _ => {
                let fua = shape.fua && self.random.chance(150);
                let flags = if fua { Flags::FUA } else { Flags::empty() };
                self.change(Op::Write, offset, len, Content::Data, flags)
            }
        }
    }

    fn discard(&mut self, offset: u64, len: u64) -> Request {
        let content = if self.habits.discard_zeroes { Content::Zeros } else { Content::Anything };
        self.change(Op::Discard, offset, len, content, Flags::empty())
    }

    fn change(&mut self, op: Op, offset: u64, len: u64, content: Content, flags: Flags) -> Request {
        self.writes += 1;
        let write = self.writes;
        self.model.begin_write(write, offset, len, content, flags.contains(Flags::FUA));
        let mut data = vec![0; if op == Op::Write { len as usize } else { 0 }];
        pattern::fill(write, offset, &mut data);
        self.made(u64::from(write), op, flags, offset, len, data)
    }

    fn read(&mut self, offset: u64, len: u64) -> Request {
        self.others += 1;
        self.model.begin_read(self.others, offset, len);
        self.made(self.others, Op::Read, Flags::empty(), offset, len, Vec::new())
    }

    fn flush(&mut self) -> Request {
        self.others += 1;
        self.model.begin_flush(self.others);
        self.made(self.others, Op::Flush, Flags::empty(), 0, 0, Vec::new())
    }

    fn made(&mut self, number: u64, op: Op, flags: Flags, offset: u64, len: u64, data: Vec<u8>) -> Request {
        self.outstanding.insert(number, op);
        let cpu = self.random.below(4) as u16;
        Request { number, cpu, op, flags, offset, len: len as u32, data }
    }

    fn failed(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }

    /// The answer to a read in whose place it was asked which runs are zeros: these are.
    pub fn answer_status(&mut self, number: u64, zeros: &[(u64, u64)]) {
        self.answers += 1;
        self.delivered += 1;
        if self.outstanding.remove(&number).is_some()
            && let Err(why) = self.model.end_status(number, zeros)
        {
            self.failed(why);
        }
    }

    /// The answer to a request.
    pub fn answer(&mut self, number: u64, result: Result<Vec<u8>, i32>, delivered: bool) {
        self.answers += 1;
        self.delivered += u64::from(delivered);
        if let Some(op) = self.outstanding.remove(&number) {
            self.judge(number, op, result, delivered);
        }
    }

    fn judge(&mut self, number: u64, op: Op, result: Result<Vec<u8>, i32>, delivered: bool) {
        if let Err(errno) = &result {
            let hard = self.habits.hard_faults && matches!(*errno, libc::EIO | libc::ENOSPC);
            let gone = !delivered && *errno == libc::ENODEV;
            if !(hard || gone || self.dying) {
                self.failed(format!(
                    "request {number}, {op:?}, failed with errno {errno}, and nothing was wrong"
                ));
            }
        }
        let well = result.is_ok();
        match (op, result) {
            (Op::Read, Ok(bytes)) => {
                if let Err(why) = self.model.end_read(number, &bytes) {
                    self.failed(why);
                }
            }
            (Op::Read, Err(_)) => self.model.failed_read(number),
            (Op::Flush, _) => self.model.end_flush(number, well),
            _ => self.model.end_write(number as u32, well, delivered),
        }
    }
}

impl Client for Shared {
    fn live(&mut self, shape: Shape) {
        let mut workload = self.lock();
        let (is, must) = ((shape.size, shape.block), workload.habits.shape);
        if is != must {
            workload.failed(format!("the disk has (size, block) {is:?} and must have {must:?}"));
        }
        workload.shape = Some(shape);
    }

    fn next(&mut self) -> Next {
        let mut workload = self.lock();
        let Some(shape) = workload.shape else { return Next::Idle };
        let checks = workload.check_from.is_some();
        let full = workload.outstanding.len() >= workload.habits.in_flight;
        if full || workload.failure.is_some() || workload.left == 0 && !checks {
            return Next::Idle;
        }
        if workload.random.chance(60) {
            return Next::Wait(workload.random.between(1_000, 400_000));
        }
        Next::Request(workload.request(&shape))
    }

    fn answered(&mut self, number: u64, result: Result<Vec<u8>, i32>, delivered: bool) {
        self.lock().answer(number, result, delivered);
    }

    fn stopping(&mut self) {
        // A few dirty pages are left to be written; some users do not hear of it at all.
        let mut workload = self.lock();
        let few = workload.random.below(12) as u32;
        if workload.random.chance(600) {
            workload.left = workload.left.min(few);
        }
        workload.check_from = None;
    }
}
