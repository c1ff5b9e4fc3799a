//! Transmission: requests out of a stream of bytes, each checked against the export before anything
//! is done for it.

use super::wire::{Request, command, command_flag};
use super::{Broken, Export, ExportFlags};
use crate::io::{Errno, Flags, Op};

/// A request that may be served: its range is inside the export, its flags are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What is asked for.
    pub op: Op,
    /// How.
    pub flags: Flags,
    /// First byte on the disk.
    pub offset: u64,
    /// Number of bytes; for a write, as many follow in the stream.
    pub len: u32,
    /// The client's name for it.
    pub cookie: u64,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The bytes end before the next message does.
    Incomplete,
    /// A request. Whoever drives takes the payload of a write out of the stream before it asks for
    /// the next event.
    Request(Wanted),
    /// A request that is answered with an error. What it carried has been skipped.
    Refused {
        /// The client's name for it.
        cookie: u64,
        /// Why.
        errno: Errno,
    },
    /// The client wants to end, and waits for no more than what it asked before.
    Disconnect,
}

/// What a client may ask of an export.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    size: u64,
    flags: ExportFlags,
    block_mask: u64,
    max_payload: u32,
}

impl Rules {
    /// Those of `export`.
    pub fn new(export: &Export) -> Rules {
        Rules {
            size: export.size,
            flags: export.flags,
            block_mask: u64::from(export.block.minimum) - 1,
            max_payload: export.block.maximum,
        }
    }

    /// Passes a request, or says with which errno it is refused. The numbers for ranges past the end
    /// are those that the protocol asks for: ENOSPC for what writes, EINVAL for the rest.
    #[inline]
    fn judge(&self, request: &Request) -> Result<Wanted, Errno> {
        let (op, needed) = match request.command {
            command::READ => (Op::Read, ExportFlags::HAS_FLAGS),
            command::WRITE => (Op::Write, ExportFlags::HAS_FLAGS),
            command::FLUSH => (Op::Flush, ExportFlags::SEND_FLUSH),
            command::TRIM => (Op::Discard, ExportFlags::SEND_TRIM),
            command::WRITE_ZEROES => (Op::WriteZeroes, ExportFlags::SEND_WRITE_ZEROES),
            _ => return Err(Errno::EINVAL),
        };
        let zeroes = if op == Op::WriteZeroes { command_flag::NO_HOLE } else { 0 };
        if request.flags & !(command_flag::FUA | zeroes) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut flags = Flags::empty();
        flags.set(Flags::NO_UNMAP, request.flags & command_flag::NO_HOLE != 0);
        if request.flags & command_flag::FUA != 0 {
            if !self.flags.contains(ExportFlags::SEND_FUA) {
                return Err(Errno::EINVAL);
            }
            flags.set(Flags::FUA, op.modifies());
        }
        let len = u32::try_from(request.len).map_err(|_| Errno::EINVAL)?;
        let wanted = Wanted { op, flags, offset: request.offset, len, cookie: request.cookie };
        if op == Op::Flush {
            return Ok(Wanted { offset: 0, len: 0, ..wanted });
        }
        if op.modifies() && self.flags.contains(ExportFlags::READ_ONLY) {
            return Err(Errno::EPERM);
        }
        if !self.flags.contains(needed) {
            return Err(Errno::EINVAL);
        }
        let aligned = (request.offset | request.len) & self.block_mask == 0;
        if request.len == 0 || !aligned {
            return Err(Errno::EINVAL);
        }
        if matches!(op, Op::Read | Op::Write) && len > self.max_payload {
            return Err(Errno::EINVAL);
        }
        match request.offset.checked_add(request.len) {
            Some(end) if end <= self.size => Ok(wanted),
            _ if matches!(op, Op::Write | Op::WriteZeroes) => Err(Errno::ENOSPC),
            _ => Err(Errno::EINVAL),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A head comes next.
    Head,
    /// The payload of a write that was refused comes, and is thrown away.
    Skip { left: u64, cookie: u64, errno: Errno },
    /// The client has said that it ends.
    Ended,
}

/// The receiving side of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    rules: Rules,
    state: State,
}

impl Incoming {
    /// For a connection to an export with these rules.
    pub fn new(rules: Rules) -> Incoming {
        Incoming { rules, state: State::Head }
    }

    /// Takes the next message off the front of `bytes`: yields how many of them it used up, and
    /// what they were. After [`Event::Request`] for a write its payload is the next
    /// [`Wanted::len`] bytes, which are the caller's to take.
    #[inline]
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Event), Broken> {
        match self.state {
            State::Head => {
                let Some(head) = bytes.first_chunk::<{ Request::SIZE }>() else {
                    return Ok((0, Event::Incomplete));
                };
                let request = Request::decode(head).ok_or(Broken::Magic)?;
                let (used, event) = self.head(&request, &bytes[Request::SIZE..]);
                Ok((Request::SIZE + used, event))
            }
            State::Skip { left, cookie, errno } => Ok(self.skip(left, cookie, errno, bytes)),
            State::Ended => Ok((0, Event::Disconnect)),
        }
    }

    #[inline]
    fn head(&mut self, request: &Request, rest: &[u8]) -> (usize, Event) {
        if request.command == command::DISC {
            self.state = State::Ended;
            return (0, Event::Disconnect);
        }
        match self.rules.judge(request) {
            Ok(wanted) => (0, Event::Request(wanted)),
            Err(errno) if request.command == command::WRITE => {
                self.skip(request.len, request.cookie, errno, rest)
            }
            Err(errno) => (0, Event::Refused { cookie: request.cookie, errno }),
        }
    }

    fn skip(&mut self, left: u64, cookie: u64, errno: Errno, bytes: &[u8]) -> (usize, Event) {
        let here = left.min(bytes.len() as u64) as usize;
        let left = left - here as u64;
        if left > 0 {
            self.state = State::Skip { left, cookie, errno };
            return (here, Event::Incomplete);
        }
        self.state = State::Head;
        (here, Event::Refused { cookie, errno })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nbd::BlockSizes;

    const SIZE: u64 = 1 << 20;

    fn export(flags: ExportFlags) -> Export {
        Export {
            name: String::new(),
            description: String::new(),
            size: SIZE,
            flags: flags | ExportFlags::HAS_FLAGS,
            block: BlockSizes { minimum: 512, preferred: 4096, maximum: 64 << 10 },
        }
    }

    fn all() -> ExportFlags {
        ExportFlags::all() - ExportFlags::READ_ONLY
    }

    fn request(command: u16, flags: u16, offset: u64, len: u64) -> Request {
        Request { flags, command, cookie: 7, offset, len }
    }

    fn judged(flags: ExportFlags, request: Request) -> Result<Wanted, i32> {
        Rules::new(&export(flags)).judge(&request).map_err(Errno::number)
    }

    #[test]
    fn what_is_refused_and_with_which_number() {
        for (command, flags, offset, len, errno) in [
            // Past the end, and so far that the sum overflows.
            (command::READ, 0, SIZE - 512, 1024, 22),
            (command::READ, 0, u64::MAX - 511, 512, 22),
            (command::WRITE, 0, SIZE, 512, 28),
            (command::WRITE, 0, u64::MAX - 511, 1024, 28),
            (command::WRITE_ZEROES, 0, SIZE, 512, 28),
            (command::TRIM, 0, SIZE, 512, 22),
            // Too long, empty, not aligned.
            (command::READ, 0, 0, 128 << 10, 22),
            (command::WRITE, 0, 0, u64::from(u32::MAX), 22),
            (command::READ, 0, 0, 0, 22),
            (command::TRIM, 0, 0, 0, 22),
            (command::READ, 0, 100, 512, 22),
            (command::READ, 0, 0, 100, 22),
            // Flags and commands that nobody knows.
            (command::READ, 1 << 1, 0, 512, 22),
            (command::READ, 1 << 2, 0, 512, 22),
            (command::WRITE, 1 << 15, 0, 512, 22),
            (5, 0, 0, 512, 22),
            (7, 0, 0, 512, 22),
            (0xffff, 0, 0, 512, 22),
        ] {
            let request = request(command, flags, offset, len);
            assert_eq!(judged(all(), request), Err(errno), "{request:?}");
        }
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        let none = ExportFlags::empty();
        for command in [command::FLUSH, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(judged(none, request(command, 0, 0, 512)).is_err(), command != command::FLUSH);
        }
        assert_eq!(judged(none, request(command::WRITE, command_flag::FUA, 0, 512)), Err(22));
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            let read_only = all() | ExportFlags::READ_ONLY;
            assert_eq!(judged(read_only, request(command, 0, 0, 512)), Err(1));
        }
    }

    #[test]
    fn flags_reach_the_disk_where_they_mean_something() {
        let both = command_flag::FUA | command_flag::NO_HOLE;
        let zeroes = judged(all(), request(command::WRITE_ZEROES, both, 0, 512)).unwrap();
        assert_eq!((zeroes.op, zeroes.flags), (Op::WriteZeroes, Flags::FUA | Flags::NO_UNMAP));
        let read = judged(all(), request(command::READ, command_flag::FUA, 0, 512)).unwrap();
        assert_eq!(read.flags, Flags::empty());
        let flush = judged(all(), request(command::FLUSH, 0, 99, 99)).unwrap();
        assert_eq!((flush.op, flush.offset, flush.len), (Op::Flush, 0, 0));
    }

    #[test]
    fn the_payload_of_a_refused_write_is_skipped() {
        let mut incoming = Incoming::new(Rules::new(&export(all())));
        let mut bytes = request(command::WRITE, 0, SIZE, 1000).encode().to_vec();
        bytes.extend([9; 1000]);
        bytes.extend(request(command::READ, 0, 0, 512).encode());
        assert_eq!(incoming.next(&bytes[..100]), Ok((100, Event::Incomplete)));
        let refused = Event::Refused { cookie: 7, errno: Errno::EINVAL };
        assert_eq!(incoming.next(&bytes[100..]), Ok((928, refused)));
        let (used, event) = incoming.next(&bytes[1028..]).unwrap();
        assert!(used == 28 && matches!(event, Event::Request(Wanted { op: Op::Read, .. })), "{event:?}");
        assert_eq!(incoming.next(&[0; 28]), Err(Broken::Magic));
    }

    /// The events of a stream, received in pieces of these lengths. Payloads are taken, and counted.
    fn events(stream: &[u8], pieces: &[usize]) -> (Vec<Event>, usize, bool) {
        let mut incoming = Incoming::new(Rules::new(&export(all())));
        let (mut events, mut payload, mut taken, mut buffer) = (Vec::new(), 0u32, 0, Vec::new());
        let mut rest = stream;
        for piece in pieces.iter().chain([&stream.len()]) {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            buffer.extend_from_slice(now);
            rest = later;
            loop {
                let here = (payload as usize).min(buffer.len());
                buffer.drain(..here);
                payload -= here as u32;
                taken += here;
                if payload > 0 {
                    break;
                }
                match incoming.next(&buffer) {
                    Err(_) => return (events, taken, true),
                    Ok((used, event)) => {
                        assert!(used <= buffer.len());
                        buffer.drain(..used);
                        match event {
                            Event::Incomplete => break,
                            Event::Request(wanted) if wanted.op == Op::Write => payload = wanted.len,
                            _ => {}
                        }
                        events.push(event);
                        if event == Event::Disconnect {
                            return (events, taken, false);
                        }
                    }
                }
            }
        }
        (events, taken, false)
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let near = prop_oneof![Just(0u64), Just(SIZE - 512), Just(SIZE), any::<u64>()];
        let len = prop_oneof![Just(0u64), Just(512), Just(1000), Just(4096), Just(70_000)];
        (0u16..9, 0u16..4, any::<u64>(), near, len)
            .prop_map(|(command, flags, cookie, offset, len)| Request { flags, command, cookie, offset, len })
    }

    proptest! {
        /// However a stream is cut into pieces, it says the same; every request but DISC, and no
        /// byte of a payload, is one event.
        #[test]
        fn how_the_bytes_arrive_does_not_matter(
            requests in prop::collection::vec(any_request(), 1..20),
            pieces in prop::collection::vec(1usize..5000, 0..100),
        ) {
            let mut stream = Vec::new();
            for request in &requests {
                stream.extend(request.encode());
                if request.command == command::WRITE {
                    stream.extend(vec![0x25; request.len as usize]);
                }
            }
            let whole = events(&stream, &[]);
            prop_assert_eq!(&events(&stream, &pieces), &whole);
            let said = requests.iter().take_while(|request| request.command != command::DISC).count();
            let disconnects = usize::from(said < requests.len());
            prop_assert_eq!(whole.0.len(), said + disconnects);
            prop_assert!(!whole.2);
            for event in whole.0 {
                if let Event::Request(wanted) = event && wanted.op != Op::Flush {
                    prop_assert!(wanted.len > 0 && wanted.len <= 64 << 10 || !matches!(wanted.op, Op::Read | Op::Write));
                    prop_assert!(wanted.offset + u64::from(wanted.len) <= SIZE);
                }
            }
        }

        #[test]
        fn garbage_ends_the_connection_or_waits(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let (events, _, broken) = events(&bytes, &[1, 27, 5]);
            prop_assert!(broken || bytes.len() < Request::SIZE || !events.is_empty());
        }
    }
}
