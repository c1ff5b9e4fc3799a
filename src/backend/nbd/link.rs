//! One connection in transmission: what is to be sent, what was received, and the requests between them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

use super::work::Work;
use crate::io::{Errno, Op};
use crate::nbd::MAX_PAYLOAD;
use crate::nbd::client::Negotiated;
use crate::nbd::client::replies::{Event, LONGEST_HEAD, Replies};
use crate::port::clock::Instant;
use crate::port::stream::Socket;

/// Bytes that one receive takes at most, data that go right to their place aside.
const RECEIVED: usize = 256 << 10;

/// Receives in a row, before the other connections and the clock are looked at.
const RECEIVES: usize = 8;

/// What is left of a read, in bytes, from which on it goes right to its place.
const MUCH: usize = 8 << 10;

/// Longest range in bytes that is discarded or written with zeros by one request. A server that has to write them says
/// nothing meanwhile, and must not be taken for one that hangs.
const LONGEST_CHANGE: u64 = 256 << 20;

/// Pieces that go with one send.
const PIECES: usize = 64;

/// Heads that were sent, in bytes, before the memory is used again while others wait.
const SENT_HEADS: usize = 64 << 10;

/// Why a connection is over, and the work to which that is due, where it is.
#[derive(Debug)]
pub(super) struct Lost {
    pub why: String,
    pub blame: Option<Box<Work>>,
}

impl Lost {
    pub fn because(why: impl Into<String>) -> Lost {
        Lost { why: why.into(), blame: None }
    }
}

/// How a request ended that was one piece of a work, and how many bytes that were.
#[derive(Debug)]
pub(super) struct Ended {
    pub work: Work,
    pub len: u64,
    pub result: Result<(), Errno>,
}

#[derive(Debug)]
struct Sent {
    work: Work,
    len: u64,
    /// How much was to be sent in all when it had been.
    sent_at: u64,
}

#[derive(Clone, Copy, Debug)]
enum Piece {
    /// So many bytes of heads.
    Heads(usize),
    /// Bytes of what a request writes.
    Data { index: u16, start: usize, len: usize },
}

/// Bytes of a read that come now.
#[derive(Clone, Copy, Debug)]
struct Taking {
    index: u16,
    at: usize,
    left: usize,
}

#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    replies: Replies,
    requests: Vec<Option<Sent>>,
    /// Longest read or write that one request may be.
    max_payload: u64,
    heads: Vec<u8>,
    /// Bytes of `heads` that were sent.
    heads_sent: usize,
    pieces: VecDeque<Piece>,
    /// Bytes that were to be sent, and that were, since the beginning.
    to_send: u64,
    sent: u64,
    received: Box<[u8]>,
    start: usize,
    end: usize,
    taking: Option<Taking>,
    /// When something was heard last, or asked after a while in which nothing was.
    heard: Instant,
}

impl Link {
    pub fn new(socket: Socket, told: &Negotiated, max_payload: u32, now: Instant) -> Link {
        const { assert!(RECEIVED >= 2 * LONGEST_HEAD) };
        Link {
            socket,
            replies: Replies::new(told.headers, told.allocation),
            requests: Vec::new(),
            max_payload: max_payload.clamp(1, MAX_PAYLOAD).into(),
            heads: Vec::new(),
            heads_sent: 0,
            pieces: VecDeque::new(),
            to_send: 0,
            sent: 0,
            received: vec![0; RECEIVED].into(),
            start: 0,
            end: 0,
            taking: None,
            heard: now,
        }
    }

    pub fn outstanding(&self) -> usize {
        self.replies.outstanding()
    }

    pub fn has_room(&self) -> bool {
        self.replies.has_room()
    }

    /// Whether it can be asked what takes space.
    pub fn knows_extents(&self) -> bool {
        self.replies.knows_extents()
    }

    pub fn wants_to_send(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Since when it has said nothing, though it was asked.
    pub fn unanswered_since(&self) -> Option<Instant> {
        (self.outstanding() > 0).then_some(self.heard)
    }

    /// When the oldest work came that is under way here.
    pub fn oldest(&self) -> Option<Instant> {
        self.requests.iter().flatten().map(|sent| sent.work.since).min()
    }

    /// Asks for a work, or for as much of it as one request can be. There must be room.
    pub fn ask(&mut self, mut work: Work, now: Instant) -> Result<(), Work> {
        if self.outstanding() == 0 {
            self.heard = now;
        }
        // However long it is: as it gets on, it does not grow old.
        if work.done > 0 {
            work.since = now;
        }
        let most = match work.op {
            Op::Read | Op::Write => self.max_payload,
            Op::Discard | Op::WriteZeroes => LONGEST_CHANGE,
            Op::Extents | Op::Flush => self.replies.longest_range(),
        };
        let len = (work.len - work.done).min(most);
        let before = self.heads.len();
        let offset = work.offset + work.done;
        let Some(index) = self.replies.ask(work.op, work.flags, offset, len, &mut self.heads) else {
            return Err(work);
        };
        self.push_heads(self.heads.len() - before);
        if work.op == Op::Write {
            self.pieces.push_back(Piece::Data { index, start: work.done as usize, len: len as usize });
            self.to_send += len;
        }
        // An answer about extents may be short of its range, and is one all the same.
        let len = if work.op == Op::Extents { work.len - work.done } else { len };
        let place = usize::from(index);
        if self.requests.len() <= place {
            self.requests.resize_with(place + 1, || None);
        }
        self.requests[place] = Some(Sent { work, len, sent_at: self.to_send });
        Ok(())
    }

    fn push_heads(&mut self, len: usize) {
        self.to_send += len as u64;
        match self.pieces.back_mut() {
            Some(Piece::Heads(heads)) => *heads += len,
            _ => self.pieces.push_back(Piece::Heads(len)),
        }
    }

    /// Sends as much as goes now.
    pub fn send(&mut self) -> Result<(), Lost> {
        while !self.pieces.is_empty() {
            let (count, offered) = {
                let mut slices = [IoSlice::new(&[]); PIECES];
                let (mut head, mut pieces, mut offered) = (self.heads_sent, 0, 0);
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    let bytes = match *piece {
                        Piece::Heads(len) => {
                            head += len;
                            self.heads.get(head - len..head)
                        }
                        Piece::Data { index, start, len } => self.requests[usize::from(index)]
                            .as_ref()
                            .and_then(|sent| sent.work.data().get(start..start + len)),
                    };
                    let Some(bytes) = bytes else {
                        return Err(Lost::because("what was to be sent is not there any more"));
                    };
                    *slice = IoSlice::new(bytes);
                    pieces += 1;
                    offered += bytes.len();
                }
                match self.socket.send_pieces(&slices[..pieces]) {
                    Ok(count) => (count, offered),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(Lost::because(told(&error))),
                }
            };
            self.were_sent(count);
            if count < offered {
                return Ok(());
            }
        }
        Ok(())
    }

    fn were_sent(&mut self, mut count: usize) {
        self.sent += count as u64;
        while count > 0
            && let Some(piece) = self.pieces.front_mut()
        {
            let (len, is_heads) = match piece {
                Piece::Heads(len) => (len, true),
                Piece::Data { start, len, .. } => {
                    *start += count.min(*len);
                    (len, false)
                }
            };
            let here = count.min(*len);
            *len -= here;
            count -= here;
            if is_heads {
                self.heads_sent += here;
            }
            if *len == 0 {
                self.pieces.pop_front();
            }
        }
        if self.heads_sent == self.heads.len() {
            self.heads.clear();
            self.heads_sent = 0;
        } else if self.heads_sent > SENT_HEADS {
            self.heads.drain(..self.heads_sent);
            self.heads_sent = 0;
        }
    }

    /// Receives what is there, but not for long, and adds what has ended to `ended`.
    pub fn receive(&mut self, now: Instant, ended: &mut Vec<Ended>) -> Result<(), Lost> {
        for _ in 0..RECEIVES {
            let (count, offered) = match self.receive_some() {
                Ok(counts) => counts,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Lost::because(told(&error))),
            };
            if count == 0 {
                return Err(Lost::because("the server has closed the connection"));
            }
            self.heard = now;
            self.digest(ended)?;
            if count < offered {
                break;
            }
        }
        Ok(())
    }

    /// One receive: right to its place what belongs to a long read, and into the buffer what follows. Yields how many
    /// bytes came, and for how many there was room.
    fn receive_some(&mut self) -> io::Result<(usize, usize)> {
        let buffer = &mut self.received[self.end..];
        let direct = match self.taking {
            Some(Taking { index, at, left }) if self.start == self.end && left >= MUCH => self.requests
                [usize::from(index)]
            .as_mut()
            .and_then(|sent| sent.work.target().get_mut(at..at + left)),
            _ => None,
        };
        let Some(place) = direct else {
            let offered = buffer.len();
            let count = self.socket.receive_pieces(&mut [IoSliceMut::new(buffer)])?;
            self.end += count;
            return Ok((count, offered));
        };
        let (room, offered) = (place.len(), place.len() + buffer.len());
        let count = self.socket.receive_pieces(&mut [IoSliceMut::new(place), IoSliceMut::new(buffer)])?;
        let here = count.min(room);
        self.taken(here);
        self.end += count - here;
        Ok((count, offered))
    }

    fn taken(&mut self, count: usize) {
        if let Some(taking) = &mut self.taking {
            taking.at += count;
            taking.left -= count;
            if taking.left == 0 {
                self.taking = None;
            }
        }
    }

    /// Looks at what is in the buffer.
    fn digest(&mut self, ended: &mut Vec<Ended>) -> Result<(), Lost> {
        loop {
            if let Some(Taking { index, at, left }) = self.taking {
                let here = left.min(self.end - self.start);
                let from = &self.received[self.start..self.start + here];
                place_of(&mut self.requests, index, at, here)?.copy_from_slice(from);
                self.start += here;
                self.taken(here);
                if here < left {
                    break;
                }
            }
            let (used, event) = match self.replies.next(&self.received[self.start..self.end]) {
                Ok(next) => next,
                Err(broken) => {
                    let blame = broken.index.and_then(|index| self.requests[usize::from(index)].take());
                    return Err(Lost {
                        why: broken.to_string(),
                        blame: blame.map(|sent| Box::new(sent.work)),
                    });
                }
            };
            self.start += used;
            match event {
                Event::Incomplete => break,
                Event::Failing => {}
                Event::Data { index, at, len } => {
                    let at = self.place_in_work(index, at)?;
                    self.taking = Some(Taking { index, at, left: len as usize });
                }
                Event::Zeroes { index, at, len } => {
                    let at = self.place_in_work(index, at)?;
                    place_of(&mut self.requests, index, at, len as usize)?.fill(0);
                }
                Event::Extents { index } => {
                    self.place_in_work(index, 0)?;
                    let sent = self.requests[usize::from(index)].as_mut();
                    let answered = sent.map(|sent| sent.work.answer(self.replies.extents()));
                    if answered != Some(Ok(())) {
                        return Err(Lost::because("there is no room for what takes space"));
                    }
                }
                Event::Ended { index, result } => {
                    let Some(sent) = self.requests[usize::from(index)].take() else { continue };
                    let Sent { work, len, sent_at } = sent;
                    if sent_at > self.sent {
                        return Err(Lost { why: TOO_EARLY.into(), blame: Some(Box::new(work)) });
                    }
                    ended.push(Ended { work, len, result });
                }
            }
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.received.len() - self.end < LONGEST_HEAD {
            self.received.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        Ok(())
    }

    /// Where in the work's bytes a byte of its request lies.
    fn place_in_work(&mut self, index: u16, at: u32) -> Result<usize, Lost> {
        let request = &mut self.requests[usize::from(index)];
        match request {
            Some(sent) if sent.sent_at <= self.sent => Ok(sent.work.done as usize + at as usize),
            _ => Err(Lost { why: TOO_EARLY.into(), blame: request.take().map(|sent| Box::new(sent.work)) }),
        }
    }

    /// Everything that is under way here, to be asked for elsewhere.
    pub fn into_works(self) -> impl Iterator<Item = Work> {
        self.requests.into_iter().flatten().map(|sent| sent.work)
    }

    /// Says that nothing more comes, if that can be said without waiting.
    pub fn disconnect(&mut self) {
        let before = self.heads.len();
        self.replies.disconnect(&mut self.heads);
        self.push_heads(self.heads.len() - before);
        let _ = self.send();
        self.socket.stop_sending();
    }
}

const TOO_EARLY: &str = "the server replies to what it was not yet asked";

/// Bytes of a read. What has no place must not be passed over: the read would have gone well without it.
fn place_of(requests: &mut [Option<Sent>], index: u16, at: usize, len: usize) -> Result<&mut [u8], Lost> {
    let sent = requests.get_mut(usize::from(index)).and_then(Option::as_mut);
    let place = sent.and_then(|sent| sent.work.target().get_mut(at..at + len));
    place.ok_or_else(|| Lost::because("bytes have come that have no place"))
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "the server has closed the connection".into(),
        _ => error.to_string(),
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::super::work::Owner;
    use super::*;
    use crate::io::Flags;
    use crate::nbd::chunk::{Chunk, Failure, kind};
    use crate::nbd::{ExportFlags, Headers};
    use crate::port::clock::Duration;
    use crate::port::thread;

    #[test]
    fn a_server_that_does_not_stop_talking_is_not_listened_to_without_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut theirs = listener.accept().unwrap().0;
        let (flags, headers) = (ExportFlags::HAS_FLAGS, Headers::Structured);
        let told = Negotiated { size: 1 << 20, flags, block: None, headers, allocation: None };
        let mut link = Link::new(Socket::Tcp(ours), &told, 1 << 20, Instant::now());
        let work = Work::new(Owner::Flush, Op::Flush, Flags::empty(), 0, 0, 1, Instant::now());
        link.ask(work, Instant::now()).unwrap();
        // An error that is not the last of it, for five seconds.
        let body = Failure::encode(Errno::EIO);
        let chunk = Chunk { flags: 0, kind: kind::ERROR, cookie: 1 << 16, offset: 0, len: body.len() as u64 };
        let said =
            [&chunk.encode(Headers::Structured)[..Chunk::STRUCTURED_SIZE], &body].concat().repeat(10_000);
        let until = Instant::now() + Duration::from_secs(5);
        let talker = thread::spawn("talker".into(), move || {
            while Instant::now() < until && theirs.write_all(&said).is_ok() {}
        });
        let (began, mut ended) = (Instant::now(), Vec::new());
        while began.elapsed() < Duration::from_millis(500) {
            link.receive(Instant::now(), &mut ended).unwrap();
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "nobody else was listened to for {took:?}");
        drop(link);
        talker.unwrap().join().unwrap();
    }
}
