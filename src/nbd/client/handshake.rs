//! The handshake, the client's side: from the server's greeting to transmission with one export.
//!
//! Extended headers are asked for first, then structured replies, and then the context `base:allocation`; what the server
//! has not is done without. The export is chosen by GO, which tells why it cannot be had and which lengths it takes; of a server that does not
//! know GO by EXPORT_NAME.

use super::Negotiated;
use crate::nbd::wire::meta::{BASE_ALLOCATION, Context, Question};
use crate::nbd::wire::{
    FIXED_NEWSTYLE, Headers, INIT_MAGIC, NO_ZEROES, OPTION_MAGIC, OPTION_REPLY_MAGIC, info, option, reply,
    u16_at, u32_at, u64_at,
};
use crate::nbd::{BlockSizes, ExportFlags, MAX_NAME};

/// NBD_REP_ERR_TLS_REQD.
const TLS_REQUIRED: u32 = 1 << 31 | 5;

/// Longest data of a reply to an option: a string with what goes with it is shorter by far.
const MAX_REPLY: u32 = 64 << 10;

/// Replies to one option.
const MOST_REPLIES: u32 = 256;

/// Bytes of a reply to an option before its data.
const REPLY_HEAD: usize = 20;

/// Zeros after the answer to EXPORT_NAME, where they were not left away.
const ZEROES: usize = 124;

/// Second number of a greeting of the oldstyle, which nobody speaks since 2011.
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;

/// Largest minimum of a block that the protocol has.
const LARGEST_MINIMUM: u32 = 64 << 10;

/// Where a handshake stands after the bytes that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The bytes end before the next message does.
    Incomplete,
    /// A message was dealt with; there may be something to be said.
    Answered,
    /// The server begins TLS now. Nothing more may be read off the bare socket; what follows is
    /// [`Handshake::encrypted`].
    StartTls,
    /// Transmission begins.
    Transmission(Negotiated),
}

/// Why there is no transmission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The other side is no server, or breaks the protocol.
    #[error("the server does not keep to the protocol: {0}")]
    Broken(&'static str),
    /// The server speaks the oldstyle, without options.
    #[error("the server speaks the oldstyle protocol, from before 2011")]
    Oldstyle,
    /// There is no export of the name.
    #[error("the server has no export of this name{}", said(.0))]
    NoSuchExport(String),
    /// Nothing goes without encryption there.
    #[error("the server wants the connection to be encrypted{}", said(.0))]
    TlsRequired(String),
    /// The server cannot encrypt, or will not.
    #[error("the server does not encrypt{}", said(.0))]
    NoTls(String),
    /// The server says no.
    #[error("the server refuses (error {kind}){}", said(.message))]
    Refused {
        /// NBD_REP_ERR_*, without the highest bit.
        kind: u32,
        /// What it says to that.
        message: String,
    },
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    /// The reply to this option comes.
    Asked(u32),
    /// The answer to EXPORT_NAME comes.
    Export,
    Over,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    export: String,
    encrypt: bool,
    zeroes: bool,
    headers: Headers,
    allocation: Option<u32>,
    told: Option<(u64, ExportFlags)>,
    block: Option<BlockSizes>,
    replies: u32,
    to_send: Vec<u8>,
}

impl Handshake {
    /// One that chooses the export of this name, by TLS where it is to be encrypted.
    pub fn new(export: &str, encrypt: bool) -> Handshake {
        Handshake {
            state: State::Greeting,
            export: export.into(),
            encrypt,
            zeroes: true,
            headers: Headers::Simple,
            allocation: None,
            told: None,
            block: None,
            replies: 0,
            to_send: Vec::new(),
        }
    }

    /// What is to be said to the server; whoever sends it takes it out.
    pub fn to_send(&mut self) -> &mut Vec<u8> {
        &mut self.to_send
    }

    /// The connection is encrypted from here on.
    pub fn encrypted(&mut self) {
        self.ask(option::EXTENDED_HEADERS, &[]);
    }

    /// Takes the next message off the front of `bytes`: yields how many of them it used up, and where the
    /// handshake stands then.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(usize, Progress), Failed> {
        match self.state {
            State::Greeting => self.greeting(bytes),
            State::Asked(option) => self.reply(option, bytes),
            State::Export => self.export(bytes),
            State::Over => Err(Failed::Broken("it speaks while TLS begins")),
        }
    }

    fn greeting(&mut self, bytes: &[u8]) -> Result<(usize, Progress), Failed> {
        const SIZE: usize = 18;
        // A server that says something else would be waited for in vain.
        let magic = INIT_MAGIC.to_be_bytes();
        if bytes.iter().zip(magic).any(|(said, expected)| *said != expected) {
            return Err(Failed::Broken("it does not greet as an NBD server does"));
        }
        if bytes.len() >= 16 && u64_at(bytes, 8) == OLDSTYLE_MAGIC {
            return Err(Failed::Oldstyle);
        }
        if bytes.len() < SIZE {
            return Ok((0, Progress::Incomplete));
        }
        if u64_at(bytes, 8) != OPTION_MAGIC {
            return Err(Failed::Broken("its greeting is of no known style"));
        }
        let offered = u16_at(bytes, 16);
        let taken = offered & (FIXED_NEWSTYLE | NO_ZEROES);
        self.zeroes = taken & NO_ZEROES == 0;
        self.to_send.extend(u32::from(taken).to_be_bytes());
        match (offered & FIXED_NEWSTYLE != 0, self.encrypt) {
            (true, true) => self.ask(option::STARTTLS, &[]),
            (true, false) => self.ask(option::EXTENDED_HEADERS, &[]),
            (false, true) => return Err(Failed::NoTls(String::new())),
            (false, false) => self.ask_for_export(),
        }
        Ok((SIZE, Progress::Answered))
    }

    fn ask(&mut self, option: u32, data: &[u8]) {
        self.state = State::Asked(option);
        self.replies = 0;
        self.say(option, data);
    }

    fn say(&mut self, option: u32, data: &[u8]) {
        self.to_send.extend(OPTION_MAGIC.to_be_bytes());
        self.to_send.extend(option.to_be_bytes());
        self.to_send.extend((data.len() as u32).to_be_bytes());
        self.to_send.extend(data);
    }

    fn ask_for_context(&mut self) {
        let question = Question::encode(&self.export, &[BASE_ALLOCATION]);
        self.ask(option::SET_META_CONTEXT, &question);
    }

    fn go(&mut self) {
        let mut data = (self.export.len() as u32).to_be_bytes().to_vec();
        data.extend(self.export.as_bytes());
        data.extend(1u16.to_be_bytes());
        data.extend(info::BLOCK_SIZE.to_be_bytes());
        self.ask(option::GO, &data);
    }

    fn ask_for_export(&mut self) {
        let name = std::mem::take(&mut self.export);
        self.say(option::EXPORT_NAME, name.as_bytes());
        self.export = name;
        self.state = State::Export;
    }

    fn reply(&mut self, asked: u32, bytes: &[u8]) -> Result<(usize, Progress), Failed> {
        if bytes.len() < REPLY_HEAD {
            return Ok((0, Progress::Incomplete));
        }
        if u64_at(bytes, 0) != OPTION_REPLY_MAGIC {
            return Err(Failed::Broken("a reply to an option does not begin with the protocol's number"));
        }
        if u32_at(bytes, 8) != asked {
            return Err(Failed::Broken("it answers an option that was not asked"));
        }
        let (kind, len) = (u32_at(bytes, 12), u32_at(bytes, 16));
        if len > MAX_REPLY {
            return Err(Failed::Broken("a reply to an option is too long"));
        }
        let end = REPLY_HEAD + len as usize;
        let Some(data) = bytes.get(REPLY_HEAD..end) else { return Ok((0, Progress::Incomplete)) };
        self.replies += 1;
        if self.replies > MOST_REPLIES {
            return Err(Failed::Broken("an option has no end of replies"));
        }
        let is_error = kind >> 31 == 1;
        let message = || {
            let text = String::from_utf8_lossy(&data[..data.len().min(MAX_NAME)]);
            text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
        };
        if kind == TLS_REQUIRED {
            return Err(Failed::TlsRequired(message()));
        }
        match asked {
            option::STARTTLS => match kind {
                reply::ACK if data.is_empty() => {
                    self.state = State::Over;
                    return Ok((end, Progress::StartTls));
                }
                _ if is_error => return Err(Failed::NoTls(message())),
                _ => return Err(Failed::Broken("its answer to STARTTLS is none")),
            },
            option::EXTENDED_HEADERS | option::STRUCTURED_REPLY => match kind {
                reply::ACK if data.is_empty() => {
                    let extended = asked == option::EXTENDED_HEADERS;
                    self.headers = if extended { Headers::Extended } else { Headers::Structured };
                    self.ask_for_context();
                }
                _ if is_error && asked == option::EXTENDED_HEADERS => self.ask(option::STRUCTURED_REPLY, &[]),
                _ if is_error => self.go(),
                _ => return Err(Failed::Broken("its answer to an option is none")),
            },
            option::SET_META_CONTEXT => match kind {
                reply::META_CONTEXT => self.context(data)?,
                reply::ACK if data.is_empty() => self.go(),
                _ if is_error => {
                    self.allocation = None;
                    self.go();
                }
                _ => return Err(Failed::Broken("its answer to an option is none")),
            },
            _ => match kind {
                reply::INFO => self.info(data)?,
                reply::ACK => {
                    let Some((size, flags)) = self.told else {
                        return Err(Failed::Broken("it lets us go on and does not say with what"));
                    };
                    return Ok((end, self.transmission(size, flags)));
                }
                reply::UNSUPPORTED => {
                    // What was told of the export, if anything, is told again.
                    (self.told, self.block) = (None, None);
                    self.ask_for_export();
                }
                reply::UNKNOWN => return Err(Failed::NoSuchExport(message())),
                _ if is_error => {
                    return Err(Failed::Refused { kind: kind & !(1 << 31), message: message() });
                }
                _ => return Err(Failed::Broken("its answer to GO is none")),
            },
        }
        Ok((end, Progress::Answered))
    }

    /// The data of a reply META_CONTEXT.
    fn context(&mut self, data: &[u8]) -> Result<(), Failed> {
        match Context::decode(data) {
            Some(context) if context.name == BASE_ALLOCATION.as_bytes() && self.allocation.is_none() => {
                self.allocation = Some(context.id);
                Ok(())
            }
            _ => Err(Failed::Broken("it chooses a context that was not asked for, or one twice")),
        }
    }

    /// The data of a reply INFO. What was not asked for may come, and is left aside.
    fn info(&mut self, data: &[u8]) -> Result<(), Failed> {
        if data.len() < 2 {
            return Err(Failed::Broken("an information is too short"));
        }
        match (u16_at(data, 0), data.len()) {
            (info::EXPORT, 12) => {
                let flags = ExportFlags::from_bits_truncate(u16_at(data, 10));
                self.told = Some((checked_size(u64_at(data, 2))?, flags));
            }
            (info::BLOCK_SIZE, 14) => {
                let block = BlockSizes {
                    minimum: u32_at(data, 2),
                    preferred: u32_at(data, 6),
                    maximum: u32_at(data, 10),
                };
                if !block.minimum.is_power_of_two()
                    || block.minimum > LARGEST_MINIMUM
                    || block.maximum < block.minimum
                {
                    return Err(Failed::Broken("the block sizes that it tells are none"));
                }
                self.block = Some(block);
            }
            (info::EXPORT | info::BLOCK_SIZE, _) => {
                return Err(Failed::Broken("an information has the wrong length"));
            }
            _ => {}
        }
        Ok(())
    }

    fn export(&mut self, bytes: &[u8]) -> Result<(usize, Progress), Failed> {
        let size = 10 + if self.zeroes { ZEROES } else { 0 };
        if bytes.len() < size {
            return Ok((0, Progress::Incomplete));
        }
        let flags = ExportFlags::from_bits_truncate(u16_at(bytes, 8));
        let export_size = checked_size(u64_at(bytes, 0))?;
        Ok((size, self.transmission(export_size, flags)))
    }

    fn transmission(&mut self, size: u64, flags: ExportFlags) -> Progress {
        self.state = State::Over;
        // Without this one the others mean nothing.
        let flags = if flags.contains(ExportFlags::HAS_FLAGS) { flags } else { ExportFlags::empty() };
        let Handshake { block, headers, allocation, .. } = *self;
        Progress::Transmission(Negotiated { size, flags, block, headers, allocation })
    }
}

fn checked_size(size: u64) -> Result<u64, Failed> {
    if size > i64::MAX as u64 {
        return Err(Failed::Broken("the size that it tells is no disk's"));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn greeting(flags: u16) -> Vec<u8> {
        let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes
    }

    fn export_info(size: u64, flags: u16) -> Vec<u8> {
        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend(size.to_be_bytes());
        data.extend(flags.to_be_bytes());
        data
    }

    fn block_info(sizes: [u32; 3]) -> Vec<u8> {
        let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
        data.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
        data
    }

    /// What came of a server that says this: all that was said to it, and the end.
    fn driven(handshake: &mut Handshake, stream: &[u8], piece: usize) -> (Vec<u8>, Result<Progress, Failed>) {
        let (mut said, mut buffer, mut last) = (Vec::new(), Vec::new(), Progress::Incomplete);
        for piece in stream.chunks(piece) {
            buffer.extend_from_slice(piece);
            loop {
                let result = handshake.receive(&buffer);
                said.append(handshake.to_send());
                match result {
                    Ok((used, progress)) => {
                        buffer.drain(..used);
                        last = progress;
                    }
                    Err(failed) => return (said, Err(failed)),
                }
                match last {
                    Progress::Incomplete => break,
                    Progress::Answered => {}
                    Progress::StartTls | Progress::Transmission(_) => return (said, Ok(last)),
                }
            }
        }
        (said, Ok(last))
    }

    /// The options that were asked for, behind the client's flags.
    fn options(said: &[u8]) -> Vec<u32> {
        let (mut rest, mut options) = (&said[4..], Vec::new());
        while !rest.is_empty() {
            assert_eq!(u64_at(rest, 0), OPTION_MAGIC);
            options.push(u32_at(rest, 8));
            rest = &rest[16 + u32_at(rest, 12) as usize..];
        }
        options
    }

    fn failed(stream: &[Vec<u8>]) -> Failed {
        let mut handshake = Handshake::new("disk", false);
        driven(&mut handshake, &stream.concat(), 9999).1.expect_err("it fails")
    }

    const FLAGS: u16 = 1 | 1 << 2 | 1 << 8;

    #[test]
    fn what_a_server_has_is_taken() {
        let unsupported = |option| reply(option, reply::UNSUPPORTED, b"no");
        let ack = |option| reply(option, reply::ACK, b"");
        let context = || reply(10, reply::META_CONTEXT, b"\0\0\0\x09base:allocation");
        let [extended, structured, simple] = [Headers::Extended, Headers::Structured, Headers::Simple];
        for (answers, headers, allocation, asked) in [
            (vec![ack(11), context(), ack(10)], extended, Some(9), vec![11, 10, 7]),
            (vec![ack(11), ack(10)], extended, None, vec![11, 10, 7]),
            (vec![ack(11), context(), unsupported(10)], extended, None, vec![11, 10, 7]),
            (vec![unsupported(11), ack(8), context(), ack(10)], structured, Some(9), vec![11, 8, 10, 7]),
            (vec![unsupported(11), ack(8), unsupported(10)], structured, None, vec![11, 8, 10, 7]),
            (vec![unsupported(11), unsupported(8)], simple, None, vec![11, 8, 7]),
        ] {
            for piece in [1, 7, 9999] {
                let mut stream = greeting(3);
                stream.extend(answers.concat());
                stream.extend(reply(7, reply::INFO, &block_info([512, 4096, 1 << 20])));
                stream.extend(reply(7, reply::INFO, &[0, 99, 1, 2, 3]));
                stream.extend(reply(7, reply::INFO, &export_info(1 << 30, FLAGS)));
                stream.extend(ack(7));
                let (said, end) = driven(&mut Handshake::new("disk", false), &stream, piece);
                let block = Some(BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 });
                let flags = ExportFlags::from_bits_truncate(FLAGS);
                let expected = Negotiated { size: 1 << 30, flags, block, headers, allocation };
                assert_eq!(end, Ok(Progress::Transmission(expected)));
                assert_eq!((&said[..4], options(&said)), (&[0, 0, 0, 3][..], asked.clone()));
                assert!(said.ends_with(b"\0\0\0\x04disk\0\x01\0\x03"));
            }
        }
    }

    #[test]
    fn old_servers_are_asked_by_name() {
        let mut export = (1u64 << 20).to_be_bytes().to_vec();
        export.extend(FLAGS.to_be_bytes());
        for (flags, zeroes) in [(0u16, 124), (1, 124), (2, 0), (3, 0)] {
            let mut stream = greeting(flags);
            let mut asked = vec![1];
            if flags & FIXED_NEWSTYLE != 0 {
                for option in [11, 8, 7] {
                    stream.extend(reply(option, reply::UNSUPPORTED, b""));
                }
                asked = vec![11, 8, 7, 1];
            }
            stream.extend(&export);
            let short =
                driven(&mut Handshake::new("disk", false), &[&stream[..], &vec![0; zeroes]].concat(), 5);
            let (said, end) = short;
            let Ok(Progress::Transmission(told)) = end else { panic!("{end:?}") };
            assert_eq!((told.size, told.block, told.headers), (1 << 20, None, Headers::Simple));
            assert_eq!((options(&said), said[3]), (asked, flags as u8));
            assert!(said.ends_with(b"\0\0\0\x04disk"));
            if zeroes > 0 {
                let (_, end) = driven(&mut Handshake::new("disk", false), &stream, 5);
                assert_eq!(end, Ok(Progress::Incomplete), "the zeros are waited for");
            }
        }
    }

    #[test]
    fn tls_comes_before_everything_else() {
        let mut handshake = Handshake::new("disk", true);
        let stream = [greeting(3), reply(5, reply::ACK, b"")].concat();
        let (said, end) = driven(&mut handshake, &stream, 9999);
        assert_eq!((options(&said), end), (vec![5], Ok(Progress::StartTls)));
        assert!(handshake.receive(b"injected").is_err());
        handshake.encrypted();
        assert_eq!(&handshake.to_send()[..12], b"IHAVEOPT\0\0\0\x0b");
        for stream in [vec![greeting(3), reply(5, reply::UNSUPPORTED, b"")], vec![greeting(2)]] {
            let (_, end) = driven(&mut Handshake::new("disk", true), &stream.concat(), 9999);
            assert!(matches!(end, Err(Failed::NoTls(_))), "nothing goes on in the clear: {end:?}");
        }
    }

    #[test]
    fn a_refusal_is_told_with_the_servers_words() {
        let go = |kind: u32, words: &[u8]| {
            vec![
                greeting(3),
                reply(11, reply::ACK, b""),
                reply(10, reply::ACK, b""),
                reply(7, 1 << 31 | kind, words),
            ]
        };
        assert_eq!(failed(&go(6, b"none\n")), Failed::NoSuchExport("none".into()));
        assert!(matches!(failed(&go(5, b"")), Failed::TlsRequired(_)));
        let said = failed(&go(2, b"not you")).to_string();
        assert!(said.contains("error 2") && said.contains("not you"), "{said}");
        let first = failed(&[greeting(3), reply(11, 1 << 31 | 5, b"tls first")]);
        assert_eq!(first, Failed::TlsRequired("tls first".into()));
        let oldstyle = [b"NBDMAGIC".to_vec(), OLDSTYLE_MAGIC.to_be_bytes().to_vec(), vec![0; 136]];
        assert_eq!(failed(&oldstyle), Failed::Oldstyle);
    }

    #[test]
    fn what_is_no_servers_handshake_ends_it() {
        let up_to_go = || vec![greeting(3), reply(11, reply::ACK, b""), reply(10, reply::ACK, b"")];
        let then = |more: Vec<u8>| [up_to_go(), vec![more]].concat();
        let context = |name: &[u8]| reply(10, reply::META_CONTEXT, &[b"\0\0\0\x01", name].concat());
        for stream in [
            vec![b"HTTP/1.1 400".to_vec()],
            vec![b"SSH-2.0".to_vec()],
            vec![b"NBDMAGICwhatever\0\x03".to_vec()],
            then(b"0123456789abcdefghij".to_vec()),
            then(reply(8, reply::ACK, b"")),
            then(reply(7, reply::ACK, b"")),
            then(reply(7, reply::SERVER, b"")),
            then(reply(7, reply::INFO, b"")),
            then(reply(7, reply::INFO, &[0, 0, 1])),
            then(reply(7, reply::INFO, &export_info(u64::MAX, 1))),
            then(reply(7, reply::INFO, &block_info([0, 4096, 4096]))),
            then(reply(7, reply::INFO, &block_info([3, 4096, 4096]))),
            then(reply(7, reply::INFO, &block_info([1 << 17, 1 << 17, 1 << 17]))),
            then(reply(7, reply::INFO, &block_info([4096, 4096, 512]))),
            then(reply(7, reply::INFO, &[9; 300]).repeat(300)),
            vec![greeting(3), reply(11, reply::ACK, b"data")],
            vec![greeting(3), reply(11, reply::INFO, b"")],
            vec![greeting(3), reply(11, reply::ACK, b""), context(b"base:allocation").repeat(2)],
            vec![greeting(3), reply(11, reply::ACK, b""), context(b"base:allocations")],
            vec![greeting(3), reply(11, reply::ACK, b""), context(b"")],
            vec![greeting(3), reply(11, reply::ACK, b""), reply(10, reply::META_CONTEXT, b"\0\0")],
            vec![greeting(3), reply(11, reply::ACK, b""), reply(10, reply::ACK, b"!")],
        ] {
            let failed = failed(&stream);
            assert!(matches!(failed, Failed::Broken(_)), "{failed:?}");
        }
        let mut long = reply(7, reply::INFO, b"");
        long[16..20].copy_from_slice(&(1u32 << 30).to_be_bytes());
        assert!(matches!(failed(&then(long)), Failed::Broken(_)), "nothing is waited for that is so long");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            flags in 0u16..4,
            garbage in prop::collection::vec(any::<u8>(), 0..200),
            kinds in prop::collection::vec((prop_oneof![Just(1u32), Just(3), 0u32..9, 0x8000_0000u32..0x8000_000c], prop::collection::vec(any::<u8>(), 0..20)), 0..8),
            piece in 1usize..60,
        ) {
            let mut handshake = Handshake::new("disk", false);
            let mut stream = greeting(flags);
            for option in [11, 8, 10, 7] {
                for (kind, data) in &kinds {
                    stream.extend(reply(option, *kind, data));
                }
            }
            stream.extend(&garbage);
            let (said, _) = driven(&mut handshake, &stream, piece);
            prop_assert!(said.len() < 1000);
            let _ = driven(&mut Handshake::new("disk", false), &garbage, piece);
        }
    }
}
