//! Files handed to a guest: they appear as `/payload/NAME`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::image;
use crate::{paths, run};

/// A file or folder of the host, and its name in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Where it is here.
    pub path: PathBuf,
    /// What it is called there, inside `/payload`.
    pub name: String,
}

impl Payload {
    /// Hand over `path` as `/payload/NAME`.
    pub fn new(path: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self { path: path.into(), name: name.into() }
    }
}

impl FromStr for Payload {
    type Err = String;

    /// `PATH` or `PATH:NAME`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, name) = match text.rsplit_once(':') {
            Some((path, name)) if !path.is_empty() && !name.contains('/') => (path, Some(name)),
            _ => (text, None),
        };
        let name = match name {
            Some(name) => name.to_string(),
            None => Path::new(path)
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .ok_or_else(|| format!("{text} has no file name; say PATH:NAME"))?,
        };
        if name.is_empty() || name == "." || name == ".." {
            return Err(format!("{name:?} is no name for a file in /payload"));
        }
        Ok(Self::new(path, name))
    }
}

/// Make an image of all of `payload` in `scratch`.
pub fn image(payload: &[Payload], scratch: &Path) -> Result<PathBuf> {
    let tree = scratch.join("payload");
    paths::make_dir(&tree)?;
    for item in payload {
        let to = tree.join(&item.name);
        if to.exists() {
            bail!("two payloads are called {}; give one another name with PATH:NAME", item.name);
        }
        if !item.path.exists() {
            bail!("there is no {} to hand to the guest", item.path.display());
        }
        run::quiet(run::command("cp").args(["-rL", "--preserve=mode", "--"]).arg(&item.path).arg(&to))
            .with_context(|| format!("cannot copy the payload {}", item.name))?;
        if !item.path.is_dir() {
            run::quiet(run::command("chmod").arg("a+rx").arg(&to))?;
        }
    }
    let file = scratch.join("payload.ext4");
    image::ext4(&tree, &file, 16)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_a_path_and_perhaps_a_name() {
        assert_eq!("/x/y".parse(), Ok(Payload::new("/x/y", "y")));
        assert_eq!("/x/y:z".parse(), Ok(Payload::new("/x/y", "z")));
        assert_eq!("/x:y/z".parse(), Ok(Payload::new("/x:y/z", "z")));
        assert!("/".parse::<Payload>().is_err());
        assert!("/x:".parse::<Payload>().is_err());
        assert!("/x:..".parse::<Payload>().is_err());
    }
}
