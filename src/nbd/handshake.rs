//! The handshake, the server's side: fixed newstyle. A client lists the exports, asks about them, and
//! goes into transmission with one.

use super::wire::{
    FIXED_NEWSTYLE, INIT_MAGIC, NO_ZEROES, OPTION_MAGIC, OPTION_REPLY_MAGIC, info, option, reply, u16_at,
    u32_at, u64_at,
};
use super::{Broken, Export, MAX_NAME};

mod agreed;
mod starttls;

pub use starttls::TlsPolicy;

use agreed::Agreed;
use starttls::Security;

/// Longest data of an option that are looked at: the longest name, and every kind of information some
/// five hundred times over.
const MAX_OPTION: u32 = 8 << 10;

/// Longest data of an option that are skipped, to be answered with an error; beyond it the peer is
/// no client.
const MAX_SKIPPED: u32 = 1 << 20;

/// Options in one handshake, those that are skipped too. A client that lists exports and asks about each needs a few for each.
const MAX_OPTIONS: u32 = 4096;

/// Bytes of an option before its data.
const OPTION_HEAD: usize = 16;

/// Zeros after the answer to EXPORT_NAME, for clients that did not ask to leave them away.
const ZEROES: usize = 124;

/// Where a handshake stands after the bytes that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The bytes end before the next message does.
    Incomplete,
    /// A message was dealt with. What is to be said is to be sent before the next is looked at, so
    /// that a client that does not listen cannot make us pile it up.
    Answered,
    /// What is to be said is to be sent, and then transmission begins with the export of this index.
    Transmission(usize),
    /// What is to be said is to be sent, and then TLS begins; what is received next was encrypted.
    StartTls,
    /// What is to be said is to be sent, and then the connection is over.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ClientFlags,
    Option,
    /// The data of an option that was too long come, and are thrown away.
    Skip {
        option: u32,
        left: u32,
    },
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    fixed: bool,
    zeroes: bool,
    options: u32,
    to_send: Vec<u8>,
    agreed: Agreed,
    security: Security,
}

impl Default for Handshake {
    fn default() -> Handshake {
        Handshake::new()
    }
}

impl Handshake {
    /// Begins one: there is something to be said at once.
    pub fn new() -> Handshake {
        let mut to_send = Vec::new();
        to_send.extend(INIT_MAGIC.to_be_bytes());
        to_send.extend(OPTION_MAGIC.to_be_bytes());
        to_send.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        Handshake {
            state: State::ClientFlags,
            fixed: false,
            zeroes: true,
            options: 0,
            to_send,
            agreed: Agreed::default(),
            security: Security::OFF,
        }
    }

    /// What is to be said to the client; whoever sends it takes it out.
    pub fn to_send(&mut self) -> &mut Vec<u8> {
        &mut self.to_send
    }

    /// Takes the next message off the front of `bytes`: yields how many of them it used up, and
    /// where the handshake stands then. The first of `exports` is the default one.
    pub fn receive(&mut self, bytes: &[u8], exports: &[Export]) -> Result<(usize, Progress), Broken> {
        match self.state {
            State::ClientFlags => self.client_flags(bytes),
            State::Option => self.option(bytes, exports),
            State::Skip { option, left } => Ok(self.skip(option, left, bytes)),
        }
    }

    fn client_flags(&mut self, bytes: &[u8]) -> Result<(usize, Progress), Broken> {
        if bytes.len() < 4 {
            return Ok((0, Progress::Incomplete));
        }
        let flags = u32_at(bytes, 0);
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Err(Broken::ClientFlags);
        }
        self.fixed = flags & u32::from(FIXED_NEWSTYLE) != 0;
        self.zeroes = flags & u32::from(NO_ZEROES) == 0;
        self.state = State::Option;
        Ok((4, Progress::Answered))
    }

    fn option(&mut self, bytes: &[u8], exports: &[Export]) -> Result<(usize, Progress), Broken> {
        if bytes.len() < OPTION_HEAD {
            return Ok((0, Progress::Incomplete));
        }
        if u64_at(bytes, 0) != OPTION_MAGIC {
            return Err(Broken::Magic);
        }
        let (option, len) = (u32_at(bytes, 8), u32_at(bytes, 12));
        if len > MAX_SKIPPED || (option == option::EXPORT_NAME && len > MAX_OPTION) {
            return Err(Broken::OptionLength(len));
        }
        if !self.fixed && option != option::EXPORT_NAME {
            return Err(Broken::OldClient);
        }
        let end = OPTION_HEAD + len as usize;
        if len <= MAX_OPTION && bytes.len() < end {
            return Ok((0, Progress::Incomplete));
        }
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(Broken::TooManyOptions);
        }
        if len > MAX_OPTION {
            let (used, progress) = self.skip(option, len, &bytes[OPTION_HEAD..]);
            return Ok((OPTION_HEAD + used, progress));
        }
        let data = &bytes[OPTION_HEAD..end];
        if let Some(progress) = self.secure(option, data, bytes.len() - end)? {
            return Ok((end, progress));
        }
        Ok((end, self.answer(option, data, exports)?))
    }

    fn skip(&mut self, option: u32, left: u32, bytes: &[u8]) -> (usize, Progress) {
        let here = (left as usize).min(bytes.len());
        let left = left - here as u32;
        if left > 0 {
            self.state = State::Skip { option, left };
            return (here, Progress::Incomplete);
        }
        self.state = State::Option;
        match self.security.keeps_back(option) {
            true => self.refuse_for_tls(option),
            false => self.refuse(option, reply::TOO_BIG, "the option is too long"),
        }
        (here, Progress::Answered)
    }

    fn answer(&mut self, option: u32, data: &[u8], exports: &[Export]) -> Result<Progress, Broken> {
        match option {
            option::EXPORT_NAME if self.agreed.are_extended() => Err(Broken::ExtendedHeaders),
            option::EXPORT_NAME => {
                let found = std::str::from_utf8(data).ok().and_then(|name| find(exports, name));
                let (index, export) = found.ok_or(Broken::NoSuchExport)?;
                self.to_send.extend(export.size.to_be_bytes());
                self.to_send.extend(self.flags_of(export).bits().to_be_bytes());
                let zeroes = if self.zeroes { ZEROES } else { 0 };
                self.to_send.extend(std::iter::repeat_n(0, zeroes));
                Ok(Progress::Transmission(index))
            }
            option::ABORT => {
                self.reply(option, reply::ACK, &[]);
                Ok(Progress::Ended)
            }
            option::LIST => {
                self.list(data, exports);
                Ok(Progress::Answered)
            }
            option::INFO | option::GO => Ok(self.info(option, data, exports)),
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                self.agree_on_headers(option, data);
                Ok(Progress::Answered)
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.contexts(option, data, exports);
                Ok(Progress::Answered)
            }
            option::STARTTLS if !data.is_empty() => {
                self.refuse(option, reply::INVALID, "the option has no data");
                Ok(Progress::Answered)
            }
            _ => {
                self.refuse(option, reply::UNSUPPORTED, "this server does not have the option");
                Ok(Progress::Answered)
            }
        }
    }

    fn list(&mut self, data: &[u8], exports: &[Export]) {
        if !data.is_empty() {
            return self.refuse(option::LIST, reply::INVALID, "the option has no data");
        }
        for export in exports {
            let mut data = (export.name.len() as u32).to_be_bytes().to_vec();
            data.extend(export.name.as_bytes());
            data.extend(export.description.as_bytes());
            self.reply(option::LIST, reply::SERVER, &data);
        }
        self.reply(option::LIST, reply::ACK, &[]);
    }

    fn info(&mut self, option: u32, data: &[u8], exports: &[Export]) -> Progress {
        let Some((name, asked)) = info_request(data) else {
            self.refuse(option, reply::INVALID, "the lengths inside the option do not fit together");
            return Progress::Answered;
        };
        if name.len() > MAX_NAME {
            self.refuse(option, reply::TOO_BIG, "the name is too long");
            return Progress::Answered;
        }
        let found = std::str::from_utf8(name).ok().and_then(|name| find(exports, name));
        let Some((index, export)) = found else {
            self.refuse(option, reply::UNKNOWN, "there is no export of this name");
            return Progress::Answered;
        };
        let asked = |kind: u16| asked.chunks_exact(2).any(|asked| u16_at(asked, 0) == kind);
        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend(export.size.to_be_bytes());
        data.extend(self.flags_of(export).bits().to_be_bytes());
        self.reply(option, reply::INFO, &data);
        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if asked(kind) && (kind == info::NAME || !text.is_empty()) {
                let mut data = kind.to_be_bytes().to_vec();
                data.extend(text.as_bytes());
                self.reply(option, reply::INFO, &data);
            }
        }
        // Told even where nobody asks: a client may pass over it, and one that knows is the better.
        let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [export.block.minimum, export.block.preferred, export.block.maximum] {
            data.extend(size.to_be_bytes());
        }
        self.reply(option, reply::INFO, &data);
        self.reply(option, reply::ACK, &[]);
        match option {
            option::GO => Progress::Transmission(index),
            _ => Progress::Answered,
        }
    }

    fn refuse(&mut self, option: u32, kind: u32, why: &str) {
        self.reply(option, kind, why.as_bytes());
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.to_send.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.to_send.extend(option.to_be_bytes());
        self.to_send.extend(kind.to_be_bytes());
        self.to_send.extend((data.len() as u32).to_be_bytes());
        self.to_send.extend(data);
    }
}

/// The export of this name. The empty name is the first one's, unless one really has it.
fn find<'e>(exports: &'e [Export], name: &str) -> Option<(usize, &'e Export)> {
    let named = exports.iter().enumerate().find(|(_, export)| export.name == name);
    if named.is_none() && name.is_empty() {
        return exports.first().map(|export| (0, export));
    }
    named
}

/// The data of INFO and GO: a name behind its length, and the kinds of information wanted behind
/// their number.
fn info_request(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    let (count, kinds) = rest.split_first_chunk::<2>()?;
    (kinds.len() == usize::from(u16::from_be_bytes(*count)) * 2).then_some((name, kinds))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nbd::meta::Question;
    use crate::nbd::{BlockSizes, ExportFlags};

    pub(super) fn export(name: &str, size: u64) -> Export {
        Export {
            name: name.into(),
            description: format!("about {name}"),
            size,
            flags: ExportFlags::HAS_FLAGS | ExportFlags::SEND_FLUSH,
            block: BlockSizes { minimum: 512, preferred: 4096, maximum: 32 << 20 },
        }
    }

    pub(super) fn exports() -> Vec<Export> {
        vec![export("disk", 1 << 20), export("other", 2 << 20)]
    }

    pub(super) fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    pub(super) fn info_data(name: &str, kinds: &[u16]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend((kinds.len() as u16).to_be_bytes());
        data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
        data
    }

    /// A handshake with these client flags behind it, and nothing to be said.
    pub(super) fn begun(flags: u32) -> Handshake {
        let mut handshake = Handshake::new();
        assert_eq!(handshake.to_send().split_off(0).len(), 18);
        let exports = exports();
        assert_eq!(handshake.receive(&flags.to_be_bytes(), &exports), Ok((4, Progress::Answered)));
        handshake
    }

    /// The kinds of the replies to one option, and where the handshake stands then.
    pub(super) fn replies(handshake: &mut Handshake, bytes: &[u8]) -> (Vec<u32>, Progress) {
        let (used, progress) = handshake.receive(bytes, &exports()).unwrap();
        assert_eq!(used, bytes.len());
        let said = handshake.to_send().split_off(0);
        let (mut rest, mut kinds) = (&said[..], Vec::new());
        while !rest.is_empty() {
            assert_eq!(u64_at(rest, 0), OPTION_REPLY_MAGIC);
            assert_eq!(rest[8..12], bytes[8..12], "a reply names its option");
            kinds.push(u32_at(rest, 12));
            rest = &rest[20 + u32_at(rest, 16) as usize..];
        }
        (kinds, progress)
    }

    #[test]
    fn the_greeting_is_the_fixed_newstyle() {
        assert_eq!(Handshake::new().to_send(), b"NBDMAGICIHAVEOPT\0\x03");
    }

    #[test]
    fn every_option_gets_the_answer_that_the_protocol_asks_for() {
        use Progress::{Answered, Ended, Transmission};
        let mut wrong = info_data("disk", &[3]);
        wrong.pop();
        for (bytes, kinds, progress) in [
            (option(option::LIST, &[]), vec![reply::SERVER, reply::SERVER, reply::ACK], Answered),
            (option(option::LIST, b"x"), vec![reply::INVALID], Answered),
            (option(option::ABORT, &[]), vec![reply::ACK], Ended),
            (option(option::STARTTLS, &[]), vec![reply::UNSUPPORTED], Answered),
            (option(option::STARTTLS, b"x"), vec![reply::INVALID], Answered),
            (option(option::STRUCTURED_REPLY, &[]), vec![reply::ACK], Answered),
            (option(option::EXTENDED_HEADERS, &[]), vec![reply::ACK], Answered),
            (option(option::LIST_META_CONTEXT, &[0; 12]), vec![reply::INVALID], Answered),
            (option(option::SET_META_CONTEXT, &[0; 12]), vec![reply::INVALID], Answered),
            (option(4, &[]), vec![reply::UNSUPPORTED], Answered),
            (option(0xdead_beef, &[1; 100]), vec![reply::UNSUPPORTED], Answered),
            (option(0xdead_beef, &[1; 20_000]), vec![reply::TOO_BIG], Answered),
            (option(option::INFO, &wrong), vec![reply::INVALID], Answered),
            (option(option::INFO, &[]), vec![reply::INVALID], Answered),
            (option(option::INFO, &[255; 8]), vec![reply::INVALID], Answered),
            (option(option::INFO, &info_data("nowhere", &[])), vec![reply::UNKNOWN], Answered),
            (option(option::GO, &info_data("nowhere", &[])), vec![reply::UNKNOWN], Answered),
            (option(option::GO, &info_data(&"n".repeat(4097), &[])), vec![reply::TOO_BIG], Answered),
            (
                option(option::INFO, &info_data("other", &[1, 2, 3, 77])),
                vec![reply::INFO, reply::INFO, reply::INFO, reply::INFO, reply::ACK],
                Answered,
            ),
            (
                option(option::GO, &info_data("other", &[])),
                vec![reply::INFO, reply::INFO, reply::ACK],
                Transmission(1),
            ),
            (
                option(option::GO, &info_data("", &[])),
                vec![reply::INFO, reply::INFO, reply::ACK],
                Transmission(0),
            ),
        ] {
            let mut handshake = begun(3);
            assert_eq!(replies(&mut handshake, &bytes), (kinds, progress), "{bytes:?}");
        }
    }

    #[test]
    fn the_old_way_in_has_its_zeros_unless_they_are_not_wanted() {
        for (flags, len) in [(0, 134), (1, 134), (2, 10), (3, 10)] {
            let mut handshake = begun(flags);
            let bytes = option(option::EXPORT_NAME, b"other");
            let (used, progress) = handshake.receive(&bytes, &exports()).unwrap();
            assert_eq!((used, progress), (bytes.len(), Progress::Transmission(1)));
            let said = handshake.to_send();
            assert_eq!((said.len(), u64_at(said, 0), u16_at(said, 8)), (len, 2 << 20, 5));
        }
    }

    #[test]
    fn who_breaks_the_rules_is_cut_off() {
        let broken = |flags: u32, bytes: &[u8]| begun(flags).receive(bytes, &exports()).unwrap_err();
        assert_eq!(broken(3, &[0; 16]), Broken::Magic);
        assert_eq!(broken(3, &option(option::EXPORT_NAME, b"nowhere")), Broken::NoSuchExport);
        assert_eq!(broken(3, &option(option::EXPORT_NAME, b"\xff\xfe")), Broken::NoSuchExport);
        assert_eq!(broken(0, &option(option::LIST, &[])), Broken::OldClient);
        let mut long = option(option::GO, &[]);
        long[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(broken(3, &long), Broken::OptionLength(u32::MAX));
        assert_eq!(Handshake::new().receive(&[0, 0, 0, 4], &exports()), Err(Broken::ClientFlags));
        // Many of them, those that are looked at and those that are only skipped.
        for len in [0, MAX_OPTION as usize + 1] {
            let (mut handshake, bytes) = (begun(3), option(option::STARTTLS, &vec![0; len]));
            let flood = (0..=MAX_OPTIONS).find_map(|_| {
                handshake.to_send().clear();
                handshake.receive(&bytes, &exports()).err()
            });
            assert_eq!(flood, Some(Broken::TooManyOptions), "options of {len} bytes");
        }
    }

    /// Drives a whole handshake with a stream cut into pieces; yields all that was said and the end.
    fn driven(stream: &[u8], pieces: &[usize]) -> (Vec<u8>, Result<Progress, Broken>, usize) {
        let exports = exports();
        let mut handshake = Handshake::new();
        let (mut said, mut buffer, mut rest, mut all) = (Vec::new(), Vec::new(), stream, 0);
        for piece in pieces.iter().chain([&stream.len()]) {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            buffer.extend_from_slice(now);
            rest = later;
            loop {
                let received = handshake.receive(&buffer, &exports);
                said.append(handshake.to_send());
                match received {
                    Err(broken) => return (said, Err(broken), all),
                    Ok((used, progress)) => {
                        buffer.drain(..used);
                        all += used;
                        match progress {
                            Progress::Incomplete => break,
                            Progress::Answered => {}
                            end => return (said, Ok(end), all),
                        }
                    }
                }
            }
        }
        (said, Ok(Progress::Incomplete), all)
    }

    fn any_option() -> impl Strategy<Value = Vec<u8>> {
        let name = prop_oneof![Just("disk"), Just(""), Just("nowhere")];
        let queries =
            prop::collection::vec(prop_oneof![Just("base:allocation"), Just("base:"), Just("x")], 0..4);
        let contexts = (9u32..11, name.clone(), queries)
            .prop_map(|(number, name, queries)| option(number, &Question::encode(name, &queries)));
        let headers = prop_oneof![Just(8u32), Just(11)].prop_map(|number| option(number, &[]));
        let info = (6u32..8, name, prop::collection::vec(0u16..6, 0..5))
            .prop_map(|(number, name, kinds)| option(number, &info_data(name, &kinds)));
        let any = (0u32..14, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(number, data)| option(number, &data));
        let long = (2u32..14, 8_000usize..9_000).prop_map(|(number, len)| option(number, &vec![7; len]));
        prop_oneof![info, contexts, headers, any, long]
    }

    proptest! {
        #[test]
        fn how_the_bytes_arrive_does_not_matter(
            options in prop::collection::vec(any_option(), 0..8),
            pieces in prop::collection::vec(1usize..3000, 0..60),
        ) {
            let mut stream = 3u32.to_be_bytes().to_vec();
            stream.extend(options.concat());
            prop_assert_eq!(driven(&stream, &pieces), driven(&stream, &[]));
        }

        #[test]
        fn garbage_never_gets_in(bytes in prop::collection::vec(any::<u8>(), 0..2000), flags in 0u32..4) {
            let mut stream = flags.to_be_bytes().to_vec();
            stream.extend(&bytes);
            let (_, end, _) = driven(&stream, &[3]);
            prop_assert!(!matches!(end, Ok(Progress::Transmission(_))));
        }

        /// A stream that ends anywhere waits there, and has said no more than was asked for.
        #[test]
        fn a_truncated_stream_waits(options in prop::collection::vec(any_option(), 1..4), cut in any::<prop::sample::Index>()) {
            let mut stream = 3u32.to_be_bytes().to_vec();
            stream.extend(options.concat());
            let (whole, _, _) = driven(&stream, &[]);
            let (part, _, _) = driven(&stream[..cut.index(stream.len())], &[]);
            prop_assert!(whole.starts_with(&part) || whole == part);
        }
    }
}
