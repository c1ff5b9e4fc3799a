//! One thread's ring: where a queue's commands and its backend's operations meet.
//!
//! What a ring promises is here: tokens, slots that own what is in flight, operations as futures.
//! The driver below it, io_uring, only carries entries down and completions up.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use super::Driver;
use super::patience::Patience;
use super::spin::Spin;
use super::stream::Transfers;
use super::thread::{self, Scheduling};
use crate::io::Errno;
use crate::payload::{OPERATIONS_PER_SLOT, Payload, Place, SlotState};
use crate::port::clock::{self, Duration};
use crate::port::remote::{Remote, Ticket};

mod operation;

pub use operation::{HandOff, Operation};

use operation::Work;

/// Files that can be registered with one ring.
const FILE_TABLE: u32 = 16;

/// Longest registered buffer the kernel takes (io_uring/rsrc.c).
const REGISTERED_BUFFER_MAX: usize = 1 << 30;

/// Longest time in nanoseconds that one timer is set to: a queue that fails waits for it.
const LONGEST_TIMER: u64 = 500_000_000;

/// ETIME: how a timer ends.
const TIMER_EXPIRED: Errno = Errno::new(62);

/// A file known to the ring by its index in the table of registered files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedFile(pub(super) u32);

/// What a driver carries to whoever does it; its completion comes back with the token it went with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    /// A command of the front end to a driver of the kernel.
    Command { file: FixedFile, opcode: u32, command: [u8; 16], address: Option<u64> },
    /// A command that completes again and again, each time with one of the provided buffers.
    Multishot { file: FixedFile, opcode: u32, command: [u8; 16] },
    /// All of `place` from `offset` of the file.
    Read { file: FixedFile, place: Place, offset: u64 },
    /// All of `place` to `offset` of the file, with `durable` to stable storage.
    Write { file: FixedFile, place: Place, offset: u64, durable: bool },
    /// fdatasync(2).
    SyncData { file: FixedFile },
    /// fallocate(2).
    Allocate { file: FixedFile, mode: AllocateMode, offset: u64, len: u64 },
    /// Completes when so many nanoseconds have passed.
    Timeout { nanoseconds: u64 },
    /// What a socket has received, at most `len` bytes to `start`; with `all` not fewer, unless the
    /// stream ends.
    Receive { socket: RawFd, start: *mut u8, len: u32, all: bool },
    /// All of `len` bytes from `start`; with `more` something follows at once.
    Send { socket: RawFd, start: *const u8, len: u32, more: bool },
    /// Completes when another thread has left a message.
    Wake,
}

/// Who a completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The front end's command with this number.
    Front(u32),
    /// As [`Token::Front`], of a command that only says so when it fails.
    Quiet(u32),
    /// An operation of a slot.
    Operation {
        /// The slot.
        slot: u16,
        /// Its entry there.
        entry: u8,
    },
    /// The one operation that serves a slot's whole request.
    Single(u16),
    /// As [`Token::Single`], at the beginning of a chain. Comes only when it has failed, and then in place
    /// of the command behind it.
    Chained(u16),
    /// Another thread left a message.
    Wake,
}

impl Token {
    #[inline]
    pub(super) fn pack(self) -> u64 {
        match self {
            Token::Front(number) => u64::from(number),
            Token::Operation { slot, entry } => 1 << 56 | u64::from(entry) << 16 | u64::from(slot),
            Token::Wake => 2 << 56,
            Token::Single(slot) => 3 << 56 | u64::from(slot),
            Token::Chained(slot) => 4 << 56 | u64::from(slot),
            Token::Quiet(number) => 5 << 56 | u64::from(number),
        }
    }

    #[inline]
    pub(super) fn unpack(user_data: u64) -> Token {
        match user_data >> 56 {
            0 => Token::Front(user_data as u32),
            1 => Token::Operation { slot: user_data as u16, entry: (user_data >> 16) as u8 },
            3 => Token::Single(user_data as u16),
            4 => Token::Chained(user_data as u16),
            5 => Token::Quiet(user_data as u32),
            _ => Token::Wake,
        }
    }
}

/// A completion: for whom, and a length or a negative errno.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The token as it went down.
    pub(super) user_data: u64,
    /// 0 or more, or a negative errno.
    pub result: i32,
    pub(super) flags: u32,
}

impl Completion {
    /// IORING_CQE_F_* and IORING_CQE_BUFFER_SHIFT of linux/io_uring.h.
    pub(super) const BUFFER: u32 = 1;
    pub(super) const MORE: u32 = 2;
    pub(super) const BUFFER_SHIFT: u32 = 16;

    /// One that is no more than its result.
    #[cfg(feature = "sim")]
    pub(super) fn plain(token: Token, result: i32) -> Completion {
        Completion { user_data: token.pack(), result, flags: 0 }
    }

    /// For whom.
    #[inline]
    pub fn token(&self) -> Token {
        Token::unpack(self.user_data)
    }

    /// Whether its command completes again.
    #[inline]
    pub fn more(&self) -> bool {
        self.flags & Completion::MORE != 0
    }

    /// The provided buffer that it came with.
    #[inline]
    fn buffer(&self) -> Option<u16> {
        (self.flags & Completion::BUFFER != 0).then_some((self.flags >> Completion::BUFFER_SHIFT) as u16)
    }
}

/// What serves a whole read or write: all bytes of the request, from or to one place of one file. A
/// request that is no more than this needs no future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Single {
    /// The file.
    pub file: FixedFile,
    /// Where in it.
    pub offset: u64,
    /// A write is on stable storage before it completes (RWF_DSYNC).
    pub durable: bool,
}

impl Single {
    #[inline(always)]
    fn entry(self, write: bool, place: Place) -> Entry {
        let Single { file, offset, durable } = self;
        match write {
            true => Entry::Write { file, place, offset, durable },
            false => Entry::Read { file, place, offset },
        }
    }
}

/// A handle on the ring of this thread. Clones are the same ring; it cannot leave its thread.
#[derive(Clone, Debug)]
pub struct Ring(Rc<Inner>);

struct Inner {
    driver: RefCell<Driver>,
    slots: Box<[SlotState]>,
    transfers: Transfers,
    remote: Arc<Remote>,
    buffers_registered: Cell<bool>,
    next_file: Cell<u32>,
    spin: Spin,
    patience: OnceCell<Patience>,
    setup: &'static str,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("slots", &self.slots.len())
            .field("setup", &self.setup)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for a queue with this many slots, made on the thread that will drive it, with the
    /// best set-up this kernel takes.
    pub fn new(slots: u16, remote: Arc<Remote>) -> io::Result<Ring> {
        Ring::with_spin(slots, remote, Duration::ZERO)
    }

    /// As [`new`](Self::new); the thread looks for work for at most `longest` before it sleeps, and for a shorter
    /// time or not at all where that does not pay.
    pub fn with_spin(slots: u16, remote: Arc<Remote>, longest: Duration) -> io::Result<Ring> {
        let spin = Spin::at_most(longest);
        let (mut driver, setup) = Driver::new(slots, FILE_TABLE, &remote, spin.is_wanted())?;
        driver.push(Entry::Wake, Token::Wake)?;
        Ok(Ring(Rc::new(Inner {
            driver: RefCell::new(driver),
            slots: (0..slots).map(|_| SlotState::default()).collect(),
            transfers: Transfers::default(),
            remote,
            buffers_registered: Cell::new(false),
            next_file: Cell::new(0),
            spin,
            patience: OnceCell::new(),
            setup,
        })))
    }

    /// Has this thread scheduled like that from now on; yields how it is, as [`thread::schedule`] does.
    pub fn schedule(&self, wanted: Scheduling) -> Scheduling {
        let scheduling = thread::schedule(wanted);
        if scheduling == Scheduling::Adaptive {
            self.0.patience.get_or_init(Patience::default);
        }
        scheduling
    }

    /// The set-up flags this kernel took, for `status`.
    pub fn setup(&self) -> &'static str {
        self.0.setup
    }

    /// The operations of a slot.
    #[inline]
    pub(crate) fn slot(&self, slot: u16) -> &SlotState {
        &self.0.slots[usize::from(slot)]
    }

    /// The way back to this thread.
    pub fn remote(&self) -> &Arc<Remote> {
        &self.0.remote
    }

    /// Puts a file in the table. The kernel keeps it open until the ring is gone.
    pub fn register_file(&self, fd: RawFd) -> io::Result<FixedFile> {
        let index = self.0.next_file.get();
        if index >= FILE_TABLE {
            return Err(io::Error::other(format!("a queue registers at most {FILE_TABLE} files")));
        }
        self.0.driver.borrow_mut().register_file(index, fd)?;
        self.0.next_file.set(index + 1);
        Ok(FixedFile(index))
    }

    /// Registers the queue's buffers, so that the kernel need not look up their pages for each
    /// operation; says with false that it would not (a limit on locked memory, say), in which case
    /// operations carry plain addresses.
    ///
    /// # Safety
    /// The memory stays mapped until this ring is dropped.
    pub unsafe fn register_buffers(&self, start: *mut u8, len: usize) -> bool {
        // SAFETY: the caller keeps the memory mapped as long as the ring lives.
        let registered =
            unsafe { self.0.driver.borrow_mut().register_buffers(start, len, REGISTERED_BUFFER_MAX) };
        self.0.buffers_registered.set(registered);
        registered
    }

    /// A table of `count` empty places for buffers that a driver registers.
    pub fn register_buffer_table(&self, count: u16) -> io::Result<()> {
        self.0.driver.borrow_mut().register_buffer_table(count)
    }

    /// Index of the registered buffer that covers `len` bytes at `offset` of the queue's buffers.
    pub fn registered_index(&self, offset: usize, len: usize) -> Option<u16> {
        let first = offset / REGISTERED_BUFFER_MAX;
        let last = (offset + len.max(1) - 1) / REGISTERED_BUFFER_MAX;
        (self.0.buffers_registered.get() && first == last).then_some(first as u16)
    }

    /// Room for what multishot commands bring: `count` buffers, a power of two, of `len` bytes each.
    pub fn provide_buffers(&self, count: u16, len: u32) -> io::Result<()> {
        self.0.driver.borrow_mut().provide_buffers(count, len)
    }

    /// The numbers that a completion of a multishot command brought, behind those that are in `into`.
    /// Their buffer is free for the next.
    #[inline]
    pub fn take_numbers(&self, completion: &Completion, into: &mut Vec<u16>) {
        if let Some(buffer) = completion.buffer() {
            let len = usize::try_from(completion.result).unwrap_or(0);
            self.0.driver.borrow_mut().take_numbers(buffer, len, into);
        }
    }

    /// Submits what is waiting and sleeps until there is at least one completion, unless another
    /// thread left a message. Returns early when a signal came.
    #[inline]
    pub fn submit_and_wait(&self) -> io::Result<()> {
        match self.0.spin.is_wanted() {
            true => self.submit_and_spin(),
            false => self.submit_and_sleep(),
        }
    }

    #[inline(never)]
    fn submit_and_spin(&self) -> io::Result<()> {
        self.submit()?;
        let has_work = || {
            let mut driver = self.0.driver.borrow_mut();
            driver.has_completions() || driver.has_work() || self.0.remote.is_called()
        };
        let go_on = || {
            let is_there = self.0.driver.borrow_mut().has_completions();
            if is_there { Ok(()) } else { self.submit() }
        };
        self.0.spin.wait(has_work, go_on, || self.submit_and_sleep())
    }

    #[inline]
    fn submit_and_sleep(&self) -> io::Result<()> {
        let want = usize::from(self.0.remote.may_sleep());
        let result = self.0.driver.borrow_mut().submit_and_wait(want);
        self.0.remote.awake();
        result
    }

    /// As [`submit_and_wait`](Self::submit_and_wait), but does not sleep: there is something to go on with.
    #[inline]
    pub fn submit(&self) -> io::Result<()> {
        self.0.driver.borrow_mut().submit_and_wait(0)
    }

    /// A turn of the loop found so much to do, in bytes.
    #[inline]
    pub(crate) fn found(&self, bytes: u64) {
        if let Some(patience) = self.0.patience.get() {
            patience.turn(bytes);
        }
    }

    /// Moves the completions that are there into `into`, which was emptied; never more than its
    /// capacity, so that it does not grow.
    #[inline]
    pub fn completions(&self, into: &mut Vec<Completion>) {
        into.clear();
        self.0.driver.borrow_mut().reap(into);
        if self.0.transfers.in_flight() != 0 {
            for completion in into.iter() {
                if let Token::Front(number) = completion.token() {
                    self.transfer_ended(number, completion.result);
                }
            }
        }
    }

    #[inline]
    pub(super) fn transfers(&self) -> &Transfers {
        &self.0.transfers
    }

    /// A command of the front end: an opcode of a driver on a registered file, its 16 bytes, and
    /// what some commands carry in the entry's `addr`.
    #[inline]
    pub fn command(
        &self,
        file: FixedFile,
        opcode: u32,
        command: [u8; 16],
        address: Option<u64>,
        number: u32,
    ) -> io::Result<()> {
        self.push(Entry::Command { file, opcode, command, address }, Token::Front(number))
    }

    /// As [`command`](Self::command), of a command that completes only when it fails, with
    /// [`Token::Quiet`].
    #[inline]
    pub fn quiet_command(
        &self,
        file: FixedFile,
        opcode: u32,
        command: [u8; 16],
        address: u64,
        number: u32,
    ) -> io::Result<()> {
        let entry = Entry::Command { file, opcode, command, address: Some(address) };
        self.push(entry, Token::Quiet(number))
    }

    /// A command that goes on completing, as long as [`Completion::more`] says so; each completion brings
    /// numbers in one of the provided buffers.
    pub fn multishot_command(
        &self,
        file: FixedFile,
        opcode: u32,
        command: [u8; 16],
        number: u32,
    ) -> io::Result<()> {
        self.push(Entry::Multishot { file, opcode, command }, Token::Front(number))
    }

    /// Starts the one operation that serves a request; it ends with [`Token::Single`]. The caller keeps
    /// the bytes from everybody until then.
    #[inline]
    pub(crate) fn start_single(&self, single: Single, write: bool, place: Place) -> io::Result<()> {
        self.push(single.entry(write, place), Token::Single(place.slot))
    }

    /// As [`start_single`](Self::start_single), as the first link of a chain of two: the command that is
    /// sent next is carried out when all bytes have been moved. Then the operation itself ends without a word.
    /// Else it ends with [`Token::Chained`], and the command is cancelled without a word
    /// (IOSQE_CQE_SKIP_SUCCESS in io_uring_enter(2)).
    #[inline]
    pub(crate) fn start_chained(&self, single: Single, write: bool, place: Place) -> io::Result<()> {
        self.0.driver.borrow_mut().push_chained(single.entry(write, place), Token::Chained(place.slot))
    }

    #[inline(always)]
    pub(super) fn push(&self, entry: Entry, token: Token) -> io::Result<()> {
        self.0.driver.borrow_mut().push(entry, token)
    }

    /// A message from another thread came: be ready for the next.
    pub fn arm_wake(&self) -> io::Result<()> {
        self.push(Entry::Wake, Token::Wake)
    }

    /// Reads into all of `payload` from `offset` of the file. Yields the bytes read.
    #[inline]
    pub fn read<'a>(&'a self, file: FixedFile, payload: &'a mut Payload<'_>, offset: u64) -> Operation<'a> {
        let place = payload.place();
        Operation::new(self, payload, Work::Entry(Entry::Read { file, place, offset }))
    }

    /// Writes all of `payload` to `offset` of the file. With `durable` the data is on stable
    /// storage before it completes (RWF_DSYNC). Yields the bytes written. Several writes may take the
    /// same bytes at once.
    #[inline]
    pub fn write<'a>(
        &'a self,
        file: FixedFile,
        payload: &'a Payload<'_>,
        offset: u64,
        durable: bool,
    ) -> Operation<'a> {
        let place = payload.place();
        Operation::new(self, payload, Work::Entry(Entry::Write { file, place, offset, durable }))
    }

    /// fdatasync(2).
    pub fn sync_data<'a>(&'a self, file: FixedFile, payload: &'a Payload<'_>) -> Operation<'a> {
        Operation::new(self, payload, Work::Entry(Entry::SyncData { file }))
    }

    /// fallocate(2) with `mode`.
    pub fn allocate<'a>(
        &'a self,
        file: FixedFile,
        payload: &'a Payload<'_>,
        mode: AllocateMode,
        offset: u64,
        len: u64,
    ) -> Operation<'a> {
        Operation::new(self, payload, Work::Entry(Entry::Allocate { file, mode, offset, len }))
    }

    /// What the clock that timers go by says, in nanoseconds from some moment on. It never goes back.
    #[inline]
    pub fn now(&self) -> u64 {
        clock::monotonic_nanoseconds()
    }

    /// Waits until [`now`](Self::now) says `until`, as an operation of the payload's slot that touches
    /// no byte of it.
    pub async fn sleep_until(&self, payload: &Payload<'_>, until: u64) -> Result<(), Errno> {
        loop {
            let left = until.saturating_sub(self.now());
            if left == 0 {
                return Ok(());
            }
            let nanoseconds = left.min(LONGEST_TIMER);
            let work = Work::Entry(Entry::Timeout { nanoseconds });
            let timer = Operation::without_memory(self, payload, work);
            match timer.await {
                Ok(_) | Err(TIMER_EXPIRED | Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Hands the bytes to another thread: `start` gets a [`Ticket`] and passes it on, without
    /// blocking. Yields 0 when the ticket is finished.
    pub fn hand_off<'a>(
        &'a self,
        payload: &'a mut Payload<'_>,
        start: impl FnOnce(Ticket) + 'a,
    ) -> HandOff<'a, impl FnOnce(Ticket) + 'a> {
        HandOff { operation: Operation::new(self, payload, Work::Started), start: Some(start) }
    }
}

/// What fallocate(2) is to do with a range; neither changes the file's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Give the space back; the range reads as zeros.
    PunchHole,
    /// Zeros, keeping the space.
    ZeroRange,
}

/// Messages a queue of this many slots can have waiting, and completions it reaps in one turn.
pub fn turn_capacity(slots: u16) -> usize {
    usize::from(slots.max(4)) * 2 + OPERATIONS_PER_SLOT
}
