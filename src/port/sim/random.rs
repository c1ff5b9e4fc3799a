//! Chance in a world.

pub use crate::random::Random;

impl Random {
    /// A generator of its own for a part of the world, so that one part's questions do not change
    /// another's answers.
    pub fn fork(&mut self) -> Random {
        Random::new(self.number())
    }

    /// A number from `first` to `last`, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last.saturating_sub(first).saturating_add(1))
    }

    /// True `of_a_thousand` times out of a thousand.
    pub fn chance(&mut self, of_a_thousand: u32) -> bool {
        self.below(1000) < u64::from(of_a_thousand)
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}
