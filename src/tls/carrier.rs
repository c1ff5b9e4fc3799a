//! What carries a connection under TLS: bytes of the peer's socket, decrypted, into one end of a pair of sockets, and
//! what comes out of that end, encrypted, to the peer.
//!
//! Each direction takes more only when what it has is passed on, so that who does not listen is not read from. A
//! direction's end is carried over by itself: close_notify becomes the end of what is written to the inner side, and its
//! end a close_notify and the end of what the peer gets.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustls::Connection;

use super::failure::Failure;
use crate::port::clock::{Deadline, Duration};
use crate::port::socket::{Interest, poll_for};
use crate::port::stream::Socket;

/// Bytes that are moved at once in each direction.
const BLOCK: usize = 64 << 10;

/// Bytes of memory that a carrier takes at most, but for what the kernel holds for its two connections (four buffers,
/// of which the kernel's own limits, net.core.wmem_max and rmem_max, say how large they are): three blocks; in rustls a
/// record that is incomplete (18 KiB), one that is decrypted (16 KiB), a block that is encrypted and waits to be sent,
/// during the handshake the peer's longest message (64 KiB), and keys; and the stack of its thread.
pub const CARRIER_MEMORY: usize =
    3 * BLOCK + (18 << 10) + (16 << 10) + BLOCK + (64 << 10) + (64 << 10) + (128 << 10);

/// How long nobody looks while nothing happens.
const LOOK_SELDOM: Duration = Duration::from_secs(60);

/// How long the peer has for what is still to be sent to it when nobody is there any more on the inner side.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// For how long after the end of what it gets the peer is read from, so that TCP does not throw away what is on its
/// way to it (RFC 1122, 4.2.2.13).
const LINGER: Duration = Duration::from_secs(1);

/// Memory with bytes in it.
struct Block {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Block {
    fn new() -> Block {
        Block { bytes: vec![0; BLOCK].into_boxed_slice(), start: 0, end: 0 }
    }

    fn content(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Where more can be put, behind what is there.
    fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    fn filled(&mut self, count: usize) {
        self.end += count;
    }
}

/// One connection.
pub(super) struct Carrier {
    tls: Connection,
    /// The peer's, which a leash may end.
    outer: Arc<Socket>,
    inner: Socket,
    /// From the peer, not yet decrypted.
    cipher: Block,
    /// Decrypted, not yet passed on.
    plain: Block,
    /// From the inner side, encrypted at once.
    outgoing: Block,
    /// The peer's stream has ended.
    has_heard_all: bool,
    /// The peer said, under TLS, that it sends nothing more.
    peer_closed: bool,
    /// That was passed on.
    passed_end: bool,
    /// The inner side sends nothing more, and the peer is told so.
    told_end: bool,
    /// And was sent it, or takes nothing any more.
    sent_end: bool,
    /// The peer takes nothing any more.
    is_deaf: bool,
    /// Nobody is there on the inner side: since then this is how long it may take.
    alone: Option<Deadline>,
}

impl Carrier {
    pub(super) fn new(mut tls: Connection, outer: Arc<Socket>, inner: Socket) -> Carrier {
        // A block at a time is given to it, and the next when it has been sent.
        tls.set_buffer_limit(None);
        Carrier {
            tls,
            outer,
            inner,
            cipher: Block::new(),
            plain: Block::new(),
            outgoing: Block::new(),
            has_heard_all: false,
            peer_closed: false,
            passed_end: false,
            told_end: false,
            sent_end: false,
            is_deaf: false,
            alone: None,
        }
    }

    /// Negotiates with the peer until both know each other.
    pub(super) fn shake_hands(&mut self, deadline: Deadline) -> Result<(), Failure> {
        loop {
            if let Err(failure) = self.send() {
                // Who ends the connection may have said why.
                let _ = self.receive();
                self.decrypt()?;
                return Err(failure);
            }
            let is_waiting = self.tls.is_handshaking();
            if !is_waiting && !self.tls.wants_write() {
                return Ok(());
            }
            let wanted = Interest { read: is_waiting, write: self.tls.wants_write(), gone: false };
            let fds = [(self.outer.as_fd(), Some(wanted)), (self.inner.as_fd(), Some(Interest::default()))];
            let [outer, inner] = poll_for(fds, deadline.left())?;
            if inner.gone {
                return Err(Failure::Abandoned);
            }
            if deadline.passed() {
                return Err(Failure::Late);
            }
            if outer.read && is_waiting {
                self.receive()?;
                self.decrypt()?;
                if self.has_heard_all && self.tls.is_handshaking() {
                    return Err(Failure::Truncated);
                }
            }
        }
    }

    /// Carries until both sides have ended.
    pub(super) fn carry(mut self) -> Result<(), Failure> {
        // What came together with the end of the handshake.
        let (mut outer, mut inner) = (Interest::default(), Interest::default());
        loop {
            self.inwards(outer)?;
            self.outwards(inner)?;
            if self.is_over() {
                return Ok(());
            }
            let fds =
                [(self.outer.as_fd(), self.outer_interest()), (self.inner.as_fd(), self.inner_interest())];
            let timeout = self.alone.map_or(LOOK_SELDOM, Deadline::left);
            [outer, inner] = poll_for(fds, timeout)?;
            if inner.gone && self.alone.is_none() {
                self.is_left_alone();
            }
        }
    }

    /// Nobody is there on the inner side any more.
    fn is_left_alone(&mut self) {
        self.alone = Some(Deadline::after(if self.sent_end { LINGER } else { LAST_WORDS }));
    }

    fn outer_interest(&self) -> Option<Interest> {
        let has_room = self.alone.is_some() || (self.plain.is_empty() && self.cipher.is_empty());
        let read = has_room && !self.has_heard_all;
        let write = self.wants_to_send();
        (read || write).then_some(Interest { read, write, gone: false })
    }

    fn inner_interest(&self) -> Option<Interest> {
        let read = !self.told_end && !self.wants_to_send();
        match self.alone {
            // It would be ready for ever.
            Some(_) => read.then_some(Interest { read, write: false, gone: false }),
            None => Some(Interest { read, write: !self.plain.is_empty(), gone: false }),
        }
    }

    fn is_over(&self) -> bool {
        match self.alone {
            Some(deadline) => deadline.passed() || (self.sent_end && self.has_heard_all),
            None => self.sent_end && self.passed_end,
        }
    }

    /// From the peer.
    fn inwards(&mut self, ready: Interest) -> Result<(), Failure> {
        if self.alone.is_some() {
            // Nobody wants it; but it is taken, so that the peer gets what is on its way to it.
            self.cipher.clear();
            if ready.read {
                self.receive()?;
            }
            return Ok(());
        }
        if ready.read && self.cipher.is_empty() {
            self.receive()?;
        }
        loop {
            self.decrypt()?;
            if !self.pass_on() {
                break;
            }
        }
        if !self.plain.is_empty() || self.passed_end {
            return Ok(());
        }
        if self.peer_closed {
            self.inner.stop_sending();
            self.passed_end = true;
        } else if self.has_heard_all {
            return Err(Failure::Truncated);
        }
        Ok(())
    }

    /// Decrypts as much as there is room for.
    fn decrypt(&mut self) -> Result<(), Failure> {
        loop {
            while !self.peer_closed && !self.plain.space().is_empty() {
                match self.tls.reader().read(self.plain.space()) {
                    Ok(0) => self.peer_closed = true,
                    Ok(count) => self.plain.filled(count),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
            if self.peer_closed {
                // Whatever comes behind the end is nobody's.
                self.cipher.clear();
            }
            if self.cipher.is_empty() || self.plain.space().is_empty() {
                return Ok(());
            }
            let count = self.tls.read_tls(&mut self.cipher.content())?;
            if count == 0 {
                return Err(io::Error::from(ErrorKind::InvalidData).into());
            }
            self.cipher.consume(count);
            if let Err(error) = self.tls.process_new_packets() {
                // So that the peer hears why.
                let _ = self.send();
                return Err(error.into());
            }
        }
    }

    /// Passes on what is decrypted; whether all of it, and more could be.
    fn pass_on(&mut self) -> bool {
        let had_some = !self.plain.is_empty();
        while !self.plain.is_empty() {
            match (&self.inner).write(self.plain.content()) {
                Ok(count) => self.plain.consume(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.is_left_alone();
                    self.plain.clear();
                    return false;
                }
            }
        }
        had_some
    }

    /// To the peer.
    fn outwards(&mut self, ready: Interest) -> Result<(), Failure> {
        if ready.read && !self.told_end && !self.wants_to_send() {
            match read(&self.inner, self.outgoing.space()) {
                Ok(None) => {}
                Ok(Some(count)) if count > 0 => {
                    self.tls.writer().write_all(&self.outgoing.bytes[..count])?;
                }
                // Nobody will say anything any more, whatever the reason.
                Ok(Some(_)) | Err(_) => {
                    self.tls.send_close_notify();
                    self.told_end = true;
                }
            }
        }
        if !self.is_deaf && self.send().is_err() {
            // What it has said before that is still passed on, and whoever says something to it hears that it is in vain.
            self.is_deaf = true;
            (self.told_end, self.sent_end) = (true, true);
            self.inner.stop_receiving();
        }
        if self.told_end && !self.sent_end && !self.wants_to_send() {
            self.outer.stop_sending();
            self.sent_end = true;
            if self.alone.is_some() {
                self.alone = Some(Deadline::after(LINGER));
            }
        }
        Ok(())
    }

    fn wants_to_send(&self) -> bool {
        !self.is_deaf && self.tls.wants_write()
    }

    /// Sends what is encrypted, as much as the peer takes now.
    fn send(&mut self) -> Result<(), Failure> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut &*self.outer) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Receives what the peer has sent.
    fn receive(&mut self) -> Result<(), Failure> {
        match read(&self.outer, self.cipher.space())? {
            None => {}
            Some(0) => self.has_heard_all = true,
            Some(count) => self.cipher.filled(count),
        }
        Ok(())
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // What a Unix socket has not read when it is closed is ECONNRESET to the other side, even behind an end of the stream
        // that it has not heard yet. The peer will not get these bytes whatever is done with them.
        self.inner.stop_receiving();
        while read(&self.inner, &mut self.outgoing.bytes)
            .is_ok_and(|count| count.is_some_and(|count| count > 0))
        {}
    }
}

/// What there is to be read; none where nothing has come yet.
fn read(socket: &Socket, into: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        return match (&mut &*socket).read(into) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        };
    }
}
