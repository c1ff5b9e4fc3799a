//! Requests that failed, and with what.

use crate::io::Errno;

/// Different errors that are told apart.
const KINDS: usize = 8;

/// How many requests failed, by errno. Nothing is allocated when one is added.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    kinds: [Option<(Errno, u64)>; KINDS],
    others: u64,
}

impl Failures {
    #[cold]
    pub(super) fn add(&mut self, errno: Errno, count: u64) {
        for kind in &mut self.kinds {
            let (known, so_far) = kind.get_or_insert((errno, 0));
            if *known == errno {
                *so_far += count;
                return;
            }
        }
        self.others += count;
    }

    pub(super) fn merge(&mut self, other: &Failures) {
        other.kinds().for_each(|(errno, count)| self.add(errno, count));
        self.others += other.others;
    }

    /// Errors and how often each came, in the order in which they came first.
    pub fn kinds(&self) -> impl Iterator<Item = (Errno, u64)> {
        self.kinds.iter().copied().flatten()
    }

    /// All together.
    pub fn count(&self) -> u64 {
        self.kinds().map(|(_, count)| count).sum::<u64>() + self.others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_however_many_kinds_there_are() {
        let mut failures = Failures::default();
        for number in 1..=20 {
            failures.add(Errno::new(number), 2);
        }
        failures.add(Errno::new(1), 1);
        let mut sum = Failures::default();
        sum.merge(&failures);
        sum.merge(&failures);
        assert_eq!((failures.count(), sum.count()), (41, 82));
        assert_eq!(sum.kinds().next(), Some((Errno::new(1), 6)));
        assert_eq!(sum.kinds().count(), KINDS);
    }
}
