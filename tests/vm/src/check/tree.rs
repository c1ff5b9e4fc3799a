//! A tree of files whose contents are known: fills a file system and checks it again.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::pattern::{Random, mix, stream};
use crate::ensure;
use crate::outcome::{Context, Fail, Outcome};

const CHUNK: usize = 256 * 1024;
const LARGEST: u64 = 8 << 20;

pub struct Tree {
    root: PathBuf,
    seed: u64,
    files: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    number: u64,
    len: u64,
}

impl Tree {
    /// Writes files of all sizes until `budget` bytes are in; with `to_the_brim` until the file
    /// system is full, however much that is.
    pub fn fill(root: &Path, seed: u64, budget: u64, to_the_brim: bool) -> Outcome<Self> {
        let mut tree = Self { root: root.to_path_buf(), seed, files: Vec::new() };
        let mut random = Random::new(seed);
        let mut written = 0;
        for number in 0.. {
            if written >= budget && !to_the_brim {
                break;
            }
            let scale = 1 << random.below(u64::from(LARGEST.ilog2()) + 1);
            let entry = Entry { number, len: random.below(scale + 1) };
            match tree.write(entry, to_the_brim) {
                Ok(()) => tree.files.push(entry),
                Err(error) if to_the_brim && error.raw_os_error() == Some(libc::ENOSPC) => {
                    // It may be there in part, or not at all, or be too much even to remove.
                    drop(fs::remove_file(tree.path(entry)));
                    break;
                }
                Err(error) => {
                    return Err(Fail::new(format!("write of {}: {error}", tree.path(entry).display())));
                }
            }
            written += entry.len;
        }
        ensure!(
            written >= budget,
            "the file system is full after {written} bytes, expected {budget} at least"
        );
        Ok(tree)
    }

    fn path(&self, entry: Entry) -> PathBuf {
        self.root
            .join(format!("d{}", entry.number % 7))
            .join(format!("e{}", entry.number % 3))
            .join(format!("f{}", entry.number))
    }

    fn write(&self, entry: Entry, sync: bool) -> io::Result<()> {
        let path = self.path(entry);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = File::create(path)?;
        let mut buffer = vec![0u8; CHUNK];
        self.chunks(entry, |offset, count| {
            stream(self.seed ^ mix(entry.number), offset, &mut buffer[..count]);
            file.write_all(&buffer[..count])
        })?;
        // What is only delayed could still meet the full disk; what is synced is promised.
        if sync { file.sync_all() } else { Ok(()) }
    }

    fn chunks(&self, entry: Entry, mut each: impl FnMut(u64, usize) -> io::Result<()>) -> io::Result<()> {
        let mut offset = 0;
        while offset < entry.len {
            let count = (entry.len - offset).min(CHUNK as u64);
            each(offset, count as usize)?;
            offset += count;
        }
        Ok(())
    }

    /// Reads every file and compares every byte.
    pub fn verify(&self) -> Outcome {
        let (mut found, mut good) = (Vec::new(), vec![0u8; LARGEST as usize + CHUNK]);
        for &entry in &self.files {
            let path = self.path(entry);
            let read = File::open(&path).and_then(|mut file| {
                found.clear();
                file.read_to_end(&mut found)
            });
            read.context(format!("cannot read {}", path.display()))?;
            let len = entry.len as usize;
            ensure!(found.len() == len, "{} has {} bytes, {len} were written", path.display(), found.len());
            stream(self.seed ^ mix(entry.number), 0, &mut good[..len]);
            if let Some(at) = found.iter().zip(&good).position(|(found, good)| found != good) {
                return Err(Fail::new(format!(
                    "{} is not what was written, from byte {at} of {len}",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// Removes every third file, so that there is something to trim.
    pub fn thin(&mut self) -> Outcome {
        let (gone, kept): (Vec<Entry>, Vec<Entry>) =
            self.files.iter().partition(|entry| entry.number % 3 == 0);
        for entry in gone {
            let path = self.path(entry);
            fs::remove_file(&path).context(format!("cannot remove {}", path.display()))?;
        }
        self.files = kept;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_tree_is_what_was_written_until_a_byte_changes() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = Tree::fill(root.path(), 3, 4 << 20, false).unwrap();
        tree.verify().unwrap();
        tree.thin().unwrap();
        tree.verify().unwrap();
        let large = *tree.files.iter().find(|entry| entry.len > 10_000).unwrap();
        let file = fs::OpenOptions::new().write(true).open(tree.path(large)).unwrap();
        let mut byte = [0];
        File::open(tree.path(large)).unwrap().read_exact_at(&mut byte, 9_999).unwrap();
        file.write_all_at(&[!byte[0]], 9_999).unwrap();
        let told = tree.verify().unwrap_err();
        assert!(told.why.contains("from byte 9999"), "{}", told.why);
    }
}
