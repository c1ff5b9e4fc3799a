//! rublk, the other ublk server in Rust.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::host::{self, Need};
use crate::{paths, run, say};

/// The version that the figures are compared with.
const VERSION: &str = "0.2.15";

/// It makes its bindings with bindgen, which loads libclang.
const TO_BUILD: &[Need] = &[
    Need::new("/var/lib/dpkg/info/libclang-dev.list", "libclang-dev"),
    Need::new("clang", "clang"),
    Need::new("cc", "gcc"),
];

/// Its binary, static; built when this version is not there yet.
pub fn rublk() -> Result<PathBuf> {
    let root = paths::workspace().join("target/peers");
    paths::make_dir(&root)?;
    let binary = root.join("bin/rublk");
    let installed = || fs::read_to_string(root.join(".crates.toml")).is_ok_and(|text| lists(&text, VERSION));
    if binary.is_file() && installed() {
        return Ok(binary);
    }
    let _lock = run::Lock::take(&root, "rublk")?;
    if binary.is_file() && installed() {
        return Ok(binary);
    }
    say::step(format!(
        "rublk {VERSION} comes from crates.io and is built once, in some minutes; \
         it needs libclang, which is installed first when it is missing (about 100 MB)"
    ));
    host::ensure(TO_BUILD)?;
    let words = run::output(Command::new("rustc").arg("-vV"))?;
    let triple = words.lines().find_map(|line| line.strip_prefix("host: "));
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["install", "rublk", "--version", VERSION, "--locked", "--root"])
        .arg(&root)
        .args(["--target", triple.context("`rustc -vV` names no host")?])
        .current_dir(paths::workspace())
        .env("CARGO_TARGET_DIR", paths::workspace().join("target/peers-build"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("rublk {VERSION} did not build; cargo says why above. Without it: --only with other devices");
    }
    Ok(binary)
}

/// Whether cargo's list of what it installed has rublk in this version.
fn lists(text: &str, version: &str) -> bool {
    text.contains(&format!("\"rublk {version} ("))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_version_counts_as_installed() {
        let text = "[v1]\n\"rublk 0.2.15 (registry+https://example.org/index)\" = [\"rublk\"]\n";
        assert!(lists(text, "0.2.15"));
        assert!(!lists(text, "0.2.1"));
        assert!(!lists("", "0.2.15"));
    }
}
