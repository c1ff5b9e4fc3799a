//! What BLOCK_STATUS asks and answers: runs of a disk and what they are, in lengths of 32 or of 64 bits.

use super::{Headers, u32_at, u64_at};

/// Flags of a run in the context base:allocation: the space is not allocated (NBD_STATE_HOLE).
pub const HOLE: u64 = 1 << 0;
/// The run reads as zeros (NBD_STATE_ZERO).
pub const ZERO: u64 = 1 << 1;

/// Most runs that one chunk may have.
pub const MAX_RUNS: usize = 1 << 20;

/// A run of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of bytes.
    pub len: u64,
    /// What the context says of them. No more than 32 bits of either fit into a chunk whose header is not
    /// extended.
    pub flags: u64,
}

impl Run {
    /// Bytes of a run on the wire.
    #[inline]
    pub const fn size(headers: Headers) -> usize {
        match headers {
            Headers::Simple | Headers::Structured => 8,
            Headers::Extended => 16,
        }
    }

    /// The bytes on the wire: the first [`size`](Self::size) of these. A length that does not fit is cut: a reply
    /// may say less than was asked.
    #[inline]
    pub fn encode(&self, headers: Headers) -> [u8; 16] {
        let mut bytes = [0; 16];
        match headers {
            Headers::Simple | Headers::Structured => {
                // A multiple of every block size.
                let len = u32::try_from(self.len).unwrap_or(u32::MAX - 0xffff);
                bytes[0..4].copy_from_slice(&len.to_be_bytes());
                bytes[4..8].copy_from_slice(&(self.flags as u32).to_be_bytes());
            }
            Headers::Extended => {
                bytes[0..8].copy_from_slice(&self.len.to_be_bytes());
                bytes[8..16].copy_from_slice(&self.flags.to_be_bytes());
            }
        }
        bytes
    }

    /// Reads one, in the first [`size`](Self::size) of these bytes, which must be there.
    #[inline]
    pub fn decode(headers: Headers, bytes: &[u8]) -> Run {
        match headers {
            Headers::Simple | Headers::Structured => {
                Run { len: u64::from(u32_at(bytes, 0)), flags: u64::from(u32_at(bytes, 4)) }
            }
            Headers::Extended => Run { len: u64_at(bytes, 0), flags: u64_at(bytes, 8) },
        }
    }
}

/// The body of a chunk BLOCK_STATUS or BLOCK_STATUS_EXT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status<'a> {
    /// The number of the context, from the handshake.
    pub context: u32,
    headers: Headers,
    runs: &'a [u8],
}

impl<'a> Status<'a> {
    /// Bytes before the runs.
    #[inline]
    pub const fn head_size(headers: Headers) -> usize {
        match headers {
            Headers::Simple | Headers::Structured => 4,
            Headers::Extended => 8,
        }
    }

    /// What comes before the runs: the first [`head_size`](Self::head_size) of these bytes.
    #[inline]
    pub fn encode_head(headers: Headers, context: u32, runs: usize) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[0..4].copy_from_slice(&context.to_be_bytes());
        if headers == Headers::Extended {
            bytes[4..8].copy_from_slice(&(runs as u32).to_be_bytes());
        }
        bytes
    }

    /// Reads what comes before the runs, in the first [`head_size`](Self::head_size) of these bytes, of a body of `len`
    /// bytes: the number of the context, and how many runs follow. `None` where the lengths do not fit together, or
    /// there are no runs, or too many.
    pub fn decode_head(headers: Headers, head: &[u8], len: u64) -> Option<(u32, usize)> {
        let size = Run::size(headers) as u64;
        let runs = len.checked_sub(Status::head_size(headers) as u64)?;
        let count = usize::try_from(runs / size).ok().filter(|&count| 0 < count && count <= MAX_RUNS)?;
        // The number of runs follows from the length; where it is told as well, it may be left at 0.
        let miscounted = headers == Headers::Extended && ![0, count as u32].contains(&u32_at(head, 4));
        (runs.is_multiple_of(size) && !miscounted).then(|| (u32_at(head, 0), count))
    }

    /// Reads a body; `None` where its lengths do not fit together, or it has no runs, or too many, or one of
    /// length 0.
    pub fn decode(headers: Headers, body: &'a [u8]) -> Option<Status<'a>> {
        let (head, runs) = body.split_at_checked(Status::head_size(headers))?;
        let (context, _) = Status::decode_head(headers, head, body.len() as u64)?;
        let status = Status { context, headers, runs };
        status.runs().all(|run| run.len > 0).then_some(status)
    }

    /// The runs, in their order.
    pub fn runs(&self) -> impl Iterator<Item = Run> + use<'a> {
        let headers = self.headers;
        self.runs.chunks_exact(Run::size(headers)).map(move |run| Run::decode(headers, run))
    }
}

/// The payload of a BLOCK_STATUS request that names some of the contexts (NBD_CMD_FLAG_PAYLOAD_LEN, with extended
/// headers alone).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter<'a> {
    /// Number of bytes that are asked about, which the header then does not say.
    pub len: u64,
    ids: &'a [u8],
}

impl<'a> Filter<'a> {
    /// Reads it; `None` where it has no such length.
    pub fn decode(payload: &'a [u8]) -> Option<Filter<'a>> {
        let (len, ids) = payload.split_first_chunk::<8>()?;
        ids.len().is_multiple_of(4).then(|| Filter { len: u64::from_be_bytes(*len), ids })
    }

    /// The bytes on the wire.
    pub fn encode(len: u64, ids: &[u32]) -> Vec<u8> {
        let mut payload = len.to_be_bytes().to_vec();
        payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        payload
    }

    /// The numbers of the contexts.
    pub fn ids(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.ids.chunks_exact(4).map(|id| u32_at(id, 0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(headers: Headers, context: u32, runs: &[Run]) -> Vec<u8> {
        let head = Status::encode_head(headers, context, runs.len());
        let mut body = head[..Status::head_size(headers)].to_vec();
        for run in runs {
            body.extend(&run.encode(headers)[..Run::size(headers)]);
        }
        body
    }

    proptest! {
        #[test]
        fn runs_read_back_as_they_were_written(
            context: u32,
            runs in prop::collection::vec((1u64.., any::<u64>()).prop_map(|(len, flags)| Run { len, flags }), 1..50),
        ) {
            let body = encoded(Headers::Extended, context, &runs);
            let status = Status::decode(Headers::Extended, &body).unwrap();
            prop_assert_eq!((status.context, status.runs().collect::<Vec<_>>()), (context, runs.clone()));
            let short = |run: &Run| Run { len: (run.len >> 32).max(1), flags: run.flags >> 32 };
            let runs: Vec<Run> = runs.iter().map(short).collect();
            let body = encoded(Headers::Structured, context, &runs);
            let status = Status::decode(Headers::Structured, &body).unwrap();
            prop_assert_eq!((status.context, status.runs().collect::<Vec<_>>()), (context, runs));
            prop_assert_eq!(Status::decode(Headers::Structured, &body[..body.len() - 1]), None);
        }

        #[test]
        fn no_bytes_make_a_body_panic(body in prop::collection::vec(any::<u8>(), 0..80)) {
            for headers in [Headers::Structured, Headers::Extended] {
                if let Some(status) = Status::decode(headers, &body) {
                    prop_assert!(status.runs().count() > 0);
                }
            }
            if let Some(filter) = Filter::decode(&body) {
                let ids: Vec<u32> = filter.ids().collect();
                prop_assert_eq!(Filter::encode(filter.len, &ids), body);
            }
        }
    }

    #[test]
    fn a_run_that_is_too_long_for_32_bits_is_cut_to_whole_blocks() {
        let bytes = Run { len: 1 << 40, flags: HOLE | ZERO }.encode(Headers::Structured);
        assert_eq!(bytes[..8], [0xff, 0xff, 0, 0, 0, 0, 0, 3]);
        let body = encoded(Headers::Structured, 1, &[Run { len: 0, flags: 0 }]);
        assert_eq!(Status::decode(Headers::Structured, &body), None);
    }
}
