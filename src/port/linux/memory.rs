//! Memory that is shared with the kernel: queue buffers, mapped descriptors, contents of a RAM disk.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::sys::mman::{
    MapFlags, MlockAllFlags, MmapAdvise, ProtFlags, madvise, mlockall, mmap, mmap_anonymous, mprotect,
    munlock, munmap,
};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::port::system::page_size;

pub mod pages;

/// What the kernel is asked to do about huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Use them where it can: fewer page-table walks on large copies.
    Wanted,
    /// Never: give memory out in the smallest pieces.
    Never,
}

/// A mapping of its own; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// What was reserved around it: guards on both sides, and room to align.
    reserved: (NonNull<u8>, usize),
}

// SAFETY: a mapping is an address range; the type hands out the raw address only, and whoever
// dereferences it argues for that.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; no method changes anything through a shared reference.
unsafe impl Sync for Mapping {}

/// Alignment that lets the kernel use huge pages from the first byte on.
const HUGE_PAGE: usize = 2 << 20;

impl Mapping {
    /// `len` bytes of zeroed private memory, not yet backed by pages, reserving no swap. A page on
    /// each side cannot be touched, so that an overrun is a crash and not a corruption, and so that
    /// the kernel never merges it with a neighbour in its accounts.
    pub fn anonymous(len: u64, huge_pages: HugePages) -> io::Result<Mapping> {
        let len = rounded(len)?.get();
        let page = page_size();
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { page };
        let whole = NonZeroUsize::new(len + align + 2 * page).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no other.
        let base: NonNull<u8> = unsafe { mmap_anonymous(None, whole, ProtFlags::PROT_NONE, flags) }?.cast();
        let offset = (base.as_ptr() as usize + page).next_multiple_of(align) - base.as_ptr() as usize;
        // SAFETY: offset is at most page + align, so that len bytes and a page follow it inside.
        let start = unsafe { base.add(offset) };
        let mapping = Mapping { start, len, reserved: (base, whole.get()) };
        // SAFETY: the range is inside the mapping just made, which nobody has seen yet.
        unsafe { mprotect(start.cast(), len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE) }?;
        let advice = match huge_pages {
            HugePages::Wanted => MmapAdvise::MADV_HUGEPAGE,
            HugePages::Never => MmapAdvise::MADV_NOHUGEPAGE,
        };
        // A kernel without transparent huge pages refuses either; both are only wishes.
        // SAFETY: the range is the mapping just made; this advice changes no contents.
        let _ = unsafe { madvise(mapping.start.cast(), mapping.len, advice) };
        Ok(mapping)
    }

    /// `len` bytes of `file` from `offset`, read-only and shared with whoever writes them.
    pub fn shared_read_only(file: &File, offset: u64, len: u64) -> io::Result<Mapping> {
        #[cfg(feature = "sim")]
        let offset = crate::port::sim::mapping_offset(file, offset, len)?;
        let len = rounded(len)?;
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other.
        let start = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE,
                file.as_fd(),
                offset,
            )
        }?;
        let (start, len) = (start.cast(), len.get());
        Ok(Mapping { start, len, reserved: (start, len) })
    }

    /// First byte.
    #[inline]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes, whole pages.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes a byte to each page, so that the pages exist and lie on the node of this thread.
    pub fn touch(&mut self) {
        for offset in (0..self.len).step_by(page_size()) {
            // SAFETY: inside the mapping, which is writable where this is called (anonymous), and
            // `&mut self` means that nobody was given access yet. Volatile, or it is optimised away.
            unsafe { self.start.as_ptr().add(offset).write_volatile(0) };
        }
    }

    /// Lets the kernel swap this range, against a lock on all memory of the process.
    pub fn unlock(&self) -> io::Result<()> {
        // SAFETY: the range is our own mapping; unlocking changes no contents.
        Ok(unsafe { munlock(self.start.cast(), self.len) }?)
    }

    /// Gives the pages of a range back; it reads as zeros afterwards (anonymous mappings).
    ///
    /// # Safety
    /// Nobody relies on the contents of the range, and no reference into it exists.
    pub unsafe fn give_back(&self, offset: usize, len: usize) -> io::Result<()> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !inside || !offset.is_multiple_of(page_size()) || !len.is_multiple_of(page_size()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if len == 0 {
            return Ok(());
        }
        // SAFETY: whole pages inside our own mapping; the caller gave up the contents.
        Ok(unsafe { madvise(self.start.add(offset).cast(), len, MmapAdvise::MADV_DONTNEED) }?)
    }

    /// Bytes of this mapping that have a page at this moment, from /proc/self/smaps.
    pub fn resident(&self) -> Option<u64> {
        // This process has the memory of many worlds, and long lists of it.
        #[cfg(feature = "sim")]
        crate::port::sim::current().is_none().then_some(())?;
        let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        resident_between(&smaps, self.start.as_ptr() as u64, self.start.as_ptr() as u64 + self.len as u64)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, len) = self.reserved;
        // SAFETY: our own mapping, and nothing that borrowed from it outlives it.
        let result = unsafe { munmap(start.cast(), len) };
        debug_assert!(result.is_ok(), "unmapping our own mapping: {result:?}");
    }
}

fn rounded(len: u64) -> io::Result<NonZeroUsize> {
    let page = page_size() as u64;
    let rounded = len.checked_next_multiple_of(page).and_then(|len| usize::try_from(len).ok());
    // A quarter of the address space is more than any mapping can get, and keeps sums from overflowing.
    rounded
        .filter(|&len| len < usize::MAX / 2)
        .and_then(NonZeroUsize::new)
        .ok_or(io::ErrorKind::InvalidInput.into())
}

/// Sum of the `Rss:` of all areas of `smaps` that begin inside start..end: the kernel may split a
/// mapping into several, and guards keep it from merging one with a neighbour.
fn resident_between(smaps: &str, start: u64, end: u64) -> Option<u64> {
    let mut sum = 0;
    let mut inside = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        if let Some((low, _)) = first.split_once('-')
            && let Ok(low) = u64::from_str_radix(low, 16)
        {
            inside = (start..end).contains(&low);
        } else if first == "Rss:" && inside {
            sum += words.next()?.parse::<u64>().ok()? * 1024;
        }
    }
    Some(sum)
}

/// CAP_IPC_LOCK of linux/capability.h: may lock any amount of memory.
const CAP_IPC_LOCK: u32 = 14;

/// Whether this process has a capability, from its mask in /proc.
fn has_capability(number: u32) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    Ok(mask.is_some_and(|mask| mask >> number & 1 == 1))
}

/// Locks all memory of this process, now and later, page by page as it is touched. What must not
/// be locked is unlocked by itself ([`Mapping::unlock`]).
///
/// A server whose pages are swapped out can wait for the very disk that it serves. Refused where
/// locked memory is limited: every later mapping would count against the limit, touched or not, and
/// fail.
pub fn lock_all() -> io::Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    if limit != RLIM_INFINITY && !has_capability(CAP_IPC_LOCK)? {
        return Err(io::Error::other(format!("locked memory is limited to {limit} bytes")));
    }
    // libc's flag has no name in nix.
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    Ok(mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_given_back_read_as_zeros_and_are_not_counted() {
        let mut mapping = Mapping::anonymous(1 << 20, HugePages::Never).unwrap();
        assert_eq!(mapping.resident(), Some(0));
        mapping.touch();
        assert_eq!(mapping.resident(), Some(1 << 20));
        // SAFETY: the mapping is this test's alone.
        unsafe {
            mapping.start().as_ptr().add(5000).write(9);
            mapping.give_back(4096, 8192).unwrap();
            assert_eq!(mapping.start().as_ptr().add(5000).read(), 0);
            assert!(mapping.give_back(1 << 20, 4096).is_err());
            assert!(mapping.give_back(100, 4096).is_err());
        }
    }

    #[test]
    fn sizes_that_cannot_be_mapped_are_errors() {
        for len in [0, u64::MAX, u64::MAX / 2 + 1] {
            assert!(Mapping::anonymous(len, HugePages::Never).is_err(), "{len}");
        }
    }

    #[test]
    fn areas_of_a_mapping_that_was_split_are_added_up() {
        let smaps = "1000-2000 rw-p 0 0 0\nRss: 8 kB\n2000-3000 rw-p 0 0 0\nRss: 4 kB\n3000-5000 rw-p 0 0 0 /x\nRss: 4 kB\n";
        assert_eq!(resident_between(smaps, 0x2000, 0x5000), Some(4096 + 4096));
    }
}
