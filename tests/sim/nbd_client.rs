//! One connection of an NBD client, on a thread of the world.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blockhaus::io::{Flags, Op};
use blockhaus::nbd::chunk::{self, Chunk, Failure, Hole};
use blockhaus::nbd::status::{self, Status};
use blockhaus::nbd::{self, ExportFlags, Headers, SimpleReply, meta};
use blockhaus::port::clock::{Duration, sleep};
use blockhaus::port::sim::{Client as _, Next, Random, Request, Shape, note};

use crate::workload::Shared;

/// Bytes that a connection has under way at most, so that no socket is ever full for long.
const UNDER_WAY: usize = 128 << 10;

/// What connections are like.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub connections: usize,
    /// How often, of a thousand turns, one breaks off.
    pub breaks_off: u32,
    /// How often, of a thousand turns, one does nothing for a good while.
    pub slow: u32,
    /// How often, of a thousand turns, one sends or receives a few bytes only.
    pub in_pieces: u32,
}

pub struct Client {
    pub path: PathBuf,
    pub random: Random,
    pub habits: Habits,
    pub block: u32,
    pub workload: Shared,
    pub stop: Arc<AtomicBool>,
    /// Requests whose connection was gone before their answer came.
    pub lost: Arc<Mutex<Vec<u64>>>,
}

/// The server is gone, or has broken the protocol, which was told.
struct Gone;

#[derive(Default)]
struct State {
    headers: Headers,
    to_send: Vec<u8>,
    received: Vec<u8>,
    /// What was asked for.
    outstanding: BTreeMap<u64, Asked>,
    under_way: usize,
}

/// A request, and what has come of its answer.
struct Asked {
    offset: u64,
    /// What a read carries, as far as it is here.
    data: Vec<u8>,
    /// Bytes of that which have come.
    filled: usize,
    /// It was not a read, though the workload wanted one, but the question which runs of it are zeros.
    is_status: bool,
    zeros: Vec<(u64, u64)>,
    errno: i32,
}

impl Client {
    /// Connects, asks, and connects again when that is over, until told to stop.
    pub fn live(mut self) {
        while !self.stop.load(Ordering::SeqCst) {
            let mut state = State::default();
            if let Ok(mut socket) = UnixStream::connect(&self.path)
                && socket.set_nonblocking(true).is_ok()
                && self.shake_hands(&mut socket, &mut state).is_ok()
            {
                while self.turn(&mut socket, &mut state).is_ok() {}
            }
            note("connection ends", [state.outstanding.len() as u64, 0, 0, 0], &[]);
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.extend(state.outstanding.keys());
            drop(lost);
            sleep(Duration::from_millis(1));
        }
    }

    /// The fixed newstyle handshake, by the option that every server has.
    fn shake_hands(&mut self, socket: &mut UnixStream, state: &mut State) -> Result<(), Gone> {
        let greeting = self.expect(socket, state, 18)?;
        if greeting[..16] != *b"NBDMAGICIHAVEOPT" {
            return self.broken("the greeting is no server's");
        }
        // Fixed newstyle, no zeroes.
        state.to_send.extend(3u32.to_be_bytes());
        let headers =
            *self.random.pick(&[Headers::Simple, Headers::Simple, Headers::Structured, Headers::Extended]);
        if headers != Headers::Simple {
            let number = if headers == Headers::Structured { 8 } else { 11 };
            state.option(number, &[]);
            self.agreed(socket, state, number, 1)?;
            state.option(10, &meta::Question::encode("disk", &[meta::BASE_ALLOCATION]));
            self.agreed(socket, state, 10, 4)?;
            self.agreed(socket, state, 10, 1)?;
        }
        state.headers = headers;
        state.option(1, b"disk");
        let export = self.expect(socket, state, 10)?;
        let size = u64::from_be_bytes(export[..8].try_into().unwrap_or_default());
        let flags = ExportFlags::from_bits_retain(u16::from_be_bytes([export[8], export[9]]));
        note("hands shaken", [size, flags.bits().into(), headers as u64, 0], &[]);
        self.workload.live(Shape {
            size,
            block: self.block,
            max_io: UNDER_WAY as u32,
            volatile_cache: flags.contains(ExportFlags::SEND_FLUSH),
            fua: flags.contains(ExportFlags::SEND_FUA),
            discard: flags.contains(ExportFlags::SEND_TRIM),
            write_zeroes: flags.contains(ExportFlags::SEND_WRITE_ZEROES),
            queues: 1,
        });
        Ok(())
    }

    /// The next reply to an option, which must be of this kind.
    fn agreed(
        &mut self,
        socket: &mut UnixStream,
        state: &mut State,
        option: u32,
        kind: u32,
    ) -> Result<(), Gone> {
        let head = self.expect(socket, state, 20)?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (told, len) = ((word(8), word(12)), word(16));
        self.expect(socket, state, len as usize)?;
        if told != (option, kind) {
            return self.broken("an option was not agreed on");
        }
        Ok(())
    }

    fn broken<T>(&mut self, why: &str) -> Result<T, Gone> {
        self.workload.lock().failure.get_or_insert(why.into());
        Err(Gone)
    }

    /// Waits for so many bytes.
    fn expect(&mut self, socket: &mut UnixStream, state: &mut State, count: usize) -> Result<Vec<u8>, Gone> {
        loop {
            if state.received.len() >= count {
                return Ok(state.received.drain(..count).collect());
            }
            self.exchange(socket, state)?;
            self.pause();
            if self.stop.load(Ordering::SeqCst) {
                return Err(Gone);
            }
        }
    }

    fn pause(&mut self) {
        let slow = self.random.chance(self.habits.slow);
        let micros = if slow { self.random.between(1_000, 8_000) } else { self.random.between(20, 300) };
        sleep(Duration::from_micros(micros));
    }

    /// Asks, sends, receives, and waits a little.
    fn turn(&mut self, socket: &mut UnixStream, state: &mut State) -> Result<(), Gone> {
        let stops = self.stop.load(Ordering::SeqCst);
        if stops && state.outstanding.is_empty() {
            return Err(Gone);
        }
        if self.random.chance(self.habits.breaks_off) {
            note("breaks off", [state.outstanding.len() as u64, 0, 0, 0], &[]);
            return Err(Gone);
        }
        while !stops && state.under_way < UNDER_WAY && self.random.chance(700) {
            match self.workload.next() {
                Next::Request(request) => {
                    let may_ask = request.op == Op::Read && state.headers != Headers::Simple;
                    let is_status = may_ask && self.random.chance(250);
                    state.ask(&request, is_status, self.random.chance(300));
                }
                Next::Wait(_) | Next::Idle => break,
            }
        }
        self.exchange(socket, state)?;
        self.hear(state)?;
        self.pause();
        Ok(())
    }

    /// How much of so many bytes goes in one piece.
    fn piece(&mut self, len: usize) -> usize {
        match self.random.chance(self.habits.in_pieces) {
            true => self.random.between(1, 40) as usize,
            false => len,
        }
        .min(len)
    }

    fn exchange(&mut self, socket: &mut UnixStream, state: &mut State) -> Result<(), Gone> {
        let count = self.piece(state.to_send.len());
        match socket.write(&state.to_send[..count]) {
            Ok(sent) => drop(state.to_send.drain(..sent)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Err(Gone),
        }
        let mut chunk = vec![0; self.piece(UNDER_WAY)];
        match socket.read(&mut chunk) {
            Ok(0) => return Err(Gone),
            Ok(count) => state.received.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Err(Gone),
        }
        Ok(())
    }

    /// Takes replies out of what was received.
    fn hear(&mut self, state: &mut State) -> Result<(), Gone> {
        loop {
            let heard = match state.headers {
                Headers::Simple => self.hear_simple(state)?,
                _ => self.hear_chunk(state)?,
            };
            if !heard {
                return Ok(());
            }
        }
    }

    fn hear_simple(&mut self, state: &mut State) -> Result<bool, Gone> {
        let Some(head) = state.received.first_chunk::<{ SimpleReply::SIZE }>() else { return Ok(false) };
        let reply = SimpleReply::decode(head);
        let Some((reply, asked)) =
            reply.and_then(|head| Some((head, state.outstanding.get_mut(&head.cookie)?)))
        else {
            return self.broken("a reply to what nobody asked for");
        };
        let carries = if reply.error == 0 { asked.data.len() } else { 0 };
        let Some(data) = state.received.get(SimpleReply::SIZE..SimpleReply::SIZE + carries) else {
            return Ok(false);
        };
        asked.errno = reply.error as i32;
        asked.data[..carries].copy_from_slice(data);
        asked.filled = carries;
        state.received.drain(..SimpleReply::SIZE + carries);
        self.over(state, reply.cookie)?;
        Ok(true)
    }

    fn hear_chunk(&mut self, state: &mut State) -> Result<bool, Gone> {
        let size = Chunk::size(state.headers);
        let Some(head) = state.received.get(..size) else { return Ok(false) };
        let decoded = match state.headers {
            Headers::Extended => head.try_into().ok().and_then(Chunk::decode_extended),
            _ => head.try_into().ok().and_then(Chunk::decode),
        };
        let known = decoded.filter(|chunk| state.outstanding.contains_key(&chunk.cookie));
        let Some(head) = known.filter(|chunk| chunk.len < 1 << 20) else {
            return self.broken("a chunk for what nobody asked for");
        };
        let end = size + head.len as usize;
        if state.received.len() < end {
            return Ok(false);
        }
        let message: Vec<u8> = state.received.drain(..end).collect();
        let body = &message[size..];
        let Some(asked) = state.outstanding.get_mut(&head.cookie) else { return Ok(true) };
        if !asked.take(state.headers, &head, body) {
            return self.broken("a chunk says what it cannot");
        }
        note("chunk", [head.cookie, head.kind.into(), head.len, 0], &[]);
        if head.kind == chunk::kind::OFFSET_HOLE {
            note("hole", [head.cookie, 0, 0, 0], &[]);
        }
        if head.is_last() {
            self.over(state, head.cookie)?;
        }
        Ok(true)
    }

    /// A request has been answered.
    fn over(&mut self, state: &mut State, number: u64) -> Result<(), Gone> {
        let Some(asked) = state.outstanding.remove(&number) else { return Ok(()) };
        if state.outstanding.is_empty() {
            state.under_way = 0;
        }
        let Asked { data, filled, errno, is_status, zeros, .. } = asked;
        note("reply", [number, errno as u64, filled as u64, zeros.len() as u64], &data);
        if errno == 0 && filled != data.len() {
            return self.broken("a read was answered in part");
        }
        let mut workload = self.workload.lock();
        match (is_status, errno) {
            (true, 0) => {
                note("status", [number, zeros.len() as u64, 0, 0], &[]);
                workload.answer_status(number, &zeros);
            }
            (_, 0) => workload.answer(number, Ok(data), true),
            (_, errno) => workload.answer(number, Err(errno), true),
        }
        Ok(())
    }
}

impl Asked {
    /// Takes a chunk; whether it is one that this request may get.
    fn take(&mut self, headers: Headers, head: &Chunk, body: &[u8]) -> bool {
        let place = |offset: u64| offset.checked_sub(self.offset).map(|at| at as usize);
        match head.kind {
            chunk::kind::NONE => body.is_empty() && head.is_last(),
            chunk::kind::OFFSET_DATA if !self.is_status => {
                let Some((offset, data)) = chunk::offset_data(body) else { return false };
                let target = place(offset).and_then(|at| self.data.get_mut(at..at + data.len()));
                target.map(|target| target.copy_from_slice(data)).is_some() && self.fill(data.len())
            }
            chunk::kind::OFFSET_HOLE if !self.is_status => {
                let Some(Hole { offset, len }) = Hole::decode(body) else { return false };
                let target = place(offset).and_then(|at| self.data.get_mut(at..at + len as usize));
                target.map(|target| target.fill(0)).is_some() && self.fill(len as usize)
            }
            chunk::kind::BLOCK_STATUS | chunk::kind::BLOCK_STATUS_EXT if self.is_status => {
                let Some(status) = Status::decode(headers, body) else { return false };
                let mut at = self.offset;
                for run in status.runs() {
                    if run.flags & status::ZERO != 0 {
                        self.zeros.push((at, run.len));
                    }
                    at += run.len;
                }
                status.context == nbd::ALLOCATION_CONTEXT
            }
            kind if chunk::kind::is_error(kind) => match Failure::decode(kind, body) {
                Some(failure) if failure.error != 0 => {
                    self.errno = failure.error as i32;
                    true
                }
                _ => false,
            },
            _ => false,
        }
    }

    fn fill(&mut self, len: usize) -> bool {
        self.filled += len;
        self.filled <= self.data.len()
    }
}

impl State {
    fn option(&mut self, number: u32, data: &[u8]) {
        self.to_send.extend(b"IHAVEOPT");
        self.to_send.extend(number.to_be_bytes());
        self.to_send.extend((data.len() as u32).to_be_bytes());
        self.to_send.extend(data);
    }

    fn ask(&mut self, request: &Request, is_status: bool, in_one: bool) {
        let command: u16 = match request.op {
            Op::Read if is_status => 7,
            Op::Read => 0,
            Op::Write => 1,
            Op::Flush => 3,
            Op::Discard => 4,
            Op::WriteZeroes => 6,
            Op::Extents => 7,
        };
        let mut flags = u16::from(request.flags.contains(Flags::FUA));
        flags |= u16::from(request.flags.contains(Flags::NO_UNMAP)) << 1;
        if command == 0 && self.headers != Headers::Simple {
            flags |= u16::from(in_one) << 2;
        }
        if command == 1 && self.headers == Headers::Extended {
            flags |= 1 << 5;
        }
        note("ask", [request.number, command.into(), request.offset, request.len.into()], &[]);
        let head = nbd::Request {
            flags,
            command,
            cookie: request.number,
            offset: request.offset,
            len: request.len.into(),
        };
        match self.headers {
            Headers::Extended => self.to_send.extend(head.encode_extended()),
            _ => self.to_send.extend(head.encode()),
        }
        self.to_send.extend(&request.data);
        let carries = if command == 0 { request.len as usize } else { 0 };
        let asked = Asked {
            offset: request.offset,
            data: vec![0xee; carries],
            filled: 0,
            is_status,
            zeros: Vec::new(),
            errno: 0,
        };
        self.outstanding.insert(request.number, asked);
        self.under_way += carries + request.data.len();
    }
}
