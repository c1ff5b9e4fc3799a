//! Which runs of a disk take space and which read as zeros: the answer to [`Op::Extents`](super::Op::Extents),
//! in the memory of the request's slot.

use bitflags::bitflags;

use super::{Errno, Flags, Io};

bitflags! {
    /// What is known of a run. Nothing is known of data: it may take space, and may be zeros.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct State: u32 {
        /// It takes no space.
        const HOLE = 1 << 0;
        /// It reads as zeros.
        const ZERO = 1 << 1;
    }
}

/// Bytes of a disk that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many.
    pub len: u64,
    /// What they are.
    pub state: State,
}

/// Most extents of one answer, whatever room there is: a bound on the work for one request.
pub const MOST_EXTENTS: usize = 1024;

/// Bytes of the longest answer.
pub const ANSWER_LEN: usize = HEAD + MOST_EXTENTS * RECORD;

const HEAD: usize = 8;
const RECORD: usize = 16;

/// The answer to a request, as it is being written. It begins where the request's range does, and may end
/// before that does; a request that asks for more comes again.
#[derive(Debug)]
pub struct Answer<'a> {
    bytes: &'a mut [u8],
    count: usize,
    left: u64,
    only_first: bool,
}

impl<'a> Answer<'a> {
    /// An empty one to `io`, in the memory of its slot. EINVAL where there is no room for an extent.
    pub fn new(io: &Io, bytes: &'a mut [u8]) -> Result<Answer<'a>, Errno> {
        if bytes.len() < HEAD + RECORD {
            return Err(Errno::EINVAL);
        }
        let only_first = io.flags.contains(Flags::FIRST_EXTENT);
        let mut answer = Answer { bytes, count: 0, left: io.len, only_first };
        answer.note_count();
        Ok(answer)
    }

    fn note_count(&mut self) {
        self.bytes[..HEAD].copy_from_slice(&(self.count as u64).to_ne_bytes());
    }

    /// Adds a run behind those that are there; what is beyond the request's range is left away. Whether more is
    /// wanted.
    pub fn add(&mut self, len: u64, state: State) -> bool {
        let len = len.min(self.left);
        if len == 0 {
            return self.left != 0;
        }
        let last = self.count.checked_sub(1).map(|last| extent(self.bytes, last));
        let (at, extent) = match last {
            Some(last) if last.state == state => (self.count - 1, Extent { len: last.len + len, state }),
            Some(_) if self.only_first || self.count == room(self.bytes) => {
                self.left = 0;
                return false;
            }
            _ => (self.count, Extent { len, state }),
        };
        let record = &mut self.bytes[HEAD + at * RECORD..][..RECORD];
        record[..8].copy_from_slice(&extent.len.to_ne_bytes());
        record[8..].copy_from_slice(&u64::from(extent.state.bits()).to_ne_bytes());
        self.count = at + 1;
        self.note_count();
        self.left -= len;
        self.left != 0
    }
}

/// How many extents there is room for.
fn room(bytes: &[u8]) -> usize {
    (bytes.len().saturating_sub(HEAD) / RECORD).min(MOST_EXTENTS)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn extent(bytes: &[u8], number: usize) -> Extent {
    let at = HEAD + number * RECORD;
    Extent { len: word(bytes, at), state: State::from_bits_truncate(word(bytes, at + 8) as u32) }
}

/// The extents of an answer, in their order; whoever wrote it, none is empty and all are inside `len` bytes.
pub fn extents(bytes: &[u8], len: u64) -> impl Iterator<Item = Extent> {
    let count = usize::try_from(word(bytes, 0)).unwrap_or(usize::MAX).min(room(bytes));
    let mut left = len;
    (0..count).map(|number| extent(bytes, number)).map_while(move |extent| {
        let len = extent.len.min(left);
        left -= len;
        (len != 0).then_some(Extent { len, ..extent })
    })
}

/// Makes an answer about a range one about a part of it: the `len` bytes behind the first `skip`.
pub fn narrow(bytes: &mut [u8], skip: u64, len: u64) {
    let count = usize::try_from(word(bytes, 0)).unwrap_or(usize::MAX).min(room(bytes));
    let (mut kept, mut skip, mut left) = (0, skip, len);
    for number in 0..count {
        let Extent { len, state } = extent(bytes, number);
        let skipped = skip.min(len);
        skip -= skipped;
        let len = (len - skipped).min(left);
        left -= len;
        if len != 0 {
            let record = &mut bytes[HEAD + kept * RECORD..][..RECORD];
            record[..8].copy_from_slice(&len.to_ne_bytes());
            record[8..].copy_from_slice(&u64::from(state.bits()).to_ne_bytes());
            kept += 1;
        }
    }
    if let Some(head) = bytes.first_chunk_mut::<HEAD>() {
        *head = (kept as u64).to_ne_bytes();
    }
}

/// The extents of an answer with borders at whole blocks alone, of a power of two; `len` is some of these. A block
/// that is a part of two extents is data.
pub fn whole_blocks(bytes: &[u8], len: u64, block: u64) -> impl Iterator<Item = Extent> {
    let mask = block - 1;
    let mut source = extents(bytes, len);
    // Where the source is, and where what was yielded ends, which may be up to a block further.
    let (mut at, mut told) = (0u64, 0u64);
    let mut torn = false;
    std::iter::from_fn(move || {
        loop {
            if std::mem::take(&mut torn) {
                told += block;
                return Some(Extent { len: block, state: State::empty() });
            }
            let Extent { len, state } = source.next()?;
            at += len;
            torn = at & mask != 0 && at > told;
            let end = at & !mask;
            if end > told {
                let len = end - told;
                told = end;
                return Some(Extent { len, state });
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::io::Op;

    fn request(len: u64, flags: Flags) -> Io {
        Io { op: Op::Extents, flags, offset: 4096, len, slot: 0 }
    }

    /// What each byte is, as far as the answer goes.
    fn bytewise(extents: impl Iterator<Item = Extent>) -> Vec<State> {
        extents.flat_map(|extent| std::iter::repeat_n(extent.state, extent.len as usize)).collect()
    }

    fn add_all(answer: &mut Answer<'_>, runs: &[(u64, State)]) {
        for &(len, state) in runs {
            answer.add(len, state);
        }
    }

    fn any_runs() -> impl Strategy<Value = Vec<(u64, State)>> {
        prop::collection::vec((0u64..40, (0u32..4).prop_map(State::from_bits_truncate)), 0..60)
    }

    proptest! {
        #[test]
        fn an_answer_says_what_was_added(runs in any_runs(), len in 1u64..2000, room in 1usize..80) {
            let mut memory = vec![0xff; HEAD + room * RECORD + 3];
            let mut answer = Answer::new(&request(len, Flags::empty()), &mut memory).unwrap();
            let mut model = Vec::new();
            for &(run, state) in &runs {
                model.extend(std::iter::repeat_n(state, run as usize));
                if !answer.add(run, state) {
                    break;
                }
            }
            model.truncate(len as usize);
            let told = bytewise(extents(&memory, len));
            prop_assert!(model.starts_with(&told) && (told.len() == model.len() || extents(&memory, len).count() == room));
            let found: Vec<Extent> = extents(&memory, len).collect();
            prop_assert!(found.windows(2).all(|two| two[0].state != two[1].state), "{found:?}");
        }

        #[test]
        fn a_part_of_an_answer_says_the_same(runs in any_runs(), skip in 0u64..300, len in 1u64..300) {
            let mut memory = vec![0; 4096];
            let mut answer = Answer::new(&request(5000, Flags::empty()), &mut memory).unwrap();
            add_all(&mut answer, &runs);
            let whole = bytewise(extents(&memory, 5000));
            narrow(&mut memory, skip, len);
            let part: Vec<State> = whole.into_iter().skip(skip as usize).take(len as usize).collect();
            prop_assert_eq!(bytewise(extents(&memory, len)), part);
        }

        /// Nothing is said of a block that is not so of all its bytes.
        #[test]
        fn borders_lie_between_blocks(runs in any_runs(), blocks in 1u64..100) {
            const BLOCK: u64 = 16;
            let len = blocks * BLOCK;
            let mut memory = vec![0; 4096];
            let mut answer = Answer::new(&request(len, Flags::empty()), &mut memory).unwrap();
            add_all(&mut answer, &runs);
            let truth = bytewise(extents(&memory, len));
            let told: Vec<Extent> = whole_blocks(&memory, len, BLOCK).collect();
            prop_assert!(told.iter().all(|extent| extent.len > 0 && extent.len % BLOCK == 0));
            let told = bytewise(told.into_iter());
            prop_assert_eq!(told.len() as u64, (truth.len() as u64).next_multiple_of(BLOCK));
            for (block, told) in told.chunks(BLOCK as usize).enumerate() {
                let start = block * BLOCK as usize;
                let all = State::all();
                let truth = truth.get(start..start + BLOCK as usize)
                    .map_or(State::empty(), |bytes| bytes.iter().fold(all, |states, &state| states & state));
                prop_assert!(truth.contains(told[0]), "block {}", block);
            }
        }

        #[test]
        fn no_memory_makes_an_answer_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), len: u64) {
            let sum: u128 = extents(&bytes, len).map(|extent| u128::from(extent.len)).sum();
            prop_assert!(sum <= u128::from(len));
            narrow(&mut bytes, 7, len);
        }
    }

    #[test]
    fn who_wants_one_gets_the_whole_of_it_and_no_more() {
        let mut memory = vec![0; 4096];
        let mut answer = Answer::new(&request(1000, Flags::FIRST_EXTENT), &mut memory).unwrap();
        assert!(answer.add(100, State::HOLE) && answer.add(50, State::HOLE));
        assert!(!answer.add(10, State::empty()) && !answer.add(1, State::HOLE));
        let all: Vec<Extent> = extents(&memory, 1000).collect();
        assert_eq!(all, [Extent { len: 150, state: State::HOLE }]);
        assert!(Answer::new(&request(1, Flags::empty()), &mut [0; 20]).is_err());
    }
}
