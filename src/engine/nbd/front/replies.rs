//! Replies: gathered into one send a turn, long ones sent out of their slots.

use super::super::connection::LongReply;
use super::*;

/// Longest data that are copied to the other replies; what is longer is sent out of its slots.
const COPIED: u32 = 32 << 10;

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
        let is_short = request.op != Op::Read || request.error.is_some();
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
        let data = match (request.op, request.error) {
            (Op::Read, None) => request.len as usize,
            _ => 0,
        };
        let first = self.pool.first_slot(number);
        let buffers = self.buffers;
        let Some(connection) = self.connection(request.connection) else { return Ok(true) };
        // What is set aside for each request stays so.
        let needed = data + SimpleReply::SIZE * usize::from(connection.requests);
        if data > 0 && (data > COPIED as usize || connection.to_send.room() < needed) {
            return Ok(false);
        }
        connection.to_send.add(&head(&request));
        if let Some(slot) = first
            && data > 0
        {
            let to_send = &mut connection.to_send;
            buffers
                .with_slot(ring, slot, data, |memory| memory.bytes().map(|bytes| to_send.add(bytes)))
                .flatten()
                .map_err(|errno| failed(errno.into()))?;
        }
        self.end_request(number);
        Ok(true)
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
            && self.pool.request(number).len > COPIED
            && let Some(slot) = self.pool.first_slot(number)
        {
            let head = head(self.pool.request(number));
            let Some(connection) = self.connection(index) else { return Ok(()) };
            connection.late.pop_front();
            connection.to_send.add(&head);
            connection.long = Some(LongReply { request: number, slot, sent_of_slot: 0, sent: 0 });
        }
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
        if let Some(long) = &mut connection.long {
            long.sent += sent;
            long.sent_of_slot += sent;
        }
        self.send_long(ring, index)
    }

    /// Goes on with the data of a long reply, which nothing may come between.
    fn send_long(&mut self, ring: &Ring, index: u16) -> Result<()> {
        let Some(mut long) = self.connection(index).and_then(|connection| connection.long) else {
            return Ok(());
        };
        let len = self.pool.request(long.request).len;
        let slot_size = self.buffers.slot_size() as u32;
        if long.sent == len {
            if let Some(connection) = self.connection(index) {
                connection.long = None;
            }
            self.end_request(long.request);
            return Ok(());
        }
        if long.sent_of_slot == slot_size
            && let Some(next) = self.pool.next_slot(long.slot)
        {
            // Free at once: who takes the reply slowly keeps the rest, and not all of it to the end.
            self.pool.free_slot(long.slot);
            self.slots_freed(index, 1);
            (long.slot, long.sent_of_slot) = (next, 0);
        }
        let piece = slot_size.min(len - (long.sent - long.sent_of_slot));
        let (from, to) = (long.sent_of_slot as usize, piece as usize);
        let buffers = self.buffers;
        let Some(connection) = self.connection(index) else { return Ok(()) };
        connection.long = Some(long);
        connection.sending = Busy::Slot;
        let more = long.sent - long.sent_of_slot + piece < len || !connection.to_send.is_empty();
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

#[inline]
fn head(request: &Request) -> [u8; SimpleReply::SIZE] {
    SimpleReply::new(request.cookie, request.error.map_or(Ok(()), Err)).encode()
}
