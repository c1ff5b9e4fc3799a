//! The newest kernel's headers, from Debian's `linux-libc-dev`: what uapi's
//! test compares our structures with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::vm::archive::Suite;
use crate::{paths, run, say};

/// Where the newest is: release candidates, and what there is between two.
const SUITES: &[&str] = &["experimental", "sid"];
const PACKAGE: &str = "linux-libc-dev";

fn home() -> PathBuf {
    paths::workspace().join("target/headers")
}

/// Names the version that is cached; written last, so that it means "complete".
fn stamp() -> PathBuf {
    home().join("version")
}

/// The include folder, fetched when there is none, or looked for anew with
/// `refresh`.
pub fn ensure(refresh: bool) -> Result<PathBuf> {
    let include = home().join("include");
    let have = fs::read_to_string(stamp()).ok().filter(|_| include.join("linux/ublk_cmd.h").is_file());
    if have.is_some() && !refresh {
        return Ok(include);
    }
    let _lock = run::Lock::take(&paths::vm_dir("lock")?, "headers")?;
    let (suite, version) = newest().context("cannot find the newest kernel's headers")?;
    if have.as_deref() == Some(&version) {
        say::step(format!("the headers are up to date: {version}"));
        return Ok(include);
    }
    let scratch = paths::Scratch::new_in(&paths::vm_dir("tmp")?)?;
    let tree = scratch.path().join("tree");
    suite.unpack(PACKAGE, &tree)?;
    let made = scratch.path().join("include");
    gather(&tree, &made)?;
    let _ = fs::remove_file(stamp());
    let _ = fs::remove_dir_all(&include);
    paths::make_dir(&home())?;
    fs::rename(&made, &include).with_context(|| format!("cannot make {}", include.display()))?;
    paths::write_whole(&stamp(), version.as_bytes())?;
    say::step(format!("the kernel's headers are ready: {version} (Debian {})", suite.name()));
    Ok(include)
}

/// The first suite that has the package, and its version there.
fn newest() -> Result<(Suite, String)> {
    let mut last = None;
    for name in SUITES {
        let suite = Suite::open(name)?;
        suite.update()?;
        match suite.version(PACKAGE) {
            Ok(version) => return Ok((suite, version)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no suite is named")))
}

/// All of the package's `usr/include` in one folder, as a compiler wants it:
/// `asm` is one of several there, and a link to somewhere else in the package.
fn gather(tree: &Path, made: &Path) -> Result<()> {
    let include = tree.join("usr/include");
    run::quiet(run::command("cp").args(["-rL", "--"]).arg(&include).arg(made))
        .context("cannot copy the headers out of their package")?;
    let asm = include.join("x86_64-linux-gnu/asm");
    if asm.exists() && !made.join("asm").exists() {
        run::quiet(run::command("cp").args(["-rL", "--"]).arg(asm).arg(made.join("asm")))?;
    }
    for entry in fs::read_dir(made)?.flatten() {
        if entry.file_name().to_string_lossy().contains("-linux-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    for needed in ["linux/ublk_cmd.h", "linux/fs.h", "asm/types.h"] {
        if !made.join(needed).is_file() {
            bail!("{PACKAGE} contains no {needed}; has Debian arranged it differently?");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_and_one_asm_is_chosen() {
        let scratch = tempfile::tempdir().unwrap();
        let tree = scratch.path().join("tree");
        let file = |name: &str| {
            let path = tree.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        };
        for name in ["linux/ublk_cmd.h", "linux/fs.h", "aarch64-linux-gnu/asm/types.h"] {
            file(&format!("usr/include/{name}"));
        }
        let made = scratch.path().join("made");
        assert!(gather(&tree, &made).unwrap_err().to_string().contains("asm/types.h"));
        fs::remove_dir_all(&made).unwrap();

        file("usr/lib/linux/uapi/x86/asm/types.h");
        fs::create_dir_all(tree.join("usr/include/x86_64-linux-gnu")).unwrap();
        std::os::unix::fs::symlink(
            "../../lib/linux/uapi/x86/asm",
            tree.join("usr/include/x86_64-linux-gnu/asm"),
        )
        .unwrap();
        gather(&tree, &made).unwrap();
        assert_eq!(
            fs::read_to_string(made.join("asm/types.h")).unwrap(),
            "usr/lib/linux/uapi/x86/asm/types.h"
        );
        assert!(!made.join("aarch64-linux-gnu").exists() && !made.join("x86_64-linux-gnu").exists());
    }
}
