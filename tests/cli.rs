//! The command line as a person meets it, on a machine that need not have ublk.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const VERBS: [&str; 14] = [
    "attach",
    "serve",
    "detach",
    "up",
    "down",
    "list",
    "status",
    "stats",
    "metrics",
    "bench",
    "features",
    "gc",
    "completions",
    "man",
];

/// A folder of its own for the state, so that no test sees what runs on this machine.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        Host { folder: tempfile::tempdir().unwrap() }
    }

    /// Where something of this name is in the folder.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_blockhaus"))
            .args(arguments)
            .env("BLOCKHAUS_RUN_DIR", self.path("run"))
            .output()
            .unwrap()
    }

    /// Runs what must fail with an exit status, and returns what it says about it.
    fn fails(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?} printed a result");
        assert!(status == 2 || text.starts_with("blockhaus: "), "{arguments:?}: {text}");
        text
    }

    /// Runs what must work, and returns what it prints.
    fn works(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether nothing was left in the folder of the state.
    fn is_clean(&self) -> bool {
        let files = std::fs::read_dir(self.path("run")).into_iter().flatten().flatten();
        files.map(|file| file.file_name()).all(|name| name == "lock")
    }
}

fn has_ublk() -> bool {
    Path::new("/dev/ublk-control").exists()
}

#[test]
fn every_verb_explains_itself() {
    let host = Host::new();
    let all = host.works(&["--help"]);
    for verb in VERBS {
        assert!(all.contains(verb), "{verb} is missing");
        let help = host.works(&[verb, "--help"]);
        assert!(help.contains("Usage: blockhaus") && help.len() > 200, "{help}");
    }
    assert!(!all.contains("isolated"));
    let attach = host.works(&["attach", "--help"]);
    for spec in ["null:SIZE", "ram:SIZE[,hugepages=yes|no]", "file:PATH[,size=SIZE]"] {
        assert!(attach.contains(spec), "{spec} is missing");
    }
    assert!(host.works(&["--version"]).starts_with("blockhaus "));
}

#[test]
fn bad_input_names_the_thing_and_the_cure() {
    let host = Host::new();
    for (arguments, said) in [
        (&["attach", "rma:1G"][..], &["rma", "did you mean ram?", "null, ram, file"][..]),
        (&["attach", "ram:1G,hugepage=yes"], &["hugepage", "did you mean hugepages?"]),
        (&["attach", "/tmp/disk.img"], &["did you mean file:/tmp/disk.img?"]),
        (&["attach", "ram:0"], &["size 0"]),
        (&["attach", "ram:1000"], &["1000", "multiple", "512"]),
        (&["attach", "ram:64K", "--block-size", "300"], &["300", "512", "power of two"]),
        (&["attach", "ram:64K", "--block-size", "1M"], &["1M", "page size"]),
        (&["attach", "ram:64K", "--block-size", "x"], &["x"]),
        (&["attach", "ram"], &["ram:1G"]),
        (&["attach", "ram:12Q"], &["\"Q\"", "4096, 64K"]),
        (&["attach", "ram:64K", "--depth", "0"], &["depth 0", "1 to 4096"]),
        (&["attach", "ram:64K", "--depth", "5000"], &["depth 5000", "1 to 4096"]),
        (&["attach", "ram:64K", "--for", "speed"], &["speed", "latency, throughput"]),
        (&["attach", "ram:64K", "--spin-us", "1001"], &["1001 us", "0 to 1000"]),
        (&["attach", "ram:64K", "--engine", "udlk"], &["udlk", "auto, or one of ublk, nbd"]),
        (&["attach", "ram:64K", "--connections", "17"], &["17 connections", "--connections 16"]),
        (&["attach", "ram:64K", "--timeout", "0"], &["timeout of 0 s", "--timeout 1"]),
        (&["attach", "ram:64K", "--queues", "0"], &["0 queues"]),
        (&["attach", "ram:64K", "--queues", "60000"], &["60000 queues", "CPUs", "--queues "]),
        (&["attach", "ram:64K", "--id", "4000000000"], &["4000000000", "1048575"]),
        (&["attach", "ram:64K", "--filter", "trottle,iops=5"], &["trottle", "did you mean throttle?"]),
        (&["attach", "ram:64K", "--filter", "throttle,ipos=5"], &["ipos", "did you mean iops?"]),
        (
            &["attach", "ram:64K", "--filter", "log", "--filter", "offset:4K"],
            &["offset:4K", "offset[,start="],
        ),
        (&["attach", "file:/nowhere/at-all"], &["/nowhere/at-all"]),
        (&["attach", "file:/tmp"], &["/tmp"]),
        (&["attach", "file:x,direct=perhaps"], &["perhaps", "auto, yes, no"]),
        (&["detach", "7777"], &["/dev/ublkb7777", "blockhaus list"]),
        (&["detach", "/dev/null"], &["/dev/null", "blockhaus list"]),
        (&["status", "7777"], &["/dev/ublkb7777", "blockhaus list"]),
        (&["status", "seven"], &["seven", "blockhaus list"]),
        (&["stats", "7777"], &["7777", "blockhaus list"]),
        (&["stats", "seven"], &["seven", "blockhaus list"]),
        (&["metrics", "--listen", "nowhere"], &["nowhere", "HOST:PORT"]),
        (&["metrics", "--listen", "0.0.0.0:0"], &["0.0.0.0", "other machines", "--insecure-listen"]),
        (&["man", "/nowhere"], &["/nowhere"]),
    ] {
        for foreground in [false, true] {
            let mut arguments = arguments.to_vec();
            if foreground {
                if arguments[0] != "attach" {
                    continue;
                }
                arguments.push("--foreground");
            }
            let text = host.fails(1, &arguments);
            for part in said {
                assert!(text.contains(part), "{arguments:?} does not say {part}: {text}");
            }
            assert!(text.lines().count() <= 3, "{text}");
        }
    }
    assert!(host.is_clean());
}

#[test]
fn a_command_line_without_sense_is_usage() {
    let host = Host::new();
    for arguments in [
        &["detach"][..],
        &["detach", "0", "--all"],
        &["attach"],
        &["attach", "ram:1M", "--depth", "many"],
        &["atach", "ram:1M"],
        &["stats"],
        &["stats", "0", "--every", "0"],
        &["stats", "0", "--count", "3"],
        &["completions", "clay-tablet"],
    ] {
        host.fails(2, arguments);
    }
    assert!(host.fails(2, &["atach", "ram:1M"]).contains("attach"));
}

#[test]
fn without_ublk_attach_says_so_in_one_sentence() {
    if has_ublk() {
        return;
    }
    let host = Host::new();
    for extra in [&["--json"][..], &["--foreground"]] {
        let text = host.fails(1, &[&["attach", "ram:1M", "--engine", "ublk"], extra].concat());
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("no ublk"), "{text}");
    }
    assert!(host.is_clean());
    let features: serde_json::Value = serde_json::from_str(&host.works(&["features", "--json"])).unwrap();
    assert_eq!(features["ublk"], false);
    assert!(features["reason"].as_str().unwrap().contains("ublk"));
    assert_eq!(features["features"].as_array().unwrap().len(), 21);
    assert_eq!(features["engines"][0]["engine"], "ublk");
    assert_eq!(features["engines"][0]["offered"], false);
    let text = host.works(&["features"]);
    assert!(text.starts_with("ENGINE") && text.contains("has no ublk"), "{text}");
}

#[test]
fn an_empty_host_is_no_error() {
    let host = Host::new();
    if has_ublk() {
        return;
    }
    assert_eq!(host.works(&["list", "--json"]), "[]\n");
    assert_eq!(host.works(&["list"]), "");
    assert_eq!(host.works(&["gc"]), "");
    assert_eq!(host.works(&["gc", "--foreign", "--json"]), "[]\n");
    assert_eq!(host.works(&["detach", "--all"]), "");
    let metrics = host.works(&["metrics"]);
    assert!(metrics.lines().all(|line| line.starts_with('#')), "{metrics}");
    // The classic format: OpenMetrics would have an end, and no `_total` here.
    assert!(
        metrics.contains("# TYPE blockhaus_requests_total counter") && !metrics.contains("EOF"),
        "{metrics}"
    );
}

/// A server that has crashed is not as if there had never been one.
#[test]
fn a_server_that_crashed_is_in_the_metrics_until_it_is_cleaned_up() {
    let host = Host::new();
    let run = host.path("run");
    std::fs::create_dir_all(&run).unwrap();
    let entry = serde_json::json!({
        "pid": 1, "pid_start": 1, "boot": "another", "config": "/etc/gone.toml", "started_since_boot": 1,
    });
    std::fs::write(run.join("up-1.json"), entry.to_string()).unwrap();
    let line = "blockhaus_server_answers{about=\"/etc/gone.toml\",pid=\"1\"} 0\n";
    let metrics = host.works(&["metrics"]);
    assert!(metrics.contains(line), "{metrics}");
    let said = host.fails(1, &["stats", "gone"]);
    assert!(said.contains("no statistics of gone") && said.contains("its server is gone"), "{said}");
    host.works(&["gc"]);
    assert!(!host.works(&["metrics"]).contains("gone.toml"));
    assert!(host.is_clean());
}

#[test]
fn gc_removes_what_a_server_of_an_earlier_life_left() {
    let host = Host::new();
    let run = host.path("run");
    std::fs::create_dir_all(&run).unwrap();
    let id = 999_999;
    let entry = serde_json::json!({
        "name": format!("ublkb{id}"), "device": format!("/dev/ublkb{id}"), "spec": "ram:1G", "directory": "/", "argv": ["blockhaus"],
        "pid": 1, "pid_start": 1, "boot": "another", "started": 1, "started_since_boot": 1, "identity": 1, "report": null,
    });
    for (name, text) in [("json", entry.to_string()), ("log", "x".into()), ("sock", String::new())] {
        std::fs::write(run.join(format!("ublkb{id}.{name}")), text).unwrap();
    }
    std::fs::write(run.join("nbd999998.log"), "left alone").unwrap();
    let list: serde_json::Value = serde_json::from_str(&host.works(&["list", "--json"])).unwrap();
    let ours = list.as_array().unwrap().iter().find(|disk| disk["id"] == id).unwrap().clone();
    assert_eq!((&ours["state"], &ours["spec"]), (&"dead".into(), &"ram:1G".into()));
    let status: serde_json::Value =
        serde_json::from_str(&host.works(&["status", "999999", "--json"])).unwrap();
    assert_eq!((&status["state"], &status["uptime_s"]), (&"dead".into(), &serde_json::Value::Null));
    assert!(host.works(&["status", "999999"]).contains("uptime          -\n"));
    let said = host.works(&["gc"]);
    for name in ["ublkb999999.json", "ublkb999999.log", "ublkb999999.sock", "nbd999998.log"] {
        assert!(said.contains(name), "{said}");
    }
    assert!(host.is_clean());
}

#[test]
fn a_file_of_up_is_checked_before_anything_is_touched() {
    let host = Host::new();
    let path = host.path("up.toml");
    let name = path.to_str().unwrap();
    let image = host.path("new.img");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write(
        "[[device]]\nspec = \"ram:1M\"\nid = 3\n[[device]]\nspec = \"file:new.img,size=1M\"\nread-only = false\n",
    );
    assert_eq!(host.works(&["up", "--check", name]), "");
    let device = |spec: &str, more: &str| format!("[[device]]\nspec = \"{spec}\"\n{more}\n");
    let new = device("file:new.img,size=1M", "");
    let export = "[[export]]\nname = \"a\"\nspec = \"ram:1M\"\n[nbd]\nlisten = [\"tcp:0.0.0.0:10809\"]\n";
    for (text, said) in [
        (String::new(), &["line 1", "nothing to serve", "[[device]]"][..]),
        (device("ram:1M", "quues = 1"), &["line 3", "quues", "did you mean queues?"]),
        (device("rma:1M", ""), &["line 1", "did you mean ram?"]),
        (device("ram:1M", "queues = 60000"), &["line 3", "CPUs", "write queues = "]),
        (format!("{new}{}", device("file:./new.img", "")), &["line 4", "the same file as that of line 1"]),
        (device("ram:1M", "id = 1").repeat(2), &["line 4", "two devices with id 1"]),
        (device("ram:1M", "filters = [\"lgo\"]"), &["line 1", "did you mean log?"]),
        (export.to_owned(), &["line 5", "other machines can reach it", "insecure-listen = true"]),
        (device("ram:1M", "export = \"a\""), &["line 1", "nowhere to listen"]),
    ] {
        write(&text);
        for arguments in [&["up", "--check", name][..], &["up", name]] {
            let error = host.fails(1, arguments);
            assert!(error.contains("up.toml, line "), "{error}");
            for part in said {
                assert!(error.contains(part), "{text:?} does not say {part}: {error}");
            }
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
    write(&format!("{export}insecure-listen = true\n"));
    host.works(&["up", "--check", name]);
    let error = host.fails(1, &["up", "/nowhere/up.toml"]);
    assert!(error.contains("/nowhere/up.toml") && error.contains("docs/config.md"), "{error}");
    assert!(host.fails(1, &["down", name]).contains("nothing is up from this file"));
    assert_eq!(host.works(&["down", "--all", "--json"]), "[]\n");
    host.fails(2, &["down"]);
    host.fails(2, &["down", name, "--all"]);
    host.fails(2, &["up"]);
    assert!(host.is_clean() && !image.exists());
}

#[test]
fn up_without_ublk_says_so_and_leaves_nothing() {
    if has_ublk() {
        return;
    }
    let host = Host::new();
    let path = host.path("up.toml");
    // Relative to the folder of the file, not to the one this runs in.
    let text = "[[device]]\nspec = \"ram:1M\"\nengine = \"ublk\"\n\
                [[device]]\nspec = \"file:new.img,size=1M\"\nengine = \"ublk\"\n";
    // Nor is there an export when there is no device.
    let export =
        "[nbd]\nlisten = [\"unix:s\"]\n[[export]]\nname = \"a\"\nspec = \"file:other.img,size=1M\"\n";
    for text in [text.to_owned(), format!("{text}{export}"), format!("{text}export = \"b\"\n{export}")] {
        std::fs::write(&path, text).unwrap();
        let error = host.fails(1, &["up", path.to_str().unwrap()]);
        assert!(error.contains("no ublk"), "{error}");
        let left = |name: &str| host.path(name).exists();
        assert!(host.is_clean() && !left("new.img") && !left("other.img") && !left("s"));
    }
}

#[test]
fn completions_and_manual_pages_know_every_verb() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = host.works(&["completions", shell]);
        for verb in VERBS {
            assert!(script.contains(verb), "{shell} does not know {verb}");
        }
        for hidden in ["isolated", "--background"] {
            assert!(!script.contains(hidden), "{shell} knows {hidden}");
        }
    }
    assert!(host.works(&["man"]).contains("blockhaus"));
    let folder = host.folder.path().to_str().unwrap();
    let said = host.works(&["man", folder]);
    for verb in VERBS {
        let path = host.path(&format!("blockhaus-{verb}.1"));
        let page = std::fs::read_to_string(&path).unwrap();
        assert!(said.contains(path.to_str().unwrap()));
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH DESCRIPTION"), "{page}");
    }
    assert!(host.path("blockhaus.1").exists());
    assert!(!host.path("blockhaus-isolated.1").exists());
}
