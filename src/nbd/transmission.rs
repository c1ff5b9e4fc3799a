//! Transmission: requests out of a stream of bytes, each checked against the export before anything
//! is done for it.

use super::wire::status::Filter;
use super::wire::{Headers, Request, command, command_flag};
use super::{ALLOCATION_CONTEXT, Broken, Export, ExportFlags, Settled};
use crate::io::{Errno, Flags, Op};

/// Longest payload of a request that is refused and skipped. What is longer no client sends.
const MAX_SKIPPED: u64 = u32::MAX as u64;

/// A request that may be served: its range is inside the export, its flags are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What is asked for.
    pub op: Op,
    /// How.
    pub flags: Flags,
    /// How it is answered.
    pub reply: Reply,
    /// First byte on the disk.
    pub offset: u64,
    /// Number of bytes; for a write, as many follow in the stream.
    pub len: u64,
    /// The client's name for it.
    pub cookie: u64,
}

/// What a request gets back where it goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// That it did. Of a read (CACHE) the data go to nobody.
    Done,
    /// The data of a read, in as many chunks as suits where replies are chunks.
    Data,
    /// The data of a read in one chunk (the flag DF).
    DataInOne,
    /// The runs of a range (BLOCK_STATUS).
    Status,
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
        /// Its offset, which an extended header repeats.
        offset: u64,
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

    /// Smallest block in bytes, a power of two.
    pub fn block(&self) -> u64 {
        self.block_mask + 1
    }

    /// Passes a request, or says with which errno it is refused. The numbers for ranges past the end
    /// are those that the protocol asks for: ENOSPC for what writes, EINVAL for the rest.
    #[inline]
    fn judge(&self, settled: Settled, request: &Request) -> Result<Wanted, Errno> {
        let (op, reply, needed, known) = match request.command {
            command::READ => {
                let chunks = if settled.headers == Headers::Simple { 0 } else { command_flag::DF };
                let in_one = request.flags & command_flag::DF != 0;
                let reply = if in_one { Reply::DataInOne } else { Reply::Data };
                (Op::Read, reply, ExportFlags::HAS_FLAGS, chunks)
            }
            command::WRITE => {
                let payload =
                    if settled.headers == Headers::Extended { command_flag::PAYLOAD_LEN } else { 0 };
                (Op::Write, Reply::Done, ExportFlags::HAS_FLAGS, payload)
            }
            command::FLUSH => (Op::Flush, Reply::Done, ExportFlags::SEND_FLUSH, 0),
            command::TRIM => (Op::Discard, Reply::Done, ExportFlags::SEND_TRIM, 0),
            command::CACHE => (Op::Read, Reply::Done, ExportFlags::SEND_CACHE, 0),
            command::WRITE_ZEROES => {
                let fast = match self.flags.contains(ExportFlags::SEND_FAST_ZERO) {
                    true => command_flag::FAST_ZERO,
                    false => 0,
                };
                (Op::WriteZeroes, Reply::Done, ExportFlags::SEND_WRITE_ZEROES, command_flag::NO_HOLE | fast)
            }
            command::BLOCK_STATUS if settled.allocation => {
                (Op::Extents, Reply::Status, ExportFlags::HAS_FLAGS, command_flag::REQ_ONE)
            }
            _ => return Err(Errno::EINVAL),
        };
        if request.flags & !(command_flag::FUA | known) != 0 {
            return Err(Errno::EINVAL);
        }
        let flags = if request.flags == 0 { Flags::empty() } else { self.flags_for(op, request.flags)? };
        let Request { offset, len, cookie, .. } = *request;
        let wanted = Wanted { op, flags, reply, offset, len, cookie };
        if op == Op::Flush {
            return Ok(Wanted { offset: 0, len: 0, ..wanted });
        }
        if op.modifies() && self.flags.contains(ExportFlags::READ_ONLY) {
            return Err(Errno::EPERM);
        }
        if !self.flags.contains(needed) {
            return Err(Errno::EINVAL);
        }
        let aligned = (offset | len) & self.block_mask == 0;
        if len == 0 || !aligned {
            return Err(Errno::EINVAL);
        }
        let carries_data = op == Op::Write || matches!(reply, Reply::Data | Reply::DataInOne);
        if carries_data && len > u64::from(self.max_payload) {
            return Err(Errno::EINVAL);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(wanted),
            _ if matches!(op, Op::Write | Op::WriteZeroes) => Err(Errno::ENOSPC),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl Rules {
    /// What the flags of a command, all of them known, ask of the disk.
    fn flags_for(&self, op: Op, asked: u16) -> Result<Flags, Errno> {
        let mut flags = Flags::empty();
        for (wire, flag) in [
            (command_flag::NO_HOLE, Flags::NO_UNMAP),
            (command_flag::FAST_ZERO, Flags::FAST_ZERO),
            (command_flag::REQ_ONE, Flags::FIRST_EXTENT),
        ] {
            flags.set(flag, asked & wire != 0);
        }
        if asked & command_flag::FUA != 0 {
            if !self.flags.contains(ExportFlags::SEND_FUA) {
                return Err(Errno::EINVAL);
            }
            flags.set(Flags::FUA, op.modifies());
        }
        Ok(flags)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A head comes next.
    Head,
    /// The payload of a request that was refused comes, and is thrown away.
    Skip { left: u64, cookie: u64, offset: u64, errno: Errno },
    /// The client has said that it ends.
    Ended,
}

/// The receiving side of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    rules: Rules,
    settled: Settled,
    state: State,
}

impl Incoming {
    /// For a connection to an export with these rules, on which this was settled.
    pub fn new(rules: Rules, settled: Settled) -> Incoming {
        Incoming { rules, settled, state: State::Head }
    }

    /// How replies look.
    #[inline]
    pub fn headers(&self) -> Headers {
        self.settled.headers
    }

    /// Takes the next message off the front of `bytes`: yields how many of them it used up, and
    /// what they were. After [`Event::Request`] for a write its payload is the next
    /// [`Wanted::len`] bytes, which are the caller's to take.
    #[inline]
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Event), Broken> {
        match self.state {
            State::Head if self.settled.headers == Headers::Extended => self.extended(bytes),
            State::Head => {
                let Some(head) = bytes.first_chunk::<{ Request::SIZE }>() else {
                    return Ok((0, Event::Incomplete));
                };
                let request = Request::decode(head).ok_or(Broken::Magic)?;
                let payload = if request.command == command::WRITE { request.len } else { 0 };
                let (used, event) = self.head(&request, payload, &bytes[Request::SIZE..])?;
                Ok((Request::SIZE + used, event))
            }
            State::Skip { left, cookie, offset, errno } => Ok(self.skip(left, cookie, offset, errno, bytes)),
            State::Ended => Ok((0, Event::Disconnect)),
        }
    }

    /// The length of an extended header is that of a payload where the flag says so, whatever the command; that
    /// of a write is one's in any case, since no client could mean anything else.
    fn extended(&mut self, bytes: &[u8]) -> Result<(usize, Event), Broken> {
        const SIZE: usize = Request::EXTENDED_SIZE;
        /// An effect length and the number of the one context that there is.
        const FILTER: usize = 12;
        let Some(head) = bytes.first_chunk::<SIZE>() else { return Ok((0, Event::Incomplete)) };
        let request = Request::decode_extended(head).ok_or(Broken::Magic)?;
        let has_payload = request.flags & command_flag::PAYLOAD_LEN != 0;
        let payload = if has_payload || request.command == command::WRITE { request.len } else { 0 };
        if has_payload && request.command == command::BLOCK_STATUS && request.len == FILTER as u64 {
            let Some(payload) = bytes.get(SIZE..SIZE + FILTER) else { return Ok((0, Event::Incomplete)) };
            let filter = Filter::decode(payload);
            let named = filter.filter(|filter| filter.ids().eq([ALLOCATION_CONTEXT]));
            let judged = match named {
                Some(filter) => {
                    let flags = request.flags & !command_flag::PAYLOAD_LEN;
                    self.rules.judge(self.settled, &Request { flags, len: filter.len, ..request })
                }
                None => Err(Errno::EINVAL),
            };
            let Request { cookie, offset, .. } = request;
            let event = judged.map_or_else(|errno| Event::Refused { cookie, offset, errno }, Event::Request);
            return Ok((SIZE + FILTER, event));
        }
        let (used, event) = self.head(&request, payload, &bytes[SIZE..])?;
        Ok((SIZE + used, event))
    }

    #[inline]
    fn head(&mut self, request: &Request, payload: u64, rest: &[u8]) -> Result<(usize, Event), Broken> {
        if request.command == command::DISC {
            self.state = State::Ended;
            return Ok((0, Event::Disconnect));
        }
        match self.rules.judge(self.settled, request) {
            Ok(wanted) => Ok((0, Event::Request(wanted))),
            Err(_) if payload > MAX_SKIPPED => Err(Broken::PayloadLength(payload)),
            Err(errno) => Ok(self.skip(payload, request.cookie, request.offset, errno, rest)),
        }
    }

    fn skip(&mut self, left: u64, cookie: u64, offset: u64, errno: Errno, bytes: &[u8]) -> (usize, Event) {
        let here = left.min(bytes.len() as u64) as usize;
        let left = left - here as u64;
        if left > 0 {
            self.state = State::Skip { left, cookie, offset, errno };
            return (here, Event::Incomplete);
        }
        self.state = State::Head;
        (here, Event::Refused { cookie, offset, errno })
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

    const SIMPLE: Settled = Settled { headers: Headers::Simple, allocation: false };
    const STRUCTURED: Settled = Settled { headers: Headers::Structured, allocation: true };
    const EXTENDED: Settled = Settled { headers: Headers::Extended, allocation: true };

    fn judged_when(settled: Settled, flags: ExportFlags, request: Request) -> Result<Wanted, i32> {
        Rules::new(&export(flags)).judge(settled, &request).map_err(Errno::number)
    }

    fn judged(flags: ExportFlags, request: Request) -> Result<Wanted, i32> {
        judged_when(SIMPLE, flags, request)
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
            (command::CACHE, 0, SIZE, 512, 22),
            (command::CACHE, command_flag::NO_HOLE, 0, 512, 22),
            (command::BLOCK_STATUS, 0, 0, 512, 22),
            (8, 0, 0, 512, 22),
            (0xffff, 0, 0, 512, 22),
        ] {
            let request = request(command, flags, offset, len);
            assert_eq!(judged(all(), request), Err(errno), "{request:?}");
        }
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        let none = ExportFlags::empty();
        for command in [command::FLUSH, command::TRIM, command::CACHE, command::WRITE_ZEROES] {
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
    fn what_a_flag_means_depends_on_what_was_settled() {
        let read = request(command::READ, command_flag::DF, 0, 512);
        assert_eq!(judged_when(SIMPLE, all(), read), Err(22));
        for settled in [STRUCTURED, EXTENDED] {
            assert_eq!(judged_when(settled, all(), read).unwrap().reply, Reply::DataInOne);
        }
        let status = request(command::BLOCK_STATUS, command_flag::REQ_ONE, 0, SIZE);
        assert_eq!(judged_when(Settled { allocation: false, ..EXTENDED }, all(), status), Err(22));
        let wanted = judged_when(STRUCTURED, all(), status).unwrap();
        assert_eq!(
            (wanted.op, wanted.flags, wanted.reply),
            (Op::Extents, Flags::FIRST_EXTENT, Reply::Status)
        );
        let fast = request(command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 512);
        assert_eq!(judged(all(), fast).unwrap().flags, Flags::FAST_ZERO);
        assert_eq!(judged(all() - ExportFlags::SEND_FAST_ZERO, fast), Err(22));
        let cache = judged(all() | ExportFlags::READ_ONLY, request(command::CACHE, 0, 0, SIZE)).unwrap();
        assert_eq!((cache.op, cache.reply, cache.len), (Op::Read, Reply::Done, SIZE));
    }

    fn next_of(stream: &[u8], settled: Settled) -> Result<(usize, Event), Broken> {
        Incoming::new(Rules::new(&export(all())), settled).next(stream)
    }

    #[test]
    fn extended_headers_have_long_lengths_and_payloads_of_any_command() {
        let length = |command, flags, len, payload: &[u8]| {
            let mut stream = request(command, flags, 0, len).encode_extended().to_vec();
            stream.extend(payload);
            next_of(&stream, EXTENDED)
        };
        let refused = |errno| Event::Refused { cookie: 7, offset: 0, errno };
        let flag = command_flag::PAYLOAD_LEN;
        // Longer than 32 bits can say, and no payload follows.
        assert_eq!(length(command::TRIM, 0, 1 << 40, &[]), Ok((32, refused(Errno::EINVAL))));
        assert_eq!(length(command::WRITE_ZEROES, 0, u64::MAX - 511, &[]), Ok((32, refused(Errno::ENOSPC))));
        assert_eq!(length(command::READ, 0, u64::MAX, &[]), Ok((32, refused(Errno::EINVAL))));
        // A payload where none belongs, and one that no client sends.
        assert_eq!(length(command::READ, flag, 5, b"12345"), Ok((37, refused(Errno::EINVAL))));
        assert_eq!(length(command::WRITE, flag, 1 << 40, &[]), Err(Broken::PayloadLength(1 << 40)));
        for flags in [0, flag] {
            let write = length(command::WRITE, flags, 512, &[]);
            assert!(matches!(write, Ok((32, Event::Request(Wanted { op: Op::Write, len: 512, .. })))));
        }
        // A simple header is not looked for.
        assert_eq!(
            next_of(&[request(command::FLUSH, 0, 0, 0).encode(), [0; 28]].concat(), EXTENDED),
            Err(Broken::Magic)
        );
    }

    #[test]
    fn a_payload_can_name_the_contexts_of_a_status() {
        let asked = |ids: &[u32], more: &[u8]| {
            let mut payload = Filter::encode(SIZE, ids);
            payload.extend(more);
            let flags = command_flag::PAYLOAD_LEN | command_flag::REQ_ONE;
            let head = request(command::BLOCK_STATUS, flags, 0, payload.len() as u64);
            let stream = [&head.encode_extended()[..], &payload].concat();
            let all_of_it = next_of(&stream, EXTENDED).unwrap();
            assert_eq!(all_of_it.0, stream.len());
            assert!(stream.len() > 44 || next_of(&stream[..stream.len() - 1], EXTENDED) != Ok(all_of_it));
            all_of_it.1
        };
        let Event::Request(wanted) = asked(&[ALLOCATION_CONTEXT], &[]) else { panic!("refused") };
        assert_eq!((wanted.len, wanted.flags, wanted.reply), (SIZE, Flags::FIRST_EXTENT, Reply::Status));
        for (ids, more) in [
            (&[][..], &[][..]),
            (&[2], &[]),
            (&[1, 1], &[]),
            (&[1, 2, 3], &[]),
            (&[1], &[0; 2]),
            (&[], &[0; 3]),
        ] {
            let refused = Event::Refused { cookie: 7, offset: 0, errno: Errno::EINVAL };
            assert_eq!(asked(ids, more), refused, "{ids:?} {more:?}");
        }
    }

    #[test]
    fn the_payload_of_a_refused_write_is_skipped() {
        let mut incoming = Incoming::new(Rules::new(&export(all())), SIMPLE);
        let mut bytes = request(command::WRITE, 0, SIZE, 1000).encode().to_vec();
        bytes.extend([9; 1000]);
        bytes.extend(request(command::READ, 0, 0, 512).encode());
        assert_eq!(incoming.next(&bytes[..100]), Ok((100, Event::Incomplete)));
        let refused = Event::Refused { cookie: 7, offset: SIZE, errno: Errno::EINVAL };
        assert_eq!(incoming.next(&bytes[100..]), Ok((928, refused)));
        let (used, event) = incoming.next(&bytes[1028..]).unwrap();
        assert!(used == 28 && matches!(event, Event::Request(Wanted { op: Op::Read, .. })), "{event:?}");
        assert_eq!(incoming.next(&[0; 28]), Err(Broken::Magic));
    }

    /// The events of a stream, received in pieces of these lengths. Payloads are taken, and counted.
    fn events(settled: Settled, stream: &[u8], pieces: &[usize]) -> (Vec<Event>, usize, bool) {
        let mut incoming = Incoming::new(Rules::new(&export(all())), settled);
        let (mut events, mut payload, mut taken, mut buffer) = (Vec::new(), 0u64, 0, Vec::new());
        let mut rest = stream;
        for piece in pieces.iter().chain([&stream.len()]) {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            buffer.extend_from_slice(now);
            rest = later;
            loop {
                let here = (payload as usize).min(buffer.len());
                buffer.drain(..here);
                payload -= here as u64;
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
        (0u16..9, 0u16..64, any::<u64>(), near, len)
            .prop_map(|(command, flags, cookie, offset, len)| Request { flags, command, cookie, offset, len })
    }

    proptest! {
        /// However a stream is cut into pieces, it says the same; every request but DISC, and no
        /// byte of a payload, is one event.
        #[test]
        fn how_the_bytes_arrive_does_not_matter(
            requests in prop::collection::vec(any_request(), 1..20),
            pieces in prop::collection::vec(1usize..5000, 0..100),
            settled in prop::sample::select(vec![SIMPLE, STRUCTURED, EXTENDED]),
        ) {
            let mut stream = Vec::new();
            let is_extended = settled.headers == Headers::Extended;
            for request in &requests {
                match is_extended {
                    true => stream.extend(request.encode_extended()),
                    false => stream.extend(request.encode()),
                }
                let says_so = is_extended && request.flags & command_flag::PAYLOAD_LEN != 0;
                if request.command == command::WRITE || says_so && request.command != command::DISC {
                    stream.extend(vec![0x25; request.len as usize]);
                }
            }
            let whole = events(settled, &stream, &[]);
            prop_assert_eq!(&events(settled, &stream, &pieces), &whole);
            let said = requests.iter().take_while(|request| request.command != command::DISC).count();
            let disconnects = usize::from(said < requests.len());
            prop_assert_eq!(whole.0.len(), said + disconnects);
            prop_assert!(!whole.2);
            for event in whole.0 {
                if let Event::Request(wanted) = event && wanted.op != Op::Flush {
                    let carries_data = wanted.op == Op::Write || matches!(wanted.reply, Reply::Data | Reply::DataInOne);
                    prop_assert!(wanted.len > 0 && (wanted.len <= 64 << 10 || !carries_data));
                    prop_assert!(wanted.offset + wanted.len <= SIZE);
                }
            }
        }

        #[test]
        fn garbage_ends_the_connection_or_waits(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            for settled in [SIMPLE, STRUCTURED, EXTENDED] {
                let (events, _, broken) = events(settled, &bytes, &[1, 27, 5]);
                prop_assert!(broken || bytes.len() < Request::EXTENDED_SIZE || !events.is_empty());
            }
        }
    }
}
