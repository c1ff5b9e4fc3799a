//! The protocol's numbers, and the two messages that every read and write consists of. All numbers are
//! big-endian.
//!
//! Both directions of each message are here, for the server, the client, and what tests them: whatever one
//! of them builds the other reads, and no bytes make it panic.

use crate::io::Errno;

pub mod chunk;
pub mod meta;
pub mod status;

/// "NBDMAGIC", the first eight bytes a server says.
pub(super) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": says the newstyle, and begins every option.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Begins every reply to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins every request.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins every request with an extended header.
pub(super) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Begins every simple reply.
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins every chunk of a structured reply.
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Begins every chunk with an extended header.
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Flags of the handshake: NBD_FLAG_FIXED_NEWSTYLE and NBD_FLAG_NO_ZEROES, of both sides.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;

/// Options, NBD_OPT_*.
pub(super) mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options, NBD_REP_*.
pub(super) mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub const UNSUPPORTED: u32 = ERROR | 1;
    pub const INVALID: u32 = ERROR | 3;
    pub const TLS_REQUIRED: u32 = ERROR | 5;
    pub const UNKNOWN: u32 = ERROR | 6;
    pub const TOO_BIG: u32 = ERROR | 9;
    pub const EXTENDED_HEADERS_REQUIRED: u32 = ERROR | 10;
}

/// Kinds of information, NBD_INFO_*.
pub(super) mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands, NBD_CMD_*.
pub(super) mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command, NBD_CMD_FLAG_*.
pub(super) mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// How the heads of requests and replies look, which the handshake settles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Headers {
    /// One reply for each request: all that the kernel's client speaks.
    #[default]
    Simple,
    /// Replies in chunks (NBD_OPT_STRUCTURED_REPLY).
    Structured,
    /// As structured, with lengths of 64 bits, in requests as well (NBD_OPT_EXTENDED_HEADERS).
    Extended,
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// The number at a place of a slice that was checked to reach that far.
#[inline]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(take(bytes, at))
}

/// As [`u16_at`].
#[inline]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(take(bytes, at))
}

/// As [`u16_at`].
#[inline]
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(take(bytes, at))
}

/// The head of a request, as the client sends it: nothing is checked but the magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// NBD_CMD_FLAG_*.
    pub flags: u16,
    /// NBD_CMD_*.
    pub command: u16,
    /// The client's name for the request, given back with the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes. No more than 32 bits of it fit into a head that is not extended.
    pub len: u64,
}

impl Request {
    /// Bytes on the wire.
    pub const SIZE: usize = 28;

    /// Bytes on the wire, of an extended header.
    pub const EXTENDED_SIZE: usize = 32;

    /// Reads a head; `None` where it does not begin with the magic number.
    #[inline]
    pub fn decode(bytes: &[u8; Request::SIZE]) -> Option<Request> {
        (u32_at(bytes, 0) == REQUEST_MAGIC).then(|| Request::after_magic(bytes, u64::from(u32_at(bytes, 24))))
    }

    /// As [`decode`](Self::decode), of an extended header.
    #[inline]
    pub fn decode_extended(bytes: &[u8; Request::EXTENDED_SIZE]) -> Option<Request> {
        (u32_at(bytes, 0) == EXTENDED_REQUEST_MAGIC).then(|| Request::after_magic(bytes, u64_at(bytes, 24)))
    }

    #[inline]
    fn after_magic(bytes: &[u8], len: u64) -> Request {
        Request {
            flags: u16_at(bytes, 4),
            command: u16_at(bytes, 6),
            cookie: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            len,
        }
    }

    /// The bytes on the wire. A length that does not fit becomes the longest that does, which no server
    /// takes.
    pub fn encode(&self) -> [u8; Request::SIZE] {
        let mut bytes = [0; Request::SIZE];
        self.before_len(REQUEST_MAGIC, &mut bytes);
        let len = u32::try_from(self.len).unwrap_or(u32::MAX);
        bytes[24..28].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// The bytes on the wire, of an extended header.
    pub fn encode_extended(&self) -> [u8; Request::EXTENDED_SIZE] {
        let mut bytes = [0; Request::EXTENDED_SIZE];
        self.before_len(EXTENDED_REQUEST_MAGIC, &mut bytes);
        bytes[24..32].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    fn before_len(&self, magic: u32, bytes: &mut [u8]) {
        bytes[0..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
    }
}

/// The head of a simple reply; a read that went well has its data behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0, or one of the numbers the protocol knows.
    pub error: u32,
    /// The request's.
    pub cookie: u64,
}

impl SimpleReply {
    /// Bytes on the wire.
    pub const SIZE: usize = 16;

    /// The reply to a request that ended with `result`.
    #[inline]
    pub fn new(cookie: u64, result: Result<(), Errno>) -> SimpleReply {
        SimpleReply { error: result.err().map_or(0, error_number), cookie }
    }

    /// The bytes on the wire.
    #[inline]
    pub fn encode(&self) -> [u8; SimpleReply::SIZE] {
        let mut bytes = [0; SimpleReply::SIZE];
        bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }

    /// Reads a head; `None` where it does not begin with the magic number.
    pub fn decode(bytes: &[u8; SimpleReply::SIZE]) -> Option<SimpleReply> {
        (u32_at(bytes, 0) == SIMPLE_REPLY_MAGIC)
            .then(|| SimpleReply { error: u32_at(bytes, 4), cookie: u64_at(bytes, 8) })
    }
}

const EOVERFLOW: i32 = 75;

/// The protocol knows a few errors by the numbers they have on Linux; all others are EIO there. A
/// disk that may not be written to is EPERM, and whatever says that there is no room ENOSPC. EOVERFLOW is
/// known, but not in a simple reply, and is EINVAL there.
fn error_number(errno: Errno) -> u32 {
    const ENOMEM: i32 = 12;
    const EFBIG: i32 = 27;
    const ESHUTDOWN: i32 = 108;
    const EDQUOT: i32 = 122;
    let known = [
        Errno::EPERM.number(),
        Errno::EIO.number(),
        ENOMEM,
        Errno::EINVAL.number(),
        Errno::ENOSPC.number(),
        Errno::EOPNOTSUPP.number(),
        ESHUTDOWN,
    ];
    let told = match errno.number() {
        number if number == Errno::EROFS.number() => Errno::EPERM.number(),
        EFBIG | EDQUOT => Errno::ENOSPC.number(),
        EOVERFLOW => Errno::EINVAL.number(),
        number if known.contains(&number) => number,
        _ => Errno::EIO.number(),
    };
    told as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_request_reads_back_as_it_was_written(
            flags: u16, command: u16, cookie: u64, offset: u64, len: u64
        ) {
            let request = Request { flags, command, cookie, offset, len };
            prop_assert_eq!(Request::decode_extended(&request.encode_extended()), Some(request));
            let short = Request { len: len & u64::from(u32::MAX), ..request };
            prop_assert_eq!(Request::decode(&short.encode()), Some(short));
        }

        #[test]
        fn a_reply_reads_back_as_it_was_written(cookie: u64, number in -10i32..5000) {
            let reply = SimpleReply::new(cookie, Err(Errno::new(number)));
            prop_assert_eq!(SimpleReply::decode(&reply.encode()), Some(reply));
            prop_assert_ne!(reply.error, 0, "no error becomes a success");
        }
    }

    #[test]
    fn errors_that_the_protocol_does_not_know_are_eio() {
        let number = |errno| SimpleReply::new(1, Err(errno)).error;
        assert_eq!(number(Errno::EROFS), 1);
        assert_eq!(number(Errno::ENOSPC), 28);
        assert_eq!((number(Errno::new(27)), number(Errno::new(122))), (28, 28), "EFBIG, EDQUOT");
        assert_eq!(number(Errno::new(75)), 22, "EOVERFLOW is for structured replies");
        assert_eq!(number(Errno::EBUSY), 5);
        assert_eq!(number(Errno::new(116)), 5);
        assert_eq!(SimpleReply::new(1, Ok(())).error, 0);
    }

    #[test]
    fn the_first_bytes_are_the_protocols() {
        assert_eq!(INIT_MAGIC.to_be_bytes(), *b"NBDMAGIC");
        assert_eq!(OPTION_MAGIC.to_be_bytes(), *b"IHAVEOPT");
        let mut bytes = Request { flags: 0, command: 0, cookie: 0, offset: 0, len: 0 }.encode();
        bytes[0] ^= 1;
        assert_eq!(Request::decode(&bytes), None);
    }
}
