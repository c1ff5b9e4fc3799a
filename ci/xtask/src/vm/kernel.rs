//! Kernels, fetched from the archive and cached as a `vmlinuz`, an image of
//! the modules, and the few modules that are needed to reach that image.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::archive::Suite;
use super::recipe::{Choice, KernelRecipe};
use super::{image, modules};
use crate::{host, paths, run, say};

/// A kernel that is ready to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The recipe's name, such as 7.2.
    pub name: String,
    /// What `uname -r` says.
    pub release: String,
    /// The suite that it came from.
    pub suite: String,
    /// Its packages.
    pub packages: Vec<String>,
    /// Their version.
    pub package_version: String,
    /// The folder with its files, inside the cache of kernels.
    folder: String,
    /// The hash of the recipe that it was made with.
    recipe: String,
}

impl Kernel {
    fn dir(&self) -> PathBuf {
        paths::vm_cache().join("kernels").join(&self.folder)
    }

    /// The kernel itself.
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir().join("vmlinuz")
    }

    /// An ext4 image of its `/lib/modules/RELEASE`.
    pub fn modules_image(&self) -> PathBuf {
        self.dir().join("modules.ext4")
    }

    /// The modules to load before there is a root, in the order of their names.
    pub fn boot_modules(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir().join("boot");
        let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        Ok(files)
    }

    fn complete(&self) -> bool {
        self.vmlinuz().exists() && self.modules_image().exists() && self.dir().join("boot").exists()
    }
}

fn recipe_hash(recipe: &KernelRecipe) -> String {
    // `about` is for people; the layout's number changes with what we make.
    const LAYOUT: &str = "1";
    paths::content_hash(&[
        LAYOUT,
        &format!("{:?} {:?} {:?}", recipe.suites, recipe.versions, recipe.packages),
    ])
}

fn pointer(name: &str) -> PathBuf {
    paths::vm_cache().join("kernels").join(format!("{name}.json"))
}

/// The kernel of this name when it is cached and its recipe is still the same.
pub fn cached(name: &str) -> Option<Kernel> {
    let recipe = KernelRecipe::load(name).ok()?;
    let kernel: Kernel = serde_json::from_str(&fs::read_to_string(pointer(name)).ok()?).ok()?;
    (kernel.recipe == recipe_hash(&recipe) && kernel.complete()).then_some(kernel)
}

/// The kernel of this name: from the cache, or fetched. With `refresh`, a newer
/// one is looked for even when there is one.
pub fn ensure(name: &str, refresh: bool) -> Result<Kernel> {
    let recipe = KernelRecipe::load(name)?;
    if !refresh && let Some(kernel) = cached(name) {
        return Ok(kernel);
    }
    host::ensure(host::TO_BUILD)?;
    let _lock = run::Lock::take(&paths::vm_dir("lock")?, "kernels")?;
    if !refresh && let Some(kernel) = cached(name) {
        return Ok(kernel);
    }
    let (suite, choice) = resolve(name, &recipe, true)?;
    let version = suite.version(&choice.packages[0])?;
    let old = cached(name);
    if let Some(old) = &old
        && (&old.packages, &old.package_version) == (&choice.packages, &version)
    {
        say::step(format!("kernel {name} is up to date: {}", old.release));
        return Ok(old.clone());
    }
    let kernel = build(name, &recipe, &suite, choice, version)?;
    paths::write_whole(&pointer(name), serde_json::to_string_pretty(&kernel)?.as_bytes())?;
    if let Some(old) = old.filter(|old| old.folder != kernel.folder) {
        let _ = fs::remove_dir_all(old.dir());
    }
    say::step(format!("kernel {name} is ready: {} (Debian {})", kernel.release, kernel.suite));
    Ok(kernel)
}

/// What the recipe means today, in which suite. Without `update`, an index
/// that was fetched before will do.
pub fn resolve(name: &str, recipe: &KernelRecipe, update: bool) -> Result<(Suite, Choice)> {
    let mut seen = Vec::new();
    for range in &recipe.versions {
        for (at, suite_name) in recipe.suites.iter().enumerate() {
            if seen.len() <= at {
                let suite = Suite::open(suite_name)?;
                if update || !suite.has_index() {
                    suite.update()?;
                }
                let names = suite.package_names("linux-")?;
                seen.push((suite, names));
            }
            if let Some(choice) = recipe.choose(range, &seen[at].1) {
                return Ok((seen.swap_remove(at).0, choice));
            }
        }
    }
    bail!(
        "Debian's {} have no kernel for the recipe {name} any more; change \
         vm-images/kernels/{name}.toml",
        recipe.suites.join(", ")
    )
}

fn build(
    name: &str,
    recipe: &KernelRecipe,
    suite: &Suite,
    choice: Choice,
    package_version: String,
) -> Result<Kernel> {
    let scratch = paths::Scratch::new_in(&paths::vm_dir("tmp")?)?;
    let tree = scratch.path().join("tree");
    for package in &choice.packages {
        suite.unpack(package, &tree)?;
    }
    let (modules, release) = modules_tree(&tree)?;
    let made = scratch.path().join("made");
    paths::make_dir(&made.join("boot"))?;
    move_vmlinuz(&tree, &modules, &release, &made.join("vmlinuz"))?;

    say::step(format!("making the modules of {release} ready"));
    unpack_modules(&modules)?;
    let base = scratch.path().join("base");
    paths::make_dir(&base.join("lib/modules"))?;
    symlink(&modules, base.join("lib/modules").join(&release))?;
    run::quiet(run::command("depmod").arg("-b").arg(&base).arg(&release))?;
    let order = modules::boot_order(&paths::read(&modules.join("modules.dep"))?);
    for (at, module) in order.iter().enumerate() {
        let file = Path::new(module).file_name().unwrap_or_default().to_string_lossy();
        fs::copy(modules.join(module), made.join("boot").join(format!("{at:02}-{file}")))?;
    }
    image::ext4(&modules, &made.join("modules.ext4"), 0)?;

    let folder = format!("{name}-{release}-{}", paths::content_hash(&[&package_version]));
    let home = paths::vm_dir("kernels")?.join(&folder);
    let _ = fs::remove_dir_all(&home);
    fs::rename(&made, &home)?;
    Ok(Kernel {
        name: name.to_string(),
        release,
        suite: suite.name().to_string(),
        packages: choice.packages,
        package_version,
        folder,
        recipe: recipe_hash(recipe),
    })
}

/// The folder with the modules, and the kernel's release, which is its name.
fn modules_tree(tree: &Path) -> Result<(PathBuf, String)> {
    for parent in ["usr/lib/modules", "lib/modules"] {
        for entry in fs::read_dir(tree.join(parent)).into_iter().flatten().flatten() {
            if entry.path().join("kernel").is_dir() {
                let release = entry.file_name().to_string_lossy().into_owned();
                return Ok((entry.path(), release));
            }
        }
    }
    bail!("the packages of this kernel contain no modules; has Debian split them differently?")
}

/// Old packages have `/boot/vmlinuz-RELEASE`, those from 7.x on have `vmlinuz`
/// beside the modules.
fn move_vmlinuz(tree: &Path, modules: &Path, release: &str, to: &Path) -> Result<()> {
    let places = [
        modules.join("vmlinuz"),
        tree.join("boot").join(format!("vmlinuz-{release}")),
        tree.join("lib/modules").join(release).join("vmlinuz"),
        tree.join("usr/lib/modules").join(release).join("vmlinuz"),
    ];
    let Some(from) = places.iter().find(|place| place.is_file()) else {
        bail!("the packages of this kernel contain no vmlinuz; has Debian moved it?");
    };
    fs::rename(from, to).with_context(|| format!("cannot move {}", from.display()))
}

/// Unpack xz-packed modules here, once: an emulated machine would take long.
fn unpack_modules(modules: &Path) -> Result<()> {
    let mut find = Command::new("find")
        .arg(modules)
        .args(["-name", "*.ko.xz", "-print0"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start find")?;
    let names = find.stdout.take().context("find has no output")?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let status = Command::new("xargs")
        .args(["-0", "-r", "-n", "32", "-P", &workers])
        .arg(run::find_program("xz").unwrap_or_else(|| "xz".into()))
        .arg("--decompress")
        .stdin(names)
        .status()
        .context("cannot start xargs")?;
    if !find.wait()?.success() || !status.success() {
        bail!("unpacking the modules in {} failed", modules.display());
    }
    Ok(())
}
