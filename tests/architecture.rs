//! Keeps the house as drawn: which part may name which, and that the world is reached through
//! `port` alone. Reads the source as text, so it needs nothing but the checkout.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each part of `src` may name of the others. A part is a file at the top with the folder of
/// its name. Arrows point from the left to the right, and there is no way round.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("io", &[]),
    ("error", &[]),
    ("random", &[]),
    ("metrics", &["io"]),
    ("nbd", &["io", "error"]),
    ("payload", &["io"]),
    ("port", &["io", "payload", "random"]),
    ("holders", &["port"]),
    ("sandbox", &["port"]),
    ("backend", &["error", "holders", "io", "payload", "port"]),
    ("filter", &["backend", "error", "io", "payload", "port", "random"]),
    ("queue", &["backend", "error", "io", "metrics", "payload", "port"]),
    ("tls", &["error", "port"]),
    ("engine", &["backend", "error", "io", "metrics", "nbd", "port", "queue", "random", "tls"]),
    ("config", &["error"]),
    ("stack", &["backend", "config", "error", "filter", "io", "queue"]),
    ("registry", &["engine", "error", "holders", "metrics", "port"]),
    ("exporter", &["error", "metrics", "port", "registry"]),
    ("server", &["engine", "error", "holders", "metrics", "nbd", "port", "queue", "registry", "tls"]),
    ("up", &["config", "engine", "error", "port", "server", "stack", "tls"]),
    (
        "cli",
        &[
            "config", "engine", "error", "exporter", "holders", "metrics", "nbd", "port", "registry",
            "sandbox", "server", "stack", "tls", "up",
        ],
    ),
];

/// What only `port` may name.
const THE_WORLD: &[&str] =
    &["libc", "nix", "io_uring", "crossbeam::sync", "std::thread", "std::time", "rand", "core_affinity"];

/// Lines after which a file is asked what its second idea is.
const LONGEST_FILE: usize = 600;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("src can be read") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The code of a file: without comments, and without the tests at its end. A file of tests has none.
fn code(path: &Path) -> String {
    if path.ends_with("tests.rs") {
        return String::new();
    }
    let text = fs::read_to_string(path).expect("a source file can be read");
    let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default().to_string();
    let lines = text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

/// The part that a file belongs to: `src/backend/file/open.rs` to `backend`.
fn part(path: &Path) -> String {
    let inside = path.strip_prefix(source()).expect("a file of src");
    let first = inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_string()
}

/// What follows each `crate::` in the code: `a` of `crate::a`, and all of `crate::{a, b::c}`.
fn parts_named(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let word = |text: &str| -> String {
            text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        match rest.strip_prefix('{') {
            None => drop(named.insert(word(rest))),
            Some(group) => {
                let mut depth = 0;
                let mut start = 0;
                for (at, letter) in group.char_indices() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth == 0 => {
                            named.insert(word(&group[start..]));
                            break;
                        }
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            named.insert(word(&group[start..]));
                            start = at + 1;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    named.remove("");
    named
}

#[test]
fn arrows_point_one_way() {
    let mut wrong = Vec::new();
    for path in files(&source()) {
        let part = part(&path);
        if part == "lib" || part == "main" {
            continue;
        }
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == part) else {
            wrong.push(format!("{}: a new part; say in MAY_NAME what it may name", path.display()));
            continue;
        };
        for named in parts_named(&code(&path)) {
            if named != part && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{}: {part} may not name {named}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_has_no_circle() {
    // Each part names only parts that stand above it in the table, but for server's registry.
    for (at, (name, allowed)) in MAY_NAME.iter().enumerate() {
        for named in *allowed {
            let place = MAY_NAME.iter().position(|(other, _)| other == named).expect("a part of the table");
            assert!(place < at, "{name} names {named}, which stands below it");
        }
    }
}

#[test]
fn the_world_is_reached_through_the_port_alone() {
    let mut wrong = Vec::new();
    for path in files(&source()) {
        if part(&path) == "port" {
            continue;
        }
        let code = code(&path).replace([' ', '\n'], "");
        for name in THE_WORLD {
            let (root, leaf) = name.split_once("::").unwrap_or((name, ""));
            let direct = if leaf.is_empty() { format!("{root}::") } else { (*name).to_string() };
            let named = code.match_indices(&direct).any(|(at, _)| {
                let before = code[..at].chars().next_back().unwrap_or(' ');
                !before.is_alphanumeric() && before != '_' && before != ':'
            });
            let grouped = !leaf.is_empty()
                && code.match_indices(&format!("use{root}::{{")).any(|(at, _)| {
                    let group = code[at..].split("};").next().unwrap_or_default();
                    group.split(['{', ',', '}']).any(|item| item.split("::").next() == Some(leaf))
                });
            if named || grouped {
                wrong.push(format!("{}: names {name}, which belongs behind the port", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_backend_knows_another_and_no_engine_knows_one() {
    let folder = source().join("backend");
    let leaf = |path: &Path| {
        let inside = path.strip_prefix(&folder).expect("a file of backend").to_path_buf();
        let first = inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
        first.trim_end_matches(".rs").to_string()
    };
    let leaves: BTreeSet<String> = files(&folder).iter().map(|path| leaf(path)).collect();
    assert!(leaves.contains("file") && leaves.contains("ram"), "{leaves:?}");
    let names = |path: &Path, other: &str| code(path).contains(&format!("backend::{other}"));
    for path in files(&folder) {
        for other in leaves.iter().filter(|other| **other != leaf(&path)) {
            assert!(!names(&path, other), "{} names the backend {other}", path.display());
        }
    }
    for path in files(&source().join("engine")) {
        for other in &leaves {
            assert!(!names(&path, other), "{} names the backend {other}", path.display());
        }
    }
}

#[test]
fn a_file_is_one_idea() {
    for path in files(&source()) {
        let lines = fs::read_to_string(&path).expect("a source file can be read").lines().count();
        assert!(
            lines <= LONGEST_FILE,
            "{} has {lines} lines: what is the second idea in it?",
            path.display()
        );
    }
}

#[test]
fn the_reader_of_imports_sees_groups() {
    let code = "use crate::{a, b::{c, d}, e as f}; let x = crate::g::h(); pub use crate::i;";
    let named: Vec<String> = parts_named(code).into_iter().collect();
    assert_eq!(named, ["a", "b", "e", "g", "i"]);
}
