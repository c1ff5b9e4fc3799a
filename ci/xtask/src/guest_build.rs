//! Binaries for the guest: linked statically, so that they run whatever C
//! library is inside.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{paths, run, say};

/// What to build of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// The binary of this name.
    Bin(&'a str),
    /// The integration test of this name (`tests/NAME.rs`).
    Test(&'a str),
    /// The unit tests in the package's library.
    LibTest,
    /// The example of this name.
    Example(&'a str),
    /// The benchmark of this name.
    Bench(&'a str),
}

impl Target<'_> {
    fn args(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Bin(name) => &["build", "--bin", name],
            Self::Test(name) => &["test", "--no-run", "--test", name],
            Self::LibTest => &["test", "--no-run", "--lib"],
            Self::Example(name) => &["build", "--example", name],
            Self::Bench(name) => &["bench", "--no-run", "--bench", name],
        };
        words.iter().map(ToString::to_string).collect()
    }
}

/// The triple that rustc builds for by default.
fn host_triple() -> Result<String> {
    let words = run::output(Command::new("rustc").arg("-vV"))?;
    words
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_string)
        .context("`rustc -vV` names no host")
}

/// Build one binary of `package`, optimised and static, and say where it is.
///
/// It has a target folder of its own (`target/guest`), since other flags would
/// otherwise throw away what ordinary builds have made.
pub fn static_binary(package: &str, target: Target<'_>) -> Result<PathBuf> {
    static_binary_with(package, target, &[])
}

/// [`static_binary`] with more words for cargo, such as `--features`.
pub fn static_binary_with(package: &str, target: Target<'_>, more: &[&str]) -> Result<PathBuf> {
    build(package, target, more, "target/guest", "-C target-feature=+crt-static")
}

/// [`static_binary`] that runs at the addresses its symbols have.
pub fn binary_in_place(package: &str, target: Target<'_>) -> Result<PathBuf> {
    let flags = "-C target-feature=+crt-static -C relocation-model=static";
    build(package, target, &[], "target/guest-in-place", flags)
}

fn build(package: &str, target: Target<'_>, more: &[&str], folder: &str, flags: &str) -> Result<PathBuf> {
    let triple = host_triple()?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(target.args())
        .args(["--release", "--package", package, "--target", &triple])
        .args(["--message-format", "json-render-diagnostics"])
        .args(more)
        .current_dir(paths::workspace())
        .env("CARGO_TARGET_DIR", paths::workspace().join(folder))
        .env("RUSTFLAGS", flags)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    say::step(format!("building {package} {target:?} for the guest"));
    let out = cargo.output().context("cannot start cargo")?;
    if !out.status.success() {
        bail!("building {package} {target:?} for the guest failed; cargo says why above");
    }
    executable(&String::from_utf8_lossy(&out.stdout))
        .with_context(|| format!("cargo built no executable for {package} {target:?}"))
}

/// The last executable that cargo's messages name.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_read_from_cargos_messages() {
        let messages = "\
{\"reason\":\"compiler-artifact\",\"executable\":null}
not json
{\"reason\":\"compiler-artifact\",\"executable\":\"/x/blockhaus\"}
{\"reason\":\"build-finished\",\"success\":true}";
        assert_eq!(executable(messages), Some(PathBuf::from("/x/blockhaus")));
        assert_eq!(executable("{}"), None);
    }

    #[test]
    #[ignore = "builds in release mode, which takes minutes"]
    fn a_built_binary_needs_no_interpreter() {
        let binary = static_binary("xtask", Target::Bin("xtask")).unwrap();
        let headers = run::output(Command::new("readelf").arg("-l").arg(binary)).unwrap();
        assert!(!headers.contains("INTERP"), "{headers}");
    }
}
