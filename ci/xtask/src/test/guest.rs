//! What the machines get: the program and everything that tests it, static.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::guest_build::{self, Target};
use crate::vm::Payload;
use crate::{paths, run};

const EXAMPLES: &[&str] = &["blocking_backend", "async_backend", "static_filters"];

/// The payload of every machine.
pub struct Guest {
    /// Files for `/payload`.
    pub payload: Vec<Payload>,
    /// Tells these binaries from any others.
    pub hash: String,
    vmtest: PathBuf,
    /// Where all this is, until the run ends.
    _kept: paths::Scratch,
}

impl Guest {
    /// Build it all. One call of cargo makes what it can, so that dependencies
    /// are built once; the test comes apart, because tests unwind.
    pub fn build() -> Result<Self> {
        let mut more = vec!["--package", "vmtest", "--bin", "vmtest"];
        for example in EXAMPLES {
            more.extend(["--example", example]);
        }
        let one = guest_build::static_binary_with("blockhaus", Target::Bin("blockhaus"), &more)?;
        let alloc_count = guest_build::static_binary("blockhaus", Target::Test("alloc_count"))?;
        let built = release_folder(&one)?;
        // Copies: a later build must not change what a machine is given.
        let scratch = paths::Scratch::new_in(&paths::workspace().join("target/test/payload"))?;
        let kept = scratch.path().to_path_buf();
        let mut files = vec![
            (built.join("blockhaus"), "blockhaus".to_string()),
            (built.join("vmtest"), "vmtest".to_string()),
            (alloc_count, "alloc_count".to_string()),
        ];
        let examples =
            EXAMPLES.iter().map(|name| (built.join("examples").join(name), format!("examples/{name}")));
        files.extend(examples);
        paths::make_dir(&kept.join("examples"))?;
        for (from, name) in &files {
            let to = kept.join(name);
            std::fs::copy(from, &to)
                .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
        let kept_files: Vec<PathBuf> = files.iter().map(|(_, name)| kept.join(name)).collect();
        let top = ["blockhaus", "vmtest", "alloc_count", "examples"];
        Ok(Self {
            payload: top.iter().map(|name| Payload::new(kept.join(name), *name)).collect(),
            hash: hash(&kept_files)?,
            vmtest: kept.join("vmtest"),
            _kept: scratch,
        })
    }

    /// A program of the payload.
    pub fn program(&self, name: &str) -> Result<&Path> {
        let program = self.payload.iter().find(|file| file.name == name);
        program.map(|file| file.path.as_path()).with_context(|| format!("machines get no {name}"))
    }

    /// The tests for a kernel: the list is vmtest's own, which runs here as well.
    pub fn list(&self, kernel: &str, full: bool) -> Result<Vec<String>> {
        let mut vmtest = Command::new(&self.vmtest);
        vmtest.args(["list", "--kernel", kernel]);
        if full {
            vmtest.arg("--full");
        }
        Ok(run::output(&mut vmtest)?.lines().map(str::to_string).collect())
    }
}

/// The folder that cargo puts binaries in, from one of them or an example.
fn release_folder(binary: &Path) -> Result<PathBuf> {
    let folder = binary.ancestors().find(|dir| dir.ends_with("release"));
    folder.map(Path::to_path_buf).with_context(|| format!("{} lies in no release folder", binary.display()))
}

fn hash(files: &[PathBuf]) -> Result<String> {
    let sums = run::output(run::command("sha256sum").arg("--").args(files))?;
    // The files' places are no part of it.
    let sums: Vec<&str> = sums.lines().filter_map(|line| line.split_whitespace().next()).collect();
    Ok(paths::content_hash(&sums))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_folder_is_found_from_an_example_too() {
        let binary = Path::new("/t/guest/x86/release/examples/async_backend");
        assert_eq!(release_folder(binary).unwrap(), Path::new("/t/guest/x86/release"));
        assert_eq!(release_folder(Path::new("/t/release/x")).unwrap(), Path::new("/t/release"));
        assert!(release_folder(Path::new("/t/debug/x")).is_err());
    }

    #[test]
    fn the_hash_depends_on_contents_and_not_on_places() {
        let scratch = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = scratch.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (a, b, c) = (file("a", "same"), file("b", "same"), file("c", "other"));
        let hash = |file: &Path| hash(&[file.to_path_buf()]).unwrap();
        assert_eq!(hash(&a), hash(&b));
        assert_ne!(hash(&a), hash(&c));
    }
}
