//! Which Debian mirror to use: said in the environment, or the one that this
//! machine uses already.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::run;

/// The variable that names a mirror.
pub const VARIABLE: &str = "BLOCKHAUS_DEBIAN_MIRROR";

/// The address of a Debian archive.
pub fn debian_mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(VARIABLE)
        && !mirror.is_empty()
    {
        return Ok(mirror.trim_end_matches('/').to_string());
    }
    if let Some(mirror) = from_apt(Path::new("/etc/apt")) {
        return Ok(mirror);
    }
    let script = run::find_program("debootstrap").and_then(|path| fs::read_to_string(path).ok());
    match script.as_deref().and_then(from_debootstrap) {
        Some(mirror) => Ok(mirror),
        None => bail!(
            "no Debian mirror is known: neither {VARIABLE} nor this machine's apt sources nor \
             debootstrap names one. Set {VARIABLE} to the address of one"
        ),
    }
}

/// The first Debian archive in apt's sources.
fn from_apt(etc: &Path) -> Option<String> {
    let mut files = vec![etc.join("sources.list")];
    let mut parts: Vec<_> =
        fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten().collect();
    parts.sort_by_key(fs::DirEntry::file_name);
    files.extend(parts.into_iter().map(|entry| entry.path()));
    files.iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        let entries = match file.extension()?.to_str()? {
            "sources" => deb822(&text),
            "list" => one_line(&text),
            _ => return None,
        };
        entries.iter().filter_map(Entry::archive).find_map(|uri| concrete(&uri))
    })
}

/// Cloud images name a file that lists the mirrors; the others are as they are.
fn concrete(uri: &str) -> Option<String> {
    let Some(file) = uri.strip_prefix("mirror+file:") else {
        return Some(uri.to_string());
    };
    let text = fs::read_to_string(file).ok()?;
    let first = text.lines().find_map(|line| line.split_whitespace().next())?;
    Some(first.trim_end_matches('/').to_string())
}

/// One source of packages.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
}

impl Entry {
    /// Its address when it is Debian's main archive, and not that of security
    /// updates or of another project that serves packages for Debian.
    fn archive(&self) -> Option<String> {
        const SUITES: &[&str] = &[
            "stable",
            "oldstable",
            "oldoldstable",
            "testing",
            "unstable",
            "sid",
            "bullseye",
            "bookworm",
            "trixie",
            "forky",
            "duke",
        ];
        let ours = self.components.iter().any(|c| c == "main")
            && self.suites.iter().any(|s| SUITES.contains(&s.split('-').next().unwrap_or(s)));
        self.uris.iter().map(|uri| uri.trim_end_matches('/')).find_map(|uri| {
            let last = uri.rsplit(['/', ':']).next()?;
            let file = uri.starts_with("mirror+file:") && last.starts_with("debian.");
            (ours && (last == "debian" || file)).then(|| uri.to_string())
        })
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

/// Stanzas of `Key: value` lines, continued by indented ones.
fn deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')).chain([""]) {
        if line.trim().is_empty() {
            let field = |key: &str| {
                let found = stanza.iter().find(|(k, _)| k.eq_ignore_ascii_case(key));
                found.map_or_else(Vec::new, |(_, value)| words(value))
            };
            let on = field("Enabled").first().is_none_or(|v| v != "no" && v != "false");
            if on && field("Types").iter().any(|t| t == "deb") {
                entries.push(Entry {
                    uris: field("URIs"),
                    suites: field("Suites"),
                    components: field("Components"),
                });
            }
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push(' ');
                value.push_str(line);
            }
        } else if let Some((key, value)) = line.split_once(':') {
            stanza.push((key.trim().to_string(), value.to_string()));
        }
    }
    entries
}

/// Lines of `deb [options] URI SUITE COMPONENT...`.
fn one_line(text: &str) -> Vec<Entry> {
    text.lines()
        .filter_map(|line| {
            let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
            let rest = rest.starts_with([' ', '\t', '[']).then(|| rest.trim_start())?;
            let rest = match rest.strip_prefix('[') {
                Some(options) => options.split_once(']')?.1,
                None => rest,
            };
            let mut parts = words(rest).into_iter();
            Some(Entry {
                uris: vec![parts.next()?],
                suites: vec![parts.next()?],
                components: parts.collect(),
            })
        })
        .collect()
}

/// What debootstrap would use for Debian.
fn from_debootstrap(script: &str) -> Option<String> {
    let line = script.lines().find_map(|line| line.trim().strip_prefix("DEF_MIRROR="))?;
    let mirror = line.trim_matches(['"', '\'']).trim_end_matches('/');
    mirror.ends_with("/debian").then(|| mirror.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(entries: &[Entry]) -> Option<String> {
        entries.iter().find_map(Entry::archive)
    }

    #[test]
    fn the_main_archive_is_found_among_stanzas() {
        let text = "\
Types: deb
# a comment
URIs: http://mirror.invalid/debian-security
Suites: trixie-security
Components: main

Types: deb deb-src
URIs: http://mirror.invalid/debian/
Suites: trixie
 trixie-updates
Components: main contrib
";
        let entries = deb822(text);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].suites, ["trixie", "trixie-updates"]);
        assert_eq!(first(&entries).as_deref(), Some("http://mirror.invalid/debian"));
    }

    #[test]
    fn a_stanza_that_is_off_or_for_sources_does_not_count() {
        let off = "Types: deb\nEnabled: no\nURIs: http://m.invalid/debian\nSuites: sid\n";
        assert!(deb822(off).is_empty());
        let src = "Types: deb-src\nURIs: http://m.invalid/debian\nSuites: sid\n";
        assert!(deb822(src).is_empty());
    }

    #[test]
    fn the_main_archive_is_found_among_lines() {
        let text = "\
# deb http://off.invalid/debian trixie main
deb-src http://src.invalid/debian trixie main
deb [arch=amd64 signed-by=/k.gpg] https://other.invalid/linux/debian trixie stable
deb http://mirror.invalid/debian-security trixie-security main
deb [arch=amd64] http://mirror.invalid/debian trixie main # the one
";
        assert_eq!(first(&one_line(text)).as_deref(), Some("http://mirror.invalid/debian"));
    }

    #[test]
    fn ubuntus_archive_is_not_debians() {
        let text = "deb http://mirror.invalid/ubuntu noble main universe\n";
        assert_eq!(first(&one_line(text)), None);
    }

    #[test]
    fn debootstraps_own_mirror_is_read_from_its_script() {
        let script = "#!/bin/sh\nset -e\nDEF_MIRROR=\"http://mirror.invalid/debian\"\n";
        assert_eq!(from_debootstrap(script).as_deref(), Some("http://mirror.invalid/debian"));
        assert_eq!(from_debootstrap("DEF_MIRROR=\"http://m.invalid/ubuntu\""), None);
    }
}
