//! Replies in chunks, structured and with extended headers, byte by byte: Debian's clients know no extended headers.

use blockhaus::nbd::chunk::{self, kind};
use blockhaus::nbd::status::{self, Filter, Run};
use blockhaus::nbd::{ALLOCATION_CONTEXT, Headers};

use crate::raw::{
    Answer, BLOCK_STATUS, CACHE, Client, DF, DISC, EXTENDED_HEADERS, FAST_ZERO, FLUSH, NO_HOLE, PAYLOAD_LEN,
    READ, REQ_ONE, STRUCTURED_REPLY, TRIM, WRITE, WRITE_ZEROES, go, option, request, request_with,
};
use crate::server::{Server, folder, specs};

const CHUNKS: [Headers; 2] = [Headers::Structured, Headers::Extended];

const HOLE: u64 = status::HOLE | status::ZERO;

const MIB: u64 = 1 << 20;

fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 | 1).collect()
}

fn runs(answer: &Answer) -> Vec<(u64, u64)> {
    answer.runs.iter().map(|&Run { len, flags }| (len, flags)).collect()
}

/// For every kind of disk, 64 MiB of zeros, with replies of both kinds.
fn for_each_disk(mut body: impl FnMut(&str, Headers, &mut Client)) {
    let home = folder();
    for spec in specs(home.path(), "64M") {
        let server = Server::start(&[&spec]);
        for headers in CHUNKS {
            let mut client = Client::transmitting_with(&server.socket(), headers);
            client.call(headers, 0, WRITE_ZEROES, 0, 64 * MIB);
            body(&spec, headers, &mut client);
        }
    }
}

/// Every boundary of a reply: copied, sent from its slot, from several; data, holes, both.
#[test]
fn what_is_read_in_chunks_is_what_was_written() {
    for_each_disk(|_, headers, client| {
        for len in [1u64, 511, 4096, 32 << 10, (32 << 10) + 1, 256 << 10, (256 << 10) + 4096, 3 * MIB] {
            let data = pattern(len);
            assert_eq!(client.put(headers, 4096, &data), 0);
            for (offset, count) in [(4096, len), (0, len + 8192), (4095, len + 2), (4096 + len / 2, len)] {
                let mut expected = [vec![0; 4096], data.clone(), vec![0; len as usize + 8192]].concat();
                expected = expected[offset as usize..(offset + count) as usize].to_vec();
                for flags in [0, DF] {
                    let answer = client.call(headers, flags, READ, offset, count);
                    assert_eq!(answer.error, 0);
                    assert!(
                        answer.bytes(offset, count as usize) == expected,
                        "{headers:?} {len} {offset} {count}"
                    );
                    let told: usize = answer.data.iter().map(|(_, data)| data.len()).sum::<usize>()
                        + answer.holes.iter().map(|hole| hole.1 as usize).sum::<usize>();
                    assert_eq!(told as u64, count, "nothing is told twice");
                    assert!(flags == 0 || (answer.holes.is_empty() && answer.data.len() == 1));
                }
            }
            client.call(headers, 0, WRITE_ZEROES, 0, 8 * MIB);
        }
    });
}

#[test]
fn holes_are_not_sent() {
    let server = Server::start(&["ram:64M"]);
    for headers in CHUNKS {
        let mut client = Client::transmitting_with(&server.socket(), headers);
        client.call(headers, 0, WRITE_ZEROES, 0, 64 * MIB);
        // The longest read, of nothing: not a byte of data.
        let answer = client.call(headers, 0, READ, 0, 32 * MIB);
        assert!(
            answer.data.is_empty()
                && answer.holes.iter().map(|hole| u64::from(hole.1)).sum::<u64>() == 32 * MIB
        );
        // Data in the middle of a short reply, and of a long one.
        assert_eq!(client.put(headers, 8192, &pattern(4096)), 0);
        let answer = client.call(headers, 0, READ, 0, 20480);
        assert_eq!((answer.holes, answer.data.len()), (vec![(0, 8192), (12288, 8192)], 1));
        assert_eq!(client.put(headers, 10 * MIB + (100 << 10), &pattern(64 << 10)), 0);
        let answer = client.call(headers, 0, READ, 10 * MIB, 1 << 20);
        let data: Vec<(u64, usize)> =
            answer.data.iter().map(|(offset, data)| (*offset, data.len())).collect();
        assert_eq!(data, [(10 * MIB + (100 << 10), 64 << 10)]);
        assert!(answer.bytes(10 * MIB, 1 << 20)[100 << 10..][..64 << 10] == pattern(64 << 10));
        let truth = [vec![0; 100 << 10], pattern(64 << 10), vec![0; 2 << 20]].concat();
        // Many such at once, answered in whatever order.
        let reads: Vec<u8> =
            (0..50).flat_map(|n| request_with(headers, 0, READ, n, 10 * MIB + n * 4096, 1 << 20)).collect();
        client.send(&reads);
        let mut seen = [false; 50];
        while seen.contains(&false) {
            let (head, body) = client.chunk(headers);
            assert!(
                !seen[head.cookie as usize] && [kind::OFFSET_DATA, kind::OFFSET_HOLE].contains(&head.kind)
            );
            if let (kind::OFFSET_DATA, Some((offset, data))) = (head.kind, chunk::offset_data(&body)) {
                let at = (offset - 10 * MIB) as usize;
                assert!(data == &truth[at..at + data.len()], "the data of {}", head.cookie);
            }
            seen[head.cookie as usize] = head.is_last();
        }
        client.call(headers, 0, TRIM, 0, 64 * MIB);
    }
}

#[test]
fn block_status_tells_what_takes_space() {
    for_each_disk(|spec, headers, client| {
        assert_eq!(runs(&client.call(headers, 0, BLOCK_STATUS, 0, 64 * MIB)), [(64 * MIB, HOLE)]);
        // At 2 MiB and at 8 MiB, whole pages of the largest kind.
        for at in [2 * MIB, 8 * MIB] {
            assert_eq!(client.put(headers, at, &pattern(2 * MIB)), 0);
        }
        let all = [(2 * MIB, HOLE), (2 * MIB, 0), (4 * MIB, HOLE), (2 * MIB, 0), (54 * MIB, HOLE)];
        assert_eq!(runs(&client.call(headers, 0, BLOCK_STATUS, 0, 64 * MIB)), all, "{spec}");
        assert_eq!(runs(&client.call(headers, REQ_ONE, BLOCK_STATUS, 0, 64 * MIB)), all[..1]);
        assert_eq!(
            runs(&client.call(headers, REQ_ONE, BLOCK_STATUS, 3 * MIB, 64 * MIB - 3 * MIB)),
            [(MIB, 0)]
        );
        assert_eq!(runs(&client.call(headers, 0, BLOCK_STATUS, 3 * MIB, 2 * MIB)), [(MIB, 0), (MIB, HOLE)]);
        assert_eq!(runs(&client.call(headers, 0, BLOCK_STATUS, 4 * MIB - 1, 2)), [(1, 0), (1, HOLE)]);
        client.call(headers, 0, TRIM, 2 * MIB, 2 * MIB);
        let all = [(8 * MIB, HOLE), (2 * MIB, 0), (54 * MIB, HOLE)];
        assert_eq!(runs(&client.call(headers, 0, BLOCK_STATUS, 0, 64 * MIB)), all);
        // Zeros that keep their space may be told as either, but never as a hole that is none.
        client.call(headers, NO_HOLE, WRITE_ZEROES, 8 * MIB, 2 * MIB);
        assert_eq!(client.call(headers, 0, READ, 8 * MIB, 2 * MIB).bytes(8 * MIB, 2 << 20), vec![0; 2 << 20]);
        for (offset, len) in [(64 * MIB, 512), (0, 0), (0, 64 * MIB + 512), (u64::MAX - 511, 512)] {
            assert_eq!(client.call(headers, 0, BLOCK_STATUS, offset, len).error, 22, "{offset} {len}");
        }
    });
}

/// An answer has at most so many runs, and whoever asks again behind them hears of all.
#[test]
fn an_answer_is_bounded_and_the_next_goes_on() {
    let home = folder();
    for spec in specs(home.path(), "64M") {
        let server = Server::start(&[&spec]);
        let mut client = Client::transmitting_with(&server.socket(), Headers::Extended);
        // A page in every second: with more runs than an answer has.
        for at in (0..24 * MIB).step_by(8192) {
            assert_eq!(client.put(Headers::Extended, at, &pattern(4096)), 0);
        }
        let (mut at, mut found, mut asked) = (0, Vec::new(), 0);
        while at < 64 * MIB {
            let answer = runs(&client.call(Headers::Extended, 0, BLOCK_STATUS, at, 64 * MIB - at));
            assert!(!answer.is_empty() && answer.len() <= 1024, "{} runs", answer.len());
            at += answer.iter().map(|run| run.0).sum::<u64>();
            found.extend(answer);
            asked += 1;
        }
        assert_eq!(at, 64 * MIB);
        let data: u64 = found.iter().filter(|run| run.1 == 0).map(|run| run.0).sum();
        // A kernel may give out larger pages than were asked for.
        assert!((12 * MIB..=24 * MIB).contains(&data), "{data} bytes of data in {asked} answers");
        assert!(asked > 1 || found.len() < 1024);
    }
}

#[test]
fn what_has_no_chunks_has_no_flags_for_them() {
    let server = Server::start(&["ram:1M"]);
    let mut client = Client::transmitting(&server.socket());
    for (flags, command) in [(DF, READ), (PAYLOAD_LEN, READ), (0, BLOCK_STATUS), (REQ_ONE, BLOCK_STATUS)] {
        client.send(&request_with(Headers::Simple, flags, command, 7, 0, 4096));
        assert_eq!(client.reply(), (7, 22), "flags {flags} of command {command}");
    }
    assert_eq!(client.ask(CACHE, 0, 4096), Ok(vec![]));
    // Nor has one without a context a status.
    for wanted in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
        let headers = if wanted == STRUCTURED_REPLY { Headers::Structured } else { Headers::Extended };
        let mut client = Client::connect(&server.socket());
        client.send(&[&[0, 0, 0, 3][..], &option(wanted, &[]), &go("")].concat());
        assert_eq!((client.option_replies(), client.option_replies()), (vec![1], vec![3, 3, 1]));
        assert_eq!(client.call(headers, 0, BLOCK_STATUS, 0, 4096).error, 22);
        assert_eq!(client.call(headers, 0, READ, 0, 4096).holes, [(0, 4096)]);
    }
}

#[test]
fn lengths_of_64_bits_are_served_or_refused_and_the_stream_goes_on() {
    let headers = Headers::Extended;
    // Much larger than 32 bits can say, of which nothing is there.
    let mut server = Server::start(&["ram:16G"]);
    let size = 16u64 << 30;
    let mut client = Client::transmitting_with(&server.socket(), headers);
    assert_eq!(client.put(headers, 9 << 30, &pattern(4096)), 0);
    let mut at = 0;
    let mut data = 0;
    while at < size {
        for (len, flags) in runs(&client.call(headers, 0, BLOCK_STATUS, at, size - at)) {
            at += len;
            data += if flags == 0 { len } else { 0 };
        }
    }
    assert!(at == size && (4096..=2 << 20).contains(&data), "{data} bytes of data");
    for (command, flags) in [(TRIM, 0), (WRITE_ZEROES, FAST_ZERO), (CACHE, 0)] {
        assert_eq!(
            client.call(headers, flags, command, 1 << 30, 12 << 30),
            Answer { cookie: 42, ..Answer::default() }
        );
    }
    assert_eq!(client.call(headers, 0, READ, 9 << 30, 4096).holes, [(9 << 30, 4096)]);
    for (command, error) in [(TRIM, 22), (WRITE_ZEROES, 28), (CACHE, 22), (BLOCK_STATUS, 22), (READ, 22)] {
        for len in [size + 1, 1 << 63, u64::MAX] {
            assert_eq!(client.call(headers, 0, command, 4096, len).error, error, "{command} of {len}");
        }
    }
    assert_eq!(client.call(headers, 0, READ, 0, (32 << 20) + 1).error, 22);
    assert_eq!(client.put(headers, 0, &vec![1; (32 << 20) + 1]), 22, "skipped, not stored");
    assert_eq!(client.put(headers, size - 100, &[1; 200]), 28);
    // A payload that nobody could send ends the connection, and no other.
    client.send(&request_with(headers, PAYLOAD_LEN, WRITE, 1, 0, u64::MAX));
    assert!(client.is_closed());
    assert!(server.is_alive());
}

#[test]
fn a_payload_is_taken_out_of_the_stream_whatever_the_command() {
    let headers = Headers::Extended;
    let server = Server::start(&["ram:1M"]);
    let mut client = Client::transmitting_with(&server.socket(), headers);
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 8, 999] {
        client.send(&request_with(headers, PAYLOAD_LEN, command, 5, 0, 100));
        client.send(&[0xff; 100]);
        let answer = client.answer(headers);
        assert_eq!((answer.cookie, answer.error), (5, 22), "command {command}");
    }
    // One that names the contexts.
    let mut ask = |payload: &[u8]| {
        client.send(&request_with(headers, PAYLOAD_LEN, BLOCK_STATUS, 6, 0, payload.len() as u64));
        client.send(payload);
        client.answer(headers)
    };
    let answer = ask(&Filter::encode(MIB, &[ALLOCATION_CONTEXT]));
    assert_eq!(runs(&answer), [(MIB, HOLE)]);
    for payload in [
        Filter::encode(MIB, &[]),
        Filter::encode(MIB, &[ALLOCATION_CONTEXT + 1]),
        Filter::encode(MIB, &[ALLOCATION_CONTEXT, ALLOCATION_CONTEXT]),
        Filter::encode(MIB + 1, &[ALLOCATION_CONTEXT]),
        Filter::encode(0, &[ALLOCATION_CONTEXT]),
        vec![1; 5],
        vec![1; 70_000],
    ] {
        assert_eq!(ask(&payload).error, 22, "{} bytes", payload.len());
    }
    assert_eq!(client.call(headers, 0, FLUSH, 0, 0), Answer { cookie: 42, ..Answer::default() });
}

#[test]
fn errors_and_ends_are_chunks_as_well() {
    let server = Server::start(&["--read-only", "ram:1M"]);
    for headers in CHUNKS {
        let mut client = Client::transmitting_with(&server.socket(), headers);
        assert_eq!(client.put(headers, 0, &[1; 512]), 1);
        assert_eq!(client.call(headers, 0, TRIM, 0, 512).error, 1);
        assert_eq!(client.call(headers, 0, FLUSH, 0, 0).error, 0);
        assert_eq!(client.call(headers, 1 << 9, READ, 0, 512).error, 22);
        client.send(&request_with(headers, 0, DISC, 1, 0, 0));
        assert!(client.is_closed());
    }
    // Simple replies for who agreed on nothing, on the same server.
    let mut client = Client::transmitting(&server.socket());
    client.send(&request(READ, 3, 0, 512));
    assert_eq!(client.reply(), (3, 0));
}

/// Who reads much in chunks and does not listen, or goes in the middle of one, keeps nobody from anything.
#[test]
fn who_goes_in_the_middle_of_a_chunk_takes_nothing_with_it() {
    let mut server = Server::start(&["ram:64M"]);
    for headers in CHUNKS {
        let mut writer = Client::transmitting_with(&server.socket(), headers);
        for at in (0..16 * MIB).step_by(128 << 10) {
            assert_eq!(writer.put(headers, at, &pattern(64 << 10)), 0);
        }
        for cut in [1usize, 19, 20, 27, 28, 33, 70_000, 300_000, 5_000_000] {
            let mut client = Client::transmitting_with(&server.socket(), headers);
            let reads: Vec<u8> =
                (0..8).flat_map(|n| request_with(headers, 0, READ, n, 0, 16 * MIB)).collect();
            client.send(&reads);
            client.receive(cut);
        }
        let answer = writer.call(headers, 0, READ, 0, 16 * MIB);
        let expected = [pattern(64 << 10), vec![0; 64 << 10]].concat().repeat(128);
        assert!(answer.bytes(0, 16 << 20) == expected);
        writer.call(headers, 0, TRIM, 0, 64 * MIB);
    }
    assert!(server.is_alive());
}
