//! What the numbers mean that every verb that makes disks takes, all of them checked.

use crate::config::parse_size;
use crate::error::{Error, Result};
use crate::port::system;

/// A number of queues.
pub(super) fn queues(asked: u32) -> Result<u16> {
    let cpus = system::cpu_count();
    match u16::try_from(asked) {
        Ok(queues) if queues >= 1 && queues <= cpus => Ok(queues),
        _ => {
            let why = format!("this machine has {cpus} CPUs, a disk has 1 to {cpus} queues");
            Err(Error::invalid(format!("cannot have {asked} queues"), why)
                .cure(format!("ask for --queues {}", cpus.min(asked.clamp(1, 65535) as u16))))
        }
    }
}

/// A number of requests at once.
pub(super) fn depth(asked: u32, max: u16) -> Result<u16> {
    match u16::try_from(asked) {
        Ok(depth) if depth >= 1 && depth <= max => Ok(depth),
        _ => {
            let why = format!("a queue takes 1 to {max} requests at once");
            Err(Error::invalid(format!("cannot have depth {asked}"), why)
                .cure(format!("ask for --depth {}", asked.clamp(1, max.into()))))
        }
    }
}

/// A logical block size in bytes.
pub(super) fn block_size(text: &str) -> Result<u32> {
    let page = system::page_size();
    let what = || format!("cannot have blocks of {text}");
    let size = parse_size(text).map_err(|why| Error::invalid(what(), why))?;
    match u32::try_from(size) {
        Ok(size) if size.is_power_of_two() && size >= 512 && size as usize <= page => Ok(size),
        _ => {
            let why =
                format!("a block is a power of two from 512 to {page} bytes, the page size of this machine");
            Err(Error::invalid(what(), why).cure(format!("ask for --block-size 512 or --block-size {page}")))
        }
    }
}
