//! Servers that tell a read in any way that they may, and in those that they may not.

use proptest::prelude::*;

use super::*;
use crate::io::extents::{MOST_EXTENTS, State as Allocation};
use crate::nbd::wire::chunk::DONE;
use crate::nbd::wire::status::{self, Run};

const DISK: u64 = 1 << 40;
const CONTEXT: u32 = 5;

/// What a connection was told: what each request has, how it ended, and what each byte of a read was told as.
#[derive(Debug, Default, PartialEq)]
struct Told {
    ended: Vec<(u16, Result<(), i32>)>,
    bytes: Vec<Vec<Option<u8>>>,
    extents: Vec<(u16, Vec<Extent>)>,
    broken: bool,
}

/// Drives a stream that is received in pieces of these lengths.
fn driven(replies: &mut Replies, reads: &[u32], stream: &[u8], pieces: &[usize]) -> Told {
    let bytes = reads.iter().map(|&len| vec![None; len as usize]).collect();
    let mut told = Told { bytes, ..Told::default() };
    let (mut buffer, mut rest, mut taking) = (Vec::new(), stream, (0, 0, 0));
    for piece in pieces.iter().chain([&stream.len()]) {
        let (now, later) = rest.split_at((*piece).min(rest.len()));
        buffer.extend_from_slice(now);
        rest = later;
        loop {
            let (index, at, left): (u16, u32, u32) = taking;
            let here = (left as usize).min(buffer.len());
            for (offset, byte) in buffer.drain(..here).enumerate() {
                let place = &mut told.bytes[usize::from(index)][at as usize + offset];
                assert_eq!(place.replace(byte), None, "a byte was told twice");
            }
            taking = (index, at + here as u32, left - here as u32);
            if taking.2 > 0 {
                break;
            }
            match replies.next(&buffer) {
                Err(_) => {
                    told.broken = true;
                    return told;
                }
                Ok((used, event)) => {
                    buffer.drain(..used);
                    match event {
                        Event::Incomplete => {
                            assert!(buffer.len() < LONGEST_HEAD);
                            break;
                        }
                        Event::Data { index, at, len } => taking = (index, at, len),
                        Event::Zeroes { index, at, len } => {
                            let bytes = &mut told.bytes[usize::from(index)];
                            for byte in &mut bytes[at as usize..][..len as usize] {
                                assert_eq!(byte.replace(0), None, "a byte was told twice");
                            }
                        }
                        Event::Extents { index } => told.extents.push((index, replies.extents().to_vec())),
                        Event::Failing => {}
                        Event::Ended { index, result } => {
                            told.ended.push((index, result.map_err(Errno::number)));
                        }
                    }
                }
            }
        }
    }
    told
}

/// Reads of these lengths, one behind the other on the disk; yields their cookies.
fn asking(headers: Headers, reads: &[u32]) -> (Replies, Vec<Request>) {
    let mut replies = Replies::new(headers, Some(CONTEXT));
    let (mut offset, mut requests) = (DISK, Vec::new());
    for &len in reads {
        let mut head = Vec::new();
        replies.ask(Op::Read, Flags::empty(), offset, len.into(), &mut head).unwrap();
        requests.push(decoded(headers, &head));
        offset += u64::from(len);
    }
    (replies, requests)
}

fn decoded(headers: Headers, head: &[u8]) -> Request {
    match headers {
        Headers::Extended => Request::decode_extended(head.try_into().unwrap()).unwrap(),
        _ => Request::decode(head.try_into().unwrap()).unwrap(),
    }
}

/// A question for what takes space.
fn asking_for_extents(headers: Headers, len: u64) -> (Replies, Request) {
    let (mut replies, mut head) = (Replies::new(headers, Some(CONTEXT)), Vec::new());
    replies.ask(Op::Extents, Flags::empty(), DISK, len, &mut head).unwrap();
    (replies, decoded(headers, &head))
}

fn status_body(headers: Headers, context: u32, runs: &[Run]) -> Vec<u8> {
    let mut body = Status::encode_head(headers, context, runs.len())[..Status::head_size(headers)].to_vec();
    runs.iter().for_each(|run| body.extend(&run.encode(headers)[..Run::size(headers)]));
    body
}

fn status(headers: Headers, request: &Request, runs: &[Run], last: bool) -> Vec<u8> {
    let kind = if headers == Headers::Extended { kind::BLOCK_STATUS_EXT } else { kind::BLOCK_STATUS };
    chunk(headers, request, kind, last, &status_body(headers, CONTEXT, runs))
}

fn chunk(headers: Headers, request: &Request, kind: u16, last: bool, body: &[u8]) -> Vec<u8> {
    let flags = if last { DONE } else { 0 };
    let Request { cookie, offset, .. } = *request;
    let head = Chunk { flags, kind, cookie, offset, len: body.len() as u64 };
    let mut bytes = head.encode(headers)[..Chunk::size(headers)].to_vec();
    bytes.extend(body);
    bytes
}

fn data(headers: Headers, request: &Request, at: u64, len: u64, last: bool) -> Vec<u8> {
    let mut body = (request.offset + at).to_be_bytes().to_vec();
    body.extend((at..at + len).map(|at| content(request, at)));
    chunk(headers, request, kind::OFFSET_DATA, last, &body)
}

fn hole(headers: Headers, request: &Request, at: u64, len: u64, last: bool) -> Vec<u8> {
    let body = Hole { offset: request.offset + at, len: len as u32 }.encode();
    chunk(headers, request, kind::OFFSET_HOLE, last, &body)
}

fn failure(headers: Headers, request: &Request, last: bool) -> Vec<u8> {
    chunk(headers, request, kind::ERROR, last, &Failure::encode(Errno::ENOSPC))
}

fn content(request: &Request, at: u64) -> u8 {
    ((request.offset + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1
}

fn any_headers() -> impl Strategy<Value = Headers> {
    prop_oneof![Just(Headers::Structured), Just(Headers::Extended)]
}

/// How a read is told: where it is cut, which pieces are holes, in which order they come, whether the last of
/// them is the end, and whether it fails.
#[derive(Clone, Debug)]
struct Manner {
    cuts: Vec<u32>,
    holes: u64,
    order: u64,
    end_apart: bool,
    fails: bool,
}

fn any_manner() -> impl Strategy<Value = Manner> {
    let cuts = prop::collection::vec(1u32..3000, 0..6);
    (cuts, any::<u64>(), any::<u64>(), any::<bool>(), prop::bool::weighted(0.2))
        .prop_map(|(cuts, holes, order, end_apart, fails)| Manner { cuts, holes, order, end_apart, fails })
}

impl Manner {
    fn chunks(&self, headers: Headers, request: &Request) -> Vec<Vec<u8>> {
        let len = request.len;
        let mut cuts: Vec<u64> =
            self.cuts.iter().map(|&cut| u64::from(cut)).filter(|&cut| cut < len).collect();
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut pieces: Vec<(usize, [u64; 2])> =
            cuts.windows(2).map(|ends| [ends[0], ends[1]]).enumerate().collect();
        let mut order = self.order;
        pieces.sort_by_key(|_| {
            order = order.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            order >> 32
        });
        let count = pieces.len();
        let mut chunks = Vec::new();
        for (number, (piece, [start, end])) in pieces.into_iter().enumerate() {
            let last = !self.end_apart && number + 1 == count;
            let tell = if self.holes >> (piece % 64) & 1 == 1 { hole } else { data };
            if self.fails && number == 0 {
                chunks.push(failure(headers, request, false));
            }
            chunks.push(tell(headers, request, start, end - start, last));
        }
        if self.end_apart {
            chunks.push(chunk(headers, request, kind::NONE, true, &[]));
        }
        chunks
    }
}

proptest! {
    /// However a server cuts its replies, mixes them, and however they arrive.
    #[test]
    fn a_read_is_what_it_is_told(
        headers in any_headers(),
        reads in prop::collection::vec((1u32..3000, any_manner()), 1..6),
        mix: u64,
        pieces in prop::collection::vec(1usize..4000, 0..40),
    ) {
        let lens: Vec<u32> = reads.iter().map(|read| read.0).collect();
        let (mut replies, requests) = asking(headers, &lens);
        let mut queues: Vec<std::vec::IntoIter<Vec<u8>>> = requests
            .iter()
            .zip(&reads)
            .map(|(request, (_, manner))| manner.chunks(headers, request).into_iter())
            .collect();
        let (mut stream, mut mix) = (Vec::new(), mix);
        while queues.iter().any(|queue| queue.len() > 0) {
            mix = mix.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(99);
            let count = queues.len() as u64;
            stream.extend(queues[((mix >> 33) % count) as usize].next().unwrap_or_default());
        }
        let told = driven(&mut replies, &lens, &stream, &pieces);
        prop_assert!(!told.broken);
        prop_assert_eq!(replies.outstanding(), 0);
        let mut ended = told.ended.clone();
        ended.sort_unstable();
        for (index, (request, (_, manner))) in requests.iter().zip(&reads).enumerate() {
            let expected = if manner.fails { Err(28) } else { Ok(()) };
            prop_assert_eq!(ended[index], (index as u16, expected));
            for (at, byte) in told.bytes[index].iter().enumerate() {
                prop_assert!(matches!(byte, Some(byte) if *byte == 0 || *byte == content(request, at as u64)));
            }
        }
    }

    /// Whatever a server does, no read has gone well that was not told in full.
    #[test]
    fn no_read_goes_well_with_a_byte_that_was_not_told(
        headers in any_headers(),
        what in prop::collection::vec((0usize..7, 0usize..3, 0u64..3000, 0u64..3000, any::<bool>()), 1..12),
        pieces in prop::collection::vec(1usize..4000, 0..10),
    ) {
        let lens = [1000, 2000, 3000];
        let (mut replies, requests) = asking(headers, &lens);
        let mut stream = Vec::new();
        for (what, which, at, len, last) in what {
            let request = &requests[which];
            stream.extend(match what {
                0..=2 => data(headers, request, at, len, last),
                3 | 4 => hole(headers, request, at, len, last),
                5 => failure(headers, request, last),
                _ => chunk(headers, request, kind::NONE, last, &[]),
            });
        }
        let told = driven(&mut replies, &lens, &stream, &pieces);
        for (index, result) in told.ended {
            let whole = told.bytes[usize::from(index)].iter().all(Option::is_some);
            prop_assert!(result.is_err() || whole);
        }
    }

    #[test]
    fn garbage_never_panics(
        extended: bool,
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        kind in prop_oneof![0u16..8, 32768u16..32772],
        flags in 0u16..2,
        len in prop_oneof![0u64..40, any::<u64>()],
    ) {
        let headers = if extended { Headers::Extended } else { Headers::Structured };
        let (reading, requests) = asking(headers, &[1000]);
        let (asking, request) = asking_for_extents(headers, 1000);
        for (mut replies, request) in [(reading, requests[0]), (asking, request)] {
            let head = Chunk { flags, kind, cookie: request.cookie, offset: request.offset, len };
            let mut stream = head.encode(headers)[..Chunk::size(headers)].to_vec();
            stream.append(&mut bytes);
            driven(&mut replies, &[1000], &stream, &[7, 100]);
        }
    }

    /// However many runs there are and however they arrive, and though the last goes on behind the range.
    #[test]
    fn what_takes_space_is_what_is_told(
        headers in any_headers(),
        runs in prop::collection::vec((1u64..9999, 0u64..4), 1..3000),
        end_apart: bool,
        pieces in prop::collection::vec(1usize..4000, 0..40),
    ) {
        let runs: Vec<Run> = runs.iter().map(|&(len, flags)| Run { len, flags }).collect();
        let len = runs.iter().map(|run| run.len).sum::<u64>() - runs[runs.len() - 1].len + 1;
        let (mut replies, request) = asking_for_extents(headers, len);
        let mut stream = status(headers, &request, &runs, !end_apart);
        if end_apart {
            stream.extend(chunk(headers, &request, kind::NONE, true, &[]));
        }
        let told = driven(&mut replies, &[0], &stream, &pieces);
        prop_assert_eq!((told.broken, &told.ended[..]), (false, &[(0, Ok(()))][..]));
        let [(0, extents)] = &told.extents[..] else { panic!("{:?}", told.extents) };
        let mut at = 0;
        for extent in extents {
            let end = at + extent.len;
            prop_assert!(extent.len > 0 && end <= len);
            let mut start = 0;
            for run in &runs {
                let run_end = start + run.len;
                let touches = start < end && at < run_end;
                prop_assert!(!touches || run.flags == u64::from(extent.state.bits()));
                start = run_end;
            }
            at = end;
        }
        prop_assert!(at == len || extents.len() == MOST_EXTENTS);
    }
}

#[test]
fn a_status_that_is_none_ends_the_connection() {
    use Headers::{Extended, Structured};
    let run = |len| Run { len, flags: status::HOLE };
    for headers in [Structured, Extended] {
        let wide = headers == Extended;
        let kind = if wide { kind::BLOCK_STATUS_EXT } else { kind::BLOCK_STATUS };
        let other_kind = if wide { kind::BLOCK_STATUS } else { kind::BLOCK_STATUS_EXT };
        let body = |runs: &[Run]| status_body(headers, CONTEXT, runs);
        let mut short = body(&[run(512), run(512)]);
        short.pop();
        let mut miscounted = body(&[run(512), run(512)]);
        miscounted[7] = if wide { 1 } else { miscounted[7] };
        for (number, (kind, body)) in [
            (kind, body(&[])),
            (kind, vec![]),
            (kind, short),
            (kind, body(&[run(512), run(0)])),
            (kind, body(&[run(1024), run(1)])),
            (kind, body(&[run(512), run(512), run(512)])),
            (kind, status_body(headers, CONTEXT + 1, &[run(512)])),
            (other_kind, body(&[run(512)])),
            (kind, if wide { miscounted } else { body(&[run(512), run(0)]) }),
        ]
        .into_iter()
        .enumerate()
        {
            let (mut replies, request) = asking_for_extents(headers, 1024);
            let stream = chunk(headers, &request, kind, true, &body);
            let broken = replies.next(&stream).expect_err("it is none");
            assert_eq!(broken.index, Some(0), "{number} {headers:?}");
        }
        // More runs than there may be, none of which is waited for.
        let (mut replies, request) = asking_for_extents(headers, 1024);
        let mut head = chunk(headers, &request, kind, true, &body(&[run(512)]));
        let len = (Status::head_size(headers) + ((1 << 20) + 1) * Run::size(headers)) as u64;
        let at = Chunk::size(headers);
        head[at - 4..at].copy_from_slice(&(len as u32).to_be_bytes());
        assert!(replies.next(&head).is_err());
        // Twice; to a read; the data of a read to it.
        let (mut replies, request) = asking_for_extents(headers, 1024);
        let once = status(headers, &request, &[run(512)], false);
        assert_eq!(replies.next(&once).unwrap().1, Event::Extents { index: 0 });
        assert!(replies.next(&once).is_err());
        let (mut replies, requests) = asking(headers, &[100]);
        assert!(replies.next(&status(headers, &requests[0], &[run(50)], true)).is_err());
        let (mut replies, request) = asking_for_extents(headers, 1024);
        assert!(replies.next(&data(headers, &request, 0, 100, true)).is_err());
    }
}

#[test]
fn who_says_nothing_of_what_takes_space_has_not_answered() {
    for headers in [Headers::Structured, Headers::Extended] {
        let (mut replies, request) = asking_for_extents(headers, 1024);
        let told = driven(&mut replies, &[0], &chunk(headers, &request, kind::NONE, true, &[]), &[]);
        assert_eq!((&told.ended[..], told.extents.len()), (&[(0, Err(5))][..], 0));
        let (mut replies, request) = asking_for_extents(headers, 1024);
        let told = driven(&mut replies, &[0], &failure(headers, &request, true), &[]);
        assert_eq!(told.ended, [(0, Err(28))]);
        // What came before an error does not count.
        let (mut replies, request) = asking_for_extents(headers, 1024);
        let runs = [Run { len: 512, flags: status::ZERO }];
        let mut stream = status(headers, &request, &runs, false);
        stream.extend(failure(headers, &request, true));
        let told = driven(&mut replies, &[0], &stream, &[]);
        let extent = Extent { len: 512, state: Allocation::ZERO };
        assert_eq!((told.ended, told.extents), (vec![(0, Err(28))], vec![(0, vec![extent])]));
    }
    let (mut replies, request) = asking_for_extents(Headers::Structured, 1024);
    let reply = SimpleReply { error: 0, cookie: request.cookie }.encode();
    assert_eq!(driven(&mut replies, &[0], &reply, &[]).ended, [(0, Err(5))]);
}

#[test]
fn simple_replies() {
    let (mut replies, requests) = asking(Headers::Simple, &[4, 4]);
    let mut stream = SimpleReply::new(requests[1].cookie, Ok(())).encode().to_vec();
    stream.extend(*b"data");
    stream.extend(SimpleReply::new(requests[0].cookie, Err(Errno::EPERM)).encode());
    let told = driven(&mut replies, &[4, 4], &stream, &[3, 14, 2]);
    assert_eq!(told.ended, [(1, Ok(())), (0, Err(1))]);
    assert_eq!(told.bytes[1], b"data".map(Some));
    // Twice, and what nobody asked.
    for cookie in [requests[0].cookie, 0, 77, u64::MAX] {
        let reply = SimpleReply { error: 0, cookie }.encode();
        assert!(replies.next(&reply).is_err(), "{cookie}");
    }
    assert!(replies.next(&[0; 16]).is_err());
    assert!(replies.next(&chunk(Headers::Structured, &requests[0], kind::NONE, true, &[])).is_err());
}

#[test]
fn what_a_server_may_not_do_ends_the_connection_and_names_the_request() {
    use Headers::{Extended, Structured};
    let blamed = |headers: Headers, stream: &dyn Fn(&Request) -> Vec<u8>| {
        let (mut replies, requests) = asking(headers, &[100]);
        replies.next(&stream(&requests[0])).unwrap_err().index
    };
    for headers in [Structured, Extended] {
        for stream in [
            &|request: &Request| data(headers, request, 50, 51, true) as Vec<u8>,
            &|request: &Request| data(headers, &Request { offset: 0, ..*request }, 0, 10, true),
            &|request: &Request| hole(headers, request, 0, 101, true),
            &|request: &Request| hole(headers, request, 100, 1, true),
            &|request: &Request| hole(headers, request, 0, 0, true),
            &|request: &Request| data(headers, request, 0, 0, true),
            &|request: &Request| chunk(headers, request, kind::NONE, false, &[]),
            &|request: &Request| chunk(headers, request, kind::NONE, true, &[0]),
            &|request: &Request| chunk(headers, request, kind::OFFSET_HOLE, true, &[0; 11]),
            &|request: &Request| chunk(headers, request, kind::BLOCK_STATUS, true, &[0; 12]),
            &|request: &Request| chunk(headers, request, 3, true, &[0; 12]),
            &|request: &Request| chunk(headers, request, kind::ERROR, true, &[0; 5]),
            &|request: &Request| chunk(headers, request, kind::ERROR, true, &[0; 9000]),
        ] as [&dyn Fn(&Request) -> Vec<u8>; 13]
        {
            assert_eq!(blamed(headers, stream), Some(0));
        }
    }
    let wrong_style = |request: &Request| data(Structured, request, 0, 10, true);
    assert_eq!(blamed(Extended, &wrong_style), None);
    let simple = |request: &Request| SimpleReply { error: 0, cookie: request.cookie }.encode().to_vec();
    assert_eq!((blamed(Structured, &simple), blamed(Extended, &simple)), (Some(0), None));
    let elsewhere = |request: &Request| {
        let mut bytes = data(Extended, request, 0, 10, true);
        bytes[23] ^= 1;
        bytes
    };
    assert_eq!(blamed(Extended, &elsewhere), Some(0));
}

#[test]
fn a_gap_is_an_error_of_that_request_alone() {
    let (mut replies, requests) = asking(Headers::Structured, &[100, 10]);
    let mut stream = data(Headers::Structured, &requests[0], 0, 40, false);
    stream.extend(data(Headers::Structured, &requests[0], 41, 59, true));
    stream.extend(data(Headers::Structured, &requests[1], 0, 10, true));
    let told = driven(&mut replies, &[100, 10], &stream, &[]);
    assert_eq!((told.ended, told.broken), (vec![(0, Err(5)), (1, Ok(()))], false));
}

#[test]
fn errors_end_what_they_are_about() {
    let (mut replies, requests) = asking(Headers::Extended, &[100, 10]);
    let say = |request: &Request, kind: u16, number: u32, tail: &[u8]| {
        let mut body = number.to_be_bytes().to_vec();
        body.extend([0, 3]);
        body.extend(b"why");
        body.extend(tail);
        chunk(Headers::Extended, request, kind, true, &body)
    };
    let mut stream = say(&requests[0], kind::ERROR_OFFSET, 0, &[0; 8]);
    // Of a kind that nobody knows, with a number that nobody knows.
    stream.extend(say(&requests[1], 0x8fff, 4711, b"more"));
    let told = driven(&mut replies, &[100, 10], &stream, &[]);
    assert_eq!(told.ended, [(0, Err(5)), (1, Err(22))]);
}

#[test]
fn a_number_is_not_given_out_twice_and_there_is_an_end_of_them() {
    let mut replies = Replies::new(Headers::Simple, None);
    let mut heads = Vec::new();
    let mut ask = |replies: &mut Replies| replies.ask(Op::Flush, Flags::empty(), 0, 0, &mut heads);
    for index in 0..MOST_ASKED as u16 {
        assert_eq!(ask(&mut replies), Some(index));
    }
    assert!(ask(&mut replies).is_none() && !replies.has_room());
    let first = Request::decode(heads[..28].try_into().unwrap()).unwrap();
    let reply = SimpleReply { error: 0, cookie: first.cookie }.encode();
    assert_eq!(replies.next(&reply), Ok((16, Event::Ended { index: 0, result: Ok(()) })));
    let mut again = Vec::new();
    assert_eq!(replies.ask(Op::Flush, Flags::empty(), 0, 0, &mut again), Some(0));
    assert!(replies.next(&reply).is_err(), "that was the reply to another");
}

#[test]
fn requests_say_what_the_protocol_has_for_them() {
    for (op, flags, extended, command, bits) in [
        (Op::Read, Flags::FUA, true, 0, 0),
        (Op::Write, Flags::empty(), false, 1, 0),
        (Op::Write, Flags::FUA, true, 1, 1 << 5 | 1),
        (Op::Flush, Flags::empty(), true, 3, 0),
        (Op::Discard, Flags::FUA, true, 4, 1),
        (Op::WriteZeroes, Flags::NO_UNMAP, true, 6, 2),
        (Op::WriteZeroes, Flags::FUA, false, 6, 1),
        (Op::WriteZeroes, Flags::FAST_ZERO, true, 6, 1 << 4),
        (Op::Extents, Flags::empty(), true, 7, 0),
        (Op::Extents, Flags::FIRST_EXTENT, false, 7, 1 << 3),
    ] {
        let mut replies = Replies::new(if extended { Headers::Extended } else { Headers::Simple }, Some(1));
        let mut head = Vec::new();
        replies.ask(op, flags, 512, 1024, &mut head).unwrap();
        let request = decoded(if extended { Headers::Extended } else { Headers::Simple }, &head);
        assert_eq!((request.command, request.flags), (command, bits), "{op:?}");
        assert_eq!((request.offset, request.len), (512, 1024));
    }
}
