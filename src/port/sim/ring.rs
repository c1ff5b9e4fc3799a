//! Rings: io_uring's or the simulated one, behind the same methods.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::file::{Object, object_of};
use super::schedule::{Event, ThreadId};
use super::stream::any_of;
use super::world::{Bug, State};
use super::{Handle, current};
use crate::payload::OPERATIONS_PER_SLOT;
use crate::port::linux::uring::Uring;
use crate::port::remote::Remote;
use crate::port::ring::{Completion, Entry, FixedFile, Token};

/// What carries a ring's entries: decided when the ring is made, by the thread that makes it.
#[allow(clippy::large_enum_variant, reason = "one a queue, and the large one is the production one")]
pub(in crate::port) enum Driver {
    Linux(Uring),
    Simulated(SimRing),
}

impl Driver {
    pub fn new(slots: u16, files: u32, remote: &Remote, watched: bool) -> io::Result<(Driver, &'static str)> {
        match current() {
            None => {
                Uring::new(slots, files, remote, watched).map(|(uring, name)| (Driver::Linux(uring), name))
            }
            Some(handle) => Ok((Driver::Simulated(SimRing::new(handle, slots, files, remote)), "simulated")),
        }
    }

    pub fn register_file(&mut self, index: u32, fd: RawFd) -> io::Result<()> {
        match self {
            Driver::Linux(uring) => uring.register_file(index, fd),
            Driver::Simulated(ring) => ring.register_file(index, fd),
        }
    }

    /// # Safety
    /// As [`Uring::register_buffers`].
    pub unsafe fn register_buffers(&mut self, start: *mut u8, len: usize, piece: usize) -> bool {
        match self {
            // SAFETY: the caller's promise.
            Driver::Linux(uring) => unsafe { uring.register_buffers(start, len, piece) },
            Driver::Simulated(ring) => ring.handle.state().random.chance(800),
        }
    }

    pub fn provide_buffers(&mut self, count: u16, len: u32) -> io::Result<()> {
        match self {
            Driver::Linux(uring) => uring.provide_buffers(count, len),
            Driver::Simulated(ring) => {
                let provided = Provided::new(count, len as usize / size_of::<u16>());
                ring.handle.state().rings[ring.ring].provided = Some(provided);
                Ok(())
            }
        }
    }

    #[inline]
    pub fn take_numbers(&mut self, buffer: u16, len: usize, into: &mut Vec<u16>) {
        match self {
            Driver::Linux(uring) => uring.take_numbers(buffer, len, into),
            Driver::Simulated(ring) => {
                let mut state = ring.handle.state();
                let provided = state.rings[ring.ring].provided.as_mut();
                if !provided.is_some_and(|provided| provided.take(buffer, len / size_of::<u16>(), into)) {
                    state.fail(format!("buffer {buffer} was given back by somebody who had it not"));
                }
            }
        }
    }

    pub fn register_buffer_table(&mut self, count: u16) -> io::Result<()> {
        match self {
            Driver::Linux(uring) => uring.register_buffer_table(count),
            Driver::Simulated(_) if count == 0 => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            Driver::Simulated(ring) => {
                let table = Some(vec![None; usize::from(count)]);
                ring.handle.state().rings[ring.ring].buffer_table = table;
                Ok(())
            }
        }
    }

    #[inline]
    pub fn submit_and_wait(&mut self, want: usize) -> io::Result<()> {
        match self {
            Driver::Linux(uring) => uring.submit_and_wait(want),
            Driver::Simulated(ring) => {
                ring.submit_and_wait(want);
                Ok(())
            }
        }
    }

    #[inline]
    pub fn has_completions(&mut self) -> bool {
        match self {
            Driver::Linux(uring) => uring.has_completions(),
            Driver::Simulated(_) => true,
        }
    }

    /// In the world nobody looks for work: time would not pass.
    #[inline]
    pub fn has_work(&mut self) -> bool {
        match self {
            Driver::Linux(uring) => uring.has_work(),
            Driver::Simulated(_) => true,
        }
    }

    #[inline]
    pub fn reap(&mut self, into: &mut Vec<Completion>) {
        match self {
            Driver::Linux(uring) => uring.reap(into),
            Driver::Simulated(ring) => ring.reap(into),
        }
    }

    #[inline]
    pub fn push(&mut self, entry: Entry, token: Token) -> io::Result<()> {
        match self {
            Driver::Linux(uring) => uring.push(entry, token),
            Driver::Simulated(ring) => {
                ring.pending.push((entry, token));
                Ok(())
            }
        }
    }

    #[inline]
    pub fn push_chained(&mut self, entry: Entry, token: Token) -> io::Result<()> {
        match self {
            Driver::Linux(uring) => uring.push_chained(entry, token),
            // What the token says is all that there is to say.
            Driver::Simulated(_) => self.push(entry, token),
        }
    }
}

/// The server's end of a simulated ring.
pub(in crate::port) struct SimRing {
    handle: Handle,
    ring: usize,
    pending: Vec<(Entry, Token)>,
}

/// What waits for an operation to move all its bytes.
struct Chain {
    slot: u16,
    len: usize,
    file: FixedFile,
    opcode: u32,
    command: [u8; 16],
    address: Option<u64>,
    token: Token,
}

/// The kernel's end of one.
pub(super) struct RingState {
    pub process: usize,
    /// Who made it; the only one who may use it.
    pub thread: ThreadId,
    pub files: Vec<Option<Object>>,
    done: VecDeque<Completion>,
    /// How many fit.
    room: usize,
    chains: Vec<Chain>,
    /// Timers that have not run out.
    timers: Vec<Token>,
    /// Places for the pages of requests, where there is a table of those.
    pub buffer_table: Option<Vec<Option<u64>>>,
    /// What multishot commands bring numbers in.
    pub provided: Option<Provided>,
    /// Entries that wait for the eventfd, and what is in it.
    wakes_armed: usize,
    event_count: u64,
    pub closed: bool,
}

impl SimRing {
    fn new(handle: Handle, slots: u16, files: u32, remote: &Remote) -> SimRing {
        let mut state = handle.state();
        let ring = state.rings.len();
        let process = state.schedule.threads[handle.thread].process;
        state.rings.push(RingState {
            process,
            thread: handle.thread,
            files: vec![None; files as usize],
            done: VecDeque::new(),
            room: 2 * OPERATIONS_PER_SLOT * usize::from(slots).max(4).next_power_of_two(),
            chains: Vec::new(),
            timers: Vec::new(),
            buffer_table: None,
            provided: None,
            wakes_armed: 0,
            event_count: 0,
            closed: false,
        });
        state.wakes.insert(remote.event_fd(), ring);
        state.note("ring", [ring as u64, 0, 0, 0]);
        drop(state);
        // As much as comes between two submissions, so that nothing is allocated for an entry.
        let pending = Vec::with_capacity(usize::from(slots) * (OPERATIONS_PER_SLOT + 2) + 8);
        SimRing { handle, ring, pending }
    }

    fn register_file(&mut self, index: u32, fd: RawFd) -> io::Result<()> {
        let mut state = self.handle.state();
        let object = object_of(&state.files, fd).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        state.rings[self.ring].files[index as usize] = Some(object);
        Ok(())
    }

    fn submit_and_wait(&mut self, want: usize) {
        self.handle.point();
        let Some(mut state) = self.handle.alive() else {
            // Killed: this unwinds, unless the thread does so already.
            drop(self.handle.block(self.handle.state(), "its end", None));
            return;
        };
        let mut pending = self.pending.drain(..);
        while let Some((entry, token)) = pending.next() {
            if let Token::Chained(slot) = token {
                // The end of a submission would cut the chain.
                match (entry, pending.next()) {
                    (
                        Entry::Read { place, .. } | Entry::Write { place, .. },
                        Some((Entry::Command { file, opcode, command, address }, token)),
                    ) => {
                        let chain = Chain { slot, len: place.len, file, opcode, command, address, token };
                        state.rings[self.ring].chains.push(chain);
                    }
                    _ => state.fail(format!("a chain of slot {slot} has no end")),
                }
            }
            state.submit(self.ring, entry, token);
        }
        drop(pending);
        // As after a signal: nothing came, and the caller asks again.
        let interrupted = state.random.chance(5);
        let until = interrupted.then(|| state.schedule.now_ns + state.random.between(0, 50_000));
        while state.rings[self.ring].done.len() < want {
            if until.is_some_and(|until| state.schedule.now_ns >= until) {
                return;
            }
            match self.handle.block(state, "its ring", until) {
                Some(next) => state = next,
                None => return,
            }
        }
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        let Some(mut state) = self.handle.alive() else { return };
        let room = into.capacity() - into.len();
        let mut take = room.min(state.rings[self.ring].done.len());
        if take > 1 && state.random.chance(100) {
            // Not everything that is done need be visible at once.
            take = state.random.between(1, take as u64) as usize;
        }
        into.extend(state.rings[self.ring].done.drain(..take));
    }
}

impl Drop for SimRing {
    fn drop(&mut self) {
        let mut state = self.handle.state();
        let ring = &mut state.rings[self.ring];
        ring.closed = true;
        ring.files.clear();
        if state.dead(self.handle.thread) {
            return;
        }
        let timers = !state.rings[self.ring].timers.is_empty();
        if timers
            || any_of(&state, self.ring)
            || state.operations.values().any(|operation| operation.ring == self.ring)
        {
            state.fail(format!("ring {} was closed with operations in flight", self.ring));
        }
        state.note("ring closed", [self.ring as u64, 0, 0, 0]);
    }
}

/// Buffers that a server has provided.
pub(super) struct Provided {
    /// Numbers that fit one of them.
    pub room: usize,
    /// Those that the server has not got.
    pub free: VecDeque<u16>,
    pub filled: Vec<Vec<u16>>,
}

impl Provided {
    fn new(count: u16, room: usize) -> Provided {
        Provided { room, free: (0..count).collect(), filled: vec![Vec::new(); usize::from(count)] }
    }

    /// False where the server has no such buffer.
    fn take(&mut self, buffer: u16, count: usize, into: &mut Vec<u16>) -> bool {
        if self.free.contains(&buffer) || usize::from(buffer) >= self.filled.len() {
            return false;
        }
        let filled = std::mem::take(&mut self.filled[usize::from(buffer)]);
        into.extend(filled.into_iter().take(count));
        self.free.push_back(buffer);
        true
    }
}

impl RingState {
    pub fn has_timer(&self, of: impl Fn(&Token) -> bool) -> bool {
        self.timers.iter().any(of)
    }
}

impl State {
    fn submit(&mut self, ring: usize, entry: Entry, token: Token) {
        match entry {
            Entry::Command { file, opcode, command, address } => {
                let file = self.rings[ring].files[file.0 as usize];
                self.command(ring, file, opcode, command, address, token);
            }
            Entry::Multishot { file, opcode, command } => {
                let file = self.rings[ring].files[file.0 as usize];
                self.fetch_command(ring, file, opcode, command, token);
            }
            Entry::Wake => {
                self.rings[ring].wakes_armed += 1;
                self.ring_event(ring);
            }
            Entry::Timeout { nanoseconds } => {
                self.rings[ring].timers.push(token);
                self.note("timer", [ring as u64, token.pack(), nanoseconds, 0]);
                // Never early, and as late as a wake-up is.
                let late = self.latency();
                self.schedule.after(nanoseconds.saturating_add(late), Event::Timer { ring, token });
            }
            Entry::Receive { .. } | Entry::Send { .. } => self.transfer(ring, entry, token),
            Entry::Read { file, .. }
            | Entry::Write { file, .. }
            | Entry::SyncData { file }
            | Entry::Allocate { file, .. } => {
                let object = self.rings[ring].files.get(file.0 as usize).copied().flatten();
                match object {
                    Some(Object::Disk(disk)) => self.operate(ring, disk, entry, token),
                    _ => self.complete(ring, token, -libc::EBADF),
                }
            }
        }
    }

    /// Puts a completion into a ring, and wakes its thread if it sleeps there.
    pub fn complete(&mut self, ring: usize, token: Token, result: i32) {
        if self.rings[ring].closed || self.process_dead(self.rings[ring].process) {
            return;
        }
        let chain = match token {
            Token::Chained(slot) => {
                let chains = &mut self.rings[ring].chains;
                chains.iter().position(|chain| chain.slot == slot).map(|at| chains.swap_remove(at))
            }
            _ => None,
        };
        if let Some(Chain { len, file, opcode, command, address, token: next, .. }) = chain {
            if usize::try_from(result) == Ok(len) {
                self.note("chain", [ring as u64, next.pack(), 0, 0]);
                return self.submit(ring, Entry::Command { file, opcode, command, address }, next);
            }
            // What fails speaks for those behind it, which are cancelled without a word.
            return self.post(ring, Completion::plain(token, result));
        }
        if matches!(token, Token::Quiet(_)) && result >= 0 {
            return;
        }
        self.post(ring, Completion::plain(token, result));
    }

    /// A multishot command brings numbers, in a buffer that was free.
    pub fn bring(&mut self, ring: usize, token: Token, buffer: u16, numbers: Vec<u16>) {
        if self.rings[ring].closed || self.process_dead(self.rings[ring].process) {
            return;
        }
        let result = (numbers.len() * size_of::<u16>()) as i32;
        if let Some(provided) = &mut self.rings[ring].provided {
            provided.filled[usize::from(buffer)] = numbers;
        }
        let flags = Completion::BUFFER | Completion::MORE | u32::from(buffer) << Completion::BUFFER_SHIFT;
        self.post(ring, Completion { user_data: token.pack(), result, flags });
    }

    fn post(&mut self, ring: usize, completion: Completion) {
        let to = &mut self.rings[ring];
        to.done.push_back(completion);
        let (thread, overflows) = (to.thread, to.done.len() > to.room);
        if overflows {
            self.fail(format!("more completions than ring {ring} has room for"));
        }
        let Completion { user_data, result, flags } = completion;
        self.note("completion", [ring as u64, user_data, result as u64, flags.into()]);
        self.wake(thread);
    }

    /// A timer has run out.
    pub fn timer_expired(&mut self, ring: usize, token: Token) {
        self.rings[ring].timers.retain(|timer| *timer != token);
        self.complete(ring, token, -libc::ETIME);
    }

    fn ring_event(&mut self, ring: usize) {
        let to = &mut self.rings[ring];
        if to.wakes_armed > 0 && to.event_count > 0 {
            to.wakes_armed -= 1;
            to.event_count = 0;
            self.complete(ring, Token::Wake, 8);
        }
    }
}

/// Another thread writes to the eventfd of a ring; false where there is no simulated ring.
pub(in crate::port) fn notify(event_fd: RawFd) -> bool {
    let Some(handle) = current() else { return false };
    let Some(mut state) = handle.alive() else { return true };
    let Some(&ring) = state.wakes.get(&event_fd) else { return true };
    if state.config.bug == Some(Bug::WakeUpLost) && state.random.chance(300) {
        return true;
    }
    state.rings[ring].event_count += 1;
    state.ring_event(ring);
    true
}
