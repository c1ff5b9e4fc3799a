//! The NBD server with foreign clients, friendly and hostile: the real program, real sockets, the tools
//! of Debian's packages. A tool that is missing is a failure, never a test that passes.

mod allocation;
mod backends;
mod budget;
#[path = "../harness/certificates.rs"]
mod certificates;
mod chunks;
mod client;
mod crowd;
mod entrance;
mod hostile;
mod life;
mod orders;
#[path = "../harness/played.rs"]
mod played;
mod raw;
mod server;
mod shared;
mod tls;
mod tools;
mod up;
#[path = "../harness/waiting.rs"]
mod waiting;
