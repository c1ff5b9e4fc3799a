//! Replies: what a server says before the data of a read, or instead of them, in each of the three forms that the
//! handshake may settle on.

use super::wire::chunk::{Chunk, DATA_HEAD, DONE, Failure, Hole, kind};
use super::wire::status::{Run, Status};
use super::wire::{Headers, SimpleReply};
use super::{ALLOCATION_CONTEXT, status};
use crate::io::Errno;
use crate::io::extents::{Extent, State};

/// Bytes of the longest piece that is made here.
const LONGEST: usize = Chunk::EXTENDED_SIZE + 24;

/// Bytes of a reply, before data that may follow.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Piece {
    #[inline]
    fn new(parts: [&[u8]; 2]) -> Piece {
        let mut piece = Piece { bytes: [0; LONGEST], len: 0 };
        for part in parts {
            piece.bytes[piece.len..piece.len + part.len()].copy_from_slice(part);
            piece.len += part.len();
        }
        piece
    }

    /// The bytes on the wire.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Most bytes of a reply without data, or before the first of them: room that is set aside for each request.
#[inline]
pub const fn longest(headers: Headers) -> usize {
    match headers {
        Headers::Simple => SimpleReply::SIZE,
        Headers::Structured | Headers::Extended => LONGEST,
    }
}

/// The request that a reply is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct To {
    /// How replies look on its connection.
    pub headers: Headers,
    /// The client's name for it.
    pub cookie: u64,
    /// Its offset, which an extended header repeats.
    pub offset: u64,
}

impl To {
    #[inline]
    fn chunk(&self, kind: u16, len: u64, is_last: bool, body: &[u8]) -> Piece {
        let flags = if is_last { DONE } else { 0 };
        let chunk = Chunk { flags, kind, cookie: self.cookie, offset: self.offset, len };
        Piece::new([&chunk.encode(self.headers)[..Chunk::size(self.headers)], body])
    }

    /// It is over, and no data follow.
    #[inline]
    pub fn ended(&self, result: Result<(), Errno>) -> Piece {
        match (self.headers, result) {
            (Headers::Simple, result) => Piece::new([&SimpleReply::new(self.cookie, result).encode(), &[]]),
            (_, Ok(())) => self.chunk(kind::NONE, 0, true, &[]),
            (_, Err(errno)) => self.chunk(kind::ERROR, Failure::SIZE as u64, true, &Failure::encode(errno)),
        }
    }

    /// `len` bytes of data follow, which lie at `at` on the disk. A simple reply says so once for all of them.
    #[inline]
    pub fn data(&self, at: u64, len: u64, is_last: bool) -> Piece {
        match self.headers {
            Headers::Simple => self.ended(Ok(())),
            _ => self.chunk(kind::OFFSET_DATA, DATA_HEAD as u64 + len, is_last, &at.to_be_bytes()),
        }
    }

    /// `len` bytes at `at` on the disk are zeros. There is no simple reply that says so.
    #[inline]
    pub fn hole(&self, at: u64, len: u32, is_last: bool) -> Piece {
        let hole = Hole { offset: at, len };
        self.chunk(kind::OFFSET_HOLE, Hole::SIZE as u64, is_last, &hole.encode())
    }

    /// So many runs follow, each as [`run`](Self::run) has it.
    pub fn status(&self, runs: usize) -> Piece {
        let kind = match self.headers {
            Headers::Extended => kind::BLOCK_STATUS_EXT,
            Headers::Simple | Headers::Structured => kind::BLOCK_STATUS,
        };
        let head = Status::encode_head(self.headers, ALLOCATION_CONTEXT, runs);
        let head = &head[..Status::head_size(self.headers)];
        let len = head.len() + runs * Run::size(self.headers);
        self.chunk(kind, len as u64, true, head)
    }

    /// One run of `base:allocation`.
    pub fn run(&self, extent: Extent) -> Piece {
        let mut flags = 0;
        for (state, flag) in [(State::HOLE, status::HOLE), (State::ZERO, status::ZERO)] {
            flags |= if extent.state.contains(state) { flag } else { 0 };
        }
        let run = Run { len: extent.len, flags };
        Piece::new([&run.encode(self.headers)[..Run::size(self.headers)], &[]])
    }

    /// Bytes of a whole answer of so many runs.
    pub fn status_len(&self, runs: usize) -> usize {
        let head = Chunk::size(self.headers) + Status::head_size(self.headers);
        head + runs * Run::size(self.headers)
    }
}

/// The run at the front of bytes that lie at `offset` on the disk: its length, and whether it is zeros that are to
/// be told as a hole. Looked for block by block, of `block` bytes, a power of two; a hole has at least `least`
/// bytes, unless it is everything.
pub fn run(bytes: &[u8], offset: u64, block: u64, least: usize) -> (usize, bool) {
    let zeros = leading_zeros(bytes, offset, block);
    if zeros == bytes.len() || zeros >= least {
        return (zeros, true);
    }
    let mut end = zeros;
    while end < bytes.len() {
        end += to_border(&bytes[end..], offset + end as u64, block);
        let zeros = leading_zeros(&bytes[end..], offset + end as u64, block);
        if zeros >= least {
            break;
        }
        end += zeros;
    }
    (end, false)
}

/// How many of the bytes lie before the next border of a block.
fn to_border(bytes: &[u8], offset: u64, block: u64) -> usize {
    let left = block - (offset & (block - 1));
    usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len())
}

/// How many bytes at the front are blocks of zeros, or the part of one that is here.
fn leading_zeros(bytes: &[u8], offset: u64, block: u64) -> usize {
    let mut end = 0;
    while end < bytes.len() {
        let next = end + to_border(&bytes[end..], offset + end as u64, block);
        if !are_zeros(&bytes[end..next]) {
            break;
        }
        end = next;
    }
    end
}

/// By pieces as long as a line of the cache, so that what is no zero is soon seen.
fn are_zeros(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<64>();
    lines.iter().all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TO: To = To { headers: Headers::Structured, cookie: 7, offset: 4096 };

    /// What a client makes of the pieces of a read.
    fn heard(headers: Headers, stream: &[u8], offset: u64, len: usize) -> Vec<u8> {
        let mut heard = vec![0xee; len];
        let (mut rest, mut done) = (stream, false);
        while !rest.is_empty() {
            assert!(!done, "nothing comes after the last chunk");
            let (head, behind) = rest.split_at(Chunk::size(headers));
            let chunk = match headers {
                Headers::Extended => Chunk::decode_extended(head.try_into().unwrap()),
                _ => Chunk::decode(head.try_into().unwrap()),
            }
            .unwrap();
            let (body, behind) = behind.split_at(chunk.len as usize);
            (rest, done) = (behind, chunk.is_last());
            assert_eq!(chunk.cookie, 7);
            match chunk.kind {
                kind::OFFSET_DATA => {
                    let (at, data) = super::super::chunk::offset_data(body).unwrap();
                    heard[(at - offset) as usize..][..data.len()].copy_from_slice(data);
                }
                kind::OFFSET_HOLE => {
                    let hole = Hole::decode(body).unwrap();
                    heard[(hole.offset - offset) as usize..][..hole.len as usize].fill(0);
                }
                other => panic!("a chunk of kind {other}"),
            }
        }
        assert!(done);
        heard
    }

    proptest! {
        /// Whatever is zeros and whatever the borders: a client hears what was read.
        #[test]
        fn data_and_holes_are_what_was_read(
            parts in prop::collection::vec((1usize..400, any::<bool>()), 1..30),
            offset in 0u64..10_000,
            block in (0u32..9).prop_map(|shift| 1u64 << shift),
            least in 1usize..200,
            extended: bool,
        ) {
            let headers = if extended { Headers::Extended } else { Headers::Structured };
            let bytes: Vec<u8> =
                parts.iter().flat_map(|&(len, zero)| std::iter::repeat_n(if zero { 0 } else { 9 }, len)).collect();
            let to = To { headers, cookie: 7, offset };
            let (mut stream, mut at, mut was_hole) = (Vec::new(), 0, None);
            while at < bytes.len() {
                let (len, is_hole) = run(&bytes[at..], offset + at as u64, block, least);
                prop_assert!(len > 0 && was_hole != Some(is_hole) || is_hole, "no two runs of data");
                let is_last = at + len == bytes.len();
                let place = offset + at as u64;
                if is_hole {
                    stream.extend(to.hole(place, len as u32, is_last).bytes());
                } else {
                    stream.extend(to.data(place, len as u64, is_last).bytes());
                    stream.extend(&bytes[at..at + len]);
                }
                was_hole = Some(is_hole);
                at += len;
            }
            prop_assert_eq!(heard(headers, &stream, offset, bytes.len()), bytes);
        }

        #[test]
        fn no_reply_is_longer_than_what_is_set_aside(cookie: u64, offset: u64, len: u64, errno in 1i32..4000) {
            for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
                let to = To { headers, cookie, offset };
                let extent = Extent { len, state: State::HOLE };
                let one = [to.status(1).bytes(), to.run(extent).bytes()].concat();
                let pieces = [to.ended(Ok(())), to.ended(Err(Errno::new(errno))), to.data(offset, len, true)];
                for piece in pieces.iter().map(Piece::bytes) {
                    prop_assert!(piece.len() <= longest(headers));
                }
                if headers != Headers::Simple {
                    prop_assert!(one.len() <= longest(headers) && one.len() == to.status_len(1));
                    prop_assert!(to.hole(offset, 1, false).bytes().len() <= longest(headers));
                }
            }
        }
    }

    #[test]
    fn an_answer_about_runs_reads_back() {
        for headers in [Headers::Structured, Headers::Extended] {
            let to = To { headers, ..TO };
            let runs = [(512, State::empty()), (1 << 20, State::all()), (4096, State::HOLE)];
            let mut stream = to.status(runs.len()).bytes().to_vec();
            for (len, state) in runs {
                stream.extend(to.run(Extent { len, state }).bytes());
            }
            let body = &stream[Chunk::size(headers)..];
            let status = Status::decode(headers, body).unwrap();
            let heard: Vec<(u64, u64)> = status.runs().map(|run| (run.len, run.flags)).collect();
            assert_eq!((status.context, heard), (1, vec![(512, 0), (1 << 20, 3), (4096, 1)]));
            assert_eq!(stream.len(), to.status_len(runs.len()));
        }
    }

    #[test]
    fn short_holes_in_data_are_data() {
        let mut bytes = vec![0; 64];
        bytes[20] = 1;
        assert_eq!(run(&bytes, 0, 8, 16), (16, true));
        assert_eq!(run(&bytes[16..], 16, 8, 16), (8, false));
        assert_eq!(run(&bytes[16..], 16, 8, 64), (48, false));
        assert_eq!(run(&[0; 3], 5, 8, 4096), (3, true));
    }
}
