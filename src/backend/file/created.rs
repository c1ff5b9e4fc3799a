//! A file that was made for a disk, and goes again with a disk that never came to be.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Removes the file when it is dropped without being kept.
#[derive(Debug)]
pub(super) struct Created(Option<PathBuf>);

impl Created {
    /// A file that was made a moment ago.
    pub fn new(path: &Path) -> Created {
        Created(Some(path.to_path_buf()))
    }

    /// Makes durable that there is a file of this name; what is in it is for a flush.
    pub fn sync_name(&self) -> io::Result<()> {
        let Some(folder) = self.0.as_deref().and_then(Path::parent) else { return Ok(()) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        fs::File::open(folder)?.sync_all()
    }

    /// The file stays.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // If it cannot be removed, the error that is on its way says more than this one would.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::Barrier;

    use crate::backend::Backend;
    use crate::backend::file::{Direct, File, Options};
    use crate::error::Kind;

    #[test]
    fn a_file_that_was_made_goes_unless_the_disk_started() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let options =
            Options { path: path.clone(), size: Some(1 << 20), direct: Direct::No, ..Options::default() };
        drop(File::open(&options).unwrap());
        assert!(!path.exists());
        let disk = File::open(&options).unwrap();
        disk.abandoned();
        assert!(!path.exists());
        drop(disk);
        let disk = File::open(&options).unwrap();
        disk.started();
        disk.abandoned();
        drop(disk);
        assert!(path.exists());
        // What was there before stays in any case.
        drop(File::open(&options).unwrap());
        assert!(path.exists());
        let smaller = Options { size: Some(512), ..options };
        assert!(File::open(&smaller).unwrap_err().to_string().contains("shrink"));
        assert!(path.exists());
    }

    /// Whoever has the lock next must not take it for a disk of theirs.
    #[test]
    fn a_file_that_was_made_goes_before_its_lock_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let options =
            Options { path: path.clone(), size: Some(1 << 20), direct: Direct::No, ..Options::default() };
        for round in 0..100 {
            let disk = File::open(&options).unwrap();
            let other = std::fs::File::open(&path).unwrap();
            let barrier = Barrier::new(2);
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    barrier.wait();
                    while other.try_lock().is_err() {}
                    path.exists()
                });
                barrier.wait();
                drop(disk);
                assert!(!waiting.join().unwrap(), "round {round}");
            });
        }
    }

    /// Who loses the race for a file, or wins it and never starts, leaves the others' disk alone.
    #[test]
    fn of_many_who_make_a_file_at_once_the_one_who_starts_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let options =
            Options { path: path.clone(), size: Some(1 << 20), direct: Direct::No, ..Options::default() };
        // Not many: who loses waits a while for the lock.
        for round in 0..10 {
            let barrier = Barrier::new(3);
            let attempt = |starts: bool| {
                barrier.wait();
                match File::open(&options) {
                    Ok(disk) if starts => {
                        disk.started();
                        Some(disk)
                    }
                    Ok(_) => None,
                    Err(error) => {
                        // It can go again between a look and the open.
                        assert!(matches!(error.kind(), Kind::Busy | Kind::NotFound), "{error}");
                        None
                    }
                }
            };
            let disks: Vec<File> = std::thread::scope(|scope| {
                let running = [true, true, false].map(|starts| scope.spawn(move || attempt(starts)));
                running.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
            });
            assert!(disks.len() <= 1, "round {round}: it was locked twice");
            for disk in &disks {
                let found = std::fs::metadata(&path).map(|found| found.ino()).ok();
                assert_eq!(found, Some(disk.file.metadata().unwrap().ino()), "round {round}");
                assert_eq!(found.and(std::fs::metadata(&path).ok()).unwrap().len(), 1 << 20);
            }
            drop(disks);
            let _ = std::fs::remove_file(&path);
        }
    }
}
