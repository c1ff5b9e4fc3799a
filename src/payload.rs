//! Slots own what the kernel may touch.
//!
//! A slot's buffer and the state of its operations in flight live here, below every task. A task
//! borrows the buffer as a [`Payload`]; dropping the task at any moment is safe, because the slot
//! still knows which ranges the kernel (or a worker thread) holds, refuses access to them, and is
//! neither completed nor reused before the last of them has come back.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use crate::io::Errno;

/// How many operations one slot may have in flight; a task that starts more waits for one of its
/// own to end.
pub const OPERATIONS_PER_SLOT: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    InFlight,
    /// In flight, and whoever started it is gone.
    Orphaned,
    Done(i32),
}

#[derive(Debug)]
struct Entry {
    state: Cell<State>,
    /// Addresses of the memory that the operation may touch; empty where it touches none.
    memory: Cell<(usize, usize)>,
}

/// The operations in flight of one slot.
#[derive(Debug)]
pub struct SlotState {
    entries: [Entry; OPERATIONS_PER_SLOT],
    in_flight: Cell<usize>,
    /// Somebody found no free entry since this was last asked.
    starved: Cell<bool>,
    /// Somebody has the slot's payload: a task that serves a request, or the front end.
    lent: Cell<bool>,
}

impl Default for SlotState {
    fn default() -> SlotState {
        SlotState {
            entries: std::array::from_fn(|_| Entry {
                state: Cell::new(State::Free),
                memory: Cell::new((0, 0)),
            }),
            in_flight: Cell::new(0),
            starved: Cell::new(false),
            lent: Cell::new(false),
        }
    }
}

impl SlotState {
    /// How many operations are still somewhere else: while it is not 0 the slot is not reused.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Says who has the payload; false where somebody has it already.
    #[inline]
    pub(crate) fn lend(&self) -> bool {
        !self.lent.replace(true)
    }

    /// The payload is nobody's again.
    #[inline]
    pub(crate) fn give_back(&self) {
        self.lent.set(false);
    }

    /// Books an operation that may touch `memory`; `None` while all entries are taken.
    #[inline]
    pub(crate) fn begin(&self, memory: Range<usize>) -> Option<u8> {
        let Some(index) = self.free() else {
            self.starved.set(true);
            return None;
        };
        let entry = &self.entries[index];
        entry.state.set(State::InFlight);
        entry.memory.set((memory.start, memory.end));
        self.in_flight.set(self.in_flight.get() + 1);
        Some(index as u8)
    }

    #[inline]
    fn free(&self) -> Option<usize> {
        self.entries.iter().position(|entry| entry.state.get() == State::Free)
    }

    /// Whether somebody found no free entry and now there is one: an entry becomes free when its
    /// result is taken, perhaps after its neighbour in the same task was polled in vain.
    #[inline]
    pub(crate) fn can_go_on(&self) -> bool {
        self.starved.get() && self.starved.replace(false) && self.free().is_some()
    }

    /// The operation came back with `result`.
    #[inline]
    pub(crate) fn finish(&self, index: u8, result: i32) {
        let entry = &self.entries[usize::from(index)];
        match entry.state.get() {
            State::InFlight => entry.state.set(State::Done(result)),
            State::Orphaned => entry.state.set(State::Free),
            State::Free | State::Done(_) => {
                debug_assert!(false, "a completion without an operation in flight");
                return;
            }
        }
        self.in_flight.set(self.in_flight.get() - 1);
    }

    /// The result, once it is there; frees the entry.
    #[inline]
    pub(crate) fn take(&self, index: u8) -> Option<i32> {
        let entry = &self.entries[usize::from(index)];
        match entry.state.get() {
            State::Done(result) => {
                entry.state.set(State::Free);
                Some(result)
            }
            _ => None,
        }
    }

    /// Whoever waited for the operation is gone.
    #[inline]
    pub(crate) fn abandon(&self, index: u8) {
        let entry = &self.entries[usize::from(index)];
        match entry.state.get() {
            State::InFlight => entry.state.set(State::Orphaned),
            State::Done(_) => entry.state.set(State::Free),
            State::Free | State::Orphaned => {}
        }
    }

    /// Whether an operation in flight may touch any of these addresses.
    #[inline]
    fn holds(&self, start: usize, end: usize) -> bool {
        self.in_flight.get() != 0
            && self.entries.iter().any(|entry| {
                let (held_start, held_end) = entry.memory.get();
                matches!(entry.state.get(), State::InFlight | State::Orphaned)
                    && held_start < end
                    && start < held_end
            })
    }
}

/// Access to the bytes of one request: all of its slot's buffer, or a part of it.
///
/// Not `Copy`: who has it is alone with these bytes, apart from operations in flight, and while
/// one of those holds a byte of the range [`bytes`](Self::bytes) answers EBUSY.
///
/// A payload may be hidden: pages of the kernel's that are registered with the ring and that
/// nobody here can look at (zero copy). Operations of the ring work on it all the same;
/// [`bytes`](Self::bytes) answers EFAULT. Only a backend that says
/// [`HIDDEN_PAYLOAD`](crate::io::Capabilities::HIDDEN_PAYLOAD) ever gets one.
#[derive(Debug)]
pub struct Payload<'s> {
    /// An address; where it is hidden, the offset in the registered buffer.
    start: *mut u8,
    len: usize,
    state: &'s SlotState,
    slot: u16,
    registered: Option<u16>,
    hidden: bool,
    memory: PhantomData<&'s mut [u8]>,
}

/// Where a payload lies, for the port that hands it to the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub start: *mut u8,
    pub len: usize,
    pub slot: u16,
    /// Index of the registered buffer that covers it.
    pub registered: Option<u16>,
}

impl<'s> Payload<'s> {
    /// The payload of `slot`.
    ///
    /// # Safety
    /// `len` bytes from `start` are initialised, writable, and outlive every operation that
    /// `state` has in flight; until the payload and all parts of it are gone nothing else makes a
    /// reference to them.
    pub(crate) unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        state: &'s SlotState,
        slot: u16,
        registered: Option<u16>,
    ) -> Payload<'s> {
        let start = start.as_ptr();
        Payload { start, len, state, slot, registered, hidden: false, memory: PhantomData }
    }

    /// The hidden payload of `slot`: `len` bytes of the registered buffer `index`, from its start.
    #[inline]
    pub(crate) fn hidden(len: usize, state: &'s SlotState, slot: u16, index: u16) -> Payload<'s> {
        let start = std::ptr::null_mut();
        Payload { start, len, state, slot, registered: Some(index), hidden: true, memory: PhantomData }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the bytes cannot be looked at.
    #[inline]
    pub fn is_hidden(&self) -> bool {
        self.hidden
    }

    /// The bytes, to read. EBUSY while an operation in flight holds any of them, EFAULT where they
    /// are hidden.
    #[inline]
    pub fn bytes(&self) -> Result<&[u8], Errno> {
        self.claim()?;
        // SAFETY: `claim` ruled out that it is hidden, so `new` promised initialised memory that only
        // this payload reaches; it also ruled out the operations in flight, and the borrow of self
        // keeps new ones from starting.
        Ok(unsafe { std::slice::from_raw_parts(self.start, self.len) })
    }

    /// The bytes, to write. Errors as for [`bytes`](Self::bytes).
    #[inline]
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], Errno> {
        self.claim()?;
        // SAFETY: as in `bytes`, and the borrow is exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start, self.len) })
    }

    #[inline]
    fn claim(&self) -> Result<(), Errno> {
        if self.hidden {
            return Err(Errno::EFAULT);
        }
        let start = self.start as usize;
        if self.state.holds(start, start + self.len) { Err(Errno::EBUSY) } else { Ok(()) }
    }

    /// A part, borrowed. A range that is not inside becomes EINVAL.
    #[inline]
    pub fn part(&mut self, range: Range<usize>) -> Result<Payload<'_>, Errno> {
        if range.start > range.end || range.end > self.len {
            return Err(Errno::EINVAL);
        }
        // Wrapping, since a hidden payload has an offset there and no address.
        let start = self.start.wrapping_add(range.start);
        Ok(Payload { start, len: range.end - range.start, ..*self })
    }

    /// Two parts, so that a request can be split and its halves served at once.
    pub fn split_at(self, middle: usize) -> Result<(Payload<'s>, Payload<'s>), Errno> {
        if middle > self.len {
            return Err(Errno::EINVAL);
        }
        let second = self.start.wrapping_add(middle);
        let len = self.len - middle;
        Ok((Payload { len: middle, ..self }, Payload { start: second, len, ..self }))
    }

    /// Deals it out to several lanes, as cards: the first piece has `first` bytes, those after it
    /// `piece` bytes, the last what is left; lane 0 gets the pieces 0, `lanes`, 2 × `lanes` and so on.
    /// EINVAL where one of the numbers is 0.
    pub fn deal(
        self,
        first: usize,
        piece: usize,
        lanes: usize,
    ) -> Result<impl Iterator<Item = Lane<'s>>, Errno> {
        if first == 0 || piece == 0 || lanes == 0 {
            return Err(Errno::EINVAL);
        }
        Ok((0..lanes).map(move |next| Lane { whole: Payload { ..self }, first, piece, lanes, next }))
    }

    #[inline]
    pub(crate) fn place(&self) -> Place {
        Place { start: self.start, len: self.len, slot: self.slot, registered: self.registered }
    }

    /// The slot it belongs to.
    #[inline]
    pub fn slot(&self) -> u16 {
        self.slot
    }
}

/// Every so-manyth piece of a payload; no two lanes of one deal have a byte in common.
#[derive(Debug)]
pub struct Lane<'s> {
    whole: Payload<'s>,
    first: usize,
    piece: usize,
    lanes: usize,
    /// Number of the piece that comes next.
    next: usize,
}

impl<'s> Iterator for Lane<'s> {
    type Item = Payload<'s>;

    fn next(&mut self) -> Option<Payload<'s>> {
        let whole = &self.whole;
        let before = |number: usize| match number.checked_sub(1) {
            None => Some(0),
            Some(pieces) => pieces.checked_mul(self.piece)?.checked_add(self.first),
        };
        let start = before(self.next)?;
        let end = before(self.next + 1)?.min(whole.len);
        if start >= end {
            return None;
        }
        self.next += self.lanes;
        Some(Payload { start: whole.start.wrapping_add(start), len: end - start, ..*whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_payload(test: impl FnOnce(Payload<'_>, &SlotState)) {
        let mut memory = vec![7u8; 4096];
        let state = SlotState::default();
        let start = NonNull::new(memory.as_mut_ptr()).expect("a vector has an address");
        // SAFETY: the vector outlives the test and nothing else touches it.
        test(unsafe { Payload::new(start, 4096, &state, 3, None) }, &state);
    }

    #[test]
    fn bytes_that_the_kernel_holds_cannot_be_reached_even_when_the_waiter_is_gone() {
        with_payload(|mut payload, state| {
            let start = payload.place().start as usize;
            let operation = state.begin(start + 512..start + 1024).expect("an entry is free");
            state.abandon(operation);
            assert_eq!(payload.bytes().unwrap_err(), Errno::EBUSY);
            assert_eq!(payload.part(0..512).and_then(|part| part.bytes().map(<[u8]>::len)), Ok(512));
            assert_eq!(payload.part(1023..1024).unwrap().bytes_mut().unwrap_err(), Errno::EBUSY);
            state.finish(operation, 512);
            assert_eq!(state.in_flight(), 0);
            assert_eq!(payload.bytes().map(<[u8]>::len), Ok(4096));
        });
    }

    #[test]
    fn a_slot_has_so_many_operations_and_gets_each_back_once() {
        let state = SlotState::default();
        let taken: Vec<u8> = (0..OPERATIONS_PER_SLOT).map(|_| state.begin(0..0).unwrap()).collect();
        assert_eq!(state.begin(0..0), None);
        state.finish(taken[5], -5);
        assert_eq!(state.begin(0..0), None, "a result that nobody took keeps its entry");
        assert!(!state.can_go_on(), "nothing is free yet");
        assert_eq!(state.begin(0..0), None);
        assert_eq!(state.take(taken[5]), Some(-5));
        assert!(state.can_go_on() && !state.can_go_on(), "once is enough");
        assert_eq!(state.take(taken[5]), None);
        assert_eq!(state.begin(0..0), Some(5));
        assert_eq!(state.in_flight(), OPERATIONS_PER_SLOT);
    }

    #[test]
    fn what_is_hidden_cannot_be_looked_at_but_split_and_held() {
        let state = SlotState::default();
        let mut hidden = Payload::hidden(4096, &state, 5, 9);
        assert_eq!(hidden.bytes().unwrap_err(), Errno::EFAULT);
        assert_eq!(hidden.bytes_mut().unwrap_err(), Errno::EFAULT);
        let part = hidden.part(512..1024).unwrap();
        assert!(part.is_hidden() && part.bytes().is_err());
        let place = part.place();
        assert_eq!((place.start as usize, place.len, place.registered), (512, 512, Some(9)));
    }

    #[test]
    fn what_is_dealt_out_is_everything_once() {
        for (first, piece, lanes) in [(512, 1024, 3), (4096, 512, 2), (1024, 512, 8), (9999, 1, 2)] {
            with_payload(|payload, _| {
                let mut lanes: Vec<Lane<'_>> = payload.deal(first, piece, lanes).unwrap().collect();
                let mut offset = 0;
                for number in 0.. {
                    let lane = number % lanes.len();
                    let Some(part) = lanes[lane].next() else { break };
                    assert_eq!(part.place().start as usize - lanes[0].whole.start as usize, offset);
                    offset += part.len();
                }
                assert_eq!(offset, 4096);
                assert!(lanes.iter_mut().all(|lane| lane.next().is_none()));
            });
        }
        with_payload(|payload, _| assert!(payload.deal(512, 0, 1).is_err()));
    }

    #[test]
    fn parts_stay_inside() {
        with_payload(|mut payload, _| {
            assert!(payload.part(0..4097).is_err());
            let backwards = Range { start: 9, end: 3 };
            assert!(payload.part(backwards).is_err());
            let (first, mut second) = payload.split_at(512).unwrap();
            second.bytes_mut().unwrap().fill(1);
            assert!(first.bytes().unwrap().iter().all(|&byte| byte == 7));
            assert_eq!((first.len(), second.len(), second.slot()), (512, 3584, 3));
            assert!(second.split_at(3585).is_err());
        });
    }
}
