//! Debian's archive, through apt in a folder of our own: apt checks each
//! suite's signature and each package's hash, and nothing of the host's own
//! package state is touched. The host's settings for downloads (proxies and
//! the like) stay in force.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::sources;
use crate::{host, paths, run, say};

/// One suite of the archive.
pub struct Suite {
    name: String,
    dir: PathBuf,
}

impl Suite {
    /// Prepare apt's folders for `name`. Does not use the network.
    pub fn open(name: &str) -> Result<Self> {
        let dir = paths::vm_dir("apt")?.join(name);
        for sub in ["etc/none", "lists/partial", "cache/archives/partial", "state"] {
            paths::make_dir(&dir.join(sub))?;
        }
        let at = dir.display();
        let config = format!(
            "#clear APT::Update;\n\
             APT::Architecture \"amd64\";\n\
             #clear APT::Architectures;\n\
             APT::Architectures {{ \"amd64\"; }};\n\
             APT::Default-Release \"\";\n\
             APT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Dir::Etc::sourcelist \"{at}/etc/sources.list\";\n\
             Dir::Etc::sourceparts \"{at}/etc/none\";\n\
             Dir::Etc::preferences \"/dev/null\";\n\
             Dir::Etc::preferencesparts \"{at}/etc/none\";\n\
             Dir::State \"{at}/state\";\n\
             Dir::State::Lists \"{at}/lists\";\n\
             Dir::State::status \"{at}/state/status\";\n\
             Dir::Cache \"{at}/cache\";\n\
             Dir::Cache::archives \"archives\";\n\
             Dir::Cache::pkgcache \"\";\n\
             Dir::Cache::srcpkgcache \"\";\n"
        );
        paths::write_whole(&dir.join("apt.conf"), config.as_bytes())?;
        paths::write_whole(&dir.join("state/status"), b"")?;
        Ok(Self { name: name.to_string(), dir })
    }

    /// The suite's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = run::command(program);
        apt.arg("--config-file").arg(self.dir.join("apt.conf")).env("LC_ALL", "C.UTF-8");
        apt
    }

    /// Fetch the suite's index; apt checks its signature.
    pub fn update(&self) -> Result<()> {
        host::ensure(host::TO_BUILD)?;
        let mirror = sources::debian_mirror()?;
        let line = format!("deb [signed-by={}] {mirror} {} main\n", host::KEYRING, self.name);
        paths::write_whole(&self.dir.join("etc/sources.list"), line.as_bytes())?;
        say::step(format!("reading the index of Debian {}", self.name));
        run::quiet(self.apt("apt-get").args(["--error-on=any", "update"])).with_context(|| {
            format!(
                "cannot read the index of Debian {}. Is the mirror reachable? {} names another",
                self.name,
                sources::VARIABLE
            )
        })
    }

    /// Whether an index has been fetched before.
    pub fn has_index(&self) -> bool {
        self.index_file().is_some()
    }

    fn index_file(&self) -> Option<PathBuf> {
        fs::read_dir(self.dir.join("lists"))
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().ends_with("InRelease"))
    }

    /// When the archive made the index that we have.
    pub fn date(&self) -> Option<String> {
        let text = fs::read_to_string(self.index_file()?).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Date: ").map(str::to_string))
    }

    /// The names of the packages that begin with `prefix`.
    pub fn package_names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = run::output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_string).collect())
    }

    /// The version of a package.
    pub fn version(&self, package: &str) -> Result<String> {
        let words = run::output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        words
            .lines()
            .find_map(|line| line.strip_prefix("Version: ").map(str::to_string))
            .with_context(|| format!("Debian {} names no version of {package}", self.name))
    }

    /// Fetch a package, checked by its hash, and unpack it into `into`.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let scratch = paths::Scratch::new_in(&paths::vm_dir("tmp")?)?;
        say::step(format!("fetching {package}"));
        run::quiet(self.apt("apt-get").args(["download", package]).current_dir(scratch.path()))
            .with_context(|| {
                format!(
                    "cannot fetch {package} from Debian {}. If it has just left the archive, \
                     `cargo xtask vm --refresh` finds its successor",
                    self.name
                )
            })?;
        let deb = fs::read_dir(scratch.path())?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|ext| ext == "deb"));
        let Some(deb) = deb else {
            bail!("apt-get download {package} succeeded and left no package");
        };
        run::quiet(run::command("dpkg-deb").arg("-x").arg(deb).arg(into))
    }
}
