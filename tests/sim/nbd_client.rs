//! One connection of an NBD client, on a thread of the world.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blockhaus::io::{Flags, Op};
use blockhaus::nbd::ExportFlags;
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
    to_send: Vec<u8>,
    received: Vec<u8>,
    /// What was asked for, and the bytes that an answer carries.
    outstanding: BTreeMap<u64, usize>,
    under_way: usize,
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
        state.to_send.extend(b"IHAVEOPT");
        state.to_send.extend(1u32.to_be_bytes());
        state.to_send.extend(4u32.to_be_bytes());
        state.to_send.extend(b"disk");
        let export = self.expect(socket, state, 10)?;
        let size = u64::from_be_bytes(export[..8].try_into().unwrap_or_default());
        let flags = ExportFlags::from_bits_retain(u16::from_be_bytes([export[8], export[9]]));
        note("hands shaken", [size, flags.bits().into(), 0, 0], &[]);
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
                Next::Request(request) => state.ask(&request),
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
        const HEAD: usize = 16;
        while let Some(head) = state.received.first_chunk::<HEAD>() {
            let half = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (magic, errno) = (half(0), half(4) as i32);
            let number = u64::from(half(8)) << 32 | u64::from(half(12));
            let Some(&len) = state.outstanding.get(&number).filter(|_| magic == 0x6744_6698) else {
                return self.broken("a reply to what nobody asked for");
            };
            let carries = if errno == 0 { len } else { 0 };
            if state.received.len() < HEAD + carries {
                return Ok(());
            }
            state.received.drain(..HEAD);
            let data: Vec<u8> = state.received.drain(..carries).collect();
            state.outstanding.remove(&number);
            if state.outstanding.is_empty() {
                state.under_way = 0;
            }
            note("reply", [number, errno as u64, carries as u64, 0], &data);
            let result = if errno == 0 { Ok(data) } else { Err(errno) };
            self.workload.lock().answer(number, result, true);
        }
        Ok(())
    }
}

impl State {
    fn ask(&mut self, request: &Request) {
        let command: u16 = match request.op {
            Op::Read => 0,
            Op::Write => 1,
            Op::Flush => 3,
            Op::Discard => 4,
            Op::WriteZeroes => 6,
        };
        let fua = u16::from(request.flags.contains(Flags::FUA));
        let no_hole = u16::from(request.flags.contains(Flags::NO_UNMAP)) << 1;
        note("ask", [request.number, command.into(), request.offset, request.len.into()], &[]);
        self.to_send.extend(0x2560_9513u32.to_be_bytes());
        self.to_send.extend((fua | no_hole).to_be_bytes());
        self.to_send.extend(command.to_be_bytes());
        self.to_send.extend(request.number.to_be_bytes());
        self.to_send.extend(request.offset.to_be_bytes());
        self.to_send.extend(request.len.to_be_bytes());
        self.to_send.extend(&request.data);
        let carries = if request.op == Op::Read { request.len as usize } else { 0 };
        self.outstanding.insert(request.number, carries);
        self.under_way += carries + request.data.len();
    }
}
