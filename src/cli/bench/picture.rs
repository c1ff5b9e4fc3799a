//! The file that the chart goes to. A slip of the hand must not write over a disk.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// A path that a chart may be written to.
#[derive(Debug)]
pub(super) struct Picture(PathBuf);

/// Finds before anything is measured that a chart cannot be written there, and changes nothing.
pub(super) fn check(path: &Path) -> Result<Picture> {
    let what = || format!("cannot draw into {}", path.display());
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            Err(Error::invalid(what(), "it is no regular file").cure("name a new file, such as bench.svg"))
        }
        Ok(_) if !is_svg(path).map_err(|error| Error::system(what(), error))? => {
            Err(Error::new(Kind::Busy, what(), "there is a file, and no SVG is in it").cure("name another"))
        }
        Ok(_) => {
            File::options().write(true).open(path).map_err(|error| Error::system(what(), error))?;
            Ok(Picture(path.to_path_buf()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if !folder.is_none_or(Path::is_dir) {
                return Err(
                    Error::new(Kind::NotFound, what(), "there is no such folder").cure("make it first")
                );
            }
            // For a moment, so that nothing is left where it comes to no chart.
            File::create_new(path)
                .and_then(|_| fs::remove_file(path))
                .map_err(|error| Error::system(what(), error))?;
            Ok(Picture(path.to_path_buf()))
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
    File::open(path)?.take(4096).read_to_end(&mut beginning)?;
    Ok(beginning.is_empty() || begins_an_svg(&String::from_utf8_lossy(&beginning)))
}

/// Whether the first element of this XML is `svg`.
fn begins_an_svg(text: &str) -> bool {
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    loop {
        let end = match () {
            () if rest.starts_with("<!--") => "-->",
            () if rest.starts_with("<?") => "?>",
            () if is_doctype_with_declarations(rest) => "]>",
            () if rest.starts_with("<!DOCTYPE") => ">",
            () => break,
        };
        let Some((_, behind)) = rest.split_once(end) else { return false };
        rest = behind.trim_start();
    }
    rest.strip_prefix("<svg").is_some_and(|rest| rest.starts_with([' ', '\t', '\r', '\n', '>', '/']))
}

fn is_doctype_with_declarations(text: &str) -> bool {
    let of_own = |rest: &str| rest.find('[').is_some_and(|at| rest.find('>').is_none_or(|end| at < end));
    text.strip_prefix("<!DOCTYPE").is_some_and(of_own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_chart_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.svg");
        let picture = check(&path).unwrap();
        assert!(!path.exists());
        picture.write("<svg xmlns=\"x\"></svg>").unwrap();
        check(&path).unwrap();
        for other in
            ["#!/bin/sh", "a log of <svg width=1>", "<html><body><svg ></svg>", "<svgx>", "<!-- <svg "]
        {
            fs::write(&path, other).unwrap();
            assert!(check(&path).unwrap_err().to_string().contains("no SVG"), "{other}");
            assert_eq!(fs::read_to_string(&path).unwrap(), other);
        }
        for chart in [
            "<?xml version=\"1.0\"?>\n<!-- by <hand> -->\n<!DOCTYPE svg PUBLIC \"x\" \"y\">\n<svg\nwidth=\"1\">",
            "\u{feff} <!DOCTYPE svg [ <!ENTITY a \"b\"> ]><svg>",
            "<svg/>",
        ] {
            fs::write(&path, chart).unwrap();
            check(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), chart);
        }
        for path in [
            folder.path(),
            Path::new("/dev/null"),
            Path::new("/proc/x.svg"),
            &folder.path().join("none/x.svg"),
        ] {
            assert!(check(path).is_err(), "{}", path.display());
        }
    }
}
