//! Requests out of what a connection has received.

use super::super::connection::{RECEIVE_BUFFER, RECEIVE_HEAD};
use super::*;
use crate::io::extents::{self, Extent};

/// What is left of a piece of payload when it is received right into its slot, past the buffer: so
/// much that a copy costs more than a receive of its own.
const IN_PLACE: usize = 32 << 10;

/// Replies that wait to be sent, long ones or such that had no room, before no more requests are taken.
const MOST_LATE: usize = 4;

/// Longest range that is discarded or written with zeros as one piece, and what all pieces but the first
/// begin at a multiple of: a disk may take its time over a request of 4 GiB, and others wait for it.
const RANGE: u64 = 256 << 20;

impl Front<'_> {
    /// Looks at the next message of a connection.
    pub(super) fn step(&mut self, ring: &Ring, index: u16) -> Result<Step> {
        let Some(connection) = self.connection(index) else { return Ok(Step::Done) };
        if connection.state != State::Open || connection.receiving != Busy::No {
            return Ok(Step::Done);
        }
        if let Some(payload) = connection.payload {
            return self.take_payload(ring, index, payload);
        }
        if let Some(wanted) = connection.parked.take() {
            return self.begin(index, wanted);
        }
        // Who has replies to take gives no more to do: their slots would be others' and, where the disk is faster than
        // the client, out of the processor's cache by the time they are sent.
        if connection.late.len() >= MOST_LATE {
            connection.waits_for_room = true;
            return Ok(Step::Done);
        }
        // Room for a reply without data is set aside for each request, so that none ever waits for it.
        if !connection.has_room(connection.reply_room) {
            connection.waits_for_room = true;
            return Ok(Step::Done);
        }
        let Some(buffer) = &mut connection.received else { return Ok(Step::Done) };
        let Ok((used, event)) = connection.incoming.next(buffer.content()) else {
            self.leave(index, State::Broken);
            return Ok(Step::Done);
        };
        buffer.consume(used);
        match event {
            Event::Incomplete => {
                connection.hungry = true;
                Ok(Step::Done)
            }
            Event::Disconnect => {
                self.leave(index, State::Draining);
                Ok(Step::Done)
            }
            Event::Refused { cookie, offset, errno } => {
                connection.add_ended(cookie, offset, Err(errno));
                self.touch(index);
                Ok(Step::Again)
            }
            Event::Request(wanted) => {
                let is_long = wanted.op == Op::Write && wanted.len as usize >= IN_PLACE + RECEIVE_HEAD;
                connection.appetite = if is_long { RECEIVE_HEAD } else { RECEIVE_BUFFER };
                self.begin(index, wanted)
            }
        }
    }

    /// Begins a request, or parks it where there are no slots for it.
    fn begin(&mut self, index: u16, wanted: Wanted) -> Result<Step> {
        let Wanted { op, flags, reply, offset, len, .. } = wanted;
        let is_data = matches!(reply, Reply::Data | Reply::DataInOne);
        if op == Op::Extents && !self.knows_extents || op == Op::Read && !is_data && !self.has_read_cache {
            return Ok(self.answer_at_once(index, &wanted));
        }
        let slots = match op {
            Op::Write => 0,
            Op::Read if is_data => (len as usize).div_ceil(self.buffers.slot_size()),
            Op::Read | Op::Flush | Op::Discard | Op::WriteZeroes | Op::Extents => 1,
        };
        if let Some(wait) = self.wait_for(index, slots) {
            if let Some(connection) = self.connection(index) {
                connection.parked = Some(wanted);
            }
            return Ok(wait);
        }
        let fua = flags.contains(Flags::FUA);
        // A discard knows no FUA of its own.
        let flush_after = fua && (self.flush_for_fua || op == Op::Discard);
        let flags = if self.flush_for_fua || op == Op::Discard { flags - Flags::FUA } else { flags };
        let mut request = Request::new(index, &Wanted { flags, ..wanted });
        request.flush_after = flush_after;
        request.whole = !request.is_range() && op != Op::Write;
        let Some(number) = self.pool.begin(request) else {
            if let Some(connection) = self.connection(index) {
                connection.parked = Some(wanted);
            }
            return Ok(Step::NoSlots);
        };
        if let Some(connection) = self.connection(index) {
            connection.requests += 1;
            if op == Op::Write {
                connection.payload = Some(Payload { request: number, start: 0, filled: 0, slot: None });
            }
        }
        if is_data {
            let piece = self.buffers.slot_size() as u64;
            for at in (0..len).step_by(piece as usize) {
                let (offset, len) = (offset + at, piece.min(len - at));
                self.serve(index, number, |slot| Io { op, flags, offset, len, slot });
            }
        } else if matches!(op, Op::Flush | Op::Extents) {
            self.serve(index, number, |slot| Io { op, flags, offset, len, slot });
        } else if op != Op::Write
            && let Some(slot) = self.slot_for(index, number)
        {
            self.next_range(number, slot);
        }
        Ok(Step::Again)
    }

    /// Answers what there is nothing to be done for: the disk has no cache to be filled, or does not know its extents, and
    /// then all is data.
    fn answer_at_once(&mut self, index: u16, wanted: &Wanted) -> Step {
        if let Some(connection) = self.connection(index) {
            if wanted.op == Op::Extents {
                let to = connection.to(&Request::new(index, wanted));
                let all = Extent { len: wanted.len, state: extents::State::empty() };
                connection.add(to.status(1).bytes());
                connection.add(to.run(all).bytes());
            } else {
                connection.add_ended(wanted.cookie, wanted.offset, Ok(()));
            }
            self.touch(index);
        }
        Step::Again
    }

    /// Lets the next piece of a range be served, in the slot of the one before it. There is none after an
    /// error, or when nobody is there to be answered.
    pub(super) fn next_range(&mut self, number: u16, slot: u16) {
        let Request { connection, op, flags, offset, len, begun, error, .. } = *self.pool.request(number);
        let is_broken =
            self.connection(connection).is_none_or(|connection| connection.state == State::Broken);
        let request = self.pool.request(number);
        if error.is_some() || (is_broken && begun > 0) {
            request.whole = true;
            return;
        }
        let offset = offset + begun;
        let longest = if op == Op::Read { self.buffers.slot_size() as u64 } else { RANGE };
        let piece = (longest - offset % longest).min(len - begun);
        request.begun += piece;
        request.whole = request.begun == len;
        request.pending += 1;
        self.ready.push_back(Io { op, flags, offset, len: piece, slot });
    }

    /// Gives a request a slot, of which there is one, and lets it be served.
    #[inline]
    fn serve(&mut self, index: u16, number: u16, io: impl FnOnce(u16) -> Io) {
        if let Some(slot) = self.slot_for(index, number) {
            self.pool.request(number).pending += 1;
            self.ready.push_back(io(slot));
        }
    }

    #[inline]
    fn slot_for(&mut self, index: u16, number: u16) -> Option<u16> {
        let slot = self.pool.take_slot(number)?;
        if let Some(connection) = self.connection(index) {
            connection.slots += 1;
        }
        Some(slot)
    }

    /// Whether a connection has to wait for so many more slots, and for whose. One that has none can
    /// always have them; one that has some, up to its share.
    #[inline]
    fn wait_for(&mut self, index: u16, slots: usize) -> Option<Step> {
        let share = self.slots / self.open.max(1);
        let free = self.pool.free_slots();
        let connection = self.connection(index)?;
        let held = usize::from(connection.slots);
        connection.waits_for_own = held > 0 && slots > 0 && held + slots > share;
        if connection.waits_for_own {
            return Some(Step::Done);
        }
        (slots > free).then_some(Step::NoSlots)
    }

    /// Goes on with the payload of a write: out of what was received, or right into its slot.
    fn take_payload(&mut self, ring: &Ring, index: u16, mut payload: Payload) -> Result<Step> {
        let slot_size = self.buffers.slot_size() as u32;
        let Request { op, flags, offset, len, .. } = *self.pool.request(payload.request);
        // No longer than the longest payload.
        let len = len as u32;
        loop {
            let piece = slot_size.min(len - payload.start);
            let Some(slot) = payload.slot else {
                if let Some(wait) = self.wait_for(index, 1) {
                    self.keep_payload(index, Some(payload));
                    return Ok(wait);
                }
                payload.slot = self.slot_for(index, payload.request);
                continue;
            };
            if payload.filled == piece {
                let next = payload.start + piece;
                let request = self.pool.request(payload.request);
                request.pending += 1;
                request.whole = next == len;
                let offset = offset + u64::from(payload.start);
                self.ready.push_back(Io { op, flags, offset, len: u64::from(piece), slot });
                let rest = Payload { start: next, filled: 0, slot: None, ..payload };
                self.keep_payload(index, (next < len).then_some(rest));
                if let Some(connection) = self.connection(index) {
                    connection.forgive();
                }
                return Ok(Step::Again);
            }
            let buffers = self.buffers;
            let Some(connection) = self.connection(index) else { return Ok(Step::Done) };
            let Some(buffer) = &mut connection.received else { return Ok(Step::Done) };
            let (inside, piece) = (payload.filled as usize, piece as usize);
            let left = piece - inside;
            let here = left.min(buffer.content().len());
            if here > 0 {
                let bytes = &buffer.content()[..here];
                buffers
                    .with_slot(ring, slot, piece, |mut memory| {
                        memory.part(inside..inside + here)?.bytes_mut()?.copy_from_slice(bytes);
                        Ok(())
                    })
                    .flatten()
                    .map_err(|errno| failed(errno.into()))?;
                buffer.consume(here);
                payload.filled += here as u32;
                continue;
            }
            connection.payload = Some(payload);
            if left < IN_PLACE {
                connection.appetite = RECEIVE_BUFFER;
                connection.hungry = true;
                return Ok(Step::Done);
            }
            connection.receiving = Busy::Slot;
            let socket = connection.socket.clone();
            buffers
                .with_slot(ring, slot, piece, |mut memory| {
                    let mut rest = memory.part(inside..piece)?;
                    ring.receive_into(Self::receive_number(index), &socket, &mut rest)
                })
                .flatten()
                .map_err(|errno| failed(errno.into()))?;
            return Ok(Step::Done);
        }
    }

    fn keep_payload(&mut self, index: u16, payload: Option<Payload>) {
        if let Some(connection) = self.connection(index) {
            connection.payload = payload;
        }
    }

    /// The rest of a payload will not come: what came of it is served, and nothing is answered.
    pub(super) fn drop_payload(&mut self, index: u16) {
        let Some(payload) = self.connection(index).and_then(|connection| connection.payload.take()) else {
            return;
        };
        let request = self.pool.request(payload.request);
        request.abandoned = true;
        request.whole = true;
        if request.pending == 0 {
            self.end_request(payload.request);
        }
    }
}
