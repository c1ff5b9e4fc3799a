//! The kernel's own structures and numbers that blockhaus speaks; no logic.
//!
//! | module | what it mirrors |
//! |---|---|
//! | [`ublk`] | `linux/ublk_cmd.h` as of Linux 7.3-rc, with the `LBMD_PI_*` numbers of `linux/fs.h` that it refers to |
//! | [`nbd`] | `linux/nbd-netlink.h`, and the ioctls and flags of `linux/nbd.h` |
//! | [`loop_device`] | `linux/loop.h`, as far as it is spoken here |
//! | [`ioctl`] | the `_IOR`/`_IOWR` encoding of `asm/ioctl.h`, from which opcodes are computed |
//!
//! Three rules hold here:
//!
//! * A structure keeps the kernel's field names, and every size and offset is asserted when the
//!   crate is compiled. There are no hidden padding bytes: a hole in the C structure is a field
//!   here, so every byte of a value is initialised.
//! * A number keeps the kernel's name without its prefix: `UBLK_F_USER_COPY` is
//!   [`ublk::Features::USER_COPY`], `UBLK_U_CMD_ADD_DEV` is [`ublk::cmd::ADD_DEV`].
//! * A flag field has a flag type. Every bit pattern is a valid value of such a type, so what the
//!   kernel wrote is kept whole even where it knows more bits than we do.
//!
//! Methods only pick bits apart or put them together. `tests/header` compiles the newest packaged
//! headers and compares everything here with them, in both directions where all of one is spoken.
#![no_std]

#[macro_use]
mod layout;

pub mod ioctl;
pub mod loop_device;
pub mod nbd;
pub mod ublk;
