//! Bytes over sockets, through a queue's ring.
//!
//! A transfer is one receive or one send, known by a number that its front end chose. What it may touch
//! is out of everybody's hands until it has ended: a [`Buffer`] is the ring's meanwhile and is
//! [taken back](Ring::take_back) afterwards, and bytes of a slot are booked as its backend's operations
//! are. The socket stays open as long. So whoever loses interest in a connection may forget it at
//! any moment.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::rc::Rc;

use super::ring::{Entry, Ring, Token};
use crate::io::Errno;
use crate::payload::Payload;

pub use super::linux::stream::{Listener, Place, Socket, UnixSocketFile};

/// No page is smaller.
const PAGE: usize = 4096;

/// Memory with bytes in it: received and not yet looked at, or written and not yet sent.
#[derive(Debug)]
pub struct Buffer {
    /// A box's. Held as a pointer since a box that is moved about says that nobody else has its memory,
    /// and during a transfer the kernel has.
    memory: NonNull<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Room for this many bytes, with none in it. Memory is taken as it is first written to.
    pub fn new(capacity: usize) -> Buffer {
        let memory = NonNull::from(Box::leak(vec![0; capacity].into_boxed_slice()));
        Buffer { memory, start: 0, end: 0 }
    }

    /// Takes all of its memory now: whoever is served may be the kernel, which writes pages out to find some.
    pub fn touch(&mut self) {
        self.bytes_mut().chunks_mut(PAGE).for_each(|page| std::hint::black_box(page)[0] = 0);
    }

    #[inline]
    fn at(&self, offset: usize) -> *mut u8 {
        self.memory.as_ptr().cast::<u8>().wrapping_add(offset)
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        // SAFETY: this buffer's own memory, initialised; no transfer works on a buffer that somebody has.
        unsafe { self.memory.as_ref() }
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { self.memory.as_mut() }
    }

    /// The bytes in it.
    #[inline]
    pub fn content(&self) -> &[u8] {
        &self.bytes()[self.start..self.end]
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes bytes off the front, at most those that are there.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// How many bytes can still be added.
    #[inline]
    pub fn room(&self) -> usize {
        self.memory.len() - self.end
    }

    /// Adds bytes at the end, as many as there is room for; yields how many.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        let end = self.end;
        self.bytes_mut()[end..end + count].copy_from_slice(&bytes[..count]);
        self.end += count;
        count
    }

    /// Moves the bytes to the front, so that all that is free is behind them.
    pub fn make_room(&mut self) {
        let (start, end) = (self.start, self.end);
        self.bytes_mut().copy_within(start..end, 0);
        (self.start, self.end) = (0, end - start);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: a box's memory, which nobody has any more: the ring forgets a buffer whose transfer has
        // not ended.
        drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
    }
}

/// What a transfer has to give back when it ends.
enum Held {
    Received(Buffer),
    Sent(Buffer),
    Slot { slot: u16, entry: u8 },
}

struct InFlight {
    held: Held,
    /// Open until the transfer has ended, so that its descriptor cannot become another's.
    _socket: Rc<Socket>,
}

#[derive(Default)]
struct Transfer {
    in_flight: Option<InFlight>,
    back: Option<Buffer>,
}

/// The transfers of one ring.
#[derive(Default)]
pub(super) struct Transfers {
    all: RefCell<Vec<Transfer>>,
    in_flight: Cell<usize>,
}

impl Transfers {
    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// A completion with this number came: what the transfer held is free again.
    #[inline]
    fn ended(&self, number: u32, result: i32) -> Option<Held> {
        let mut all = self.all.borrow_mut();
        let transfer = all.get_mut(number as usize)?;
        let InFlight { held, .. } = transfer.in_flight.take()?;
        self.in_flight.set(self.in_flight.get() - 1);
        let count = usize::try_from(result).unwrap_or(0);
        match held {
            Held::Received(mut buffer) => {
                buffer.end += count.min(buffer.room());
                transfer.back = Some(buffer);
                None
            }
            Held::Sent(mut buffer) => {
                buffer.consume(count);
                transfer.back = Some(buffer);
                None
            }
            slot @ Held::Slot { .. } => Some(slot),
        }
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        // The sockets of a process that was killed are closed, and so its clients see.
        #[cfg(feature = "sim")]
        if super::sim::is_dead() {
            return;
        }
        // The kernel lets go of what is in flight some time after the ring is gone, and says to nobody
        // when. A queue waits for its transfers, so that none is lost here.
        for transfer in self.all.take() {
            std::mem::forget(transfer.in_flight);
        }
    }
}

impl Ring {
    /// Makes room for transfers with numbers below `count`. A front end that has transfers uses these
    /// numbers for nothing else.
    pub fn reserve_transfers(&self, count: u32) {
        let mut all = self.transfers().all.borrow_mut();
        if all.len() < count as usize {
            all.resize_with(count as usize, Transfer::default);
        }
    }

    /// How many transfers have not ended.
    #[inline]
    pub fn transfers_in_flight(&self) -> usize {
        self.transfers().in_flight()
    }

    /// Receives what comes, at least a byte and as much as `buffer` has room for, but no more than `most`.
    pub fn receive(&self, number: u32, socket: &Rc<Socket>, buffer: Buffer, most: usize) -> io::Result<()> {
        self.transfer(number, socket, |fd| {
            let (start, len) = (buffer.at(buffer.end), buffer.room().min(most) as u32);
            let entry = Entry::Receive { socket: fd, start, len, all: false };
            (Held::Received(buffer), entry)
        })
    }

    /// Sends what is in `buffer`; what was not sent is in it when it is taken back. `more` says that
    /// something follows at once.
    pub fn send(&self, number: u32, socket: &Rc<Socket>, buffer: Buffer, more: bool) -> io::Result<()> {
        self.transfer(number, socket, |fd| {
            let (start, len) = (buffer.at(buffer.start), buffer.content().len() as u32);
            let entry = Entry::Send { socket: fd, start, len, more };
            (Held::Sent(buffer), entry)
        })
    }

    /// Receives into the bytes of a slot until they are full or the stream ends, or some of them: how many, the completion
    /// says. EBUSY while they are held.
    pub fn receive_into(
        &self,
        number: u32,
        socket: &Rc<Socket>,
        payload: &mut Payload<'_>,
    ) -> Result<(), Errno> {
        payload.bytes_mut()?;
        let place = payload.place();
        let (start, len) = (place.start, place.len as u32);
        let all = socket.can_wait_for_all();
        self.over_slot(number, socket, payload, |socket| Entry::Receive { socket, start, len, all })
    }

    /// Sends the bytes of a slot. EBUSY while they are held.
    pub fn send_from(
        &self,
        number: u32,
        socket: &Rc<Socket>,
        payload: &Payload<'_>,
        more: bool,
    ) -> Result<(), Errno> {
        let bytes = payload.bytes()?;
        let (start, len) = (bytes.as_ptr(), bytes.len() as u32);
        self.over_slot(number, socket, payload, |socket| Entry::Send { socket, start, len, more })
    }

    fn over_slot(
        &self,
        number: u32,
        socket: &Rc<Socket>,
        payload: &Payload<'_>,
        entry: impl FnOnce(RawFd) -> Entry,
    ) -> Result<(), Errno> {
        let place = payload.place();
        let start = place.start as usize;
        let slot = place.slot;
        let booked = self.slot(slot).begin(start..start + place.len).ok_or(Errno::EBUSY)?;
        let begun = self.transfer(number, socket, |fd| (Held::Slot { slot, entry: booked }, entry(fd)));
        begun.map_err(|error| {
            self.slot(slot).finish(booked, 0);
            self.slot(slot).abandon(booked);
            Errno::from(error)
        })
    }

    #[inline]
    fn transfer(
        &self,
        number: u32,
        socket: &Rc<Socket>,
        begin: impl FnOnce(RawFd) -> (Held, Entry),
    ) -> io::Result<()> {
        let transfers = self.transfers();
        let mut all = transfers.all.borrow_mut();
        let Some(transfer) = all.get_mut(number as usize).filter(|transfer| transfer.in_flight.is_none())
        else {
            return Err(io::Error::other("a transfer's number is taken, or was not reserved"));
        };
        let (held, entry) = begin(socket.as_raw_fd());
        transfer.in_flight = Some(InFlight { held, _socket: socket.clone() });
        transfers.in_flight.set(transfers.in_flight.get() + 1);
        self.push(entry, Token::Front(number)).inspect_err(|_| {
            // It never came into the ring.
            transfer.in_flight = None;
            transfers.in_flight.set(transfers.in_flight.get() - 1);
        })
    }

    /// The buffer of a transfer that has ended: received bytes are in it, sent ones no more.
    #[inline]
    pub fn take_back(&self, number: u32) -> Option<Buffer> {
        self.transfers().all.borrow_mut().get_mut(number as usize)?.back.take()
    }

    /// Notes that a transfer has ended, if `number` is one's.
    #[inline]
    pub(super) fn transfer_ended(&self, number: u32, result: i32) {
        if let Some(Held::Slot { slot, entry }) = self.transfers().ended(number, result) {
            self.slot(slot).finish(entry, result);
            self.slot(slot).take(entry);
        }
    }
}

impl Socket {
    /// The other side gets all that was sent, and then the end of the stream; it can still send.
    pub fn stop_sending(&self) {
        self.shut_down(Shutdown::Write);
    }

    /// Nothing more is received; the other side of a pair, where it goes on sending, hears that nobody listens.
    pub fn stop_receiving(&self) {
        self.shut_down(Shutdown::Read);
    }

    /// Ends the connection: whatever waits for the other side comes back.
    pub fn end(&self) {
        self.shut_down(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::ptr::NonNull;

    use super::*;
    use crate::port::remote::Remote;
    use crate::port::ring::Completion;

    fn ring() -> Ring {
        let ring = Ring::new(4, Remote::new(4).unwrap()).unwrap();
        ring.reserve_transfers(4);
        ring
    }

    fn pair() -> (Rc<Socket>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        (Rc::new(Socket::Unix(ours)), theirs)
    }

    /// The next completion that is a front end's.
    fn next(ring: &Ring) -> Completion {
        let mut completions = Vec::with_capacity(8);
        loop {
            ring.submit_and_wait().unwrap();
            ring.completions(&mut completions);
            assert!(completions.len() <= 1, "{completions:?}");
            if let Some(completion) = completions.first() {
                return *completion;
            }
        }
    }

    #[test]
    fn a_buffer_is_the_rings_until_its_transfer_has_ended() {
        let (ring, (socket, mut theirs)) = (ring(), pair());
        ring.receive(0, &socket, Buffer::new(100), 100).unwrap();
        assert!(ring.take_back(0).is_none());
        assert!(ring.receive(0, &socket, Buffer::new(100), 100).is_err(), "the number is taken");
        assert!(ring.receive(4, &socket, Buffer::new(100), 100).is_err(), "the number is not reserved");
        assert_eq!(ring.transfers_in_flight(), 1);
        theirs.write_all(b"hello").unwrap();
        assert_eq!(next(&ring).token(), Token::Front(0));
        let mut buffer = ring.take_back(0).unwrap();
        assert_eq!(buffer.content(), b"hello");
        assert!(ring.take_back(0).is_none() && ring.transfers_in_flight() == 0);
        buffer.consume(1);
        ring.send(1, &socket, buffer, false).unwrap();
        assert_eq!(next(&ring).result, 4);
        assert!(ring.take_back(1).unwrap().is_empty());
        let mut heard = [0; 4];
        theirs.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"ello");
    }

    #[test]
    fn a_connection_that_is_forgotten_stays_open_until_its_transfers_have_ended() {
        let (ring, (socket, mut theirs)) = (ring(), pair());
        ring.receive(0, &socket, Buffer::new(100), 100).unwrap();
        let fd = socket.as_raw_fd();
        drop(socket);
        let (other, _) = UnixStream::pair().unwrap();
        assert_ne!(other.as_raw_fd(), fd, "the descriptor is not another's yet");
        theirs.write_all(b"late").unwrap();
        assert_eq!(next(&ring).result, 4);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "now it is closed");
    }

    #[test]
    fn bytes_of_a_slot_are_held_while_they_are_received() {
        let mut memory = vec![7u8; 64];
        let (ring, (socket, mut theirs)) = (ring(), pair());
        let start = NonNull::new(memory.as_mut_ptr()).expect("a vector has an address");
        // SAFETY: the vector outlives the ring's transfers, which end below, and is not used meanwhile.
        let mut payload = unsafe { Payload::new(start, 64, ring.slot(2), 2, None) };
        let mut part = payload.part(10..20).unwrap();
        ring.receive_into(0, &socket, &mut part).unwrap();
        assert_eq!(part.bytes().unwrap_err(), Errno::EBUSY);
        assert_eq!(ring.send_from(1, &socket, &part, false), Err(Errno::EBUSY));
        assert_eq!(ring.slot(2).in_flight(), 1);
        theirs.write_all(b"01234").unwrap();
        theirs.write_all(b"56789").unwrap();
        assert_eq!(next(&ring).result, 10, "all of it, in one");
        assert_eq!(part.bytes().unwrap(), b"0123456789");
        ring.send_from(1, &socket, &part, false).unwrap();
        assert_eq!(next(&ring).result, 10);
        assert_eq!(ring.slot(2).in_flight(), 0);
        assert_eq!(payload.bytes().unwrap()[20], 7);
    }

    /// How many of its bytes lie in memory (mincore(2)), to the page.
    fn resident(buffer: &Buffer) -> usize {
        let (start, end) = (buffer.at(0) as usize & !(PAGE - 1), buffer.at(0) as usize + buffer.memory.len());
        let mut pages = vec![0u8; (end - start).div_ceil(PAGE)];
        let start = start as *mut libc::c_void;
        // SAFETY: the kernel writes a byte for each page of the range, and there are as many.
        assert_eq!(unsafe { libc::mincore(start, pages.len() * PAGE, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 == 1).count() * PAGE
    }

    #[test]
    fn a_buffer_that_was_touched_needs_no_memory_any_more() {
        const LEN: usize = 64 << 20;
        let mut buffer = Buffer::new(LEN);
        assert!(resident(&buffer) < LEN / 2, "memory is taken as it is first written to");
        buffer.touch();
        assert!(resident(&buffer) >= LEN && buffer.is_empty() && buffer.room() == LEN);
    }

    #[test]
    fn a_buffer_takes_no_more_than_it_has_room_for() {
        let mut buffer = Buffer::new(8);
        assert_eq!((buffer.add(b"12345"), buffer.add(b"6789")), (5, 3));
        buffer.consume(6);
        assert_eq!((buffer.content(), buffer.room()), (&b"78"[..], 0));
        buffer.make_room();
        assert_eq!((buffer.content(), buffer.room()), (&b"78"[..], 6));
        buffer.consume(100);
        assert!(buffer.is_empty() && buffer.room() == 8);
    }
}
