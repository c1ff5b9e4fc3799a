//! The ioctl number encoding of `asm/ioctl.h`, which ublk uses for its `uring_cmd` opcodes and the NBD driver
//! for its ioctls.
//!
//! Most architectures put a two-bit direction above a 14-bit size; MIPS, PowerPC and SPARC put a
//! three-bit direction above 13 bits.

/// Whether this architecture has the three-bit direction field.
const WIDE_DIRECTION: bool = cfg!(any(
    target_arch = "mips",
    target_arch = "mips32r6",
    target_arch = "mips64",
    target_arch = "mips64r6",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc",
    target_arch = "sparc64",
));

const SIZE_SHIFT: u32 = 16;
const DIRECTION_SHIFT: u32 = if WIDE_DIRECTION { 29 } else { 30 };
const NONE: u32 = if WIDE_DIRECTION { 1 } else { 0 };
const READ: u32 = 2;
const WRITE: u32 = if WIDE_DIRECTION { 4 } else { 1 };

const fn encode(direction: u32, kind: u8, nr: u8, size: usize) -> u32 {
    assert!(size < 1 << (DIRECTION_SHIFT - SIZE_SHIFT));
    (direction << DIRECTION_SHIFT) | ((size as u32) << SIZE_SHIFT) | ((kind as u32) << 8) | nr as u32
}

/// `_IO(kind, nr)`: nothing is said about what goes in or comes back.
#[inline]
#[must_use]
pub const fn io(kind: u8, nr: u8) -> u32 {
    encode(NONE, kind, nr, 0)
}

/// `_IOR(kind, nr, T)`: the kernel returns something, `T` gives the size field.
#[inline]
#[must_use]
pub const fn ior<T>(kind: u8, nr: u8) -> u32 {
    encode(READ, kind, nr, size_of::<T>())
}

/// `_IOWR(kind, nr, T)`: something goes in and comes back, `T` gives the size field.
#[inline]
#[must_use]
pub const fn iowr<T>(kind: u8, nr: u8) -> u32 {
    encode(READ | WRITE, kind, nr, size_of::<T>())
}
