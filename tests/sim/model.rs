//! What a disk may answer: "What a write means", as a set of candidates for each block.
//!
//! Every write, discard and write-zeroes leaves an entry with each block that it covers. An entry has
//! a beginning and an end on the client's own clock; between the two it may take effect at any moment,
//! and one that failed may have taken effect or not. A read of a block may return
//! - any entry, unless another one that was acknowledged before the read began had begun after it ended.
//!
//! What a read returned is remembered: an entry that had ended before the read began and was not
//! returned is overwritten for every read that begins after that one ended.
//!
//! After a loss of power a block holds any entry, unless another one that is durable came after it. An
//! entry is durable when it was acknowledged before a flush began that succeeded, or was a FUA write.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::pattern::{self, Found};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Data,
    Zeros,
    Anything,
}

#[derive(Clone, Debug)]
struct Entry {
    write: u32,
    content: Content,
    began: u64,
    ended: Option<u64>,
    acknowledged: bool,
    durable: bool,
    fua: bool,
    /// When a read ended that has shown that it is overwritten.
    overwritten: Option<u64>,
    /// Writes that a read has shown to come after it.
    before: Vec<u32>,
    /// It was there when the power went.
    survivor: bool,
}

impl Entry {
    fn matches(&self, found: Found) -> bool {
        match self.content {
            Content::Anything => true,
            Content::Zeros => found == Found::Zeros,
            Content::Data => found == Found::Write(self.write),
        }
    }

    fn is_before(&self, other: &Entry) -> bool {
        self.ended.is_some_and(|ended| ended < other.began) || self.before.contains(&other.write)
    }
}

struct Pending {
    began: u64,
    first: usize,
    count: usize,
}

/// The model of one disk.
pub struct Model {
    block: u64,
    blocks: Vec<Vec<Entry>>,
    clock: u64,
    pending: BTreeMap<u64, Pending>,
}

impl Model {
    /// A disk of zeros.
    pub fn new(size: u64, block: u32) -> Model {
        let zeros = Entry {
            write: 0,
            content: Content::Zeros,
            began: 0,
            ended: Some(0),
            acknowledged: true,
            durable: true,
            fua: false,
            overwritten: None,
            before: Vec::new(),
            survivor: false,
        };
        let block = u64::from(block);
        Model {
            block,
            blocks: vec![vec![zeros]; (size / block) as usize],
            clock: 0,
            pending: BTreeMap::new(),
        }
    }

    fn begin(&mut self, number: u64, offset: u64, len: u64) {
        self.clock += 1;
        let (first, count) = ((offset / self.block) as usize, (len / self.block) as usize);
        self.pending.insert(number, Pending { began: self.clock, first, count });
    }

    pub fn begin_read(&mut self, number: u64, offset: u64, len: u64) {
        self.begin(number, offset, len);
    }

    pub fn begin_flush(&mut self, number: u64) {
        self.begin(number, 0, 0);
    }

    /// `write` names it, and is the request's number as well.
    pub fn begin_write(&mut self, write: u32, offset: u64, len: u64, content: Content, fua: bool) {
        self.begin(u64::from(write), offset, len);
        let entry = Entry {
            write,
            content,
            began: self.clock,
            ended: None,
            acknowledged: false,
            durable: false,
            fua,
            overwritten: None,
            before: Vec::new(),
            survivor: false,
        };
        let first = (offset / self.block) as usize;
        for block in &mut self.blocks[first..first + (len / self.block) as usize] {
            block.push(entry.clone());
        }
    }

    /// A write ended. One that never reached the server never happened.
    pub fn end_write(&mut self, write: u32, well: bool, delivered: bool) {
        self.clock += 1;
        let Some(pending) = self.pending.remove(&u64::from(write)) else { return };
        let clock = self.clock;
        for block in &mut self.blocks[pending.first..pending.first + pending.count] {
            if !well && !delivered {
                block.retain(|entry| entry.write != write);
            }
            for entry in block.iter_mut().filter(|entry| entry.write == write) {
                entry.ended = Some(clock);
                entry.acknowledged = well;
                entry.durable = well && entry.fua;
            }
        }
    }

    pub fn end_flush(&mut self, number: u64, well: bool) {
        self.clock += 1;
        let Some(pending) = self.pending.remove(&number) else { return };
        if well {
            self.durable_before(pending.began);
        }
    }

    fn durable_before(&mut self, began: u64) {
        for entry in self.blocks.iter_mut().flatten() {
            entry.durable |= entry.acknowledged && entry.ended.is_some_and(|ended| ended < began);
        }
    }

    /// The server closed the disk, which makes everything durable.
    pub fn closed(&mut self) {
        self.clock += 1;
        self.durable_before(self.clock);
    }

    /// A read that failed says nothing.
    pub fn failed_read(&mut self, number: u64) {
        self.clock += 1;
        self.pending.remove(&number);
    }

    /// What a read returned: is it allowed?
    pub fn end_read(&mut self, number: u64, bytes: &[u8]) -> Result<(), String> {
        self.clock += 1;
        let Some(pending) = self.pending.remove(&number) else { return Ok(()) };
        let size = self.block as usize;
        if bytes.len() != pending.count * size {
            return Err(format!("a read of {} blocks yielded {} bytes", pending.count, bytes.len()));
        }
        for (number, content) in bytes.chunks_exact(size).enumerate() {
            let number = pending.first + number;
            let found = pattern::read(number as u64 * self.block, content);
            observe(&mut self.blocks[number], pending.began..self.clock, found)
                .map_err(|why| format!("block {number} of {size} bytes: {why}"))?;
        }
        Ok(())
    }

    /// The answer to what was begun as a read, of which only this is known: these runs, as offsets and lengths on the
    /// disk, read as zeros.
    pub fn end_status(&mut self, number: u64, zeros: &[(u64, u64)]) -> Result<(), String> {
        self.clock += 1;
        let Some(pending) = self.pending.remove(&number) else { return Ok(()) };
        for &(offset, len) in zeros {
            let first = offset.div_ceil(self.block) as usize;
            let last = ((offset + len) / self.block) as usize;
            for number in first.max(pending.first)..last.min(pending.first + pending.count) {
                observe(&mut self.blocks[number], pending.began..self.clock, Found::Zeros)
                    .map_err(|why| format!("block {number} was told to be zeros: {why}"))?;
            }
        }
        Ok(())
    }

    /// The server is gone: what was on its way may have happened or not.
    pub fn killed(&mut self) {
        let writes: Vec<u64> = self.pending.keys().copied().collect();
        for number in writes {
            match u32::try_from(number) {
                Ok(write) => self.end_write(write, false, true),
                Err(_) => drop(self.pending.remove(&number)),
            }
        }
    }

    /// Power was lost, with nothing on its way.
    pub fn lost_power(&mut self) {
        self.clock += 1;
        for block in &mut self.blocks {
            let durable: Vec<Entry> = block.iter().filter(|entry| entry.durable).cloned().collect();
            block.retain(|entry| !durable.iter().any(|later| entry.is_before(later)));
            for entry in block {
                entry.ended = Some(self.clock);
                (entry.acknowledged, entry.durable) = (false, false);
                entry.overwritten = None;
                entry.before.clear();
                entry.survivor = true;
            }
        }
    }
}

/// Compares what a read found with what the block may hold, and remembers it.
fn observe(block: &mut [Entry], read: Range<u64>, found: Found) -> Result<(), String> {
    let began = read.start;
    let superseded = |entry: &Entry| {
        let later = |other: &Entry| {
            other.acknowledged && other.ended.is_some_and(|ended| ended < began) && entry.is_before(other)
        };
        entry.overwritten.is_some_and(|at| at < began) || block.iter().any(later)
    };
    let allowed: Vec<u32> =
        block.iter().filter(|entry| !superseded(entry)).map(|entry| entry.write).collect();
    let matching: Vec<u32> = block
        .iter()
        .filter(|entry| allowed.contains(&entry.write) && entry.matches(found))
        .map(|entry| entry.write)
        .collect();
    if matching.is_empty() {
        let known = block.iter().map(|entry| {
            let (write, began, content) = (entry.write, entry.began, entry.content);
            format!("{write} ({content:?} {began}..{:?}, acknowledged {})", entry.ended, entry.acknowledged)
        });
        let known: Vec<String> = known.collect();
        return Err(format!(
            "a read that began at {began} found {found:?}; allowed are the writes {allowed:?} of {}",
            known.join(", ")
        ));
    }
    let seen = if let [only] = matching[..] { Some(only) } else { None };
    for entry in block.iter_mut() {
        if matching.contains(&entry.write) {
            // What the medium held when the power came back is on the medium.
            entry.durable |= entry.survivor && seen.is_some();
        } else if entry.ended.is_some_and(|ended| ended < began) {
            entry.overwritten.get_or_insert(read.end);
            entry.before.extend(seen.filter(|seen| !entry.before.contains(seen)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(write: u32) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        pattern::fill(write, 0, &mut bytes);
        bytes
    }

    fn write(model: &mut Model, write: u32) {
        model.begin_write(write, 0, 512, Content::Data, false);
        model.end_write(write, true, true);
    }

    fn read(model: &mut Model, bytes: &[u8]) -> Result<(), String> {
        model.begin_read(1 << 40, 0, 512);
        model.end_read(1 << 40, bytes)
    }

    #[test]
    fn an_acknowledged_write_hides_what_was_before() {
        let mut model = Model::new(512, 512);
        write(&mut model, 1);
        write(&mut model, 2);
        assert!(read(&mut model, &data(1)).is_err());
        assert!(read(&mut model, &[0; 512]).is_err());
        assert_eq!(read(&mut model, &data(2)), Ok(()));
    }

    #[test]
    fn of_concurrent_writes_any_may_win_but_only_once() {
        let mut model = Model::new(512, 512);
        model.begin_write(1, 0, 512, Content::Data, false);
        model.begin_write(2, 0, 512, Content::Data, false);
        model.end_write(1, true, true);
        model.end_write(2, true, true);
        assert_eq!(read(&mut model, &data(1)), Ok(()));
        assert!(read(&mut model, &data(2)).is_err());
    }

    #[test]
    fn power_takes_what_was_not_flushed_and_nothing_else() {
        let mut model = Model::new(512, 512);
        write(&mut model, 1);
        model.begin_flush(1 << 40);
        model.end_flush(1 << 40, true);
        write(&mut model, 2);
        model.lost_power();
        assert!(read(&mut model, &[0; 512]).is_err());
        assert_eq!(read(&mut model, &data(1)), Ok(()));
        assert!(read(&mut model, &data(2)).is_err(), "a read decided which it is");
        let mut torn = data(1);
        torn[256..].copy_from_slice(&data(2)[256..]);
        assert!(read(&mut model, &torn).is_err());
    }

    #[test]
    fn a_flush_that_began_too_early_promises_nothing() {
        let mut model = Model::new(512, 512);
        model.begin_flush(1 << 40);
        write(&mut model, 1);
        model.end_flush(1 << 40, true);
        model.lost_power();
        assert_eq!(read(&mut model, &[0; 512]), Ok(()));
    }

    #[test]
    fn a_write_that_failed_may_have_happened_and_one_that_was_not_delivered_has_not() {
        let mut model = Model::new(512, 512);
        model.begin_write(1, 0, 512, Content::Data, false);
        model.end_write(1, false, true);
        assert_eq!(read(&mut model, &[0; 512]), Ok(()));
        let mut model = Model::new(512, 512);
        model.begin_write(1, 0, 512, Content::Data, false);
        model.end_write(1, false, false);
        assert!(read(&mut model, &data(1)).is_err());
    }
}
