//! Servers that break the protocol, by accident or on purpose.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockhaus::io::extents::{Extent, MOST_EXTENTS, State, extents};
use blockhaus::io::{Errno, Op};
use blockhaus::nbd::chunk::{Chunk, Failure, Hole, kind};
use blockhaus::nbd::status::{Run, Status};
use blockhaus::nbd::{Headers, Request as Asked, SimpleReply};

use super::{open, spec};
use crate::played::{Disk, Request};
use crate::server::folder;
use crate::waiting::wait_at_most;

const SIZE: u64 = 8 << 30;
const LEN: u64 = 4096;
const AT: u64 = 8192;

/// What a server calls `base:allocation`.
const CONTEXT: u32 = 0;

/// More than other tests take meanwhile, and less than the servers here speak of.
const TOO_MUCH: u64 = 256 << 20;

/// What is said to one request; false ends the connection.
type Behave = dyn Fn(&mut UnixStream, Headers, &Asked) -> bool + Send + Sync;

/// Listens at `s` in the folder, shakes hands as it should, and then behaves so. Yields how many connections there
/// have been.
fn misbehave(folder: &Path, headers: Headers, behave: Arc<Behave>) -> Arc<AtomicU32> {
    let path = folder.join("s");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    // Ends with the test's process; each has a folder of its own.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            let behave = behave.clone();
            std::thread::spawn(move || serve(stream.unwrap(), headers, &*behave));
        }
    });
    count
}

fn receive(stream: &mut UnixStream, count: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).ok().map(|()| bytes)
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Everything but MULTI_CONN: one connection is enough to be hostile.
const FLAGS: u16 = 0b0110_1101;

fn serve(mut stream: UnixStream, headers: Headers, behave: &Behave) -> Option<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").ok()?;
    receive(&mut stream, 4)?;
    loop {
        let head = receive(&mut stream, 16)?;
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let option = number(8);
        receive(&mut stream, number(12) as usize)?;
        let known = match option {
            11 => headers == Headers::Extended,
            8 => headers == Headers::Structured,
            _ => true,
        };
        if !known {
            stream.write_all(&option_reply(option, 1 << 31 | 1, b"")).ok()?;
            continue;
        }
        if option == 7 {
            let mut info = 0u16.to_be_bytes().to_vec();
            info.extend(SIZE.to_be_bytes());
            info.extend(FLAGS.to_be_bytes());
            stream.write_all(&option_reply(7, 3, &info)).ok()?;
        }
        if option == 10 {
            let context = [&CONTEXT.to_be_bytes()[..], b"base:allocation"].concat();
            stream.write_all(&option_reply(10, 4, &context)).ok()?;
        }
        stream.write_all(&option_reply(option, 1, b"")).ok()?;
        if option == 7 {
            break;
        }
    }
    loop {
        let asked = match headers {
            Headers::Extended => {
                Asked::decode_extended(receive(&mut stream, Asked::EXTENDED_SIZE)?[..].try_into().unwrap())?
            }
            _ => Asked::decode(receive(&mut stream, Asked::SIZE)?[..].try_into().unwrap())?,
        };
        if asked.command == 2 {
            return None;
        }
        if asked.command == 1 {
            receive(&mut stream, asked.len as usize)?;
        }
        if !behave(&mut stream, headers, &asked) {
            return None;
        }
    }
}

fn chunk(headers: Headers, asked: &Asked, kind: u16, last: bool, body: &[u8]) -> Vec<u8> {
    chunk_of_len(headers, asked, kind, last, body, body.len() as u64)
}

fn chunk_of_len(headers: Headers, asked: &Asked, kind: u16, last: bool, body: &[u8], len: u64) -> Vec<u8> {
    let flags = u16::from(last);
    let head = Chunk { flags, kind, cookie: asked.cookie, offset: asked.offset, len };
    [&head.encode(headers)[..Chunk::size(headers)], body].concat()
}

fn data(headers: Headers, asked: &Asked, offset: u64, len: usize, last: bool) -> Vec<u8> {
    let body = [&offset.to_be_bytes()[..], &vec![0xbb; len]].concat();
    chunk(headers, asked, kind::OFFSET_DATA, last, &body)
}

fn hole(headers: Headers, asked: &Asked, offset: u64, len: u32, last: bool) -> Vec<u8> {
    chunk(headers, asked, kind::OFFSET_HOLE, last, &Hole { offset, len }.encode())
}

fn simple(asked: &Asked, error: u32) -> Vec<u8> {
    SimpleReply { error, cookie: asked.cookie }.encode().to_vec()
}

/// Bytes of memory that this process has at the moment.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() << 10
}

/// A chunk that tells runs of these lengths, holes and data by turns.
fn status(
    headers: Headers,
    asked: &Asked,
    context: u32,
    lens: impl IntoIterator<Item = u64>,
    last: bool,
) -> Vec<u8> {
    let runs: Vec<u8> = lens
        .into_iter()
        .zip([3, 0].into_iter().cycle())
        .flat_map(|(len, flags)| Run { len, flags }.encode(headers)[..Run::size(headers)].to_vec())
        .collect();
    let count = runs.len() / Run::size(headers);
    let head = Status::encode_head(headers, context, count);
    let wide = headers == Headers::Extended;
    let kind = if wide { kind::BLOCK_STATUS_EXT } else { kind::BLOCK_STATUS };
    chunk(headers, asked, kind, last, &[&head[..Status::head_size(headers)], &runs].concat())
}

/// The result of a read whose slot has other bytes in it, from a server that says this to it.
fn read_from(headers: Headers, behave: Arc<Behave>) -> (Result<(), Errno>, Vec<u8>) {
    result_of(headers, behave, Request::new(Op::Read, AT, LEN))
}

/// The result of a request to a server that says this to reads and to what asks for extents.
fn result_of(headers: Headers, behave: Arc<Behave>, request: Request) -> (Result<(), Errno>, Vec<u8>) {
    let home = folder();
    misbehave(home.path(), headers, behave);
    let stack = open(&spec(home.path(), "answer_s=1,dead_s=1")).unwrap();
    let mut disk = Disk::open(stack, 1, 4);
    let before = resident();
    let began = Instant::now();
    let (result, data) = disk.call(request);
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert!(resident() < before + TOO_MUCH, "it made us take memory");
    disk.close();
    (result, data)
}

macro_rules! said {
    ($headers:ident, $asked:ident, $bytes:expr) => {
        Arc::new(|stream: &mut UnixStream, $headers: Headers, $asked: &Asked| {
            let _ = $headers;
            if ![0, 7].contains(&$asked.command) {
                return stream
                    .write_all(&match $headers {
                        Headers::Extended => chunk($headers, $asked, kind::NONE, true, b""),
                        _ => simple($asked, 0),
                    })
                    .is_ok();
            }
            let bytes: Vec<u8> = $bytes;
            stream.write_all(&bytes).is_ok()
        }) as Arc<Behave>
    };
}

#[test]
fn no_lie_of_a_server_is_read_as_data() {
    let lies: Vec<(&str, Arc<Behave>)> = vec![
        (
            "of what nobody asked",
            said!(h, a, chunk(h, &Asked { cookie: a.cookie ^ 1 << 40, ..*a }, kind::NONE, true, b"")),
        ),
        ("too early", said!(h, a, data(h, a, AT - 512, 4096, true))),
        ("too late", said!(h, a, data(h, a, AT + 512, 4096, true))),
        ("elsewhere", said!(h, a, data(h, a, 0, 4096, true))),
        ("at the end of numbers", said!(h, a, data(h, a, u64::MAX - 100, 4096, true))),
        ("twice", said!(h, a, [data(h, a, AT, 2048, false), data(h, a, AT + 2047, 2049, true)].concat())),
        (
            "with a gap",
            said!(h, a, [data(h, a, AT, 2048, false), data(h, a, AT + 2049, 2047, true)].concat()),
        ),
        ("and nothing", said!(h, a, chunk(h, a, kind::NONE, true, b""))),
        ("a hole too long", said!(h, a, hole(h, a, AT, 4097, true))),
        ("a hole of none", said!(h, a, hole(h, a, AT, 0, true))),
        ("a hole and a gap", said!(h, a, hole(h, a, AT, 4095, true))),
        (
            "a body of 4 GiB",
            said!(h, a, chunk_of_len(h, a, kind::OFFSET_DATA, true, &AT.to_be_bytes(), u32::MAX.into())),
        ),
        (
            "a body without end",
            said!(h, a, chunk_of_len(h, a, kind::OFFSET_DATA, true, &AT.to_be_bytes(), u64::MAX)),
        ),
        ("an error of 4 GiB", said!(h, a, chunk_of_len(h, a, kind::ERROR, true, b"", u32::MAX.into()))),
        ("a status", said!(h, a, chunk(h, a, kind::BLOCK_STATUS, true, &[0; 12]))),
        ("an unknown kind", said!(h, a, chunk(h, a, 77, true, &[0; 12]))),
        ("an empty chunk that is not the last", said!(h, a, chunk(h, a, kind::NONE, false, b""))),
        ("garbage", said!(_h, _a, vec![0x5a; 4096])),
        ("zeros", said!(_h, _a, vec![0; 4096])),
        ("a simple reply", said!(_h, a, [simple(a, 0), vec![0xbb; 4096]].concat())),
        ("nothing at all", said!(_h, _a, Vec::new())),
        ("half of it", said!(h, a, data(h, a, AT, 4096, true)[..2000].to_vec())),
        (
            "errors without end",
            Arc::new(|stream: &mut UnixStream, h: Headers, a: &Asked| {
                let body = Failure::encode(Errno::EIO);
                while stream.write_all(&chunk(h, a, kind::ERROR, false, &body).repeat(100)).is_ok() {}
                false
            }),
        ),
        (
            "holes of a byte without end",
            Arc::new(|stream: &mut UnixStream, h: Headers, a: &Asked| {
                let holes: Vec<u8> = (0..LEN / 2).flat_map(|n| hole(h, a, AT + 2 * n, 1, false)).collect();
                stream.write_all(&holes).is_ok()
            }),
        ),
    ];
    for headers in [Headers::Structured, Headers::Extended] {
        // Together, since each takes as long as our patience is.
        std::thread::scope(|scope| {
            let running: Vec<_> = lies
                .iter()
                .map(|(what, lie)| (*what, scope.spawn(move || read_from(headers, lie.clone()))))
                .collect();
            for (what, lie) in running {
                let (result, _) = lie.join().unwrap();
                assert_eq!(result, Err(Errno::EIO), "{what}, {headers:?}");
            }
        });
    }
}

#[test]
fn no_lie_about_what_takes_space_is_believed_and_the_truth_is_however_long_it_is() {
    let lies: Vec<(&str, Arc<Behave>)> = vec![
        ("nothing", said!(h, a, chunk(h, a, kind::NONE, true, b""))),
        ("a simple reply", said!(_h, a, simple(a, 0))),
        ("no runs", said!(h, a, status(h, a, CONTEXT, [], true))),
        ("of another context", said!(h, a, status(h, a, CONTEXT + 1, [4096], true))),
        ("a run of no bytes", said!(h, a, status(h, a, CONTEXT, [512, 0, 512], true))),
        ("runs behind the range", said!(h, a, status(h, a, CONTEXT, [4096, 512], true))),
        ("twice", said!(h, a, status(h, a, CONTEXT, [512], false).repeat(2))),
        ("data", said!(h, a, data(h, a, AT, 4096, true))),
        ("a part", said!(h, a, status(h, a, CONTEXT, [512; 8], true)[..60].to_vec())),
        (
            "without end",
            said!(h, a, {
                let wide = if h == Headers::Extended { kind::BLOCK_STATUS_EXT } else { kind::BLOCK_STATUS };
                chunk_of_len(h, a, wide, true, &[0; 4096], u64::from(u32::MAX) - 3)
            }),
        ),
    ];
    let asks = |len| Request::new(Op::Extents, AT, len);
    for headers in [Headers::Structured, Headers::Extended] {
        std::thread::scope(|scope| {
            for (what, lie) in &lies {
                scope.spawn(move || {
                    let (result, _) = result_of(headers, lie.clone(), asks(LEN));
                    assert_eq!(result, Err(Errno::EIO), "{what}, {headers:?}");
                });
            }
        });
        // As many runs as a chunk may have, of which no answer has so many.
        let nobodys = Asked { flags: 0, command: 7, cookie: 0, offset: AT, len: 1 << 30 };
        let two = status(headers, &nobodys, CONTEXT, [512, 512], true);
        let head = Chunk::size(headers) + Status::head_size(headers);
        let runs = two[head..].repeat(1 << 19);
        let long = Arc::new(move |stream: &mut UnixStream, h: Headers, a: &Asked| {
            if a.command != 7 {
                return false;
            }
            let body = [&Status::encode_head(h, CONTEXT, 1 << 20)[..Status::head_size(h)], &runs].concat();
            let kind = if h == Headers::Extended { kind::BLOCK_STATUS_EXT } else { kind::BLOCK_STATUS };
            stream.write_all(&chunk(h, a, kind, true, &body)).is_ok()
        });
        let (result, answer) = result_of(headers, long, asks(1 << 30));
        assert_eq!(result, Ok(()));
        let found: Vec<Extent> = extents(&answer, 1 << 30).collect();
        let expected = [State::HOLE | State::ZERO, State::empty()].map(|state| Extent { len: 512, state });
        assert_eq!((found.len(), &found[..2]), (MOST_EXTENTS, &expected[..]));
        // The last may go on behind the range.
        let beyond = said!(h, a, status(h, a, CONTEXT, [1024, 1 << 30], true));
        let (result, answer) = result_of(headers, beyond, asks(LEN));
        let lens: Vec<u64> = extents(&answer, u64::MAX).map(|extent| extent.len).collect();
        assert_eq!((result, lens), (Ok(()), vec![1024, LEN - 1024]));
        // What came before an error does not make it less of one.
        let failing = said!(h, a, [status(h, a, CONTEXT, [512], false), failure(h, a)].concat());
        assert_eq!(result_of(headers, failing, asks(LEN)).0, Err(Errno::ENOSPC));
    }
}

fn failure(headers: Headers, asked: &Asked) -> Vec<u8> {
    chunk(headers, asked, kind::ERROR, true, &Failure::encode(Errno::ENOSPC))
}

#[test]
fn the_truth_is_read_in_whatever_order_it_comes() {
    for headers in [Headers::Structured, Headers::Extended] {
        let truth = said!(
            h,
            a,
            [
                data(h, a, AT + 2048, 1024, false),
                hole(h, a, AT + 3072, 1024, false),
                data(h, a, AT, 2048, false),
                chunk(h, a, kind::NONE, true, b""),
            ]
            .concat()
        );
        let (result, bytes) = read_from(headers, truth);
        assert_eq!((result, &bytes[..3072], &bytes[3072..]), (Ok(()), &[0xbb; 3072][..], &[0; 1024][..]));
        let failing = said!(
            h,
            a,
            [
                data(h, a, AT, 2048, false),
                chunk(
                    h,
                    a,
                    kind::ERROR_OFFSET,
                    false,
                    &[&[0, 0, 0, 28, 0, 2][..], b"no", &AT.to_be_bytes()].concat()
                ),
                data(h, a, AT + 2048, 2048, true),
            ]
            .concat()
        );
        assert_eq!(read_from(headers, failing).0, Err(Errno::ENOSPC));
    }
    let (result, bytes) = read_from(Headers::Simple, said!(_h, a, [simple(a, 0), vec![0xcc; 4096]].concat()));
    assert_eq!((result, bytes), (Ok(()), vec![0xcc; 4096]));
    assert_eq!(read_from(Headers::Simple, said!(_h, a, simple(a, 1))).0, Err(Errno::EPERM));
}

#[test]
fn a_reply_that_comes_twice_ends_the_connection_and_not_the_disk() {
    let home = folder();
    let twice = said!(_h, a, [simple(a, 0), vec![0xcc; 4096], simple(a, 0), vec![0xdd; 4096]].concat());
    let count = misbehave(home.path(), Headers::Simple, twice);
    let mut disk = Disk::open(open(&spec(home.path(), "")).unwrap(), 1, 4);
    for round in 1..4 {
        assert_eq!(disk.call(Request::new(Op::Read, AT, LEN)), (Ok(()), vec![0xcc; 4096]));
        wait_at_most(5, "another connection", || count.load(Ordering::SeqCst) > round);
    }
    disk.close();
}

#[test]
fn a_server_that_is_ending_is_left_and_what_it_refused_asked_again() {
    let home = folder();
    let asked = Arc::new(AtomicU32::new(0));
    let counted = asked.clone();
    let behave = Arc::new(move |stream: &mut UnixStream, _: Headers, a: &Asked| {
        let reply = match counted.fetch_add(1, Ordering::SeqCst) {
            0 => simple(a, 108),
            _ => [simple(a, 0), vec![0xcc; 4096]].concat(),
        };
        stream.write_all(&reply).is_ok()
    });
    let count = misbehave(home.path(), Headers::Simple, behave);
    let mut disk = Disk::open(open(&spec(home.path(), "")).unwrap(), 1, 4);
    assert_eq!(disk.call(Request::new(Op::Read, AT, LEN)), (Ok(()), vec![0xcc; 4096]));
    assert_eq!(count.load(Ordering::SeqCst), 2);
    disk.close();
}

/// A server that waits for so many requests, says all of this to them at once, and serves everything on the connections that
/// come later.
fn at_once(count: usize, say: impl Fn(&[Asked]) -> Vec<u8> + Send + Sync + 'static) -> Arc<Behave> {
    let waiting = Mutex::new(Some(Vec::new()));
    Arc::new(move |stream: &mut UnixStream, _: Headers, asked: &Asked| {
        let mut waiting = waiting.lock().unwrap();
        let Some(all) = &mut *waiting else {
            let data = vec![0xcc; if asked.command == 0 { asked.len as usize } else { 0 }];
            return stream.write_all(&[simple(asked, 0), data].concat()).is_ok();
        };
        all.push(*asked);
        if all.len() < count {
            return true;
        }
        let said = say(all);
        *waiting = None;
        stream.write_all(&said).is_ok()
    })
}

fn find(asked: &[Asked], command: u16, offset: u64) -> &Asked {
    asked.iter().find(|asked| asked.command == command && asked.offset == offset).expect("it was asked")
}

#[test]
fn changes_that_a_server_refuses_together_when_it_ends_are_all_asked_again() {
    let home = folder();
    let ending =
        at_once(3, |asked| [simple(find(asked, 1, 0), 108), simple(find(asked, 1, LEN), 108)].concat());
    misbehave(home.path(), Headers::Simple, ending);
    let mut disk = Disk::open(open(&spec(home.path(), "")).unwrap(), 1, 4);
    // The read is between the two: it must not keep the second from its turn.
    disk.ask(0, Request::write(0, vec![1; LEN as usize]));
    disk.ask(0, Request::new(Op::Read, AT, LEN));
    disk.ask(0, Request::write(LEN, vec![2; LEN as usize]));
    for _ in 0..3 {
        assert_eq!(disk.wait().result, Ok(()));
    }
    disk.close();
}

#[test]
fn what_a_server_acknowledges_when_it_ends_may_be_lost_with_it() {
    let home = folder();
    let ending = at_once(2, |asked| [simple(find(asked, 0, AT), 108), simple(find(asked, 1, 0), 0)].concat());
    misbehave(home.path(), Headers::Simple, ending);
    let stack = open(&spec(home.path(), "replay=0,dead_s=1")).unwrap();
    let mut disk = Disk::open(stack, 1, 4);
    let write = disk.ask(0, Request::write(0, vec![1; LEN as usize]));
    let read = disk.ask(0, Request::new(Op::Read, AT, LEN));
    let mut ended = [disk.wait(), disk.wait()].map(|ended| (ended.number, ended.result));
    ended.sort_unstable_by_key(|ended| ended.0);
    // Without a journal nobody can write it again, and to read on would show what was there before.
    assert_eq!(ended, [(write, Ok(())), (read, Err(Errno::EIO))]);
    assert_eq!(disk.call(Request::new(Op::Read, 0, LEN)).0, Err(Errno::EIO));
}

/// A server may take its time over each byte of a range, and says nothing before it is through.
#[test]
fn no_server_is_asked_to_change_so_much_at_once_that_it_is_taken_for_one_that_hangs() {
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        let home = folder();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        let behave = move |stream: &mut UnixStream, headers: Headers, asked: &Asked| {
            noted.lock().unwrap().push((asked.command, asked.offset, asked.len));
            let reply = match headers {
                Headers::Extended => chunk(headers, asked, kind::NONE, true, b""),
                _ => simple(asked, 0),
            };
            stream.write_all(&reply).is_ok()
        };
        misbehave(home.path(), headers, Arc::new(behave));
        let mut disk = Disk::open(open(&spec(home.path(), "")).unwrap(), 1, 4);
        for (op, command) in [(Op::Discard, 4), (Op::WriteZeroes, 6)] {
            assert_eq!(disk.call(Request::new(op, AT, SIZE - AT)).0, Ok(()));
            let mut next = AT;
            for (number, offset, len) in asked.lock().unwrap().drain(..) {
                assert_eq!((number, offset), (command, next));
                assert!(len <= 256 << 20, "{op:?} of {len} bytes");
                next += len;
            }
            assert_eq!(next, SIZE);
        }
        disk.close();
    }
}

/// Two connections on which nothing is said, and a third on which the reply comes, though late.
#[test]
fn a_request_that_was_asked_again_has_the_time_that_a_new_one_has() {
    let home = folder();
    let count = AtomicU32::new(0);
    let behave = move |stream: &mut UnixStream, _: Headers, asked: &Asked| {
        let reply = [simple(asked, 0), vec![0xcc; 4096]].concat();
        if count.fetch_add(1, Ordering::SeqCst) < 2 {
            return true;
        }
        std::thread::sleep(Duration::from_secs(1));
        let half = stream.write_all(&reply[..2000]).is_ok();
        std::thread::sleep(Duration::from_millis(1100));
        half && stream.write_all(&reply[2000..]).is_ok()
    };
    misbehave(home.path(), Headers::Simple, Arc::new(behave));
    let mut disk = Disk::open(open(&spec(home.path(), "answer_s=2,dead_s=4")).unwrap(), 1, 4);
    let began = Instant::now();
    let (result, data) = disk.call(Request::new(Op::Read, AT, LEN));
    assert!(result == Ok(()) && data == vec![0xcc; 4096], "{result:?}");
    assert!(began.elapsed() > Duration::from_secs(6), "{:?}", began.elapsed());
    disk.close();
}

/// A server that says these bytes at once, and no more.
fn opened(said: Vec<u8>, stays: bool) -> String {
    let home = folder();
    let listener = UnixListener::bind(home.path().join("s")).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let _ = stream.write_all(&said);
        // Until the other side has had enough.
        let _ = if stays { stream.read_to_end(&mut Vec::new()) } else { Ok(0) };
    });
    let before = resident();
    let said = open(&spec(home.path(), "")).err().expect("it is no server").to_string();
    assert!(resident() < before + TOO_MUCH);
    server.join().unwrap();
    said
}

#[test]
fn no_handshake_of_a_server_is_more_than_an_error() {
    let greeting = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let ack = [option_reply(11, 1, b""), option_reply(10, 1, b"")].concat();
    let then = |more: Vec<u8>| [greeting.clone(), ack.clone(), more].concat();
    let mut endless = option_reply(7, 3, b"");
    endless[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    for (said, part) in [
        (b"SSH-2.0-OpenSSH".to_vec(), "greet"),
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53".to_vec(), "oldstyle"),
        (then(option_reply(7, 1 << 31 | 5, b"tls first")), "tls first"),
        (then(option_reply(7, 1 << 31 | 2, b"go \x1b[31maway")), "go  [31maway"),
        (then(option_reply(7, 1, b"")), "does not say"),
        (then(option_reply(6, 1, b"")), "not asked"),
        (then(endless), "too long"),
        (then(option_reply(7, 3, &[0, 9]).repeat(100_000)), "no end"),
        (then(vec![7; 1 << 20]), "number"),
    ] {
        let text = opened(said, true);
        assert!(text.contains(part), "{part}: {text}");
    }
    for said in [Vec::new(), b"NBDMAG".to_vec(), greeting.clone(), then(Vec::new())] {
        let text = opened(said, false);
        assert!(text.contains("closed the connection"), "{text}");
    }
}

#[test]
fn a_server_that_says_nothing_is_waited_for_no_longer_than_a_handshake_may_take() {
    let began = Instant::now();
    let text = opened(b"NBDMAGIC".to_vec(), true);
    assert!(text.contains("shake hands") && began.elapsed() < Duration::from_secs(15), "{text}");
}

#[test]
fn tls_does_not_give_a_server_more_time_for_its_handshake() {
    let home = folder();
    let listener = UnixListener::bind(home.path().join("s")).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        std::thread::sleep(Duration::from_secs(6));
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
        stream.write_all(&option_reply(5, 1, b"")).unwrap();
        stream.read_to_end(&mut Vec::new())
    });
    let uri = format!("nbds+unix:///?socket={}&tls-hostname=localhost", home.path().join("s").display());
    let began = Instant::now();
    let said = open(&uri).err().expect("it says nothing").to_string();
    assert!(
        said.contains("too long") && began.elapsed() < Duration::from_secs(13),
        "{:?} {said}",
        began.elapsed()
    );
    let _ = server.join().unwrap();
}
