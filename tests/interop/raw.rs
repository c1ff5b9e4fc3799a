//! A client of our own that says whatever it is told to, byte by byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use blockhaus::error::Result;
use blockhaus::nbd::chunk::{self, Chunk, Failure, Hole, kind};
use blockhaus::nbd::meta::{BASE_ALLOCATION, Question};
use blockhaus::nbd::status::{Run, Status};
use blockhaus::nbd::{Headers, Request, SimpleReply};
use blockhaus::port::clock::Deadline;
use blockhaus::port::stream::Socket;
use blockhaus::tls::{self, ClientConfig};

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

/// Flags of commands.
pub const NO_HOLE: u16 = 1 << 1;
pub const DF: u16 = 1 << 2;
pub const REQ_ONE: u16 = 1 << 3;
pub const FAST_ZERO: u16 = 1 << 4;
pub const PAYLOAD_LEN: u16 = 1 << 5;

/// Kinds of replies to an option.
pub mod reply {
    pub const ACK: u32 = 1;
    pub const META_CONTEXT: u32 = 4;
    pub const UNSUPPORTED: u32 = 1 << 31 | 1;
    pub const INVALID: u32 = 1 << 31 | 3;
    pub const UNKNOWN: u32 = 1 << 31 | 6;
    pub const TOO_BIG: u32 = 1 << 31 | 9;
    pub const EXTENDED_REQUIRED: u32 = 1 << 31 | 10;
}

pub const STRUCTURED_REPLY: u32 = 8;
pub const SET_META_CONTEXT: u32 = 10;
pub const EXTENDED_HEADERS: u32 = 11;

pub const GO: u32 = 7;
pub const STARTTLS: u32 = 5;

const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// A connection. Waits at most a while for anything.
pub struct Client {
    pub stream: UnixStream,
}

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The option that goes into transmission with the export of this name.
pub fn go(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend([0, 0]);
    option(GO, &data)
}

pub fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    Request { flags: 0, command, cookie, offset, len: u64::from(len) }.encode().to_vec()
}

/// What a request got in chunks, up to the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    /// Data with their offsets, in the order in which they came.
    pub data: Vec<(u64, Vec<u8>)>,
    /// Offsets and lengths.
    pub holes: Vec<(u64, u32)>,
    pub runs: Vec<Run>,
    pub error: u32,
}

impl Answer {
    /// What a read of this range got; a byte that nothing was said of is 0xee.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        for (at, data) in &self.data {
            bytes[(at - offset) as usize..][..data.len()].copy_from_slice(data);
        }
        for &(at, len) in &self.holes {
            bytes[(at - offset) as usize..][..len as usize].fill(0);
        }
        bytes
    }
}

/// A request with a header of this kind.
pub fn request_with(
    headers: Headers,
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    len: u64,
) -> Vec<u8> {
    let request = Request { flags, command, cookie, offset, len };
    match headers {
        Headers::Extended => request.encode_extended().to_vec(),
        _ => request.encode().to_vec(),
    }
}

impl Client {
    /// Connects and goes into transmission with the default export, with replies of this kind and base:allocation
    /// where they can tell it.
    pub fn transmitting_with(socket: &Path, headers: Headers) -> Client {
        let mut client = Client::connect(socket);
        client.send(&[0, 0, 0, 3]);
        if headers != Headers::Simple {
            let wanted = if headers == Headers::Extended { EXTENDED_HEADERS } else { STRUCTURED_REPLY };
            client.send(&option(wanted, &[]));
            assert_eq!(client.option_replies(), [1]);
            client.send(&option(SET_META_CONTEXT, &Question::encode("", &[BASE_ALLOCATION])));
            assert_eq!(client.option_replies(), [4, 1]);
        }
        client.send(&go(""));
        assert_eq!(client.option_replies(), [3, 3, 1]);
        client
    }

    /// The next chunk.
    pub fn chunk(&mut self, headers: Headers) -> (Chunk, Vec<u8>) {
        let head = self.receive(Chunk::size(headers));
        let chunk = match headers {
            Headers::Extended => Chunk::decode_extended(head[..].try_into().unwrap()),
            _ => Chunk::decode(head[..].try_into().unwrap()),
        };
        let chunk = chunk.expect("a chunk");
        assert!(chunk.len <= (32 << 20) + 8, "{chunk:?}");
        let body = self.receive(chunk.len as usize);
        (chunk, body)
    }

    /// The chunks of one request, up to the last; no other request's come between.
    pub fn answer(&mut self, headers: Headers) -> Answer {
        let mut answer = Answer::default();
        for number in 0.. {
            let (head, body) = self.chunk(headers);
            assert!(number == 0 || answer.cookie == head.cookie, "{head:?} inside of {}", answer.cookie);
            answer.cookie = head.cookie;
            match head.kind {
                kind::NONE => assert!(body.is_empty() && head.is_last()),
                kind::OFFSET_DATA => {
                    let (offset, data) = chunk::offset_data(&body).expect("data");
                    answer.data.push((offset, data.to_vec()));
                }
                kind::OFFSET_HOLE => {
                    let Hole { offset, len } = Hole::decode(&body).expect("a hole");
                    answer.holes.push((offset, len));
                }
                kind::BLOCK_STATUS | kind::BLOCK_STATUS_EXT => {
                    assert_eq!(head.kind == kind::BLOCK_STATUS_EXT, headers == Headers::Extended);
                    let status = Status::decode(headers, &body).expect("a status");
                    assert_eq!(status.context, 1);
                    answer.runs.extend(status.runs());
                }
                kind => {
                    let failure = Failure::decode(kind, &body).expect("an error");
                    assert_ne!(failure.error, 0);
                    answer.error = failure.error;
                }
            }
            if head.is_last() {
                break;
            }
        }
        answer
    }

    /// A request without a payload, and its answer.
    pub fn call(&mut self, headers: Headers, flags: u16, command: u16, offset: u64, len: u64) -> Answer {
        self.send(&request_with(headers, flags, command, 42, offset, len));
        let answer = self.answer(headers);
        assert_eq!(answer.cookie, 42);
        answer
    }

    /// A write, whose error is yielded.
    pub fn put(&mut self, headers: Headers, offset: u64, bytes: &[u8]) -> u32 {
        let flags = if headers == Headers::Extended { PAYLOAD_LEN } else { 0 };
        self.send(&request_with(headers, flags, WRITE, 43, offset, bytes.len() as u64));
        self.send(bytes);
        self.answer(headers).error
    }
}

impl Client {
    /// Connects and hears the greeting.
    pub fn connect(socket: &Path) -> Client {
        Client::greeted(UnixStream::connect(socket).unwrap())
    }

    /// The same over the network, into transmission with the default export.
    pub fn transmitting_to(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        // What is asked of a stream socket here is the same whatever family it is of.
        let mut client = Client::greeted(UnixStream::from(OwnedFd::from(stream)));
        client.choose("");
        client
    }

    /// A connection of any family, which has not said anything yet.
    pub fn greeted(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Client { stream };
        assert_eq!(client.receive(18), b"NBDMAGICIHAVEOPT\0\x03");
        client
    }

    /// Connects and goes into transmission with the default export.
    pub fn transmitting(socket: &Path) -> Client {
        Client::choosing(socket, "")
    }

    /// Connects and goes into transmission with the export of this name.
    pub fn choosing(socket: &Path, name: &str) -> Client {
        let mut client = Client::connect(socket);
        client.choose(name);
        client
    }

    /// Says STARTTLS and goes on under TLS, with a server that must be `name`.
    pub fn encrypted(mut self, config: &ClientConfig, name: &str) -> Result<Client> {
        self.send(&option(STARTTLS, &[]));
        assert_eq!(self.option_replies(), [1]);
        self.under_tls(config, name)
    }

    /// The same for who may be turned away before, and as who it is called for.
    pub fn encrypted_after_reply(mut self, config: &ClientConfig) -> Option<Client> {
        self.stream.read_exact(&mut [0; 20]).ok()?;
        self.under_tls(config, "localhost").ok()
    }

    /// The same behind the acknowledgement.
    pub fn under_tls(self, config: &ClientConfig, name: &str) -> Result<Client> {
        self.stream.set_nonblocking(true).unwrap();
        // What is asked of a stream socket here is the same whatever family it is of.
        let deadline = Deadline::after(Duration::from_secs(10));
        let socket = tls::client(Socket::Unix(self.stream), config, name, deadline)?;
        let Socket::Unix(stream) = socket else { panic!("another kind of socket") };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Ok(Client { stream })
    }

    fn choose(&mut self, name: &str) {
        self.send(&[0, 0, 0, 3]);
        self.goes_with(name);
    }

    /// Goes into transmission; the client flags were sent before.
    pub fn goes_with(&mut self, name: &str) {
        self.send(&go(name));
        assert_eq!(self.option_replies(), [3, 3, 1]);
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The kinds of the replies to an option, up to the one that ends them.
    pub fn option_replies(&mut self) -> Vec<u32> {
        let mut kinds = Vec::new();
        loop {
            let head = self.receive(20);
            assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes());
            let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            self.receive(number(16) as usize);
            kinds.push(number(12));
            if number(12) == 1 || number(12) >> 31 == 1 {
                return kinds;
            }
        }
    }

    /// The head of the next reply: cookie and error.
    pub fn reply(&mut self) -> (u64, u32) {
        let head = self.receive(SimpleReply::SIZE);
        let head = SimpleReply::decode(head[..].try_into().unwrap()).expect("a simple reply");
        (head.cookie, head.error)
    }

    /// The replies to so many reads of `len` bytes, whose cookies count from 0, in whatever order.
    pub fn hears_reads(&mut self, count: u64, len: usize) {
        let mut cookies: Vec<u64> = (0..count)
            .map(|_| {
                let (cookie, error) = self.reply();
                assert_eq!(error, 0);
                self.receive(len);
                cookie
            })
            .collect();
        cookies.sort_unstable();
        assert!(cookies.into_iter().eq(0..count));
    }

    /// A request and its reply, with the data of a read that went well.
    pub fn ask(&mut self, command: u16, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.send(&request(command, 42, offset, len));
        match self.reply() {
            (42, 0) if command == READ => Ok(self.receive(len as usize)),
            (42, 0) => Ok(Vec::new()),
            (42, error) => Err(error),
            (cookie, _) => panic!("a reply to {cookie}, which nobody asked"),
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), u32> {
        self.send(&request(WRITE, 43, offset, bytes.len() as u32));
        // Where it is refused early the rest has nobody to go to.
        self.send(bytes);
        match self.reply() {
            (43, 0) => Ok(()),
            (43, error) => Err(error),
            (cookie, _) => panic!("a reply to {cookie}, which nobody asked"),
        }
    }

    /// Whether the server closes the connection, without a word more, before our patience ends.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(0) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            Ok(_) => false,
        }
    }
}
