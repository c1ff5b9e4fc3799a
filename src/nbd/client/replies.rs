//! Transmission, the client's side: heads of requests out, replies in, each held against what was asked.

use super::coverage::Coverage;
use super::errno;
use super::runs::Runs;
use crate::io::extents::Extent;
use crate::io::{Errno, Flags, Op};
use crate::nbd::wire::chunk::{Chunk, DATA_HEAD, Failure, Hole, kind};
use crate::nbd::wire::status::Status;
use crate::nbd::wire::{
    EXTENDED_REPLY_MAGIC, Headers, Request, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply, command,
    command_flag, u64_at,
};

/// Longest body of a chunk that says that a request failed: a string, and what goes with it.
const MAX_FAILURE: u64 = 8 << 10;

/// Bytes that are needed at most to say what comes next: whoever drives has room for as many.
pub const LONGEST_HEAD: usize = Chunk::EXTENDED_SIZE + MAX_FAILURE as usize;

/// Requests that one connection has under way at most.
pub const MOST_ASKED: usize = 4096;

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The bytes end before the next message does. Those that were used up were a part of it.
    Incomplete,
    /// Bytes of a read. Whoever drives takes them out of the stream before it asks for the next event.
    Data {
        /// Of which request.
        index: u16,
        /// Where in it they belong.
        at: u32,
        /// How many follow.
        len: u32,
    },
    /// Bytes of a read that are zeros, and do not follow.
    Zeroes {
        /// Of which request.
        index: u16,
        /// Where in it they belong.
        at: u32,
        /// How many.
        len: u32,
    },
    /// What takes space in the range that was asked about: [`Replies::extents`], until the next event is asked for.
    Extents {
        /// By which request.
        index: u16,
    },
    /// A request will have failed; more of its reply follows.
    Failing,
    /// A request is over. A read that went well has been told in full.
    Ended {
        /// Which; the number is free for another.
        index: u16,
        /// How.
        result: Result<(), Errno>,
    },
}

/// The server breaks the protocol: nothing that comes on this connection means anything any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server does not keep to the protocol: {why}")]
pub struct Broken {
    /// What it did.
    pub why: &'static str,
    /// The request whose reply it was, where that can be told.
    pub index: Option<u16>,
}

fn broken<T>(why: &'static str) -> Result<T, Broken> {
    Err(Broken { why, index: None })
}

fn broken_at<T>(index: u16, why: &'static str) -> Result<T, Broken> {
    Err(Broken { why, index: Some(index) })
}

#[derive(Debug, Default)]
struct Asked {
    /// 0 where nothing is asked.
    cookie: u64,
    wants: Wants,
    offset: u64,
    len: u64,
    error: Option<Errno>,
    /// Bytes of a read that have come.
    told: Coverage,
}

/// What a request that goes well is answered with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wants {
    /// That it has gone well, or what had come besides has come.
    #[default]
    Nothing,
    /// All of its bytes.
    Data,
    /// What takes space.
    Extents,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A head comes next.
    Head,
    /// What comes next are runs for this request, and this is where its reply ends or not.
    Runs { index: u16, is_last: bool },
    /// What came last was the end of this request's reply.
    End(u16),
}

/// What one connection has under way.
#[derive(Debug)]
pub struct Replies {
    headers: Headers,
    allocation: Option<u32>,
    asked: Vec<Asked>,
    free: Vec<u16>,
    sequence: u64,
    state: State,
    runs: Runs,
}

impl Replies {
    /// For a connection whose requests and replies look like this, and whose server calls the context
    /// `base:allocation` so, if it has it.
    pub fn new(headers: Headers, allocation: Option<u32>) -> Replies {
        let (asked, free, runs) = (Vec::new(), Vec::new(), Runs::default());
        Replies { headers, allocation, asked, free, sequence: 0, state: State::Head, runs }
    }

    /// Whether it can be asked what takes space ([`Op::Extents`]).
    pub fn knows_extents(&self) -> bool {
        self.allocation.is_some()
    }

    /// What takes space, behind [`Event::Extents`]: from where the range begins that was asked about, and perhaps not to
    /// its end. [`MOST_EXTENTS`](crate::io::extents::MOST_EXTENTS) at most, of which none is empty.
    pub fn extents(&self) -> &[Extent] {
        self.runs.extents()
    }

    /// How many requests are under way.
    pub fn outstanding(&self) -> usize {
        self.asked.len() - self.free.len()
    }

    /// Whether one more may be asked.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.asked.len() < MOST_ASKED
    }

    /// Longest range in bytes that one request can name, a multiple of every block size.
    pub fn longest_range(&self) -> u64 {
        match self.headers {
            Headers::Simple | Headers::Structured => 1 << 31,
            Headers::Extended => 1 << 62,
        }
    }

    /// Adds the head of a request to `heads`, and yields its number; `None` where there is no room. The data of a
    /// write is to follow right behind. A read and a write have less than 4 GiB, and other ranges no more than
    /// [`longest_range`](Self::longest_range). Nobody is asked for extents who does not [know](Self::knows_extents) any.
    pub fn ask(&mut self, op: Op, flags: Flags, offset: u64, len: u64, heads: &mut Vec<u8>) -> Option<u16> {
        if !self.has_room() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.asked.push(Asked::default());
            (self.asked.len() - 1) as u16
        });
        self.sequence += 1;
        let cookie = self.sequence << 16 | u64::from(index);
        let asked = &mut self.asked[usize::from(index)];
        asked.told.clear();
        *asked = Asked {
            cookie,
            wants: match op {
                Op::Read => Wants::Data,
                Op::Extents => Wants::Extents,
                Op::Write | Op::Flush | Op::Discard | Op::WriteZeroes => Wants::Nothing,
            },
            offset,
            len,
            error: None,
            told: std::mem::take(&mut asked.told),
        };
        let mut bits = 0;
        if flags.contains(Flags::FUA) && op.modifies() {
            bits |= command_flag::FUA;
        }
        if flags.contains(Flags::NO_UNMAP) && op == Op::WriteZeroes {
            bits |= command_flag::NO_HOLE;
        }
        if flags.contains(Flags::FAST_ZERO) && op == Op::WriteZeroes {
            bits |= command_flag::FAST_ZERO;
        }
        if flags.contains(Flags::FIRST_EXTENT) && op == Op::Extents {
            bits |= command_flag::REQ_ONE;
        }
        if op == Op::Write && self.headers == Headers::Extended {
            bits |= command_flag::PAYLOAD_LEN;
        }
        let command = match op {
            Op::Read => command::READ,
            Op::Write => command::WRITE,
            Op::Flush => command::FLUSH,
            Op::Discard => command::TRIM,
            Op::WriteZeroes => command::WRITE_ZEROES,
            Op::Extents => command::BLOCK_STATUS,
        };
        self.say(Request { flags: bits, command, cookie, offset, len }, heads);
        Some(index)
    }

    /// Adds the request that ends the connection in order, which has no reply.
    pub fn disconnect(&self, heads: &mut Vec<u8>) {
        self.say(Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, len: 0 }, heads);
    }

    fn say(&self, request: Request, heads: &mut Vec<u8>) {
        match self.headers {
            Headers::Simple | Headers::Structured => heads.extend(request.encode()),
            Headers::Extended => heads.extend(request.encode_extended()),
        }
    }

    /// Takes the next message off the front of `bytes`: yields how many of them it used up, and what they were.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Event), Broken> {
        match self.state {
            State::Head => {}
            State::Runs { index, is_last } => return self.take_runs(index, is_last, bytes),
            State::End(index) => {
                self.state = State::Head;
                return Ok((0, self.end(index)));
            }
        }
        let Some(magic) = bytes.first_chunk::<4>() else { return Ok((0, Event::Incomplete)) };
        let magic = u32::from_be_bytes(*magic);
        if magic == SIMPLE_REPLY_MAGIC && self.headers != Headers::Extended {
            return match bytes.first_chunk::<{ SimpleReply::SIZE }>().and_then(SimpleReply::decode) {
                Some(reply) => Ok((SimpleReply::SIZE, self.simple(reply)?)),
                None => Ok((0, Event::Incomplete)),
            };
        }
        let (expected, size) = match self.headers {
            Headers::Simple => return broken("a reply is not a simple one"),
            Headers::Structured => (STRUCTURED_REPLY_MAGIC, Chunk::STRUCTURED_SIZE),
            Headers::Extended => (EXTENDED_REPLY_MAGIC, Chunk::EXTENDED_SIZE),
        };
        if magic != expected {
            return broken("a reply does not begin with the protocol's number");
        }
        let chunk = match self.headers {
            Headers::Extended => bytes.first_chunk().and_then(Chunk::decode_extended),
            _ => bytes.first_chunk().and_then(Chunk::decode),
        };
        let Some(chunk) = chunk else { return Ok((0, Event::Incomplete)) };
        match self.chunk(&chunk, &bytes[size..])? {
            None => Ok((0, Event::Incomplete)),
            Some((used, event)) => Ok((size + used, event)),
        }
    }

    fn find(&self, cookie: u64) -> Result<u16, Broken> {
        let index = (cookie & 0xffff) as u16;
        match self.asked.get(usize::from(index)) {
            Some(asked) if asked.cookie == cookie && cookie != 0 => Ok(index),
            _ => broken("it replies to what was not asked, or once more"),
        }
    }

    fn end(&mut self, index: u16) -> Event {
        let asked = &mut self.asked[usize::from(index)];
        asked.cookie = 0;
        let result = match (asked.error, asked.wants) {
            (Some(errno), _) => Err(errno),
            // What it left out is nowhere.
            (None, Wants::Data) if !asked.told.is_whole(asked.len as u32) => Err(Errno::EIO),
            (None, Wants::Extents) => Err(Errno::EIO),
            (None, Wants::Data | Wants::Nothing) => Ok(()),
        };
        self.free.push(index);
        Event::Ended { index, result }
    }

    fn simple(&mut self, reply: SimpleReply) -> Result<Event, Broken> {
        let index = self.find(reply.cookie)?;
        let asked = &mut self.asked[usize::from(index)];
        if reply.error != 0 {
            asked.error = Some(errno(reply.error));
            return Ok(self.end(index));
        }
        if asked.wants != Wants::Data {
            return Ok(self.end(index));
        }
        if self.headers != Headers::Simple {
            return broken_at(index, "the data of a read come in a simple reply");
        }
        let len = asked.len as u32;
        if !asked.told.add(0, len) {
            return broken_at(index, "the data of a read come twice");
        }
        self.state = State::End(index);
        Ok(Event::Data { index, at: 0, len })
    }

    /// A chunk, whose body begins with `body`; yields how much of that it used up, or nothing where too little of it
    /// is there.
    fn chunk(&mut self, chunk: &Chunk, body: &[u8]) -> Result<Option<(usize, Event)>, Broken> {
        let index = self.find(chunk.cookie)?;
        let asked = &mut self.asked[usize::from(index)];
        if self.headers == Headers::Extended && chunk.offset != asked.offset {
            return broken_at(index, "a chunk names another offset than its request");
        }
        if chunk.kind == kind::BLOCK_STATUS || chunk.kind == kind::BLOCK_STATUS_EXT {
            return self.status(index, chunk, body);
        }
        // The part of the body that is to be there before anything can be said.
        let needed = match chunk.kind {
            kind::NONE if chunk.len != 0 || !chunk.is_last() => {
                return broken_at(index, "an empty chunk is not empty, or not the last");
            }
            kind::NONE => 0,
            kind::OFFSET_DATA if chunk.len <= DATA_HEAD as u64 => {
                return broken_at(index, "a chunk of data has none");
            }
            kind::OFFSET_DATA => DATA_HEAD,
            kind::OFFSET_HOLE if chunk.len != Hole::SIZE as u64 => {
                return broken_at(index, "a hole has the wrong length");
            }
            kind::OFFSET_HOLE => Hole::SIZE,
            kind if kind::is_error(kind) && chunk.len > MAX_FAILURE => {
                return broken_at(index, "an error has too much to say");
            }
            kind if kind::is_error(kind) => chunk.len as usize,
            _ => return broken_at(index, "a chunk is of a kind that was not asked for"),
        };
        let Some(head) = body.get(..needed) else { return Ok(None) };
        if kind::is_error(chunk.kind) {
            let Some(failure) = Failure::decode(chunk.kind, head) else {
                return broken_at(index, "the lengths inside an error do not fit together");
            };
            asked.error.get_or_insert(errno(failure.error));
        }
        let told = match chunk.kind {
            kind::OFFSET_DATA => Some((u64_at(head, 0), chunk.len - DATA_HEAD as u64, true)),
            kind::OFFSET_HOLE => match Hole::decode(head) {
                Some(hole) => Some((hole.offset, u64::from(hole.len), false)),
                None => return broken_at(index, "a hole is empty"),
            },
            _ => None,
        };
        let event = match told {
            None if chunk.is_last() => self.end(index),
            None => Event::Failing,
            Some((offset, len, is_data)) => {
                let at = offset.wrapping_sub(asked.offset);
                // Less than 4 GiB, as the read is.
                let fits = asked.wants == Wants::Data && at < asked.len && len <= asked.len - at;
                if !fits {
                    return broken_at(index, "it tells bytes that were not asked for");
                }
                let (at, len) = (at as u32, len as u32);
                if !asked.told.add(at, at + len) {
                    return broken_at(index, "it tells a byte twice, or a read in too many pieces");
                }
                if chunk.is_last() {
                    self.state = State::End(index);
                }
                match is_data {
                    true => Event::Data { index, at, len },
                    false => Event::Zeroes { index, at, len },
                }
            }
        };
        Ok(Some((needed, event)))
    }

    /// A chunk that tells what takes space: its runs follow, which may be many.
    fn status(&mut self, index: u16, chunk: &Chunk, body: &[u8]) -> Result<Option<(usize, Event)>, Broken> {
        let expected = match self.headers {
            Headers::Extended => kind::BLOCK_STATUS_EXT,
            Headers::Simple | Headers::Structured => kind::BLOCK_STATUS,
        };
        let asked = &mut self.asked[usize::from(index)];
        if chunk.kind != expected || asked.wants != Wants::Extents {
            return broken_at(index, "it tells what takes space and was not asked, or once more");
        }
        let size = Status::head_size(self.headers);
        let head = match body.get(..size) {
            None if chunk.len >= size as u64 => return Ok(None),
            head => head.unwrap_or_default(),
        };
        let Some((context, count)) = Status::decode_head(self.headers, head, chunk.len) else {
            return broken_at(index, "the lengths inside a status do not fit together");
        };
        if Some(context) != self.allocation {
            return broken_at(index, "a status is of a context that was not chosen");
        }
        asked.wants = Wants::Nothing;
        self.runs.begin(count, asked.len);
        self.state = State::Runs { index, is_last: chunk.is_last() };
        let (used, event) = self.take_runs(index, chunk.is_last(), &body[size..])?;
        Ok(Some((size + used, event)))
    }

    fn take_runs(&mut self, index: u16, is_last: bool, bytes: &[u8]) -> Result<(usize, Event), Broken> {
        let used = self.runs.take(self.headers, bytes).or_else(|why| broken_at(index, why))?;
        if !self.runs.is_whole() {
            return Ok((used, Event::Incomplete));
        }
        self.state = if is_last { State::End(index) } else { State::Head };
        Ok((used, Event::Extents { index }))
    }
}

#[cfg(test)]
mod tests;
