//! The FUSE engine: the disk as one file in a mount of its own, for kernels that have neither ublk nor NBD, and
//! for who may not use them. Where this process is root a loop device is put on the file, and the disk is a block
//! device like any other.
//!
//! Threads of the session (`port/linux/fuse.rs`) take requests from the kernel and leave them at a line (`fuse/line.rs`), one
//! for each queue; the queue's thread serves them as the other engines' do and sends the replies itself. There are
//! as many requests on their way as the queue has slots. A session's thread that finds none free waits, and so
//! does the kernel: that is all the back-pressure there is.
//!
//! **This process never opens the file, nor the loop device on it.** The kernel reads partitions when a loop device is
//! made, and writes back what is dirty when one is closed; both wait for this process. If it were killed while one of
//! its own threads waited there, it could not end, and nobody would be told. So a helper process does that (`fuse/helper.rs`).

pub mod availability;
mod device;
mod front;
pub mod helper;
mod line;
pub mod place;
mod seat;

pub use device::{Device, Options};

/// Longest read or write, in bytes: 256 pages, which is what the kernel takes unless it is told otherwise
/// (fs.fuse.max_pages_limit).
pub const MAX_IO_SIZE: u32 = 1 << 20;

/// What a slot holds however many there are.
const LEAST_IO_SIZE: u32 = 64 << 10;

/// Bytes of buffers that a queue has, if its depth lets it.
const BUFFERS: u32 = 32 << 20;

/// Bytes of zeros that one request of the stack asks for; a longer range is asked for piece by piece.
const LONGEST_ZEROES: u64 = 256 << 20;

/// Longest read or write of a queue of this depth: fewer requests at once may be longer ones.
fn io_size(depth: u16) -> u32 {
    let share = (BUFFERS / u32::from(depth.max(1))).clamp(LEAST_IO_SIZE, MAX_IO_SIZE);
    1 << share.ilog2()
}

#[cfg(test)]
mod tests {
    use super::io_size;

    #[test]
    fn a_queues_buffers_have_32_mib_unless_it_is_very_deep_or_shallow() {
        for (depth, size) in [
            (1, 1 << 20),
            (32, 1 << 20),
            (33, 512 << 10),
            (64, 512 << 10),
            (128, 256 << 10),
            (4096, 64 << 10),
        ] {
            assert_eq!(io_size(depth), size, "{depth}");
        }
    }
}
