//! Storage of your own through the asynchronous door: on the queue's own io_uring.
//!
//! Registers the spec type `mirror:PATH,second=PATH`: two files with the same contents. A write goes
//! to both at once and is done when both are; a read that fails on the first is tried on the second.
//!
//! ```text
//! cargo run --example async_backend -- attach mirror:/srv/a.img,second=/mnt/b.img
//! ```

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;

use blockhaus::backend::{Backend, Queue, QueueContext};
use blockhaus::error::{Error, Result};
use blockhaus::io::{Capabilities, Errno, Flags, Geometry, Io, IoResult, Op};
use blockhaus::payload::Payload;
use blockhaus::port::ring::{AllocateMode, FixedFile, Operation, Ring};
use blockhaus::stack::{ReadOnly, SpecTable, SpecType};
use futures_util::future::join;

/// Two files of one size.
struct Mirror {
    files: [File; 2],
    size: u64,
}

impl Mirror {
    fn open(first: &str, second: &str) -> Result<Mirror> {
        let open = |path: &str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map_err(|error| Error::system(format!("cannot open {path}"), error))
        };
        let files = [open(first)?, open(second)?];
        let size = |file: &File| {
            file.metadata()
                .map(|metadata| metadata.len())
                .map_err(|error| Error::system("cannot ask for a size", error))
        };
        let sizes = [size(&files[0])?, size(&files[1])?];
        if sizes[0] != sizes[1] {
            return Err(Error::invalid(
                format!("cannot mirror {first} and {second}"),
                format!("they have {} and {} bytes", sizes[0], sizes[1]),
            )
            .cure("make them of one size with truncate(1)"));
        }
        Ok(Mirror { files, size: sizes[0] })
    }
}

impl Backend for Mirror {
    type Queue = MirrorQueue;

    fn geometry(&self) -> Geometry {
        Geometry { discard_granularity: 4096, ..Geometry::plain(self.size) }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::WRITE | Capabilities::VOLATILE_CACHE | Capabilities::FUA | Capabilities::DISCARD
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<MirrorQueue> {
        let register = |file: &File| {
            let registered = context.ring.register_file(file.as_raw_fd());
            registered.map_err(|error| Error::system("cannot register a file", error))
        };
        Ok(MirrorQueue {
            ring: context.ring.clone(),
            files: [register(&self.files[0])?, register(&self.files[1])?],
        })
    }

    fn close(&self) -> Result<()> {
        let sync =
            |file: &File| file.sync_data().map_err(|error| Error::system("cannot flush a mirror", error));
        self.files.iter().try_for_each(sync)
    }
}

/// One thread's handle: the two files in its ring.
struct MirrorQueue {
    ring: Ring,
    files: [FixedFile; 2],
}

impl Queue for MirrorQueue {
    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        let [first, second] = self.files;
        match io.op {
            Op::Read => {
                let from_first = whole(self.ring.read(first, &mut payload, io.offset), io.len).await;
                match from_first {
                    Ok(()) => Ok(()),
                    Err(_) => whole(self.ring.read(second, &mut payload, io.offset), io.len).await,
                }
            }
            Op::Write => {
                let durable = io.flags.contains(Flags::FUA);
                let write = |file| whole(self.ring.write(file, &payload, io.offset, durable), io.len);
                both(join(write(first), write(second)).await)
            }
            Op::Flush => {
                let sync = |file| whole(self.ring.sync_data(file, &payload), 0);
                both(join(sync(first), sync(second)).await)
            }
            Op::Discard => {
                let hole = AllocateMode::PunchHole;
                let punch = |file| whole(self.ring.allocate(file, &payload, hole, io.offset, io.len), 0);
                both(join(punch(first), punch(second)).await)
            }
            // Not among the capabilities above, so the kernel writes zeros instead, and all is taken for data.
            Op::WriteZeroes | Op::Extents => Err(Errno::EOPNOTSUPP),
        }
    }
}

/// A request is done wholly or not at all: fewer bytes are an error.
async fn whole(operation: Operation<'_>, len: u64) -> IoResult {
    if u64::from(operation.await?) == len { Ok(()) } else { Err(Errno::EIO) }
}

fn both((first, second): (IoResult, IoResult)) -> IoResult {
    first.and(second)
}

fn main() -> ExitCode {
    let mirror = SpecType {
        name: "mirror",
        argument: "PATH",
        about: "Two files with the same contents.",
        keys: vec![blockhaus::stack::Key { name: "second", values: "PATH", about: "The other file." }],
        open: Box::new(|spec, options| {
            let first = spec.required_arg("a path", "mirror:/a.img,second=/b.img")?;
            let second = spec.get("second").ok_or_else(|| {
                Error::invalid(spec.named(), "there is no second file").cure("add second=PATH")
            })?;
            let mirror = Mirror::open(first, second)?;
            Ok(if options.read_only { Arc::new(ReadOnly(mirror)) } else { Arc::new(mirror) })
        }),
    };
    blockhaus::cli::run(SpecTable::builtin().register(mirror))
}
