//! The program that counts allocations on the data path: its own exit status decides.

use super::{Entry, Where, entry, examples};
use crate::outcome::Outcome;
use crate::run::Cmd;

pub(super) const TESTS: &[Entry] = &[entry("alloc/none-per-io", 120, Where::Ublk, alloc)];

fn alloc() -> Outcome {
    let binary = examples::payload("/payload/alloc_count")?;
    Cmd::new(binary).timeout(110).ok()?;
    Ok(())
}
