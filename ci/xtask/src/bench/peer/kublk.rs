//! kublk, the ublk server in C that the kernel's own tests use: the shortest way to drive the driver
//! that its authors know of. Built from the source of the kernel that we measure on by default.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host::{self, Need};
use crate::vm::archive::Suite;
use crate::vm::kernel::{self, Kernel};
use crate::vm::recipe::DEFAULT_KERNEL;
use crate::{paths, run, say};

const TO_BUILD: &[Need] = &[
    Need::new("cc", "gcc"),
    Need::new("/usr/include/stdio.h", "libc6-dev"),
    Need::new("xz", "xz-utils"),
    Need::new("tar", "tar"),
];

/// Where it is in the kernel's source, and the headers that it takes from there.
const SOURCE: &str = "tools/testing/selftests/ublk";

/// Its binary, static, and the version of its source; built when that is not there yet.
pub fn kublk() -> Result<(PathBuf, String)> {
    let kernel = kernel::ensure(DEFAULT_KERNEL, false)?;
    let folder = paths::workspace().join("target/peers");
    paths::make_dir(&folder)?;
    let binary = folder.join(format!("kublk-{}", kernel.package_version.replace('/', "_")));
    let _lock = run::Lock::take(&folder, "kublk")?;
    if !binary.is_file() {
        host::ensure(TO_BUILD)?;
        build(&kernel, &binary)?;
    }
    Ok((binary, kernel.package_version))
}

fn build(kernel: &Kernel, binary: &Path) -> Result<()> {
    let suite = Suite::open(&kernel.suite)?;
    suite.update()?;
    let source = source_package(&kernel.release, &suite.package_names("linux-source-")?)?;
    say::step(format!("kublk comes from Debian's {source} (about 160 MB) and is built once, in a minute"));
    let scratch = paths::Scratch::new_in(&paths::vm_dir("tmp")?)?;
    let root = scratch.path();
    // The library that it drives io_uring with, and the kernel's headers of the same suite.
    for package in [source.as_str(), "liburing-dev", "linux-libc-dev"] {
        suite.unpack(package, root)?;
    }
    let folder = root.join("usr/src");
    let mut tar = run::command("tar");
    tar.arg("-xJf").arg(folder.join(format!("{source}.tar.xz"))).arg("-C").arg(&folder);
    run::quiet(tar.args(["--strip-components=1", "--wildcards", &format!("{source}/{SOURCE}/*")]))?;
    let source = folder.join(SOURCE);
    let mut compile = Command::new("cc");
    // As the kernel's build does it, but static.
    compile.args(["-O3", "-w", "-static", "-D_GNU_SOURCE"]);
    for headers in ["usr/include", "usr/include/x86_64-linux-gnu"] {
        compile.arg("-I").arg(root.join(headers));
    }
    compile.args(c_files(&source)?);
    compile.arg(root.join("usr/lib/x86_64-linux-gnu/liburing.a")).arg("-lpthread");
    let made = root.join("kublk");
    run::quiet(compile.arg("-o").arg(&made)).context("cannot build kublk")?;
    fs::copy(&made, binary).with_context(|| format!("cannot write {}", binary.display()))?;
    Ok(())
}

/// The package with the source of this release, `7.2.12+deb14-cloud-amd64` or the like.
fn source_package(release: &str, names: &[String]) -> Result<String> {
    let mut parts = release.split('.');
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else {
        bail!("{release} is no kernel's release");
    };
    let minor: String = minor.chars().take_while(char::is_ascii_digit).collect();
    let package = format!("linux-source-{major}.{minor}");
    if !names.contains(&package) {
        bail!("the suite of Linux {release} has no {package}; measure without kublk, by --only");
    }
    Ok(package)
}

/// All of it but the small program of its own beside it.
fn c_files(source: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "c"))
        .filter(|path| path.file_stem().is_some_and(|stem| stem != "metadata_size"))
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_that_of_the_kernel() {
        let names = ["linux-source-7.1", "linux-source-7.2", "linux-source"].map(String::from);
        assert_eq!(source_package("7.2.12+deb14-cloud-amd64", &names).unwrap(), "linux-source-7.2");
        assert_eq!(source_package("7.1-rc3", &names).unwrap(), "linux-source-7.1");
        assert!(source_package("6.18.5", &names).unwrap_err().to_string().contains("linux-source-6.18"));
    }
}
