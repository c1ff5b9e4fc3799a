//! Whatever a server replies, and however it arrives: no panic, the same events, no byte told twice, and nothing that has
//! gone well which was not told in full.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::io::extents::MOST_EXTENTS;
use protocol::io::{Flags, Op};
use protocol::nbd::Headers;
use protocol::nbd::client::Replies;
use protocol::nbd::client::replies::{Event, LONGEST_HEAD};

const CONTEXT: u32 = 1;

/// What is asked, all at the same time, and each again when it has ended.
const ASKED: [(Op, u64, u64); 6] = [
    (Op::Read, 4096, 512),
    (Op::Extents, 0, 1 << 40),
    (Op::Read, 1 << 33, 1536),
    (Op::Write, 512, 512),
    (Op::Flush, 0, 0),
    (Op::WriteZeroes, 0, 1 << 20),
];

/// A request that is under way, and what was told of it.
struct Asked {
    op: Op,
    len: u64,
    told: Vec<bool>,
    has_extents: bool,
}

struct Client {
    replies: Replies,
    /// By their numbers.
    asked: Vec<Option<Asked>>,
    heads: Vec<u8>,
}

impl Client {
    fn new(headers: Headers, allocation: Option<u32>) -> Client {
        let mut client =
            Client { replies: Replies::new(headers, allocation), asked: Vec::new(), heads: Vec::new() };
        for (op, offset, len) in ASKED {
            if op != Op::Extents || client.replies.knows_extents() {
                client.ask(op, offset, len);
            }
        }
        client
    }

    fn ask(&mut self, op: Op, offset: u64, len: u64) {
        let len = len.min(self.replies.longest_range());
        let flags = if op == Op::WriteZeroes { Flags::FAST_ZERO } else { Flags::empty() };
        self.heads.clear();
        let index = self.replies.ask(op, flags, offset, len, &mut self.heads).expect("there is room");
        let place = usize::from(index);
        if self.asked.len() <= place {
            self.asked.resize_with(place + 1, || None);
        }
        let told = if op == Op::Read { vec![false; len as usize] } else { Vec::new() };
        let before = self.asked[place].replace(Asked { op, len, told, has_extents: false });
        assert!(before.is_none() && self.asked.len() <= ASKED.len());
    }

    fn asked(&mut self, index: u16) -> &mut Asked {
        self.asked[usize::from(index)].as_mut().expect("it is under way")
    }

    fn tell(&mut self, index: u16, at: u32, len: u32) {
        let told = &mut self.asked(index).told[at as usize..][..len as usize];
        assert!(len > 0 && told.iter().all(|told| !told), "a byte is told twice");
        told.fill(true);
    }

    fn react(&mut self, event: Event) {
        match event {
            Event::Incomplete | Event::Failing => {}
            Event::Data { index, at, len } | Event::Zeroes { index, at, len } => self.tell(index, at, len),
            Event::Extents { index } => {
                let extents = self.replies.extents();
                assert!((1..=MOST_EXTENTS).contains(&extents.len()));
                assert!(extents.iter().all(|extent| extent.len > 0));
                assert!(extents.windows(2).all(|two| two[0].state != two[1].state));
                let sum: u64 = extents.iter().map(|extent| extent.len).sum();
                let asked = self.asked(index);
                assert!(asked.op == Op::Extents && sum <= asked.len && !asked.has_extents);
                asked.has_extents = true;
            }
            Event::Ended { index, result } => {
                let Asked { op, told, has_extents, .. } =
                    self.asked[usize::from(index)].take().expect("it is under way");
                let is_whole = told.iter().all(|told| *told) && (op != Op::Extents || has_extents);
                assert!(result.is_err() || is_whole, "{op:?} has gone well");
                let (_, offset, len) = ASKED.into_iter().find(|asked| asked.0 == op).expect("one of them");
                self.ask(op, offset, len);
            }
        }
    }
}

/// All that happened, and whether the connection is over.
fn events(headers: Headers, allocation: Option<u32>, stream: &[u8], piece: usize) -> (Vec<Event>, bool) {
    let mut client = Client::new(headers, allocation);
    let (mut events, mut data, mut buffer) = (Vec::new(), 0usize, Vec::new());
    for bytes in stream.chunks(piece) {
        buffer.extend_from_slice(bytes);
        loop {
            let here = data.min(buffer.len());
            buffer.drain(..here);
            data -= here;
            if data > 0 {
                break;
            }
            let Ok((used, event)) = client.replies.next(&buffer) else { return (events, true) };
            buffer.drain(..used);
            if event == Event::Incomplete {
                break;
            }
            client.react(event);
            events.push(event);
            if let Event::Data { len, .. } = event {
                data = len as usize;
            }
        }
        assert!(buffer.len() < LONGEST_HEAD);
    }
    (events, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((&[how, piece], stream)) = data.split_first_chunk::<2>() else { return };
    let headers = [Headers::Simple, Headers::Structured, Headers::Extended][usize::from(how) % 3];
    let allocation = (how & 64 != 0 && headers != Headers::Simple).then_some(CONTEXT);
    let whole = events(headers, allocation, stream, stream.len().clamp(1, 64 << 10));
    assert_eq!(events(headers, allocation, stream, usize::from(piece) + 1), whole);
});
