//! The state of a world while a thread has it, and whether one has: what is allocated meanwhile is the
//! world's, not the server's.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, MutexGuard, PoisonError};

use super::world::State;

thread_local! {
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread does the world's work at the moment, and not its own.
pub fn in_the_world() -> bool {
    // A thread that is ending has no such place any more.
    INSIDE.try_with(Cell::get).unwrap_or(0) != 0
}

/// The state, alone.
pub(super) struct Locked<'a> {
    guard: Option<MutexGuard<'a, State>>,
}

impl<'a> Locked<'a> {
    pub fn new(guard: MutexGuard<'a, State>) -> Locked<'a> {
        INSIDE.set(INSIDE.get() + 1);
        Locked { guard: Some(guard) }
    }

    /// Lets go of it until somebody notifies.
    pub fn wait(mut self, condition: &Condvar) -> Locked<'a> {
        let guard =
            self.guard.take().map(|guard| condition.wait(guard).unwrap_or_else(PoisonError::into_inner));
        self.guard = guard;
        self
    }
}

const HELD: &str = "only wait and drop take it, for as long as they run";

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.guard.as_deref().expect(HELD)
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.guard.as_deref_mut().expect(HELD)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.guard = None;
        INSIDE.set(INSIDE.get() - 1);
    }
}
