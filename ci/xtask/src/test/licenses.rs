//! Every dependency's licence is one that lets everybody use blockhaus under
//! blockhaus' own: the list is `ci/licenses.txt`.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::cargo;
use super::tally::{Failure, Tally};
use crate::paths;

/// Look at every package that any platform or feature would bring.
pub fn check() -> Result<Tally> {
    let list = paths::read(&paths::workspace().join("ci/licenses.txt"))?;
    let out = cargo::command(&["metadata", "--format-version", "1"])
        .stdin(Stdio::null())
        .output()
        .context("cannot start cargo")?;
    if !out.status.success() {
        bail!("`cargo metadata` failed:\n{}", String::from_utf8_lossy(&out.stderr));
    }
    let metadata: Metadata = serde_json::from_slice(&out.stdout).context("cannot read `cargo metadata`")?;
    Ok(Tally::one(judge(&metadata.packages, &allowed(&list))))
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// A package, as far as its licence goes.
#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

fn allowed(list: &str) -> Vec<&str> {
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).collect()
}

fn judge(packages: &[Package], allowed: &[&str]) -> Result<(), Failure> {
    let wrong: Vec<String> = packages
        .iter()
        .filter_map(|Package { name, version, license }| match license {
            None => Some(format!("{name} {version} names no licence")),
            Some(words) => match permits(words, allowed) {
                Ok(true) => None,
                Ok(false) => Some(format!("{name} {version}: {words}")),
                Err(error) => Some(format!("{name} {version}: {words}: {error}")),
            },
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let why = format!("{} dependencies whose licence ci/licenses.txt does not list", wrong.len());
    Err(Failure::new("licenses", &why).with_details(wrong.iter().map(String::as_str)))
}

/// Whether an SPDX expression can be satisfied with `allowed` licences only.
fn permits(expression: &str, allowed: &[&str]) -> Result<bool> {
    // Before SPDX, crates wrote `MIT/Apache-2.0` for a choice.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    let permitted = parser.choice()?;
    if let Some(word) = parser.words.first() {
        bail!("{word} does not belong there");
    }
    Ok(permitted)
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a [&'a str],
}

impl<'a> Parser<'a> {
    fn next_if(&mut self, word: &str) -> bool {
        let found = self.words.first().is_some_and(|first| first.eq_ignore_ascii_case(word));
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn name(&mut self) -> Result<&'a str> {
        match self.words.split_first() {
            Some((word, rest)) if !["OR", "AND", "WITH", "(", ")"].contains(word) => {
                self.words = rest;
                Ok(word)
            }
            _ => bail!("a licence is missing"),
        }
    }

    /// `a OR b`
    fn choice(&mut self) -> Result<bool> {
        let mut any = self.both()?;
        while self.next_if("OR") {
            any |= self.both()?;
        }
        Ok(any)
    }

    /// `a AND b`, which binds tighter
    fn both(&mut self) -> Result<bool> {
        let mut all = self.term()?;
        while self.next_if("AND") {
            all &= self.term()?;
        }
        Ok(all)
    }

    /// A licence, perhaps with an exception, or an expression in parentheses
    fn term(&mut self) -> Result<bool> {
        if self.next_if("(") {
            let inner = self.choice()?;
            if !self.next_if(")") {
                bail!("a parenthesis is not closed");
            }
            return Ok(inner);
        }
        let name = self.name()?.to_string();
        let whole = if self.next_if("WITH") { format!("{name} WITH {}", self.name()?) } else { name };
        Ok(self.allowed.contains(&whole.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: &[&str] = &["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];

    #[test]
    fn a_choice_needs_one_and_a_sum_needs_all() {
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("GPL-2.0 OR MIT", true),
            ("MIT/Apache-2.0", true),
            ("GPL-2.0/LGPL-2.1", false),
            ("MIT AND GPL-2.0", false),
            ("(MIT OR GPL-2.0) AND Unicode-3.0", true),
            ("(GPL-2.0 OR LGPL-2.1) AND MIT", false),
            // AND binds tighter than OR.
            ("MIT OR GPL-2.0 AND LGPL-2.1", true),
            ("GPL-2.0 AND LGPL-2.1 OR MIT", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0 WITH Other-exception", false),
            ("MIT WITH LLVM-exception", false),
            ("mit", false),
        ] {
            assert_eq!(permits(expression, ALLOWED).unwrap(), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for wrong in ["", "MIT OR", "OR MIT", "(MIT", "MIT)", "MIT Apache-2.0", "AND", "MIT WITH"] {
            assert!(permits(wrong, ALLOWED).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_dependency_that_does_not_fit_is_named() {
        let package = |name: &str, license: Option<&str>| Package {
            name: name.into(),
            version: "1.0.0".into(),
            license: license.map(str::to_string),
        };
        let packages =
            [package("good", Some("MIT")), package("bad", Some("GPL-3.0-only")), package("none", None)];
        let failure = judge(&packages, ALLOWED).unwrap_err();
        assert_eq!(failure.details, ["bad 1.0.0: GPL-3.0-only", "none 1.0.0 names no licence"]);
        assert!(judge(&packages[..1], ALLOWED).is_ok());
    }

    #[test]
    fn the_list_has_comments_and_ours() {
        assert_eq!(allowed("# words\nMIT\n\nX WITH Y # why\n"), ["MIT", "X WITH Y"]);
        let list = paths::read(&paths::workspace().join("ci/licenses.txt")).unwrap();
        assert!(permits("MIT OR Apache-2.0", &allowed(&list)).unwrap());
        assert!(!permits("GPL-3.0-only", &allowed(&list)).unwrap());
    }
}
