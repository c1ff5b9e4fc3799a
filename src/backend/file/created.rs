//! A file that was made for a disk, and goes again with a disk that never came to be.

use std::fs;
use std::path::{Path, PathBuf};

/// Removes the file when it is dropped without being kept.
#[derive(Debug)]
pub(super) struct Created(Option<PathBuf>);

impl Created {
    /// A file that was made a moment ago.
    pub fn new(path: &Path) -> Created {
        Created(Some(path.to_path_buf()))
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
    use crate::backend::Backend;
    use crate::backend::file::{Direct, File, Options};

    #[test]
    fn a_file_that_was_made_goes_unless_the_disk_started() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let options =
            Options { path: path.clone(), size: Some(1 << 20), direct: Direct::No, ..Options::default() };
        drop(File::open(&options).unwrap());
        assert!(!path.exists());
        let disk = File::open(&options).unwrap();
        disk.started();
        drop(disk);
        assert!(path.exists());
        // What was there before stays in any case.
        drop(File::open(&options).unwrap());
        assert!(path.exists());
        let smaller = Options { size: Some(512), ..options };
        assert!(File::open(&smaller).unwrap_err().to_string().contains("shrink"));
        assert!(path.exists());
    }
}
