//! Which bytes of a read have been told.

/// Pieces that a read may be told in without any two of them touching. More is nothing that a server does.
const MOST_PIECES: usize = 1024;

/// Ranges of one read, in order, of which no two touch.
#[derive(Clone, Debug, Default)]
pub(super) struct Coverage(Vec<(u32, u32)>);

impl Coverage {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds a range that is not empty; false where a byte of it was told before, or the read is in too many pieces.
    pub fn add(&mut self, start: u32, end: u32) -> bool {
        // The first range that begins behind the start.
        let at = self.0.partition_point(|range| range.0 < start);
        let touches_before = match at.checked_sub(1).map(|before| self.0[before]) {
            Some((_, before)) if before > start => return false,
            Some((_, before)) => before == start,
            None => false,
        };
        let touches_behind = match self.0.get(at) {
            Some(&(behind, _)) if behind < end => return false,
            Some(&(behind, _)) => behind == end,
            None => false,
        };
        match (touches_before, touches_behind) {
            (true, true) => {
                self.0[at - 1].1 = self.0[at].1;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].1 = end,
            (false, true) => self.0[at].0 = start,
            (false, false) if self.0.len() == MOST_PIECES => return false,
            (false, false) => self.0.insert(at, (start, end)),
        }
        true
    }

    /// Whether it is all of a read of `len` bytes.
    pub fn is_whole(&self, len: u32) -> bool {
        self.0 == [(0, len)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As a map of bytes would have it.
        #[test]
        fn a_byte_is_told_once(ranges in prop::collection::vec((0u32..60, 1u32..12), 0..60)) {
            let (mut coverage, mut map) = (Coverage::default(), [false; 80]);
            for (start, len) in ranges {
                let bytes = &mut map[start as usize..(start + len) as usize];
                let is_new = bytes.iter().all(|told| !told);
                prop_assert_eq!(coverage.add(start, start + len), is_new);
                if is_new {
                    bytes.fill(true);
                }
            }
            let first = map.iter().position(|told| !told).unwrap_or(map.len());
            let whole = first > 0 && map[first..].iter().all(|told| !told);
            prop_assert_eq!(coverage.is_whole(first as u32), whole);
            prop_assert!(!coverage.is_whole(first as u32 + 1));
            prop_assert!(coverage.0.windows(2).all(|two| two[0].1 < two[1].0));
        }
    }

    #[test]
    fn a_read_in_too_many_pieces_is_refused() {
        let mut coverage = Coverage::default();
        assert!((0..MOST_PIECES as u32).all(|piece| coverage.add(2 * piece, 2 * piece + 1)));
        assert!(!coverage.add(1 << 20, (1 << 20) + 1));
        assert!(coverage.add(1, 2), "what touches makes it no longer");
    }
}
