//! Threads: where they run, and what the kernel must know of one that serves a disk.

use std::io;
use std::thread;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub use std::thread::JoinHandle;

use super::clock::Duration;

/// Stack of a queue thread. Tasks live on the heap, so little is needed.
const QUEUE_STACK: usize = 512 << 10;

/// While this is held, a panic of this thread ends the process, however the program was built: a
/// disk half of whose threads are gone would hang whoever uses it, where that of a process that is
/// gone fails and can be cleaned up.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// Starts a thread with a name (the kernel shows its first 15 bytes). A panic in it ends the process.
pub fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let guarded = || {
        let _guard = AbortOnPanic;
        body()
    };
    thread::Builder::new().name(name).stack_size(QUEUE_STACK).spawn(guarded)
}

/// Bytes of stack that are brought in before they are needed.
const TOUCHED_STACK: usize = 128 << 10;

/// Brings this thread's stack into memory, where the process locks it, so that serving a request
/// never waits for a page of it.
#[inline(never)]
pub fn touch_stack() {
    let mut pages = [0u8; TOUCHED_STACK];
    std::hint::black_box(&mut pages);
}

/// A set of processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuMask(Vec<u16>);

impl CpuMask {
    /// From the kernel's bitmap, as GET_QUEUE_AFFINITY fills it.
    pub fn from_bitmap(bitmap: &[u8]) -> CpuMask {
        let bits = (0..bitmap.len() * 8).filter(|&bit| bitmap[bit / 8] >> (bit % 8) & 1 == 1);
        CpuMask(bits.map(|bit| bit as u16).collect())
    }

    /// The processors this thread may run on.
    pub fn current() -> io::Result<CpuMask> {
        let set = sched_getaffinity(Pid::from_raw(0))?;
        Ok(CpuMask(
            (0..CpuSet::count())
                .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
                .map(|cpu| cpu as u16)
                .collect(),
        ))
    }

    /// Those of this set that are in the other as well.
    pub fn and(&self, other: &CpuMask) -> CpuMask {
        CpuMask(self.0.iter().copied().filter(|cpu| other.0.contains(cpu)).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Confines this thread to the set.
    pub fn pin(&self) -> io::Result<()> {
        let mut set = CpuSet::new();
        for &cpu in &self.0 {
            set.set(usize::from(cpu))?;
        }
        Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
    }
}

impl std::fmt::Display for CpuMask {
    /// As the kernel writes lists of processors: `0-3,8`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut at = 0;
        while at < self.0.len() {
            let run =
                (at..self.0.len()).take_while(|&i| usize::from(self.0[i] - self.0[at]) == i - at).count();
            let comma = if at == 0 { "" } else { "," };
            match run {
                1 => write!(f, "{comma}{}", self.0[at])?,
                _ => write!(f, "{comma}{}-{}", self.0[at], self.0[at + run - 1])?,
            }
            at += run;
        }
        Ok(())
    }
}

/// The kernel's number of this thread.
pub fn current_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// How long this thread could have run so far and had no processor (Documentation/scheduler/sched-stats.rst). Zero
/// where the kernel does not say.
pub fn waited_for_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited_ns = text.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok());
    Duration::from_nanos(waited_ns.unwrap_or(0))
}

/// When a thread that was woken runs (sched(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduling {
    /// As every other.
    #[default]
    Ordinary,
    /// As every other, or [`Batch`](Self::Batch) as long as that finds much more to do each time; a
    /// [`Ring`](crate::port::ring::Ring) sees to that.
    Adaptive,
    /// At once, before every ordinary thread: SCHED_RR with the lowest priority.
    RealTime,
    /// When the thread that runs makes room: SCHED_BATCH.
    Batch,
}

/// Has this thread scheduled like that; yields how it is now, which is ordinary where it was not permitted: real time needs
/// CAP_SYS_NICE, or RLIMIT_RTPRIO. Threads that this one starts, the ring's workers among them, are ordinary.
pub fn schedule(wanted: Scheduling) -> Scheduling {
    let permitted = match wanted {
        Scheduling::Ordinary => true,
        Scheduling::Adaptive => set_policy(libc::SCHED_OTHER, 0),
        Scheduling::RealTime => set_policy(libc::SCHED_RR, 1),
        Scheduling::Batch => set_policy(libc::SCHED_BATCH, 0),
    };
    if permitted { wanted } else { Scheduling::Ordinary }
}

/// Has this thread, which is an ordinary one, wait for whoever runs to make room when it is woken, or not; false where that is not
/// permitted.
pub fn give_way(wanted: bool) -> bool {
    set_policy(if wanted { libc::SCHED_BATCH } else { libc::SCHED_OTHER }, 0)
}

fn set_policy(policy: libc::c_int, sched_priority: libc::c_int) -> bool {
    let (policy, priority) = (policy | libc::SCHED_RESET_ON_FORK, libc::sched_param { sched_priority });
    // SAFETY: the kernel reads one sched_param, which lives until the call returns; thread 0 is this one. By number,
    // since musl's function of this name refuses.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) == 0 }
}

/// CAP_SYS_ADMIN of linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;

/// Takes CAP_SYS_ADMIN from this thread (capset(2)), and from no other.
pub fn give_up_administration() -> io::Result<()> {
    /// _LINUX_CAPABILITY_VERSION_3: two sets of three words.
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let mut sets = [0u32; 6];
    // SAFETY: header and sets have the sizes that version 3 of capget(2) reads and writes; the
    // thread 0 is this one.
    if unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The first word of the first set: effective capabilities 0 to 31.
    sets[0] &= !(1 << CAP_SYS_ADMIN);
    // SAFETY: as above, and nothing is written.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// PF_MEMALLOC_NOIO of include/linux/sched.h: memory this thread asks for is never found by
/// writing to a disk, so that reclaim cannot wait on the disk that the thread serves.
const PF_MEMALLOC_NOIO: u64 = 0x0008_0000;

/// PF_LOCAL_THROTTLE, the other half of an IO_FLUSHER: its writes are throttled only by the
/// device it writes to.
const PF_LOCAL_THROTTLE: u64 = 0x0010_0000;

/// PR_SET_IO_FLUSHER of linux/prctl.h, which not every libc names.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Declares this thread an IO_FLUSHER (prctl(2)). To be done before its ring is made, so that the
/// ring's own kernel threads inherit it. Needs CAP_SYS_RESOURCE.
pub fn become_io_flusher() -> io::Result<()> {
    // SAFETY: this prctl takes numbers only.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1u64, 0u64, 0u64, 0u64) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel really treats a thread of this process as an IO_FLUSHER: read from its flags
/// in /proc, not from what was asked for.
pub fn is_io_flusher(thread: i32) -> io::Result<bool> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"))?;
    let flags = flags_of(&stat).ok_or_else(|| io::Error::other("cannot read the flags in /proc"))?;
    Ok(flags & PF_MEMALLOC_NOIO != 0 && flags & PF_LOCAL_THROTTLE != 0)
}

/// Field 9 of proc_pid_stat(5), counted after the name, which may hold anything.
fn flags_of(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_read_like_the_kernels() {
        assert_eq!(CpuMask::from_bitmap(&[0b1000_1111, 0b11]).to_string(), "0-3,7-9");
        assert_eq!(CpuMask::from_bitmap(&[0b101]).to_string(), "0,2");
        assert_eq!(CpuMask::from_bitmap(&[0, 0]).to_string(), "");
    }

    #[test]
    fn a_panic_ends_the_process() {
        use std::os::unix::process::ExitStatusExt;
        const CHILD: &str = "BLOCKHAUS_TEST_PANIC";
        if std::env::var_os(CHILD).is_some() {
            let _ = spawn("panics".into(), || panic!("as it is meant to")).map(JoinHandle::join);
            return;
        }
        let name = "port::linux::thread::tests::a_panic_ends_the_process";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{child:?}");
    }

    #[test]
    fn the_flag_is_read_back_from_the_kernel() {
        let thread = spawn("x) y 1 2 (".into(), || {
            let asked = become_io_flusher();
            (asked.is_ok(), is_io_flusher(current_id()).unwrap())
        });
        let (asked, have) = thread.unwrap().join().unwrap();
        assert_eq!(asked, have);
        assert!(!is_io_flusher(current_id()).unwrap(), "only the thread that asked has it");
    }
}
