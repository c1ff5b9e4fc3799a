//! The file that the chart goes to. A slip of the hand must not write over a disk.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// A path that a chart may be written to.
#[derive(Debug)]
pub(super) struct Picture(PathBuf);

/// Finds before anything is measured that a chart cannot be written there.
pub(super) fn check(path: &Path) -> Result<Picture> {
    let what = || format!("cannot draw into {}", path.display());
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            Err(Error::invalid(what(), "it is no regular file").cure("name a new file, such as bench.svg"))
        }
        Ok(_) if !is_svg(path).map_err(|error| Error::system(what(), error))? => {
            Err(Error::new(Kind::Busy, what(), "there is a file, and no SVG is in it").cure("name another"))
        }
        Ok(_) => Ok(Picture(path.to_path_buf())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            match folder.is_none_or(Path::is_dir) {
                true => Ok(Picture(path.to_path_buf())),
                false => {
                    Err(Error::new(Kind::NotFound, what(), "there is no such folder").cure("make it first"))
                }
            }
        }
        Err(error) => Err(Error::system(what(), error)),
    }
}

impl Picture {
    pub fn write(&self, svg: &str) -> Result<()> {
        fs::write(&self.0, svg)
            .map_err(|error| Error::system(format!("cannot draw into {}", self.0.display()), error))
    }
}

fn is_svg(path: &Path) -> std::io::Result<bool> {
    let mut beginning = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut beginning)?;
    let text = String::from_utf8_lossy(&beginning);
    Ok(beginning.is_empty() || text.trim_start().starts_with("<svg") || text.contains("<svg "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_chart_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.svg");
        check(&path).unwrap().write("<svg xmlns=\"x\"></svg>").unwrap();
        check(&path).unwrap();
        fs::write(&path, "#!/bin/sh").unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("no SVG"));
        for path in [folder.path(), Path::new("/dev/null"), &folder.path().join("none/x.svg")] {
            assert!(check(path).is_err(), "{}", path.display());
        }
    }
}
