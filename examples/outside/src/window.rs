//! The asynchronous door: a part of a file as a disk of its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use blockhaus::backend::{Backend, Queue, QueueContext};
use blockhaus::error::{Error, Result};
use blockhaus::io::{Capabilities, Errno, Flags, Geometry, Io, IoResult, Op};
use blockhaus::payload::Payload;
use blockhaus::port::ring::{FixedFile, Operation, Ring};
use blockhaus::stack::{Key, ReadOnly, SpecType};

struct Window {
    file: File,
    start: u64,
    size: u64,
}

impl Backend for Window {
    type Queue = WindowQueue;

    fn geometry(&self) -> Geometry {
        Geometry::plain(self.size)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::WRITE | Capabilities::VOLATILE_CACHE | Capabilities::FUA
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<WindowQueue> {
        let file = context.ring.register_file(self.file.as_raw_fd());
        let file = file.map_err(|error| Error::system("cannot register a file", error))?;
        Ok(WindowQueue { ring: context.ring.clone(), file, start: self.start })
    }

    fn close(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| Error::system("cannot flush a window", error))
    }
}

/// One thread's handle: the file in its ring.
struct WindowQueue {
    ring: Ring,
    file: FixedFile,
    start: u64,
}

impl Queue for WindowQueue {
    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        // The range was checked against our size, and start plus size when the disk was opened.
        let at = self.start + io.offset;
        match io.op {
            Op::Read => whole(self.ring.read(self.file, &mut payload, at), io.len).await,
            Op::Write => {
                let durable = io.flags.contains(Flags::FUA);
                whole(self.ring.write(self.file, &payload, at, durable), io.len).await
            }
            Op::Flush => whole(self.ring.sync_data(self.file, &payload), 0).await,
            // Not among the capabilities above, so the kernel does without.
            Op::Discard | Op::WriteZeroes | Op::Extents => Err(Errno::EOPNOTSUPP),
        }
    }
}

/// A request is done wholly or not at all: fewer bytes are an error.
async fn whole(operation: Operation<'_>, len: u64) -> IoResult {
    if u64::from(operation.await?) == len { Ok(()) } else { Err(Errno::EIO) }
}

/// Where a window lies in a file of so many bytes.
fn range(len: u64, start: u64, size: Option<u64>) -> Result<(u64, u64), String> {
    let rest = len.checked_sub(start).ok_or_else(|| format!("it begins behind the end, {len}"))?;
    let size = size.unwrap_or(rest - rest % 512);
    match size {
        0 => Err("there is nothing in it".to_owned()),
        size if size > rest => Err(format!("only {rest} of its {size} bytes are in the file")),
        size if !size.is_multiple_of(512) => Err(format!("its size, {size}, is not a multiple of 512")),
        size => Ok((start, size)),
    }
}

pub fn spec_type() -> SpecType {
    let key = |name, about| Key { name, values: "SIZE", about };
    SpecType {
        name: "window",
        argument: "PATH",
        about: "A part of a file.",
        keys: vec![
            key("start", "Where in the file the disk begins (0)."),
            key("size", "How large the disk is (as far as the file goes)."),
        ],
        open: Box::new(|spec, options| {
            let path = spec.required_arg("a path", "window:/srv/disk.img,start=1M,size=1G")?;
            let cannot = |error| Error::system(format!("cannot use {path} as a disk"), error);
            let file = File::options().read(true).write(!options.read_only).open(path).map_err(cannot)?;
            let len = file.metadata().map_err(cannot)?.len();
            let (start, size) =
                range(len, spec.size("start")?.unwrap_or(0), spec.size("size")?).map_err(|why| {
                    Error::invalid(spec.named(), why).cure("write a start and a size that lie in the file")
                })?;
            let window = Window { file, start, size };
            Ok(if options.read_only { Arc::new(ReadOnly(window)) } else { Arc::new(window) })
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lies_in_its_file() {
        assert_eq!(range(4096, 0, None), Ok((0, 4096)));
        assert_eq!(range(5000, 512, None), Ok((512, 4096)));
        assert_eq!(range(4096, 1024, Some(512)), Ok((1024, 512)));
        for (len, start, size) in [
            (0, 0, None),
            (4096, 4096, None),
            (4096, 5000, None),
            (4096, 0, Some(0)),
            (4096, 512, Some(4096)),
        ] {
            assert!(range(len, start, size).is_err(), "{len} {start} {size:?}");
        }
        assert!(range(4096, 0, Some(1000)).is_err());
        assert!(range(u64::MAX, 512, Some(u64::MAX)).is_err());
    }
}
