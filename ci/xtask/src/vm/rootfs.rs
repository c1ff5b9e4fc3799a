//! The guest's root file system: a small Debian in an ext4 image, made once
//! for each content of its recipe.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::archive::Suite;
use super::recipe::RootfsRecipe;
use super::{image, sources};
use crate::{host, paths, run, say};

/// The image for the recipe as it is now, made when it is missing. With
/// `refresh` it is made anew when the suite has changed since.
pub fn ensure(refresh: bool) -> Result<PathBuf> {
    let (recipe, image) = recipe_and_image()?;
    if image.exists() && !refresh {
        return Ok(image);
    }
    host::ensure(host::TO_BUILD)?;
    let _lock = run::Lock::take(&paths::vm_dir("lock")?, "rootfs")?;
    if image.exists() {
        if !refresh {
            return Ok(image);
        }
        let suite = Suite::open(&recipe.suite)?;
        suite.update()?;
        let made_of = fs::read_to_string(date_file(&image)).ok();
        if made_of.is_some() && made_of == suite.date() {
            say::step("the root file system is up to date");
            return Ok(image);
        }
    }
    build(&recipe, &image)?;
    Ok(image)
}

/// The image when it is cached.
pub fn cached() -> Option<PathBuf> {
    recipe_and_image().ok().map(|(_, image)| image).filter(|image| image.exists())
}

fn recipe_and_image() -> Result<(RootfsRecipe, PathBuf)> {
    let (recipe, text) = RootfsRecipe::load()?;
    let hash = paths::content_hash(&[&text]);
    Ok((recipe, paths::vm_dir("rootfs")?.join(format!("{hash}.ext4"))))
}

fn date_file(image: &Path) -> PathBuf {
    image.with_extension("date")
}

fn build(recipe: &RootfsRecipe, image: &Path) -> Result<()> {
    let suite = Suite::open(&recipe.suite)?;
    suite.update()?;
    let scratch = paths::Scratch::new_in(&paths::vm_dir("tmp")?)?;
    let tree = RootTree(scratch.path().join("root"));
    say::step(format!("making a root file system of Debian {} (about two minutes, once)", recipe.suite));
    run::quiet(
        run::as_root("debootstrap")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["--variant=minbase", "--arch=amd64", "--merged-usr"])
            .arg(format!("--keyring={}", host::KEYRING))
            .arg(format!("--include={}", recipe.packages.join(",")))
            .arg(&recipe.suite)
            .arg(&tree.0)
            .arg(sources::debian_mirror()?),
    )
    .with_context(|| {
        format!("could not make a root file system; is the mirror in {} good?", sources::VARIABLE)
    })?;
    for folder in &recipe.drop {
        run::quiet(run::as_root("rm").args(["-rf", "--one-file-system"]).arg(tree.0.join(folder)))?;
    }
    for folder in ["payload", "var/log", "mnt"] {
        run::quiet(run::as_root("mkdir").arg("-p").arg(tree.0.join(folder)))?;
    }
    say::step("making its image");
    let made = scratch.path().join("image");
    image::ext4_as_root(&tree.0, &made, recipe.free_mib)?;
    run::quiet(run::as_root("chown").arg(owner()).arg(&made))?;
    fs::rename(&made, image)?;
    paths::write_whole(&date_file(image), suite.date().unwrap_or_default().as_bytes())?;
    say::step("the root file system is ready");
    Ok(())
}

fn owner() -> String {
    // SAFETY: these read two numbers of this process and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    format!("{uid}:{gid}")
}

/// A tree that belongs to root, which only root can remove.
struct RootTree(PathBuf);

impl Drop for RootTree {
    fn drop(&mut self) {
        for mounted in ["proc", "sys"].map(|name| self.0.join(name)) {
            let mut umount = run::as_root("umount");
            let _ = run::quiet(umount.args(["--quiet", "--lazy"]).arg(mounted));
        }
        let mut rm = run::as_root("rm");
        let _ = run::quiet(rm.args(["-rf", "--one-file-system"]).arg(&self.0));
    }
}

/// A static busybox of the same suite, for the first moments of the guest.
pub fn busybox() -> Result<PathBuf> {
    let (recipe, _) = RootfsRecipe::load()?;
    let home = paths::vm_dir("tools")?.join(format!("busybox-{}", recipe.suite));
    if home.exists() {
        return Ok(home);
    }
    host::ensure(host::TO_BUILD)?;
    let _lock = run::Lock::take(&paths::vm_dir("lock")?, "tools")?;
    if home.exists() {
        return Ok(home);
    }
    let suite = Suite::open(&recipe.suite)?;
    if !suite.has_index() {
        suite.update()?;
    }
    let scratch = paths::Scratch::new_in(&paths::vm_dir("tmp")?)?;
    suite.unpack("busybox-static", scratch.path())?;
    let found = ["usr/bin/busybox", "bin/busybox"]
        .iter()
        .map(|place| scratch.path().join(place))
        .find(|file| file.is_file())
        .context("the package busybox-static has no busybox any more")?;
    fs::rename(found, &home)?;
    Ok(home)
}
