//! Which pages of a mapping have contents, as the kernel says (proc_pid_pagemap(5)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::Mapping;
use crate::port::system::page_size;

/// Bits of an entry of the file: the page is in memory, or in swap.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Entries that are read at once, and runs that are asked for at once.
const AT_ONCE: usize = 512;
const ENTRY: usize = size_of::<u64>();

/// What the kernel says of the pages of this process.
#[derive(Debug)]
pub struct PageMap(File);

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    runs: u64,
    runs_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any_of: u64,
    return_mask: u64,
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// PAGE_IS_PRESENT, PAGE_IS_SWAPPED and PAGE_IS_PFNZERO: the page that all share which was only ever read.
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_ZERO_PAGE: u64 = 1 << 5;

nix::ioctl_readwrite!(
    /// PAGEMAP_SCAN.
    pagemap_scan,
    b'f',
    16,
    Scan
);

impl PageMap {
    /// Opens that of the process as it is now: who forks has another one.
    pub fn open() -> io::Result<PageMap> {
        File::open("/proc/self/pagemap").map(PageMap)
    }

    /// Tells `each`, for one run after the other of `len` bytes at `offset` of a private mapping of no file, how many bytes
    /// it has and whether they may be anything but zeros, until it has heard enough.
    pub fn look(
        &self,
        mapping: &Mapping,
        offset: u64,
        len: u64,
        mut each: impl FnMut(u64, bool) -> bool,
    ) -> io::Result<()> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= mapping.len() as u64);
        if !inside || len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = mapping.start().as_ptr() as u64 + offset;
        let page = page_size() as u64;
        let pages = start / page * page..(start + len).next_multiple_of(page);
        let mut at = start;
        // Pages become bytes: the first and the last are there in part.
        let mut tell = |end: u64, has_contents: bool| {
            let end = end.min(start + len);
            let count = end.saturating_sub(at);
            at += count;
            count == 0 || each(count, has_contents)
        };
        match self.scan(pages.clone(), &mut tell) {
            // Before Linux 6.7; what was only read is taken for contents then.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.read(pages, &mut tell)
            }
            result => result,
        }
    }

    fn scan(&self, pages: std::ops::Range<u64>, tell: &mut impl FnMut(u64, bool) -> bool) -> io::Result<()> {
        let mut from = pages.start;
        while from < pages.end {
            let mut regions = [Region::default(); AT_ONCE / 4];
            let mut scan = Scan {
                size: size_of::<Scan>() as u64,
                start: from,
                end: pages.end,
                runs: regions.as_mut_ptr() as u64,
                runs_len: regions.len() as u64,
                category_any_of: IS_PRESENT | IS_SWAPPED,
                return_mask: IS_PRESENT | IS_SWAPPED | IS_ZERO_PAGE,
                ..Scan::default()
            };
            // SAFETY: the structure is the ioctl's, says its own size, and names an array that lives as long as the
            // call and has as many places as it says.
            let count = unsafe { pagemap_scan(self.0.as_raw_fd(), &mut scan) }?;
            for region in regions.iter().take(usize::try_from(count).unwrap_or(0)) {
                let is_zero_page = region.categories & (IS_ZERO_PAGE | IS_SWAPPED) == IS_ZERO_PAGE;
                if !tell(region.start, false) || !tell(region.end, !is_zero_page) {
                    return Ok(());
                }
            }
            if scan.walk_end <= from {
                return Err(io::ErrorKind::InvalidData.into());
            }
            from = scan.walk_end;
            if !tell(from, false) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read(&self, pages: std::ops::Range<u64>, tell: &mut impl FnMut(u64, bool) -> bool) -> io::Result<()> {
        let page = page_size() as u64;
        let (mut first, end) = (pages.start / page, pages.end / page);
        let mut entries = [0; AT_ONCE * ENTRY];
        while first < end {
            let count = (end - first).min(AT_ONCE as u64);
            let entries = &mut entries[..count as usize * ENTRY];
            self.0.read_exact_at(entries, first * ENTRY as u64)?;
            for entry in entries.as_chunks::<ENTRY>().0 {
                first += 1;
                if !tell(first * page, u64::from_ne_bytes(*entry) & (PRESENT | SWAPPED) != 0) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory::HugePages;

    type Run = (u64, bool);
    type Tell<'a> = &'a mut dyn FnMut(u64, bool) -> bool;
    type Way<'a> = &'a dyn Fn(Tell<'_>) -> io::Result<()>;

    fn joined(runs: Vec<Run>) -> Vec<Run> {
        let mut joined: Vec<Run> = Vec::new();
        for (len, has_contents) in runs {
            match joined.last_mut() {
                Some(last) if last.1 == has_contents => last.0 += len,
                _ => joined.push((len, has_contents)),
            }
        }
        joined
    }

    #[test]
    fn a_page_has_contents_from_its_first_write_until_it_is_given_back() {
        let mapping = Mapping::anonymous(1 << 20, HugePages::Never).unwrap();
        let pages = PageMap::open().unwrap();
        let look = |offset, len| {
            let mut runs = Vec::new();
            pages.look(&mapping, offset, len, |len, has_contents| {
                runs.push((len, has_contents));
                true
            })?;
            io::Result::Ok(joined(runs))
        };
        assert_eq!(look(0, 1 << 20).unwrap(), [(1 << 20, false)]);
        // SAFETY: the mapping is this test's alone.
        unsafe { mapping.start().as_ptr().add(5000).write(9) };
        assert_eq!(look(0, 16384).unwrap(), [(4096, false), (4096, true), (8192, false)]);
        assert_eq!(look(8191, 1).unwrap(), [(1, true)]);
        assert_eq!(look(8190, 100).unwrap(), [(2, true), (98, false)]);
        // SAFETY: as above.
        unsafe { mapping.give_back(4096, 4096).unwrap() };
        assert_eq!(look(4096, 4096).unwrap(), [(4096, false)]);
        assert!(look(1 << 20, 1).is_err());
    }

    #[test]
    fn both_ways_say_the_same_of_what_was_written_in_many_places() {
        let mapping = Mapping::anonymous(8 << 20, HugePages::Never).unwrap();
        let pages = PageMap::open().unwrap();
        for page in (0..2048).filter(|page| page % 3 == 0 || (500..700).contains(page)) {
            // SAFETY: the mapping is this test's alone, and has so many pages.
            unsafe { mapping.start().as_ptr().add(page * 4096).write(1) };
        }
        let start = mapping.start().as_ptr() as u64;
        let range = start..start + (8 << 20);
        let gather = |way: Way<'_>| {
            let (mut at, mut runs) = (start, Vec::new());
            let result = way(&mut |end, has_contents| {
                runs.push((end - at, has_contents));
                at = end;
                true
            });
            runs.retain(|run| run.0 > 0);
            result.map(|()| joined(runs))
        };
        let scanned = gather(&|mut tell| pages.scan(range.clone(), &mut tell));
        let read = gather(&|mut tell| pages.read(range.clone(), &mut tell));
        let read = read.unwrap();
        assert!(read.len() > 1000 && read.iter().map(|run| run.0).sum::<u64>() == 8 << 20);
        match scanned {
            Ok(scanned) => assert_eq!(scanned, read),
            // A kernel before 6.7.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY)),
        }
    }

    #[test]
    fn what_was_only_read_has_no_contents_where_the_kernel_can_tell() {
        let mapping = Mapping::anonymous(1 << 20, HugePages::Never).unwrap();
        let pages = PageMap::open().unwrap();
        // SAFETY: inside the mapping, which is this test's alone.
        assert_eq!(unsafe { mapping.start().as_ptr().add(4096).read_volatile() }, 0);
        let start = mapping.start().as_ptr() as u64;
        let mut found = false;
        let scanned = pages.scan(start..start + (1 << 20), &mut |_, has_contents| {
            found |= has_contents;
            true
        });
        assert!(scanned.is_err() || !found);
    }
}
