//! A block device (or a file) opened for direct I/O.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::model::Target;
use super::pattern;
use crate::outcome::{Context, Fail, Outcome};

const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKSSZGET: libc::c_ulong = 0x1268;

/// Memory that starts on a page.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Self {
        let bytes = vec![0u8; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Self { bytes, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

pub struct Device {
    file: File,
    path: String,
    size: u64,
    block: u64,
}

impl Device {
    /// Opens for reading and writing, past the page cache.
    pub fn open(path: &str) -> Outcome<Self> {
        Self::with(OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT), path)
    }

    pub fn open_read_only(path: &str) -> Outcome<Self> {
        Self::with(OpenOptions::new().read(true).custom_flags(libc::O_DIRECT), path)
    }

    fn with(options: &OpenOptions, path: &str) -> Outcome<Self> {
        let file = options.open(path).context(format!("cannot open {path}"))?;
        let (mut size, mut block) = (0u64, 0i32);
        // SAFETY: both ioctls write one number through a pointer to a number of that size, and
        // both numbers live until the calls have returned.
        let failed = unsafe {
            libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &mut size) != 0
                || libc::ioctl(file.as_raw_fd(), BLKSSZGET as _, &mut block) != 0
        };
        if failed {
            return Err(Fail::new(format!("{path} is no block device: {}", io::Error::last_os_error())));
        }
        Ok(Self { file, path: path.to_string(), size, block: block as u64 })
    }

    fn range(&self, request: libc::c_ulong, at: u64, len: u64) -> io::Result<()> {
        let range = [at, len];
        // SAFETY: BLKDISCARD and BLKZEROOUT read two u64 from the pointer, which points at two.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, range.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes our pattern over a range.
    pub fn fill(&self, seed: u64, at: u64, len: u64) -> Outcome {
        let mut buffer = Aligned::new(256 * 1024);
        self.chunks(at, len, |at, count| {
            pattern::sectors(seed, at / 512, 1, &mut buffer[..count]);
            self.file
                .write_all_at(&buffer[..count], at)
                .context(format!("write of {count} at {at} on {}", self.path))
        })
    }

    /// Reads a range back and requires the pattern that `fill` wrote at `written_at`.
    pub fn expect(&self, seed: u64, at: u64, len: u64, written_at: u64) -> Outcome {
        let (mut buffer, mut good) = (Aligned::new(256 * 1024), vec![0u8; 256 * 1024]);
        self.chunks(at, len, |place, count| {
            self.file
                .read_exact_at(&mut buffer[..count], place)
                .context(format!("read of {count} at {place} on {}", self.path))?;
            let first = (place - at + written_at) / 512;
            pattern::sectors(seed, first, 1, &mut good[..count]);
            same(seed, &self.path, place, &buffer[..count], &good[..count])
        })
    }

    /// Reads a range back and requires zeros.
    pub fn expect_zeros(&self, at: u64, len: u64) -> Outcome {
        let (mut buffer, good) = (Aligned::new(256 * 1024), vec![0u8; 256 * 1024]);
        self.chunks(at, len, |at, count| {
            self.file
                .read_exact_at(&mut buffer[..count], at)
                .context(format!("read of {count} at {at} on {}", self.path))?;
            same(0, &self.path, at, &buffer[..count], &good[..count])
        })
    }

    fn chunks(&self, at: u64, len: u64, mut each: impl FnMut(u64, usize) -> Outcome) -> Outcome {
        let mut done = 0;
        while done < len {
            let count = (len - done).min(256 * 1024);
            each(at + done, count as usize)?;
            done += count;
        }
        Ok(())
    }

    /// One write as it is, the error as the kernel gives it.
    pub fn try_write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
}

fn same(seed: u64, path: &str, at: u64, found: &[u8], good: &[u8]) -> Outcome {
    if found == good {
        return Ok(());
    }
    for (i, (found, good)) in found.chunks(512).zip(good.chunks(512)).enumerate() {
        if found != good {
            return Err(Fail::new(format!(
                "{path} at {}: expected {}, found {}",
                at + i as u64 * 512,
                pattern::describe(seed, good),
                pattern::describe(seed, found)
            )));
        }
    }
    Ok(())
}

impl Target for Device {
    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u64 {
        self.block
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    fn write(&self, at: u64, bytes: &[u8], fua: bool) -> io::Result<()> {
        if !fua {
            return self.file.write_all_at(bytes, at);
        }
        let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: the kernel reads `bytes` alone, through an iovec that describes exactly it; both
        // outlive the call.
        let count =
            unsafe { libc::pwritev2(self.file.as_raw_fd(), &part, 1, at as libc::off_t, libc::RWF_DSYNC) };
        match usize::try_from(count) {
            Ok(count) if count == bytes.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.range(BLKDISCARD, at, len)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        self.range(BLKZEROOUT, at, len)
    }
}
