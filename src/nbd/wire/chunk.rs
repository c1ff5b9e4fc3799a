//! Replies in chunks, structured or with extended headers: each chunk has a head that says what it is and
//! how long, and a request's last one says that it is the last.

use super::{
    EOVERFLOW, EXTENDED_REPLY_MAGIC, Headers, STRUCTURED_REPLY_MAGIC, error_number, u16_at, u32_at, u64_at,
};
use crate::io::Errno;

/// Flag of a chunk: nothing more follows for its request (NBD_REPLY_FLAG_DONE).
pub const DONE: u16 = 1 << 0;

/// Kinds of chunks, NBD_REPLY_TYPE_*.
pub mod kind {
    /// Nothing but the end.
    pub const NONE: u16 = 0;
    /// Bytes of a read, behind their offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Bytes of a read that are zeros and do not follow.
    pub const OFFSET_HOLE: u16 = 2;
    /// What a range is, in lengths of 32 bits.
    pub const BLOCK_STATUS: u16 = 5;
    /// What a range is, in lengths of 64 bits; with extended headers alone.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The request has failed, wholly or somewhere.
    pub const ERROR: u16 = (1 << 15) | 1;
    /// The request has failed at an offset.
    pub const ERROR_OFFSET: u16 = (1 << 15) | 2;

    /// Whether a kind says that the request failed, be it known or not.
    pub const fn is_error(kind: u16) -> bool {
        kind & (1 << 15) != 0
    }
}

/// The head of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// [`DONE`], or nothing.
    pub flags: u16,
    /// One of [`kind`].
    pub kind: u16,
    /// The request's.
    pub cookie: u64,
    /// The request's, which an extended header repeats; not on the wire of a structured one.
    pub offset: u64,
    /// Bytes of this chunk that follow. No more than 32 bits of it fit into a structured head.
    pub len: u64,
}

impl Chunk {
    /// Bytes of a structured head.
    pub const STRUCTURED_SIZE: usize = 20;

    /// Bytes of an extended head.
    pub const EXTENDED_SIZE: usize = 32;

    /// Bytes of a head on the wire; simple replies have no chunks, and are taken for structured ones.
    #[inline]
    pub const fn size(headers: Headers) -> usize {
        match headers {
            Headers::Simple | Headers::Structured => Chunk::STRUCTURED_SIZE,
            Headers::Extended => Chunk::EXTENDED_SIZE,
        }
    }

    /// The bytes on the wire: the first [`size`](Self::size) of these.
    #[inline]
    pub fn encode(&self, headers: Headers) -> [u8; Chunk::EXTENDED_SIZE] {
        let mut bytes = [0; Chunk::EXTENDED_SIZE];
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        match headers {
            Headers::Simple | Headers::Structured => {
                bytes[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
                let len = u32::try_from(self.len).unwrap_or(u32::MAX);
                bytes[16..20].copy_from_slice(&len.to_be_bytes());
            }
            Headers::Extended => {
                bytes[0..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
                bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
                bytes[24..32].copy_from_slice(&self.len.to_be_bytes());
            }
        }
        bytes
    }

    /// Reads a structured head; `None` where it does not begin with the magic number.
    pub fn decode(bytes: &[u8; Chunk::STRUCTURED_SIZE]) -> Option<Chunk> {
        (u32_at(bytes, 0) == STRUCTURED_REPLY_MAGIC).then(|| Chunk {
            flags: u16_at(bytes, 4),
            kind: u16_at(bytes, 6),
            cookie: u64_at(bytes, 8),
            offset: 0,
            len: u64::from(u32_at(bytes, 16)),
        })
    }

    /// As [`decode`](Self::decode), of an extended head.
    pub fn decode_extended(bytes: &[u8; Chunk::EXTENDED_SIZE]) -> Option<Chunk> {
        (u32_at(bytes, 0) == EXTENDED_REPLY_MAGIC).then(|| Chunk {
            flags: u16_at(bytes, 4),
            kind: u16_at(bytes, 6),
            cookie: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            len: u64_at(bytes, 24),
        })
    }

    /// Whether it is the last of its request.
    #[inline]
    pub const fn is_last(&self) -> bool {
        self.flags & DONE != 0
    }
}

/// What comes before the bytes of an [`OFFSET_DATA`](kind::OFFSET_DATA) chunk: where they lie on the disk.
pub const DATA_HEAD: usize = 8;

/// The place of a chunk's data on the disk, and the data.
pub fn offset_data(body: &[u8]) -> Option<(u64, &[u8])> {
    let (offset, data) = body.split_first_chunk::<DATA_HEAD>()?;
    (!data.is_empty()).then_some((u64::from_be_bytes(*offset), data))
}

/// The body of an [`OFFSET_HOLE`](kind::OFFSET_HOLE) chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// First byte on the disk.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
}

impl Hole {
    /// Bytes on the wire.
    pub const SIZE: usize = 12;

    /// The bytes on the wire.
    #[inline]
    pub fn encode(&self) -> [u8; Hole::SIZE] {
        let mut bytes = [0; Hole::SIZE];
        bytes[0..8].copy_from_slice(&self.offset.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Reads a body; `None` where it has another length, or the hole none.
    pub fn decode(body: &[u8]) -> Option<Hole> {
        let body: &[u8; Hole::SIZE] = body.try_into().ok()?;
        let hole = Hole { offset: u64_at(body, 0), len: u32_at(body, 8) };
        (hole.len > 0).then_some(hole)
    }
}

/// The body of an error chunk, with an offset or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<'a> {
    /// One of the numbers the protocol knows; 0 is none, and the peer's mistake.
    pub error: u32,
    /// For people; may be empty.
    pub message: &'a [u8],
    /// Where, of [`ERROR_OFFSET`](kind::ERROR_OFFSET).
    pub offset: Option<u64>,
}

impl<'a> Failure<'a> {
    /// Bytes on the wire where there is neither message nor offset.
    pub const SIZE: usize = 6;

    /// The number that the protocol has for an errno, which here may be EOVERFLOW.
    #[inline]
    pub fn number(errno: Errno) -> u32 {
        if errno.number() == EOVERFLOW { EOVERFLOW as u32 } else { error_number(errno) }
    }

    /// The bytes on the wire of a failure without message and offset.
    #[inline]
    pub fn encode(errno: Errno) -> [u8; Failure::SIZE] {
        let mut bytes = [0; Failure::SIZE];
        bytes[0..4].copy_from_slice(&Failure::number(errno).to_be_bytes());
        bytes
    }

    /// The kind of chunk this is a body of, and its bytes on the wire. A message is cut where it is longer
    /// than the protocol's strings may be.
    pub fn encode_in_full(&self) -> (u16, Vec<u8>) {
        let message = &self.message[..self.message.len().min(crate::nbd::MAX_NAME)];
        let mut bytes = self.error.to_be_bytes().to_vec();
        bytes.extend((message.len() as u16).to_be_bytes());
        bytes.extend(message);
        match self.offset {
            None => (kind::ERROR, bytes),
            Some(offset) => {
                bytes.extend(offset.to_be_bytes());
                (kind::ERROR_OFFSET, bytes)
            }
        }
    }

    /// Reads the body of an error chunk; `None` where its lengths do not fit together. Of a kind that this
    /// house does not know the number and the message are read, which all error chunks begin with.
    pub fn decode(kind: u16, body: &'a [u8]) -> Option<Failure<'a>> {
        let (head, rest) = body.split_first_chunk::<{ Failure::SIZE }>()?;
        let (message, rest) = rest.split_at_checked(usize::from(u16_at(head, 4)))?;
        let offset = match (kind, rest) {
            (kind::ERROR, []) => None,
            (kind::ERROR, _) => return None,
            (kind::ERROR_OFFSET, rest) => Some(u64::from_be_bytes(rest.try_into().ok()?)),
            _ => None,
        };
        Some(Failure { error: u32_at(head, 0), message, offset })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_head_reads_back_as_it_was_written(flags: u16, kind: u16, cookie: u64, offset: u64, len: u64) {
            let chunk = Chunk { flags, kind, cookie, offset, len };
            prop_assert_eq!(Chunk::decode_extended(&chunk.encode(Headers::Extended)), Some(chunk));
            let short = Chunk { offset: 0, len: len & u64::from(u32::MAX), ..chunk };
            let bytes = short.encode(Headers::Structured);
            let (head, rest) = bytes.split_at(Chunk::size(Headers::Structured));
            prop_assert_eq!(Chunk::decode(head.try_into().unwrap()), Some(short));
            prop_assert!(rest.iter().all(|&byte| byte == 0));
        }

        #[test]
        fn bodies_read_back_as_they_were_written(
            offset: u64,
            len in 1u32..,
            error: u32,
            message in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<Option<u64>>(),
        ) {
            let hole = Hole { offset, len };
            prop_assert_eq!(Hole::decode(&hole.encode()), Some(hole));
            let failure = Failure { error, message: &message, offset: at };
            let (kind, bytes) = failure.encode_in_full();
            prop_assert_eq!(Failure::decode(kind, &bytes), Some(failure));
            prop_assert_eq!(Failure::decode(kind, &bytes[..bytes.len() - 1]), None);
        }

        #[test]
        fn no_bytes_make_a_body_panic(kind: u16, body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = (Failure::decode(kind, &body), Hole::decode(&body), offset_data(&body));
            for kind in [kind::ERROR, kind::ERROR_OFFSET] {
                if let Some(failure) = Failure::decode(kind, &body) {
                    prop_assert_eq!(failure.encode_in_full(), (kind, body.clone()));
                }
            }
        }
    }

    #[test]
    fn an_overflow_is_told_in_a_chunk() {
        assert_eq!(Failure::encode(Errno::new(75)), [0, 0, 0, 75, 0, 0]);
        assert_eq!(Failure::encode(Errno::EROFS), [0, 0, 0, 1, 0, 0]);
        let body = Failure::encode(Errno::EIO);
        assert_eq!(Failure::decode(kind::ERROR, &body).map(|failure| failure.error), Some(5));
        assert!(kind::is_error(kind::ERROR_OFFSET) && !kind::is_error(kind::OFFSET_HOLE));
    }
}
