//! A crate outside the workspace gets the whole command line for spec types of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Where this test was built, so that what is built already is not built again.
    let target = Path::new(env!("CARGO_BIN_EXE_blockhaus")).ancestors().nth(2).expect("a target folder");
    cargo
        .args(arguments)
        .args(["--offline", "--locked", "--manifest-path"])
        .arg(root().join("examples/outside/Cargo.toml"))
        .env("CARGO_TARGET_DIR", target);
    // What cargo told this test about blockhaus is not about that crate.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_"))
    {
        cargo.env_remove(name);
    }
    cargo
}

/// The crate's program, built once, with nothing from the network.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let output = cargo(&["build", "--message-format", "json"]).output().expect("cargo runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let cure = "has its lock file fallen behind? `cargo update --workspace --offline --manifest-path \
                    examples/outside/Cargo.toml` brings it up";
        assert!(output.status.success(), "{said}\n{cure}");
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let built = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let program =
            built.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
        program.expect("cargo says where the program is")
    })
}

fn run(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let run = folder.path().join("run");
    Command::new(binary()).args(arguments).env("BLOCKHAUS_RUN_DIR", run).output().expect("it runs")
}

fn works(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn fails(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn its_own_tests_pass() {
    let output = cargo(&["test", "--quiet"]).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn its_specs_are_in_the_help_beside_ours() {
    let help = works(&["attach", "--help"]);
    for spec in ["veil:PATH[,key=TEXT]", "window:PATH[,start=SIZE][,size=SIZE]", "ram:SIZE", "file:PATH"] {
        assert!(help.contains(spec), "{spec} is missing");
    }
    assert!(works(&["--help"]).contains("attach"));
}

#[test]
fn every_verb_works_for_it() {
    let features: serde_json::Value = serde_json::from_str(&works(&["features", "--json"])).expect("JSON");
    assert!(features["features"].as_array().is_some_and(|features| features.len() >= 21));
    serde_json::from_str::<serde_json::Value>(&works(&["list", "--json"])).expect("JSON");
    assert!(works(&["completions", "bash"]).contains("attach"));
    assert!(fails(&["status", "1048575"]).contains("blockhaus list"));
}

#[test]
fn its_errors_read_like_ours() {
    for (spec, said) in [
        ("viel:/a", &["\"viel\"", "did you mean veil?", "window"][..]),
        ("veil:/a,kye=x", &["did you mean key?"]),
        ("veil:/nowhere/at-all,key=x", &["/nowhere/at-all", "No such file"]),
        ("veil", &["veil needs a path", "veil:/srv/veiled.img,key=secret"]),
        ("window:/nowhere/at-all", &["/nowhere/at-all", "No such file"]),
        ("window:/a,start=12Q", &["start=12Q", "4096, 64K"]),
    ] {
        let said_by = match spec.contains("start=") {
            // Values are looked at when the file is open.
            true => fails(&["attach", &spec.replace("/a", env!("CARGO_BIN_EXE_blockhaus"))]),
            false => fails(&["attach", spec]),
        };
        for part in said {
            assert!(said_by.contains(part), "{spec} does not say {part}: {said_by}");
        }
    }
}

#[test]
fn the_file_of_up_takes_its_specs() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("up.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("a file can be written");
    let name = path.to_str().expect("text");
    write("[[device]]\nspec = \"veil:/a,key=x\"\n[[device]]\nspec = \"window:/b,start=1M\"\n");
    works(&["up", "--check", name]);
    // Its paths are known to be paths.
    write("[[device]]\nspec = \"veil:/a,key=x\"\n[[device]]\nspec = \"window:/a,start=1M\"\n");
    assert!(fails(&["up", "--check", name]).contains("same file"));
}

/// What was tried with our versions of everything is what it is built with.
#[test]
fn it_has_our_versions_of_everything() {
    let packages = |path: &str| -> BTreeSet<(String, String)> {
        let text = std::fs::read_to_string(root().join(path)).expect("a lock file");
        let value = |block: &str, key: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
            line.map(|line| line.trim_matches('"').to_owned())
        };
        text.split("[[package]]")
            .filter_map(|block| Some((value(block, "name")?, value(block, "version")?)))
            .collect()
    };
    let (ours, theirs) = (packages("Cargo.lock"), packages("examples/outside/Cargo.lock"));
    let others: Vec<_> = theirs.difference(&ours).filter(|(name, _)| name != "outside").collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(theirs.len() > 10, "{theirs:?}");
}
