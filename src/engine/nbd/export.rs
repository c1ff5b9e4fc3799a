//! A disk as the protocol describes it.

use crate::error::{Error, Result};
use crate::io::Capabilities;
use crate::nbd::{BlockSizes, Export, ExportFlags, MAX_NAME, MAX_PAYLOAD};
use crate::queue::Stack;

/// Bytes of a request that one slot of a queue carries; a longer one takes several.
pub const SLOT_SIZE: u32 = 256 << 10;

/// Largest smallest block that the protocol knows.
const MAX_MINIMUM: u32 = 64 << 10;

/// What a client prefers where the disk does not care: pages.
const PREFERRED: u32 = 4096;

/// The slots that the longest request takes.
pub(super) const SLOTS_OF_LONGEST: u16 = MAX_PAYLOAD.div_ceil(SLOT_SIZE) as u16;

/// What clients are told of `stack` under this name.
pub(super) fn describe(name: &str, description: &str, stack: &dyn Stack) -> Result<Export> {
    let what = || format!("cannot export {name:?}");
    if name.len() > MAX_NAME {
        let why = format!("names have at most {MAX_NAME} bytes, and this one {}", name.len());
        return Err(Error::invalid(what(), why));
    }
    if description.len() > MAX_NAME {
        let why = format!("descriptions have at most {MAX_NAME} bytes, and this one {}", description.len());
        return Err(Error::invalid(what(), why));
    }
    let geometry = stack.geometry();
    let minimum = geometry.logical_block_size;
    if !minimum.is_power_of_two() || minimum > MAX_MINIMUM {
        let why = format!("its block size is {minimum}, and NBD takes a power of two up to {MAX_MINIMUM}");
        return Err(Error::invalid(what(), why).cure("give another --block-size"));
    }
    let preferred = geometry.optimal_io_size.max(geometry.physical_block_size).max(PREFERRED);
    // What is no power of two cannot be told; the protocol wants at most the maximum, too.
    let preferred =
        if preferred.is_power_of_two() && preferred <= MAX_PAYLOAD { preferred } else { PREFERRED };
    Ok(Export {
        name: name.to_owned(),
        description: description.to_owned(),
        size: geometry.size,
        flags: flags(stack.capabilities()),
        block: BlockSizes { minimum, preferred: preferred.max(minimum), maximum: MAX_PAYLOAD },
    })
}

/// Every backend flushes what any of its queues was told is written, so that connections may be many.
/// FUA is always kept: by the backend, by a flush after it, or since nothing is lost anyway.
fn flags(capabilities: Capabilities) -> ExportFlags {
    let mut flags = ExportFlags::HAS_FLAGS | ExportFlags::SEND_FLUSH | ExportFlags::CAN_MULTI_CONN;
    let writable = capabilities.contains(Capabilities::WRITE);
    // Where one of them means nothing, the handshake does not tell it.
    flags |= ExportFlags::SEND_DF | ExportFlags::BLOCK_STATUS_PAYLOAD | ExportFlags::SEND_CACHE;
    flags.set(ExportFlags::READ_ONLY, !writable);
    flags.set(ExportFlags::ROTATIONAL, capabilities.contains(Capabilities::ROTATIONAL));
    if writable {
        flags |= ExportFlags::SEND_FUA;
        flags.set(ExportFlags::SEND_TRIM, capabilities.contains(Capabilities::DISCARD));
        let zeroes = ExportFlags::SEND_WRITE_ZEROES | ExportFlags::SEND_FAST_ZERO;
        flags.set(zeroes, capabilities.contains(Capabilities::WRITE_ZEROES));
    }
    flags
}
