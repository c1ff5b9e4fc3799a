//! The blocking door: a file whose bytes are veiled with a key. A toy, no encryption.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use blockhaus::backend::blocking::{BlockDevice, Blocking};
use blockhaus::error::Error;
use blockhaus::stack::{Key, ReadOnly, SpecType};

/// Bytes that are veiled before they are written together.
const PIECE: usize = 64 << 10;

struct Veil {
    file: File,
    size: u64,
    key: Vec<u8>,
}

impl Veil {
    /// The same once more takes it off again. What a byte becomes depends on its place alone, so
    /// that any range can be read and written by itself.
    fn veil(&self, bytes: &mut [u8], offset: u64) {
        for (byte, place) in bytes.iter_mut().zip(offset..) {
            *byte ^= self.key[(place % self.key.len() as u64) as usize];
        }
    }
}

impl BlockDevice for Veil {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)?;
        self.veil(bytes, offset);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        for (piece, at) in bytes.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            let mut veiled = piece.to_vec();
            self.veil(&mut veiled, at);
            self.file.write_all_at(&veiled, at)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

pub fn spec_type() -> SpecType {
    SpecType {
        name: "veil",
        argument: "PATH",
        about: "A file whose bytes are veiled with a key. A toy, no encryption.",
        keys: vec![Key { name: "key", values: "TEXT", about: "The key, any text." }],
        open: Box::new(|spec, options| {
            let example = "veil:/srv/veiled.img,key=secret";
            let path = spec.required_arg("a path", example)?;
            let key = spec.get("key").filter(|key| !key.is_empty()).ok_or_else(|| {
                Error::invalid(spec.named(), "there is no key").cure(format!("write, for example, {example}"))
            })?;
            let cannot = |error| Error::system(format!("cannot use {path} as a disk"), error);
            let file = File::options().read(true).write(!options.read_only).open(path).map_err(cannot)?;
            let size = file.metadata().map_err(cannot)?.len();
            if size == 0 || !size.is_multiple_of(512) {
                let why = format!("its size, {size}, is not a number of blocks of 512 bytes");
                return Err(Error::invalid(format!("cannot use {path} as a disk"), why)
                    .cure(format!("truncate -s {} {path}", size.next_multiple_of(512).max(1 << 20))));
            }
            let veil = Blocking::new(Veil { file, size, key: key.as_bytes().to_vec() });
            Ok(if options.read_only { Arc::new(ReadOnly(veil)) } else { Arc::new(veil) })
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_not_what_lies_in_the_file() {
        let path = std::env::temp_dir().join(format!("outside-veil-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(1 << 20).unwrap();
        let below = file.try_clone().unwrap();
        let veil = Veil { file, size: 1 << 20, key: b"key".to_vec() };
        let written: Vec<u8> = (0..200_192u32).map(|n| n as u8).collect();
        veil.write_at(&written, 512).unwrap();
        veil.flush().unwrap();
        let mut read = vec![0; 1024];
        veil.read_at(&mut read, 66_048).unwrap();
        assert_eq!(read, written[65_536..66_560]);
        let mut stored = [0; 512];
        below.read_exact_at(&mut stored, 512).unwrap();
        assert_ne!(stored, written[..512]);
    }
}
