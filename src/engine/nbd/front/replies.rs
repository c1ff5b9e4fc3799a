//! Replies: gathered into one send a turn, long ones sent out of their slots.

use super::super::connection::LongReply;
use super::*;
use crate::io::extents::{self, Extent};
use crate::nbd::replies::{self, To};

/// Longest data that are copied to the other replies; what is longer is sent out of its slots.
const COPIED: u32 = 32 << 10;

/// Bytes of the blocks in which zeros are looked for, where the disk's are no larger: what file systems count in.
const HOLE_BLOCK: u64 = 4096;

/// Most chunks of data that are copied: as many as they have blocks, and both of their ends may lie inside of one.
const MOST_CHUNKS: usize = COPIED as usize / HOLE_BLOCK as usize + 2;

/// Shortest hole that is told between data which are sent out of their slots: each costs two sends.
const LONG_HOLE: usize = 32 << 10;

impl Front<'_> {
    /// A request is over: its reply goes to the others, or waits until there is room.
    pub(super) fn answer(&mut self, ring: &Ring, number: u16) -> Result<()> {
        let request = self.pool.request(number);
        let (index, abandoned) = (request.connection, request.abandoned);
        let Some(connection) = self.connection(index) else { return Ok(()) };
        if abandoned || connection.state == State::Broken {
            self.end_request(number);
            return Ok(());
        }
        let request = self.pool.request(number);
        let is_short = request.reply == Reply::Done || request.error.is_some();
        let may = is_short || self.connection(index).is_some_and(|connection| connection.late.is_empty());
        let gathered = may && self.gather(ring, number)?;
        if !gathered && let Some(connection) = self.connection(index) {
            connection.late.push_back(number);
        }
        self.touch(index);
        Ok(())
    }

    /// Adds a reply to those that are sent together, if it is short and there is room.
    #[inline]
    fn gather(&mut self, ring: &Ring, number: u16) -> Result<bool> {
        let request = *self.pool.request(number);
        let gathered = match (request.reply, request.error) {
            (Reply::Data | Reply::DataInOne, None) => self.gather_data(ring, number, &request)?,
            (Reply::Status, None) => self.gather_status(ring, number, &request)?,
            (_, error) => {
                if let Some(connection) = self.connection(request.connection) {
                    connection.add_ended(request.cookie, request.offset, error.map_or(Ok(()), Err));
                }
                true
            }
        };
        if gathered {
            self.end_request(number);
        }
        Ok(gathered)
    }

    #[inline]
    fn gather_data(&mut self, ring: &Ring, number: u16, request: &Request) -> Result<bool> {
        let data = request.data_len() as usize;
        let Some(slot) = self.pool.first_slot(number) else { return Ok(true) };
        let (buffers, block) = (self.buffers, self.hole_block());
        let Some(connection) = self.connection(request.connection) else { return Ok(true) };
        let in_one = connection.headers == Headers::Simple || request.reply == Reply::DataInOne;
        let heads = if in_one { 0 } else { MOST_CHUNKS * connection.reply_room };
        // What is set aside for each request stays so.
        if data > COPIED as usize || !connection.has_room(data + heads) {
            return Ok(false);
        }
        let to = connection.to(request);
        if connection.headers == Headers::Simple {
            connection.add_ended(request.cookie, request.offset, Ok(()));
        } else if in_one {
            connection.add(to.data(request.offset, data as u64, true).bytes());
        }
        let add = |bytes: &[u8]| {
            if in_one {
                connection.add(bytes);
            } else {
                add_chunks(connection, to, bytes, block);
            }
        };
        buffers
            .with_slot(ring, slot, data, |memory| memory.bytes().map(add))
            .flatten()
            .map_err(|errno| failed(errno.into()))?;
        Ok(true)
    }

    /// The runs that the disk has told, in whole blocks.
    fn gather_status(&mut self, ring: &Ring, number: u16, request: &Request) -> Result<bool> {
        let Some(slot) = self.pool.first_slot(number) else { return Ok(true) };
        let (buffers, block) = (self.buffers, self.rules.block());
        let Some(connection) = self.connection(request.connection) else { return Ok(true) };
        let most = if request.flags.contains(Flags::FIRST_EXTENT) { 1 } else { usize::MAX };
        let to = connection.to(request);
        let mut add = |bytes: &[u8]| {
            let runs = || extents::whole_blocks(bytes, request.len, block).take(most);
            // Who says nothing of the first block does not know.
            let unknown = Extent { len: request.len, state: extents::State::empty() };
            let count = runs().count();
            let unknown = (count == 0).then_some(unknown);
            let count = count.max(1);
            if !connection.has_room(to.status_len(count)) {
                return false;
            }
            connection.add(to.status(count).bytes());
            for run in runs().chain(unknown) {
                connection.add(to.run(run).bytes());
            }
            true
        };
        buffers
            .with_slot(ring, slot, extents::ANSWER_LEN, |memory| memory.bytes().map(&mut add))
            .flatten()
            .map_err(|errno| failed(errno.into()))
    }

    /// In blocks of how many bytes zeros are looked for in what was read.
    #[inline]
    fn hole_block(&self) -> u64 {
        self.rules.block().max(HOLE_BLOCK)
    }

    /// Begins to send what waits, unless something is being sent already.
    pub(super) fn pump(&mut self, ring: &Ring, index: u16) -> Result<()> {
        let Some(connection) = self.connection(index) else { return Ok(()) };
        if connection.sending != Busy::No || connection.state == State::Broken {
            return Ok(());
        }
        while let Some(number) =
            self.connection(index).and_then(|connection| connection.late.front().copied())
        {
            if !self.gather(ring, number)? {
                break;
            }
            if let Some(connection) = self.connection(index) {
                connection.late.pop_front();
            }
        }
        let Some(connection) = self.connection(index) else { return Ok(()) };
        if let Some(number) = connection.late.front().copied()
            && self.pool.request(number).data_len() > COPIED
            && let Some(slot) = self.pool.first_slot(number)
        {
            let Some(connection) = self.connection(index) else { return Ok(()) };
            connection.late.pop_front();
            connection.long =
                Some(LongReply { request: number, slot, sent_of_slot: 0, sent: 0, announced: 0 });
            self.announce(ring, index)?;
        }
        self.send_gathered(ring, index)
    }

    /// Sends what was gathered, if there is anything.
    fn send_gathered(&mut self, ring: &Ring, index: u16) -> Result<()> {
        let Some(connection) = self.connection(index) else { return Ok(()) };
        if connection.to_send.is_empty() {
            return Ok(());
        }
        let Some(spare) = connection.spare.take() else { return Ok(()) };
        let buffer = std::mem::replace(&mut connection.to_send, spare);
        connection.sending = Busy::Buffer;
        let more = connection.long.is_some();
        ring.send(Self::send_number(index), &connection.socket, buffer, more).map_err(failed)?;
        if std::mem::take(&mut connection.waits_for_room) {
            self.make_runnable(index);
        }
        Ok(())
    }

    /// Adds to what was gathered the head of the next data of a long reply, behind those of the holes that come before
    /// them. Where replies are chunks, a chunk is a run of one slot, and others' replies may come before it.
    fn announce(&mut self, ring: &Ring, index: u16) -> Result<()> {
        let (buffers, block) = (self.buffers, self.hole_block());
        let slot_size = buffers.slot_size() as u32;
        loop {
            let Some(mut long) = self.connection(index).and_then(|connection| connection.long) else {
                return Ok(());
            };
            let request = *self.pool.request(long.request);
            let len = request.data_len();
            let Some(connection) = self.connection(index) else { return Ok(()) };
            // The first head has its room; for more the buffer is sent first.
            if long.sent == len || !connection.has_room(0) {
                return Ok(());
            }
            let to = connection.to(&request);
            if connection.headers == Headers::Simple || request.reply == Reply::DataInOne {
                connection.add(to.data(request.offset, request.len, true).bytes());
                long.announced = len;
                connection.long = Some(long);
                return Ok(());
            }
            let offset = request.offset + u64::from(long.sent);
            let from = long.sent_of_slot as usize;
            let to_end = slot_size.min(len - (long.sent - long.sent_of_slot)) as usize;
            let (run, is_hole) = buffers
                .with_slot(ring, long.slot, to_end, |memory| {
                    memory.bytes().map(|bytes| replies::run(&bytes[from..], offset, block, LONG_HOLE))
                })
                .flatten()
                .map_err(|errno| failed(errno.into()))?;
            let Some(connection) = self.connection(index) else { return Ok(()) };
            let run = run as u32;
            let is_last = long.sent + run == len;
            if !is_hole {
                connection.add(to.data(offset, u64::from(run), is_last).bytes());
                long.announced = long.sent + run;
                connection.long = Some(long);
                return Ok(());
            }
            connection.add(to.hole(offset, run, is_last).bytes());
            long.sent += run;
            long.sent_of_slot += run;
            long.announced = long.sent;
            self.keep_long(index, long, len);
        }
    }

    /// Notes how far a long reply is, in the next slot where it has come to the end of one.
    fn keep_long(&mut self, index: u16, mut long: LongReply, len: u32) {
        if long.sent < len
            && long.sent_of_slot == self.buffers.slot_size() as u32
            && let Some(next) = self.pool.next_slot(long.slot)
        {
            // Free at once: who takes the reply slowly keeps the rest, and not all of it to the end.
            self.pool.free_slot(long.slot);
            self.slots_freed(index, 1);
            (long.slot, long.sent_of_slot) = (next, 0);
        }
        if let Some(connection) = self.connection(index) {
            connection.long = Some(long);
        }
    }

    /// A send has ended.
    pub(super) fn sent(&mut self, ring: &Ring, index: u16, result: i32) -> Result<()> {
        let Some(connection) = self.connection(index) else { return Ok(()) };
        let busy = std::mem::replace(&mut connection.sending, Busy::No);
        self.touch(index);
        let Some(connection) = self.connection(index) else { return Ok(()) };
        let failed_for_good = result == 0 || (result < 0 && !is_passing(result));
        if busy == Busy::Buffer {
            let Some(buffer) = ring.take_back(Self::send_number(index)) else { return Ok(()) };
            if failed_for_good || connection.state == State::Broken {
                self.leave(index, State::Broken);
                self.drop_replies(index);
                return Ok(());
            }
            if !buffer.is_empty() {
                connection.sending = Busy::Buffer;
                let more = connection.long.is_some();
                return ring.send(Self::send_number(index), &connection.socket, buffer, more).map_err(failed);
            }
            connection.spare = Some(buffer);
            return self.send_long(ring, index);
        }
        if failed_for_good || connection.state == State::Broken {
            self.leave(index, State::Broken);
            self.drop_replies(index);
            return Ok(());
        }
        let sent = u32::try_from(result).unwrap_or(0);
        if let Some(mut long) = connection.long {
            long.sent += sent;
            long.sent_of_slot += sent;
            let len = self.pool.request(long.request).data_len();
            self.keep_long(index, long, len);
        }
        self.send_long(ring, index)
    }

    /// Goes on with a long reply. Nothing may come between the data that were announced.
    fn send_long(&mut self, ring: &Ring, index: u16) -> Result<()> {
        let Some(long) = self.connection(index).and_then(|connection| connection.long) else {
            return Ok(());
        };
        let len = self.pool.request(long.request).data_len();
        if long.sent == len {
            if let Some(connection) = self.connection(index) {
                connection.long = None;
            }
            self.end_request(long.request);
            return Ok(());
        }
        if long.sent == long.announced {
            self.announce(ring, index)?;
            return self.send_gathered(ring, index);
        }
        let slot_size = self.buffers.slot_size() as u32;
        let start_of_slot = long.sent - long.sent_of_slot;
        let end = long.announced.min(start_of_slot + slot_size);
        let (from, to) = (long.sent_of_slot as usize, (end - start_of_slot) as usize);
        let buffers = self.buffers;
        let Some(connection) = self.connection(index) else { return Ok(()) };
        connection.sending = Busy::Slot;
        let more = end < len || !connection.to_send.is_empty();
        buffers
            .with_slot(ring, long.slot, to, |mut memory| {
                let rest = memory.part(from..to)?;
                ring.send_from(Self::send_number(index), &connection.socket, &rest, more)
            })
            .flatten()
            .map_err(|errno| failed(errno.into()))
    }

    /// Nobody is there to be answered. What is being sent is waited for.
    pub(super) fn drop_replies(&mut self, index: u16) {
        while let Some(number) = self.connection(index).and_then(|connection| connection.late.pop_front()) {
            self.end_request(number);
        }
        let Some(connection) = self.connection(index) else { return };
        if connection.sending == Busy::No
            && let Some(long) = connection.long.take()
        {
            self.end_request(long.request);
        }
    }
}

/// Adds what was read as chunks of data and of holes.
fn add_chunks(connection: &mut Connection, to: To, bytes: &[u8], block: u64) {
    let mut at = 0;
    while at < bytes.len() {
        let offset = to.offset + at as u64;
        let (len, is_hole) = replies::run(&bytes[at..], offset, block, HOLE_BLOCK as usize);
        let is_last = at + len == bytes.len();
        if is_hole {
            connection.add(to.hole(offset, len as u32, is_last).bytes());
        } else {
            connection.add(to.data(offset, len as u64, is_last).bytes());
            connection.add(&bytes[at..at + len]);
        }
        at += len;
    }
}
