//! What was acknowledged and not yet flushed, so that it can be done again on a server that has lost it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::io::{Flags, Op};

/// What an entry counts for besides its data, in bytes.
const ENTRY: u64 = 128;

/// A change of the disk, as it was acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub op: Op,
    pub flags: Flags,
    pub offset: u64,
    pub len: u64,
    /// What a write wrote.
    pub data: Arc<[u8]>,
}

impl Change {
    /// Bytes of memory that it is counted with.
    pub fn weight(len_of_data: usize) -> u64 {
        len_of_data as u64 + ENTRY
    }

    /// Whether a byte of the disk is in both.
    pub fn overlaps(&self, offset: u64, len: u64) -> bool {
        self.offset < offset.saturating_add(len) && offset < self.offset.saturating_add(self.len)
    }
}

/// The changes since the last flush, in the order in which they were acknowledged.
#[derive(Debug)]
pub(super) struct Journal {
    changes: VecDeque<Change>,
    /// Number of the first of them; they are counted from the beginning.
    first: u64,
    bytes: u64,
    most: u64,
    /// Changes up to this number were acknowledged and are not all here.
    forgotten: Option<u64>,
}

impl Journal {
    /// One that takes this many bytes of memory; 0 for none at all.
    pub fn new(most: u64) -> Journal {
        Journal { changes: VecDeque::new(), first: 0, bytes: 0, most, forgotten: None }
    }

    /// The number that the next change has.
    pub fn end(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    /// Whether nothing would be lost with the server.
    pub fn is_clean(&self) -> bool {
        self.changes.is_empty() && self.forgotten.is_none()
    }

    /// Whether all that was acknowledged since the last flush can be done again.
    pub fn can_replay(&self) -> bool {
        self.forgotten.is_none()
    }

    /// Whether changes are not kept: there is to be no journal, or it is of no use before the next flush.
    fn is_off(&self) -> bool {
        self.most == 0 || self.forgotten.is_some()
    }

    /// It cannot be emptied: whatever is in it is given up.
    pub fn forget(&mut self) {
        self.first = self.end();
        self.changes.clear();
        self.bytes = 0;
        self.forgotten = Some(self.first);
    }

    /// Whether it is time for a flush, before it is full.
    pub fn wants_flush(&self) -> bool {
        !self.is_off() && self.bytes > self.most / 2
    }

    /// Whether a change with so much data can be taken now.
    pub fn has_room(&self, len_of_data: usize) -> bool {
        self.is_off() || self.bytes + Change::weight(len_of_data) <= self.most
    }

    /// A change was acknowledged for which there is room.
    pub fn add(&mut self, op: Op, flags: Flags, offset: u64, len: u64, data: &[u8]) {
        if self.is_off() {
            self.first += 1;
            self.forgotten = Some(self.first);
            return;
        }
        self.bytes += Change::weight(data.len());
        // However long it takes, the second time it is to be done.
        let flags = flags - Flags::FAST_ZERO;
        self.changes.push_back(Change { op, flags, offset, len, data: data.into() });
    }

    /// A flush that was asked for when the next change had this number has gone well.
    pub fn flushed(&mut self, covers: u64) {
        while self.first < covers
            && let Some(change) = self.changes.pop_front()
        {
            self.bytes -= Change::weight(change.data.len());
            self.first += 1;
        }
        if self.forgotten.is_some_and(|forgotten| forgotten <= covers) {
            self.forgotten = None;
        }
    }

    /// The change of this number.
    pub fn get(&self, number: u64) -> Option<&Change> {
        self.changes.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// Number of the first change.
    pub fn first(&self) -> u64 {
        self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(journal: &mut Journal, offset: u64, len: usize) {
        journal.add(Op::Write, Flags::empty(), offset, len as u64, &vec![7; len]);
    }

    #[test]
    fn a_flush_covers_what_was_there_when_it_was_asked_for() {
        let mut journal = Journal::new(1 << 20);
        assert!(journal.is_clean());
        write(&mut journal, 0, 512);
        write(&mut journal, 512, 512);
        let covers = journal.end();
        write(&mut journal, 1024, 512);
        journal.flushed(covers);
        assert_eq!((journal.first(), journal.end(), journal.bytes), (2, 3, 512 + ENTRY));
        assert_eq!(journal.get(2).map(|change| change.offset), Some(1024));
        assert!(journal.get(1).is_none() && journal.get(3).is_none());
        // An older one that comes later.
        journal.flushed(1);
        assert!(!journal.is_clean() && journal.can_replay());
        journal.flushed(3);
        assert!(journal.is_clean() && journal.bytes == 0);
    }

    #[test]
    fn it_says_when_it_is_full_and_takes_no_more() {
        let mut journal = Journal::new(10 * (4096 + ENTRY));
        let mut count = 0;
        while journal.has_room(4096) {
            write(&mut journal, 0, 4096);
            count += 1;
            assert_eq!(journal.wants_flush(), count > 5);
        }
        assert_eq!((count, journal.bytes), (10, 10 * (4096 + ENTRY)));
        assert!(!journal.has_room(0));
    }

    #[test]
    fn without_one_it_is_known_that_something_was_acknowledged() {
        let mut journal = Journal::new(0);
        assert!(journal.has_room(1 << 30) && !journal.wants_flush());
        write(&mut journal, 0, 512);
        assert!(!journal.can_replay() && !journal.is_clean());
        let covers = journal.end();
        write(&mut journal, 0, 512);
        journal.flushed(covers);
        assert!(!journal.can_replay(), "the second was not covered");
        journal.flushed(journal.end());
        assert!(journal.can_replay() && journal.is_clean());
    }

    #[test]
    fn what_is_forgotten_can_be_kept_again_after_a_flush() {
        let mut journal = Journal::new(10_000);
        write(&mut journal, 0, 4096);
        journal.forget();
        assert!(!journal.can_replay() && !journal.is_clean() && journal.bytes == 0);
        assert!(journal.has_room(1 << 20));
        write(&mut journal, 0, 512);
        let covers = journal.end();
        journal.flushed(covers);
        assert!(journal.can_replay() && journal.is_clean());
        write(&mut journal, 0, 512);
        assert!(journal.can_replay() && journal.get(covers).is_some());
    }

    #[test]
    fn ranges_overlap_where_they_have_a_byte_in_common() {
        let change = Change { op: Op::Discard, flags: Flags::empty(), offset: 10, len: 10, data: [].into() };
        for (offset, len, overlaps) in
            [(0, 10, false), (0, 11, true), (19, 1, true), (20, 5, false), (12, 2, true), (0, u64::MAX, true)]
        {
            assert_eq!(change.overlaps(offset, len), overlaps, "{offset}+{len}");
        }
    }
}
