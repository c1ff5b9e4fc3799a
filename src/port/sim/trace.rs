//! What happened: a hash of all of it, and the words of the last of it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

/// Lines that are kept for the report of a failure.
const KEPT: usize = 120;

#[derive(Clone, Copy)]
struct Line {
    time_ns: u64,
    thread: usize,
    what: &'static str,
    numbers: [u64; 4],
}

/// The history of a world.
pub(super) struct Trace {
    hash: u64,
    lines: u64,
    last: VecDeque<Line>,
    counts: BTreeMap<&'static str, u64>,
}

impl Trace {
    pub fn new() -> Trace {
        Trace { hash: 0, lines: 0, last: VecDeque::with_capacity(KEPT), counts: BTreeMap::new() }
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// Notes that something happened. Numbers must be the same in every run of a seed: no addresses,
    /// no descriptors.
    pub fn note(&mut self, time_ns: u64, thread: usize, what: &'static str, numbers: [u64; 4]) {
        self.mix(time_ns);
        self.mix(thread as u64);
        self.mix(what.len() as u64);
        self.bytes(what.as_bytes());
        numbers.into_iter().for_each(|number| self.mix(number));
        self.lines += 1;
        *self.counts.entry(what).or_default() += 1;
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(Line { time_ns, thread, what, numbers });
    }

    /// Contents that must be the same as well: eight bytes of each sixty-four, which are cheap to look at
    /// and tell whose they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(64) {
            let eight = &piece[..piece.len().min(8)];
            let mut word = [0; 8];
            word[..eight.len()].copy_from_slice(eight);
            self.mix(u64::from_le_bytes(word));
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// How often each thing happened.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    /// The last lines, for a person.
    pub fn text(&self, name: impl Fn(usize) -> String) -> String {
        let mut text = String::new();
        for line in &self.last {
            let [a, b, c, d] = line.numbers.map(|number| number as i64);
            let (us, ns) = (line.time_ns / 1000, line.time_ns % 1000);
            let who = name(line.thread);
            let _ = writeln!(text, "{us:>9}.{ns:03} us {who:<16} {:<22} {a} {b} {c} {d}", line.what);
        }
        text
    }
}
