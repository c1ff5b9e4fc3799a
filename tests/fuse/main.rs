//! The FUSE engine on this machine's own kernel: the real program, the file that it mounts and the loop device on it,
//! with fio, file systems and ordinary programs on top. Needs /dev/fuse, loop devices and root; where they are not there
//! each test says so and does nothing. The VM tests run the same engine on kernels that certainly have them.

mod bytes;
mod life;
mod load;
mod user;
#[path = "../harness/waiting.rs"]
mod waiting;
mod world;
