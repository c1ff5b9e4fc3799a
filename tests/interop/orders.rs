//! Every order of options, a cut at every byte, floods of everything: whatever a client says, in whatever order, the
//! server answers as the protocol asks or ends that connection, serves the others, and stays within its memory.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use blockhaus::nbd::Headers;
use blockhaus::nbd::meta::{BASE_ALLOCATION, Question};

use crate::raw::reply::{ACK, EXTENDED_REQUIRED, INVALID, META_CONTEXT, UNKNOWN, UNSUPPORTED};
use crate::raw::{
    BLOCK_STATUS, CACHE, Client, EXTENDED_HEADERS, PAYLOAD_LEN, READ, SET_META_CONTEXT, STRUCTURED_REPLY,
    WRITE, WRITE_ZEROES, go, option, request_with,
};
use crate::server::Server;
use crate::waiting::wait_until;

const LIST: u32 = 3;
const PEEK: u32 = 4;
const INFO: u32 = 6;
const LIST_META_CONTEXT: u32 = 9;

/// What the protocol says of a handshake, as far as these options go.
#[derive(Clone, Copy, Default)]
struct Model {
    headers: Headers,
    allocation: bool,
}

impl Model {
    /// An option as it is sent, and the kinds of replies that it must get.
    fn next(&mut self, number: u32) -> (Vec<u8>, Vec<u32>) {
        let question = Question::encode("disk", &[BASE_ALLOCATION]);
        match number {
            STRUCTURED_REPLY | EXTENDED_HEADERS => {
                let wanted = if number == STRUCTURED_REPLY { Headers::Structured } else { Headers::Extended };
                let kind = match self.headers.cmp(&wanted) {
                    std::cmp::Ordering::Less => ACK,
                    std::cmp::Ordering::Equal => INVALID,
                    std::cmp::Ordering::Greater => EXTENDED_REQUIRED,
                };
                self.headers = self.headers.max(wanted);
                (option(number, &[]), vec![kind])
            }
            SET_META_CONTEXT | LIST_META_CONTEXT if self.headers == Headers::Simple => {
                (option(number, &question), vec![INVALID])
            }
            SET_META_CONTEXT => {
                self.allocation = true;
                (option(number, &question), vec![META_CONTEXT, ACK])
            }
            LIST_META_CONTEXT => (option(number, &question), vec![META_CONTEXT, ACK]),
            INFO => {
                let mut data = go("nowhere");
                data[8..12].copy_from_slice(&INFO.to_be_bytes());
                (data, vec![UNKNOWN])
            }
            LIST => (option(LIST, &[]), vec![2, ACK]),
            number => (option(number, &[]), vec![UNSUPPORTED]),
        }
    }
}

#[test]
fn every_order_of_options_is_answered_as_the_protocol_asks() {
    let mut server = Server::start(&["disk=ram:1M"]);
    let options = [STRUCTURED_REPLY, EXTENDED_HEADERS, SET_META_CONTEXT, LIST_META_CONTEXT, INFO, LIST, PEEK];
    for first in options {
        for second in options {
            for third in options {
                let mut client = Client::connect(&server.socket());
                client.send(&[0, 0, 0, 3]);
                let mut model = Model::default();
                // All at once: what comes behind one option is not lost with it.
                let asked = [first, second, third].map(|number| model.next(number));
                let mut stream: Vec<u8> = asked.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
                stream.extend(go("disk"));
                client.send(&stream);
                for (_, kinds) in &asked {
                    assert_eq!(&client.option_replies(), kinds, "{first} {second} {third}");
                }
                assert_eq!(client.option_replies(), [3, 3, 1]);
                match model.headers {
                    Headers::Simple => assert_eq!(client.ask(READ, 0, 512), Ok(vec![0; 512])),
                    headers => {
                        let answer = client.call(headers, 0, READ, 0, 512);
                        assert_eq!(answer.bytes(0, 512), [0; 512]);
                        let status = client.call(headers, 0, BLOCK_STATUS, 0, 512);
                        assert_eq!(status.error == 0, model.allocation, "{first} {second} {third}");
                    }
                }
            }
        }
    }
    assert!(server.is_alive());
}

/// A whole session as a client sends it: all of the handshake, and one request of each kind.
fn session(headers: Headers) -> Vec<u8> {
    let mut stream = vec![0, 0, 0, 3];
    match headers {
        Headers::Simple => {}
        Headers::Structured => stream.extend(option(STRUCTURED_REPLY, &[])),
        Headers::Extended => stream.extend(option(EXTENDED_HEADERS, &[])),
    }
    stream.extend(option(SET_META_CONTEXT, &Question::encode("disk", &[BASE_ALLOCATION])));
    stream.extend(go("disk"));
    let payload = if headers == Headers::Extended { PAYLOAD_LEN } else { 0 };
    for command in 0..8 {
        if command == 2 {
            continue;
        }
        let flags = if command == WRITE { payload } else { 0 };
        stream.extend(request_with(headers, flags, command, command.into(), 0, 600));
        if command == WRITE {
            stream.extend([7; 600]);
        }
    }
    stream
}

#[test]
fn who_goes_at_any_byte_takes_nothing_with_it() {
    let mut server = Server::start(&["--depth", "4", "disk=ram:1M"]);
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        let stream = session(headers);
        for cut in 0..=stream.len() {
            let mut client = UnixStream::connect(server.socket()).unwrap();
            // It may be closed already, as one of too many.
            let _ = client.write_all(&stream[..cut]);
            match cut % 3 {
                0 => drop(client),
                1 => drop(client.shutdown(Shutdown::Both)),
                _ => {
                    // Half a close: the rest is answered, and then it ends, too.
                    client.shutdown(Shutdown::Write).unwrap();
                    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let end = std::io::copy(&mut client, &mut std::io::sink());
                    assert!(end.is_ok() || cut < 200, "{headers:?} {cut}: {end:?}");
                }
            }
        }
    }
    let mut other = Client::transmitting(&server.socket());
    assert_eq!(other.ask(READ, 0, 512).map(|bytes| bytes.len()), Ok(512));
    assert!(server.is_alive());
}

/// Kilobytes of memory that a process had at most.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// As docs/nbd.md has it: the buffers of 64 connections, what handshakes have received, and nothing else.
#[test]
fn memory_stays_within_its_budget_whatever_comes() {
    const CONNECTIONS: usize = 60;
    const BUDGET_KIB: u64 = 64 * 816 + 32 * 64 + (8 << 10);
    let mut server = Server::start(&["null=null:64G", "disk=ram:16M"]);
    drop(Client::transmitting_with(&server.socket(), Headers::Extended));
    let before = peak_kib(server.pid());
    let headers_of = |number: usize| [Headers::Simple, Headers::Structured, Headers::Extended][number % 3];
    // All are let in before any begins: on a busy machine a handshake beside floods may take too long.
    let clients: Vec<Client> = (0..CONNECTIONS)
        .map(|number| Client::transmitting_with(&server.socket(), headers_of(number)))
        .collect();
    let until = Instant::now() + Duration::from_secs(6);
    let workers: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(number, mut client)| {
            let headers = headers_of(number);
            std::thread::spawn(move || {
                let flood: Vec<u8> = match number % 6 {
                    // Reads whose replies nobody takes.
                    0 => (0..500).flat_map(|n| request_with(headers, 0, READ, n, 0, 1 << 20)).collect(),
                    // Answers about runs, about everything.
                    1 => {
                        (0..500).flat_map(|n| request_with(headers, 0, BLOCK_STATUS, n, 0, 1 << 30)).collect()
                    }
                    // Payloads of what is refused.
                    2 => [
                        request_with(headers, PAYLOAD_LEN, WRITE, 1, u64::MAX - 511, 1 << 20),
                        vec![9; 1 << 20],
                    ]
                    .concat(),
                    // Payloads that are never whole.
                    3 => request_with(headers, 0, WRITE, 1, 0, 32 << 20),
                    4 => (0..5000).flat_map(|n| request_with(headers, 0, CACHE, n, 0, 1 << 30)).collect(),
                    _ => {
                        (0..500).flat_map(|n| request_with(headers, 0, WRITE_ZEROES, n, 0, 1 << 34)).collect()
                    }
                };
                client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
                while Instant::now() < until {
                    // Where it is not taken any more, half of some message has been sent, and the rest is noise.
                    if client.stream.write_all(&flood).is_err() {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    // Some listen now and then.
                    if number % 4 == 0 {
                        let _ = client.stream.read(&mut [0; 4096]);
                    }
                }
            })
        })
        .collect();
    // Handshakes beside them, of every length, which never end.
    let mut half_open = Vec::new();
    while Instant::now() < until {
        let mut client = UnixStream::connect(server.socket()).unwrap();
        client.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut bytes = vec![0, 0, 0, 3];
        bytes.extend(option(LIST, &[]).repeat(200));
        bytes.extend(&option(INFO, &[0; 8000])[..7000]);
        let _ = client.write_all(&bytes);
        half_open.push(client);
        half_open.drain(..half_open.len().saturating_sub(40));
        std::thread::sleep(Duration::from_millis(10));
    }
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let took = peak_kib(server.pid()) - before;
    assert!(took < BUDGET_KIB, "{took} KiB, of {BUDGET_KIB}");
    drop(half_open);
    // Those that are gone are noticed a moment later.
    wait_until("somebody to be let in", || {
        let mut client = UnixStream::connect(server.socket()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.read_exact(&mut [0; 18]).is_ok()
    });
    assert!(server.is_alive());
}
