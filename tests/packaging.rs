//! The files in `ci` that packages install: systemd's unit and udev's rule.

use std::fs;
use std::path::Path;
use std::process::Command;

const UNIT: &str = "ci/systemd/blockhaus@.service";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Sections, keys and values. What is none of them is an error.
fn settings(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match (line.strip_prefix('[').and_then(|line| line.strip_suffix(']')), line.split_once('=')) {
            (Some(name), _) => section = name.to_owned(),
            (None, Some((key, value))) => found.push((section.clone(), key.to_owned(), value.to_owned())),
            (None, None) => panic!("{line:?} is neither a section nor a setting"),
        }
    }
    found
}

fn setting(text: &str, key: &str) -> String {
    let found = settings(text).into_iter().find(|(_, name, _)| name == key);
    found.unwrap_or_else(|| panic!("there is no {key}")).2
}

#[test]
fn the_unit_calls_what_there_is() {
    let text = read(UNIT);
    let sections: Vec<String> = settings(&text).into_iter().map(|(section, _, _)| section).collect();
    assert!(
        sections.iter().all(|section| ["Unit", "Service", "Install"].contains(&section.as_str())),
        "{sections:?}"
    );
    let mut commands = 0;
    for (_, key, value) in settings(&text) {
        if !key.starts_with("Exec") {
            continue;
        }
        let mut words = value.trim_start_matches('-').split_whitespace();
        assert_eq!(words.next(), Some("/usr/bin/blockhaus"), "{key}");
        let verb = words.next().expect("a verb");
        let help =
            Command::new(env!("CARGO_BIN_EXE_blockhaus")).args([verb, "--help"]).output().expect("it runs");
        assert!(help.status.success(), "there is no `blockhaus {verb}`");
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for option in words.filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "`blockhaus {verb}` has no {option}");
        }
        commands += 1;
    }
    assert_eq!(commands, 2);
    // What `up` does with READY, RELOADING and SIGHUP is what this type means.
    assert_eq!(setting(&text, "Type"), "notify-reload");
    // systemd would otherwise remove the state of every other server with the first unit that ends.
    assert_eq!(setting(&text, "RuntimeDirectoryPreserve"), "yes");
    assert_eq!(format!("/run/{}", setting(&text, "RuntimeDirectory")), blockhaus::registry::DEFAULT_FOLDER);
}

/// What the program cannot work without is not taken from it.
#[test]
fn hardening_leaves_what_a_server_needs() {
    let text = read(UNIT);
    let capabilities = setting(&text, "CapabilityBoundingSet");
    for needed in ["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_IPC_LOCK"] {
        assert!(capabilities.split(' ').any(|capability| capability == needed), "{needed}");
    }
    let mounts =
        ["Private", "Protect", "ReadOnlyPaths", "InaccessiblePaths", "TemporaryFileSystem", "BindPaths"];
    for (_, key, _) in settings(&text) {
        assert!(!mounts.iter().any(|prefix| key.starts_with(prefix)), "{key} makes a mount namespace");
        assert!(key != "UMask", "the state would be hidden from `list`");
    }
    let Ok(output) = Command::new("systemd-analyze").args(["syscall-filter", "@system-service"]).output()
    else {
        return;
    };
    let mut pending = vec!["@system-service".to_owned()];
    let mut calls = Vec::new();
    while let Some(group) = pending.pop() {
        let output = match group.as_str() {
            "@system-service" => output.clone(),
            group => Command::new("systemd-analyze")
                .args(["syscall-filter", group])
                .output()
                .expect("it ran before"),
        };
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace().skip(1) {
            if word.starts_with('@') { pending.push(word.to_owned()) } else { calls.push(word.to_owned()) }
        }
    }
    if calls.is_empty() {
        return;
    }
    let needed = [
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "mlockall",
        "prctl",
        "sched_setaffinity",
        "pidfd_open",
        "pidfd_send_signal",
        "signalfd4",
        "eventfd2",
        "fallocate",
        "flock",
        "capset",
        "close_range",
    ];
    for call in needed {
        assert!(calls.iter().any(|known| known == call), "{call} is filtered");
    }
}

#[test]
fn systemd_takes_the_unit() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else { return };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let number = version.split_whitespace().nth(1).and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
    let folder = tempfile::tempdir().expect("a folder");
    // The program need not be installed here.
    let text = read(UNIT).replace("/usr/bin/blockhaus", env!("CARGO_BIN_EXE_blockhaus"));
    fs::write(folder.path().join("blockhaus@.service"), text).expect("a file");
    let instance = folder.path().join("blockhaus@test.service");
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&instance)
        .output()
        .expect("it ran before");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // What is wrong with other units of this machine is not ours, and the type is newer than some systemds.
    let ours = said.lines().filter(|line| line.contains("blockhaus@"));
    let wrong: Vec<&str> = ours.filter(|line| number >= 253 || !line.contains("notify-reload")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn udev_takes_the_rule() {
    let text = read("ci/udev/60-blockhaus.rules");
    let keys = ["ACTION", "SUBSYSTEM", "KERNEL", "ENV", "ATTR", "SYMLINK", "TAG", "OPTIONS", "GOTO", "LABEL"];
    let mut rules = 0;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut assigns = false;
        for part in line.split(", ") {
            let at = part.find(['=', '!', '+']).unwrap_or_else(|| panic!("{part:?} has no operator"));
            let (key, rest) = part.split_at(at);
            let operator: String = rest.chars().take_while(|c| "=!+:".contains(*c)).collect();
            let value = &rest[operator.len()..];
            assert!(keys.contains(&key.split('{').next().expect("a key")), "{part:?}: no such key");
            assert!(["==", "!=", "=", "+=", ":="].contains(&operator.as_str()), "{part:?}");
            assert!(value.len() > 2 && value.starts_with('"') && value.ends_with('"'), "{part:?}: no quotes");
            assigns |= !operator.ends_with("==") && operator != "!=";
        }
        assert!(assigns, "{line:?} does nothing");
        rules += 1;
    }
    assert!(rules > 0);
    let Ok(help) = Command::new("udevadm").args(["verify", "--help"]).output() else { return };
    if !help.status.success() {
        return;
    }
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/udev/60-blockhaus.rules");
    let output = Command::new("udevadm").arg("verify").arg(rules).output().expect("it ran before");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
