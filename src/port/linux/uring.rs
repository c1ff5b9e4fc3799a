//! The io_uring below a [`Ring`](crate::port::ring::Ring).

use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, squeue, types};

use super::provided::Provided;

use crate::payload::OPERATIONS_PER_SLOT;
use crate::port::clock::{self, Duration};
use crate::port::remote::Remote;
use crate::port::ring::{AllocateMode, Completion, Entry, Token};

/// One io_uring and what it needs to be woken.
pub(in crate::port) struct Uring {
    uring: IoUring,
    event_fd: RawFd,
    /// Where the kernel writes what it read from the eventfd; boxed, since its address must not change.
    wake_counter: Box<u64>,
    /// What the kernel reads when a timer is submitted: one for each operation there can be.
    timers: Box<[types::Timespec]>,
    /// What goes with every wait.
    enter_flags: u32,
    /// For multishot commands; behind the ring, so that it outlives it.
    provided: Option<Provided>,
}

/// IORING_ENTER_GETEVENTS, also where nothing is waited for: deferred task work runs in no other way.
const GETEVENTS: u32 = 1;

/// IORING_ENTER_NO_IOWAIT: who waits for requests to come waits for no disk, and is not counted as such. Linux 6.15.
const NO_IOWAIT: u32 = 1 << 7;

/// How often a full queue is tried to be submitted in the middle of a turn, and how long after each other: the kernel may be
/// out of memory for ten seconds.
const SHORTAGE_TRIES: u32 = 2000;
const SHORTAGE_PAUSE: Duration = Duration::from_millis(5);

type SetUp = fn(&mut io_uring::Builder);

/// The set-up without any of the others' help.
const PLAIN: &str = "plain";

/// Ring set-ups from the best down: what they need says `io_uring_setup(2)`.
const SETUPS: [(&str, SetUp); 4] = [
    ("single-issuer defer-taskrun no-sqarray", |builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_no_sqarray();
    }),
    ("single-issuer defer-taskrun", |builder| {
        builder.setup_single_issuer().setup_defer_taskrun();
    }),
    ("coop-taskrun", |builder| {
        builder.setup_coop_taskrun();
    }),
    (PLAIN, |_| {}),
];

impl Uring {
    /// With the best set-up this kernel takes, which is named, and room for `files` files. A ring that is `watched`
    /// says without a system call whether there is something to do.
    pub fn new(slots: u16, files: u32, remote: &Remote, watched: bool) -> io::Result<(Uring, &'static str)> {
        // Twice the slots: a command for each, and an operation for each on its way.
        let entries = (u32::from(slots).max(4) * 2).next_power_of_two();
        let mut refused = io::Error::from(io::ErrorKind::Unsupported);
        for (name, setup) in SETUPS {
            let mut builder = IoUring::builder();
            setup(&mut builder);
            if watched && name != PLAIN {
                builder.setup_taskrun_flag();
            }
            // All operations that slots can have, and what belongs to no slot: where completions do not fit, the
            // kernel keeps them aside, and a multishot command that completes then loses its buffer for good.
            builder.setup_cqsize(entries * OPERATIONS_PER_SLOT as u32).dontfork();
            match builder.build(entries) {
                Ok(uring) => {
                    uring.submitter().register_files_sparse(files)?;
                    // Saves a file lookup an enter; since 5.18, and only a wish.
                    let _ = uring.submitter().register_ring_fd();
                    let wake_counter = Box::new(0);
                    let timers = vec![types::Timespec::new(); usize::from(slots) * OPERATIONS_PER_SLOT];
                    let event_fd = remote.event_fd();
                    let timers = timers.into_boxed_slice();
                    let mut ring = Uring {
                        uring,
                        event_fd,
                        wake_counter,
                        timers,
                        enter_flags: GETEVENTS,
                        provided: None,
                    };
                    ring.wait_without_iowait();
                    return Ok((ring, name));
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    /// Has waits not count as waits for a disk, where the kernel can: it refuses flags that it does not know.
    fn wait_without_iowait(&mut self) {
        let flags = GETEVENTS | NO_IOWAIT;
        // SAFETY: nothing is submitted, nothing is waited for, and no argument goes with it.
        if unsafe { self.uring.submitter().enter::<()>(0, 0, flags, None) }.is_ok() {
            self.enter_flags = flags;
        }
    }

    /// Puts a file in the table. The kernel keeps it open until the ring is gone.
    pub fn register_file(&mut self, index: u32, fd: RawFd) -> io::Result<()> {
        self.uring.submitter().register_files_update(index, &[fd]).map(drop)
    }

    /// Registers memory in pieces of at most `piece` bytes; false where the kernel would not.
    ///
    /// # Safety
    /// The memory stays mapped until this is dropped.
    pub unsafe fn register_buffers(&mut self, start: *mut u8, len: usize, piece: usize) -> bool {
        let pieces: Vec<libc::iovec> = (0..len)
            .step_by(piece)
            .map(|offset| libc::iovec {
                // SAFETY: offset is inside the buffers.
                iov_base: unsafe { start.add(offset) }.cast(),
                iov_len: piece.min(len - offset),
            })
            .collect();
        // SAFETY: the caller keeps the memory mapped.
        unsafe { self.uring.submitter().register_buffers(&pieces) }.is_ok()
    }

    /// A table of `count` empty places for buffers.
    pub fn register_buffer_table(&mut self, count: u16) -> io::Result<()> {
        self.uring.submitter().register_buffers_sparse(u32::from(count))
    }

    /// Gives the kernel `count` buffers of `len` bytes, for it to choose from.
    pub fn provide_buffers(&mut self, count: u16, len: u32) -> io::Result<()> {
        let provided = Provided::new(count, len)?;
        // SAFETY: the memory stays mapped until `provided` is dropped, which is after the ring.
        unsafe {
            self.uring.submitter().register_buf_ring_with_flags(
                provided.ring_address(),
                count,
                Provided::GROUP,
                0,
            )
        }?;
        self.provided = Some(provided);
        Ok(())
    }

    /// The numbers in the first `len` bytes of a provided buffer, which the kernel has back then.
    #[inline]
    pub fn take_numbers(&mut self, buffer: u16, len: usize, into: &mut Vec<u16>) {
        if let Some(provided) = &mut self.provided {
            provided.take_numbers(buffer, len, into);
        }
    }

    /// Submits what is waiting and sleeps until there are `want` completions or a signal came.
    #[inline]
    pub fn submit_and_wait(&mut self, want: usize) -> io::Result<()> {
        let count = self.uring.submission().len() as u32;
        // SAFETY: no argument goes with it; what the entries point at, see `push`.
        let entered =
            unsafe { self.uring.submitter().enter::<()>(count, want as u32, self.enter_flags, None) };
        match entered {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether there are completions.
    #[inline]
    pub fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Whether a call of the kernel would bring some at once. Of a ring that is watched.
    #[inline]
    pub fn has_work(&mut self) -> bool {
        self.uring.submission().taskrun()
    }

    /// Adds the completions that are there, never more than fit without growing.
    #[inline]
    pub fn reap(&mut self, into: &mut Vec<Completion>) {
        let room = into.capacity() - into.len();
        into.extend(self.uring.completion().take(room).map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }));
    }

    /// Queues an entry, to be submitted with the next wait. Always inlined, as what it calls, so that
    /// what kind of entry it is needs no look where the caller knows.
    #[inline(always)]
    pub fn push(&mut self, entry: Entry, token: Token) -> io::Result<()> {
        let mut entry = self.prepare(entry, token)?.user_data(token.pack());
        if let Token::Quiet(_) = token {
            entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        }
        loop {
            // SAFETY: what an entry points at belongs to a slot or a transfer (or to the ring itself), and is
            // neither reused nor unmapped before its completion was reaped; of a command that says nothing when
            // it goes well, before its slot has come again.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.make_room()?;
        }
    }

    /// Submits what is waiting, since the queue is full.
    #[cold]
    fn make_room(&mut self) -> io::Result<()> {
        retry(|| self.uring.submit(), SHORTAGE_PAUSE).map(drop)
    }

    /// Queues the first link of a chain of two, which says nothing when it goes well. There is room for
    /// the second, which is whatever is pushed next: a chain that is cut by the end of the queue would
    /// be none.
    #[inline(always)]
    pub fn push_chained(&mut self, entry: Entry, token: Token) -> io::Result<()> {
        let chained = squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS;
        let entry = self.prepare(entry, token)?.user_data(token.pack()).flags(chained);
        loop {
            let mut submission = self.uring.submission();
            let room = submission.capacity() - submission.len();
            // SAFETY: as above; where a chain's end is reaped, its beginning is over.
            if room >= 2 && unsafe { submission.push(&entry) }.is_ok() {
                return Ok(());
            }
            drop(submission);
            self.make_room()?;
        }
    }

    #[inline(always)]
    fn prepare(&mut self, entry: Entry, token: Token) -> io::Result<squeue::Entry> {
        Ok(match entry {
            Entry::Command { file, opcode, command, address } => {
                opcode::UringCmd16::new(types::Fixed(file.0), opcode).cmd(command).addr(address).build()
            }
            Entry::Multishot { file, opcode, command } => {
                multishot(opcode::UringCmd16::new(types::Fixed(file.0), opcode).cmd(command).build())
            }
            Entry::Read { file, place, offset } => match place.registered {
                Some(index) => {
                    opcode::ReadFixed::new(types::Fixed(file.0), place.start, place.len as u32, index)
                        .offset(offset)
                        .build()
                }
                None => opcode::Read::new(types::Fixed(file.0), place.start, place.len as u32)
                    .offset(offset)
                    .build(),
            },
            Entry::Write { file, place, offset, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                match place.registered {
                    Some(index) => {
                        opcode::WriteFixed::new(types::Fixed(file.0), place.start, place.len as u32, index)
                            .offset(offset)
                            .rw_flags(flags)
                            .build()
                    }
                    None => opcode::Write::new(types::Fixed(file.0), place.start, place.len as u32)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Entry::SyncData { file } => {
                opcode::Fsync::new(types::Fixed(file.0)).flags(types::FsyncFlags::DATASYNC).build()
            }
            Entry::Allocate { file, mode, offset, len } => {
                let mode = match mode {
                    AllocateMode::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    AllocateMode::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                };
                opcode::Fallocate::new(types::Fixed(file.0), len).offset(offset).mode(mode).build()
            }
            Entry::Timeout { nanoseconds } => {
                let place = match token {
                    Token::Operation { slot, entry } => {
                        self.timers.get_mut(usize::from(slot) * OPERATIONS_PER_SLOT + usize::from(entry))
                    }
                    _ => None,
                };
                let timer = place.ok_or(io::ErrorKind::InvalidInput)?;
                *timer = Duration::from_nanos(nanoseconds).into();
                opcode::Timeout::new(timer).build()
            }
            Entry::Receive { socket, start, len, all } => {
                let flags = if all { libc::MSG_WAITALL } else { 0 };
                opcode::Recv::new(types::Fd(socket), start, len).flags(flags).build()
            }
            Entry::Send { socket, start, len, more } => {
                // WAITALL: the kernel goes on by itself where it could send only a part.
                let more = if more { libc::MSG_MORE } else { 0 };
                let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL | more;
                opcode::Send::new(types::Fd(socket), start, len).flags(flags).build()
            }
            Entry::Wake => {
                let counter = std::ptr::from_mut::<u64>(&mut self.wake_counter).cast::<u8>();
                opcode::Read::new(types::Fd(self.event_fd), counter, 8).build()
            }
        })
    }
}

/// Whether a submission that failed is only to be tried again. EAGAIN: the kernel has no memory for a request. EBUSY:
/// completions must be reaped before more is taken.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

/// Submits until it is no more to be tried again, or for so long that it will not get better.
fn retry<T>(mut submit: impl FnMut() -> io::Result<T>, pause: Duration) -> io::Result<T> {
    let mut tries = 0;
    loop {
        match submit() {
            Err(error) if is_passing(&error) && tries < SHORTAGE_TRIES => tries += 1,
            result => return result,
        }
        // Whoever frees memory needs the processor.
        clock::sleep(pause);
    }
}

/// Makes a command one that completes again and again, with buffers of [`Provided::GROUP`]. The library has
/// no words for that (io_uring 0.7).
fn multishot(entry: squeue::Entry) -> squeue::Entry {
    /// IORING_URING_CMD_MULTISHOT, and where `uring_cmd_flags` and `buf_group` are in an entry
    /// (linux/io_uring.h).
    const MULTISHOT: u32 = 1 << 1;
    const FLAGS: usize = 28;
    const GROUP: usize = 40;
    let mut entry = entry.flags(squeue::Flags::BUFFER_SELECT);
    const { assert!(size_of::<squeue::Entry>() == 64) };
    let bytes = std::ptr::from_mut(&mut entry).cast::<u8>();
    // SAFETY: an entry is `repr(C)` around the kernel's `io_uring_sqe`, 64 bytes of plain numbers, in which
    // both fields lie, aligned.
    unsafe {
        *bytes.add(FLAGS).cast::<u32>() |= MULTISHOT;
        *bytes.add(GROUP).cast::<u16>() = Provided::GROUP;
    }
    entry
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Closing a ring gives its files back some time later; a device that is being deleted waits
        // for that. Nothing was registered where this fails.
        let _ = self.uring.submitter().unregister_files();
        if self.provided.is_some() {
            // Until the kernel has ended a multishot command it could still write to a buffer.
            let _ = self.uring.submitter().unregister_buf_ring(Provided::GROUP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it was tried, and how it ended.
    fn tried(fails: u32, errno: i32) -> (u32, Option<i32>) {
        let mut tries = 0;
        let submit = || {
            tries += 1;
            if tries <= fails { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
        };
        let result = retry(submit, Duration::ZERO);
        (tries, result.err().and_then(|error| error.raw_os_error()))
    }

    #[test]
    fn a_shortage_that_passes_ends_no_queue_and_one_that_stays_does() {
        for errno in [libc::EAGAIN, libc::EBUSY, libc::EINTR] {
            assert_eq!(tried(0, errno), (1, None));
            assert_eq!(tried(100, errno), (101, None));
            assert_eq!(tried(u32::MAX, errno), (SHORTAGE_TRIES + 1, Some(errno)));
        }
        assert_eq!(tried(u32::MAX, libc::EBADF), (1, Some(libc::EBADF)));
    }
}
