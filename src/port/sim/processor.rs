//! One real processor a world: its threads run one at a time, and handing over is far cheaper where
//! no other processor has to be woken.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// How many worlds each processor has.
static WORLDS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// This thread, and those that it starts, stay where they are until this is dropped. Where the kernel
/// does not permit that, nothing happens.
pub(super) struct Kept {
    before: Option<CpuSet>,
    cpu: usize,
}

fn count(cpu: usize, change: impl FnOnce(usize) -> usize) {
    let mut worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = worlds.entry(cpu).or_default();
    *count = change(*count);
}

impl Kept {
    /// On the processor with the fewest worlds.
    pub fn here() -> Kept {
        let before = sched_getaffinity(Pid::from_raw(0)).ok();
        let may = |cpu: &usize| before.is_some_and(|before| before.is_set(*cpu).unwrap_or(false));
        let worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let cpu = (0..CpuSet::count()).filter(may).min_by_key(|cpu| worlds.get(cpu).copied().unwrap_or(0));
        let cpu = cpu.unwrap_or(0);
        count(cpu, |worlds| worlds + 1);
        let mut one = CpuSet::new();
        let _ = one.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &one));
        Kept { before, cpu }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        count(self.cpu, |worlds| worlds.saturating_sub(1));
        if let Some(before) = &self.before {
            let _ = sched_setaffinity(Pid::from_raw(0), before);
        }
    }
}
