//! The recipes in `vm-images`: which suites and packages, never a version;
//! that is found when they are used.

use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::version::{self, Range};
use crate::paths;

/// The kernel that is booted when none is named.
pub const DEFAULT_KERNEL: &str = "7.2";

/// Where a kernel comes from: `vm-images/kernels/NAME.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRecipe {
    /// What it is good for, for a person.
    pub about: String,
    /// Suites to look in, the preferred first.
    pub suites: Vec<String>,
    /// Ranges of versions, the preferred first.
    pub versions: Vec<Range>,
    /// How the packages may be called, the preferred first.
    pub packages: Vec<Packages>,
}

/// Names of packages that make up a kernel; `*` stands for the version.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    /// The one with `vmlinuz`.
    pub image: String,
    /// The one with the modules, where it is another one.
    pub modules: Option<String>,
}

/// What a recipe means in an archive as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The version in the packages' names.
    pub version: String,
    /// The packages to fetch.
    pub packages: Vec<String>,
}

impl KernelRecipe {
    /// The recipe of this name.
    pub fn load(name: &str) -> Result<Self> {
        let path = paths::recipes().join(format!("kernels/{name}.toml"));
        if !path.exists() {
            bail!("there is no kernel {name}; there are: {}", kernel_names()?.join(", "));
        }
        let text = paths::read(&path)?;
        toml::from_str(&text).with_context(|| format!("{} is no good recipe", path.display()))
    }

    /// The newest version of `range` among the package `names` of a suite, of
    /// which every package is there: a binary can outlive its modules.
    pub fn choose(&self, range: &Range, names: &[String]) -> Option<Choice> {
        self.packages.iter().find_map(|packages| packages.choose(range, names))
    }
}

impl Packages {
    fn choose(&self, range: &Range, names: &[String]) -> Option<Choice> {
        let all = |version: &str| {
            let patterns = [Some(&self.image), self.modules.as_ref()];
            let wanted = patterns.into_iter().flatten().map(|p| p.replace('*', version));
            let wanted: Vec<String> = wanted.collect();
            wanted.iter().all(|name| names.contains(name)).then_some(wanted)
        };
        names
            .iter()
            .filter_map(|name| version::matched(&self.image, name))
            .filter(|version| range.contains(version))
            .filter_map(|version| Some(Choice { version: version.into(), packages: all(version)? }))
            .max_by(|a, b| version::compare(&a.version, &b.version))
    }
}

/// The kernels that there are recipes for, oldest first.
pub fn kernel_names() -> Result<Vec<String>> {
    let dir = paths::recipes().join("kernels");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".toml").map(str::to_string))
        .collect();
    names.sort_by(|a, b| version::compare(a, b));
    Ok(names)
}

/// What the root file system is made of: `vm-images/rootfs.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootfsRecipe {
    /// The suite it is made from.
    pub suite: String,
    /// Room for a command to write in, in MiB; the file is sparse.
    pub free_mib: u64,
    /// Packages beyond the smallest system.
    pub packages: Vec<String>,
    /// Folders that nothing in a test reads.
    pub drop: Vec<String>,
}

impl RootfsRecipe {
    /// The recipe, and its text, which names the cache.
    pub fn load() -> Result<(Self, String)> {
        let path = paths::recipes().join("rootfs.toml");
        let text = paths::read(&path)?;
        let recipe =
            toml::from_str(&text).with_context(|| format!("{} is no good recipe", path.display()))?;
        Ok((recipe, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> KernelRecipe {
        toml::from_str(
            "about = 'x'\nsuites = ['forky', 'sid']\nversions = [['7.2', '7.3'], ['7.0', '8']]\n\
             [[packages]]\nimage = 'linux-image-*-cloud-amd64-unsigned'\n\
             [[packages]]\nimage = 'linux-binary-*-cloud-amd64'\n\
             modules = 'linux-modules-*-cloud-amd64'\n",
        )
        .unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_newest_whose_modules_are_there_too() {
        let recipe = recipe();
        let listed = names(&[
            "linux-binary-7.2.9+deb14-cloud-amd64",
            "linux-modules-7.2.9+deb14-cloud-amd64",
            "linux-binary-7.2.12+deb14-cloud-amd64",
            "linux-modules-7.2.12+deb14-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-binary-unsigned-7.2.14+deb14-cloud-amd64",
        ]);
        let choice = recipe.choose(&recipe.versions[0], &listed).unwrap();
        assert_eq!(choice.version, "7.2.12+deb14");
        assert_eq!(choice.packages, [listed[2].clone(), listed[3].clone()]);
    }

    #[test]
    fn a_version_out_of_range_is_not_taken() {
        let recipe = recipe();
        let listed = names(&["linux-image-7.0.4-cloud-amd64-unsigned"]);
        assert_eq!(recipe.choose(&recipe.versions[0], &listed), None);
        assert_eq!(recipe.choose(&recipe.versions[1], &listed).unwrap().version, "7.0.4");
    }

    #[test]
    fn every_recipe_in_git_can_be_read() {
        let all = kernel_names().unwrap();
        assert_eq!(all, ["6.1", "6.12", "6.18", "7.2", "7.3"]);
        assert!(all.iter().any(|name| name == DEFAULT_KERNEL));
        for name in all {
            let recipe = KernelRecipe::load(&name).unwrap();
            assert!(!recipe.suites.is_empty() && !recipe.versions.is_empty(), "{name}");
            assert!(recipe.packages.iter().all(|p| p.image.matches('*').count() == 1), "{name}");
        }
        assert!(RootfsRecipe::load().unwrap().0.packages.iter().any(|p| p == "fio"));
        assert!(KernelRecipe::load("2.4").unwrap_err().to_string().contains("7.2"));
    }
}
