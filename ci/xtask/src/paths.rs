//! Where things are: the checkout, and the caches under `target/vm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// The root of the checkout.
pub fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.ends_with("ci/xtask"))
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    package.ancestors().nth(2).map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The recipes, in git.
pub fn recipes() -> PathBuf {
    workspace().join("vm-images")
}

/// All that belongs to virtual machines and can be made again.
pub fn vm_cache() -> PathBuf {
    workspace().join("target/vm")
}

/// A folder of [`vm_cache`], made when it is missing.
pub fn vm_dir(name: &str) -> Result<PathBuf> {
    let dir = vm_cache().join(name);
    make_dir(&dir)?;
    Ok(dir)
}

/// `create_dir_all` with an error that names the folder.
pub fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))
}

/// Read a text file, with an error that names it.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Write a file so that others see all of it or none of it.
pub fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&beside, contents)
        .and_then(|()| fs::rename(&beside, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// FNV-1a: tells recipes apart in file names; nothing depends on its strength.
pub fn content_hash(parts: &[&str]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// A name that no other run has: seconds since 1970, process id, and a count.
pub fn unique_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{seconds}-{}-{count}", std::process::id())
}

/// The process id in a [`unique_name`].
pub fn process_of(name: &str) -> Option<u32> {
    name.split('-').nth(1)?.parse().ok()
}

/// Remove what dead runs left in `dir` (entries named by [`unique_name`]).
pub fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let dead = process_of(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if dead {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// A folder for work in progress, removed when it goes out of scope.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new empty folder inside `dir`.
    pub fn new_in(dir: &Path) -> Result<Self> {
        make_dir(dir)?;
        sweep(dir);
        let path = dir.join(unique_name());
        make_dir(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_depends_on_every_part_and_on_their_borders() {
        assert_eq!(content_hash(&["a", "b"]), content_hash(&["a", "b"]));
        assert_ne!(content_hash(&["a", "b"]), content_hash(&["ab"]));
        assert_ne!(content_hash(&["a", "b"]), content_hash(&["a", "c"]));
    }

    #[test]
    fn a_unique_name_tells_its_process() {
        let (one, two) = (unique_name(), unique_name());
        assert_ne!(one, two);
        assert_eq!(process_of(&one), Some(std::process::id()));
        assert_eq!(process_of("no-number"), None);
    }
}
