//! The slots of a queue, and the requests that hold them.

use crate::io::{Errno, Flags, Op};
use crate::nbd::transmission::{Reply, Wanted};

/// No slot.
const NONE: u16 = u16::MAX;

/// A client's request that is being received, served or answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Number of its connection.
    pub connection: u16,
    /// The client's name for it.
    pub cookie: u64,
    pub op: Op,
    pub flags: Flags,
    /// What the client gets.
    pub reply: Reply,
    pub offset: u64,
    pub len: u64,
    /// The first error of its pieces.
    pub error: Option<Errno>,
    /// Bytes whose pieces were begun, where these go one after the other.
    pub begun: u64,
    /// Pieces that are in service.
    pub pending: u16,
    /// Every piece has been begun.
    pub whole: bool,
    /// A flush comes after it, before it is answered.
    pub flush_after: bool,
    /// Its connection ended before all of it had come: there is nothing to answer.
    pub abandoned: bool,
    first_slot: u16,
    last_slot: u16,
}

impl Request {
    pub fn new(connection: u16, wanted: &Wanted) -> Request {
        let Wanted { op, flags, reply, offset, len, cookie } = *wanted;
        Request {
            connection,
            cookie,
            op,
            flags,
            reply,
            offset,
            len,
            error: None,
            begun: 0,
            pending: 0,
            whole: false,
            flush_after: false,
            abandoned: false,
            first_slot: NONE,
            last_slot: NONE,
        }
    }

    /// Its pieces go one after the other, in one slot: nobody gets the data, of which there may be any number of bytes.
    #[inline]
    pub fn is_range(&self) -> bool {
        matches!(self.op, Op::Discard | Op::WriteZeroes) || (self.op == Op::Read && self.reply == Reply::Done)
    }

    /// Bytes of data that the reply carries; no more than the longest payload, which is far below 4 GiB.
    #[inline]
    pub fn data_len(&self) -> u32 {
        match (self.reply, self.error) {
            (Reply::Data | Reply::DataInOne, None) => self.len as u32,
            _ => 0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    request: u16,
    /// The next slot of the same request.
    next: u16,
}

/// All slots and requests of a queue. Nothing is allocated after it was made.
#[derive(Debug)]
pub(super) struct Pool {
    slots: Box<[Slot]>,
    free_slots: Vec<u16>,
    requests: Box<[Request]>,
    free_requests: Vec<u16>,
}

impl Pool {
    pub fn new(slots: u16, requests: u16) -> Pool {
        let none =
            Wanted { op: Op::Flush, flags: Flags::empty(), reply: Reply::Done, offset: 0, len: 0, cookie: 0 };
        let none = Request::new(NONE, &none);
        Pool {
            slots: vec![Slot { request: NONE, next: NONE }; usize::from(slots)].into(),
            free_slots: (0..slots).rev().collect(),
            requests: vec![none; usize::from(requests)].into(),
            free_requests: (0..requests).rev().collect(),
        }
    }

    /// How many slots are free.
    #[inline]
    pub fn free_slots(&self) -> usize {
        self.free_slots.len()
    }

    /// Keeps a request; `None` while there are too many.
    #[inline]
    pub fn begin(&mut self, request: Request) -> Option<u16> {
        let number = self.free_requests.pop()?;
        self.requests[usize::from(number)] = request;
        Some(number)
    }

    #[inline]
    pub fn request(&mut self, number: u16) -> &mut Request {
        &mut self.requests[usize::from(number)]
    }

    /// The request that holds a slot.
    #[inline]
    pub fn holder(&self, slot: u16) -> u16 {
        self.slots[usize::from(slot)].request
    }

    /// Gives a request one more slot, behind those that it has.
    #[inline]
    pub fn take_slot(&mut self, number: u16) -> Option<u16> {
        let slot = self.free_slots.pop()?;
        self.slots[usize::from(slot)] = Slot { request: number, next: NONE };
        let request = &mut self.requests[usize::from(number)];
        match std::mem::replace(&mut request.last_slot, slot) {
            NONE => request.first_slot = slot,
            last => self.slots[usize::from(last)].next = slot,
        }
        Some(slot)
    }

    /// The first slot of a request.
    #[inline]
    pub fn first_slot(&self, number: u16) -> Option<u16> {
        Some(self.requests[usize::from(number)].first_slot).filter(|&slot| slot != NONE)
    }

    /// The slot after this one of the same request.
    #[inline]
    pub fn next_slot(&self, slot: u16) -> Option<u16> {
        Some(self.slots[usize::from(slot)].next).filter(|&slot| slot != NONE)
    }

    /// Takes a slot out of its request's and frees it.
    #[inline]
    pub fn free_slot(&mut self, slot: u16) {
        let Slot { request, next } = self.slots[usize::from(slot)];
        let request = usize::from(request);
        let mut before = NONE;
        let mut at = self.requests[request].first_slot;
        while at != slot && at != NONE {
            before = at;
            at = self.slots[usize::from(at)].next;
        }
        match before {
            NONE => self.requests[request].first_slot = next,
            before => self.slots[usize::from(before)].next = next,
        }
        if next == NONE {
            self.requests[request].last_slot = before;
        }
        self.free_slots.push(slot);
    }

    /// Forgets a request and frees its slots; yields how many they were.
    #[inline]
    pub fn end(&mut self, number: u16) -> u16 {
        let mut freed = 0;
        let mut at = self.requests[usize::from(number)].first_slot;
        while at != NONE {
            self.free_slots.push(at);
            at = self.slots[usize::from(at)].next;
            freed += 1;
        }
        self.free_requests.push(number);
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let (flags, reply) = (Flags::empty(), Reply::Data);
        Request::new(0, &Wanted { op: Op::Read, flags, reply, offset: 0, len: 512, cookie: 1 })
    }

    fn slots_of(pool: &Pool, number: u16) -> Vec<u16> {
        std::iter::successors(pool.first_slot(number), |&slot| pool.next_slot(slot)).collect()
    }

    #[test]
    fn slots_are_in_the_order_they_were_taken_in_and_all_come_back() {
        let mut pool = Pool::new(4, 2);
        let (a, b) = (pool.begin(request()).unwrap(), pool.begin(request()).unwrap());
        assert_eq!(pool.begin(request()), None);
        let taken: Vec<u16> = [a, b, a, a].into_iter().map(|who| pool.take_slot(who).unwrap()).collect();
        assert_eq!(pool.take_slot(b), None);
        assert_eq!(slots_of(&pool, a), [taken[0], taken[2], taken[3]]);
        assert_eq!((pool.holder(taken[1]), pool.holder(taken[2])), (b, a));
        pool.free_slot(taken[2]);
        assert_eq!(slots_of(&pool, a), [taken[0], taken[3]]);
        pool.free_slot(taken[3]);
        let again = pool.take_slot(a).unwrap();
        assert_eq!(slots_of(&pool, a), [taken[0], again]);
        pool.free_slot(taken[0]);
        assert_eq!(slots_of(&pool, a), [again]);
        assert_eq!((pool.end(a), pool.end(b), pool.free_slots()), (1, 1, 4));
    }
}
