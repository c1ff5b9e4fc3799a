//! GET_FEATURES asked of the kernel directly, with none of blockhaus' code in between.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

const IORING_SETUP_SQE128: u32 = 1 << 10;
const IORING_OFF_SQES: i64 = 0x1000_0000;
const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_OP_URING_CMD: u8 = 46;
const UBLK_U_CMD_GET_FEATURES: u32 = 0x8020_7513;
/// Where in `struct io_uring_params` (120 bytes) what we read stands.
const PARAMS: usize = 120;
const RING_BYTES: usize = 4096;

/// A shared mapping of a ring, unmapped when dropped.
struct Mapping(*mut u8);

impl Mapping {
    fn new(ring: RawFd, offset: i64) -> io::Result<Self> {
        // SAFETY: a new shared mapping of the ring at an address the kernel picks; one page is less
        // than or equal to what either area of a ring of one entry occupies.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                RING_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                ring,
                offset,
            )
        };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(at.cast())) }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        let offset = offset as usize;
        assert!(offset + 4 <= RING_BYTES && offset.is_multiple_of(4));
        // SAFETY: within the mapping and aligned by the assertion above; the mapping lives as long
        // as `self`; the kernel writes these words, hence atomics.
        unsafe { AtomicU32::from_ptr(self.0.add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; references into it cannot outlive `self`.
        unsafe { libc::munmap(self.0.cast(), RING_BYTES) };
    }
}

/// The kernel's feature mask.
pub fn features() -> io::Result<u64> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/ublk-control")?;
    let mut params = [0u32; PARAMS / 4];
    params[2] = IORING_SETUP_SQE128;
    // SAFETY: io_uring_setup reads and writes 120 bytes at the pointer, which is what `params` has.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    let ring = RawFd::try_from(ring).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor is new and nobody else's.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    // sq_off begins at byte 40: head, tail, mask, entries, flags, dropped, array; cq_off at byte
    // 80: head, tail, mask, entries, overflow, cqes.
    let (sq_tail, sq_array, cq_tail, cqes) = (params[11], params[16], params[21], params[25]);
    let rings = Mapping::new(ring.as_raw_fd(), 0)?;
    let sqes = Mapping::new(ring.as_raw_fd(), IORING_OFF_SQES)?;
    let mut answer = Box::new(0u64);
    let mut sqe = [0u8; 128];
    sqe[0] = IORING_OP_URING_CMD;
    sqe[4..8].copy_from_slice(&control.as_raw_fd().to_le_bytes());
    sqe[8..12].copy_from_slice(&UBLK_U_CMD_GET_FEATURES.to_le_bytes());
    // struct ublksrv_ctrl_cmd: no device, no queue, eight bytes at `answer`.
    sqe[48..52].copy_from_slice(&u32::MAX.to_le_bytes());
    sqe[52..54].copy_from_slice(&u16::MAX.to_le_bytes());
    sqe[54..56].copy_from_slice(&8u16.to_le_bytes());
    sqe[56..64].copy_from_slice(&(ptr::from_mut(&mut *answer) as u64).to_le_bytes());
    // SAFETY: the first entry of the submission array, 128 bytes, within its mapping; the kernel
    // reads it no earlier than at the io_uring_enter below.
    unsafe { ptr::copy_nonoverlapping(sqe.as_ptr(), sqes.0, sqe.len()) };
    rings.word(sq_array).store(0, Ordering::Relaxed);
    rings.word(sq_tail).store(1, Ordering::Release);
    // SAFETY: submits the one entry and waits for it; `answer` lives until the end of the function,
    // which is after the completion has come.
    let entered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1,
            1,
            IORING_ENTER_GETEVENTS,
            ptr::null::<u8>(),
            0,
        )
    };
    if entered != 1 || rings.word(cq_tail).load(Ordering::Acquire) != 1 {
        return Err(io::Error::last_os_error());
    }
    let result = rings.word(cqes + 8).load(Ordering::Relaxed) as i32;
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: a plain read of our own number, volatile since the kernel wrote it behind our back.
    Ok(unsafe { ptr::from_ref(&*answer).read_volatile() })
}
