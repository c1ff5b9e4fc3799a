//! Where and how figures came to be: without it they mean nothing.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::results::Results;
use crate::{paths, run};

/// All that a reader needs to judge a figure.
#[derive(Debug, Serialize)]
pub struct About {
    /// The command, without the folders of this machine.
    pub command: String,
    /// The day, in UTC.
    pub date: String,
    /// What it ran on.
    pub machine: String,
    /// What took part.
    pub versions: Vec<(String, String)>,
}

/// What was built and measured: the commit, and `-dirty` where anything has changed since but the pages, to which each run
/// of several adds its own.
fn commit() -> Result<String> {
    let git = |words: &[&str]| run::output(run::command("git").args(words).current_dir(paths::workspace()));
    let commit = git(&["describe", "--always", "--exclude=*"])?;
    let changed = git(&["status", "--porcelain", "--", ".", ":(exclude)docs"])?;
    Ok(format!("{}{}", commit.trim(), if changed.trim().is_empty() { "" } else { "-dirty" }))
}

impl About {
    /// Of the run that has just ended in `machine`.
    pub fn this_run(machine: &str, results: &Results) -> Result<Self> {
        let mut versions = results.versions.clone();
        if let Ok(commit) = commit()
            && let Some((_, version)) = versions.iter_mut().find(|(name, _)| name == "blockhaus")
        {
            *version += &format!(" ({commit})");
        }
        let words: Vec<String> = std::env::args().skip(1).collect();
        Ok(Self {
            command: format!("cargo xtask {}", without_folders(&words, &paths::workspace()).join(" ")),
            date: run::output(run::command("date").args(["-u", "+%Y-%m-%d"]))?.trim().to_string(),
            machine: format!("{machine}; host: {}", host()),
            versions,
        })
    }

    /// The kernel's version.
    pub fn kernel(&self) -> &str {
        self.versions.iter().find(|(name, _)| name == "kernel").map_or("unknown", |(_, version)| version)
    }

    /// The versions in one line.
    pub fn versions(&self) -> String {
        let words: Vec<_> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        words.join(", ")
    }
}

/// Words of a command line; of a path that begins at the root what is below `workspace`, or only the last name.
fn without_folders(words: &[String], workspace: &Path) -> Vec<String> {
    let short = |path: &str| {
        let path = Path::new(path);
        let name = || Path::new(path.file_name().unwrap_or_default());
        path.strip_prefix(workspace).unwrap_or_else(|_| name()).to_string_lossy().into_owned()
    };
    let shortened = |word: &String| match word.split_once('=') {
        _ if word.starts_with('/') => short(word),
        Some((option, path)) if path.starts_with('/') => format!("{option}={}", short(path)),
        _ => word.clone(),
    };
    words.iter().map(shortened).collect()
}

/// This machine's processor and memory.
fn host() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let mib = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024;
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown processor".into());
    format!("{count} x {model}, {mib} MiB")
}

/// The first `NAME: VALUE` of a file in /proc.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_folder_of_this_machine_is_published() {
        let words = [
            "bench",
            "--out",
            "/home/me/out",
            "--json=/tmp/x.json",
            "--out=/home/me/house/docs/benchmarks",
            "--only",
            "null-blk",
            "docs",
        ];
        let words = words.map(String::from);
        assert_eq!(
            without_folders(&words, Path::new("/home/me/house")).join(" "),
            "bench --out out --json=x.json --out=docs/benchmarks --only null-blk docs"
        );
    }

    #[test]
    fn a_field_is_what_stands_after_the_colon() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Other\n";
        assert_eq!(field(text, "model name").unwrap(), "Some CPU @ 2 GHz");
        assert_eq!(field(text, "flags"), None);
    }
}
