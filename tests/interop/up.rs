//! Exports from the file of `up`: they come and go while the others are served.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::raw::{Client, FLUSH, READ, go, request};
use crate::waiting::wait_until;

mod statistics;

/// NBD_REP_ERR_UNKNOWN.
const UNKNOWN: u32 = 1 << 31 | 6;

const NBD: &str = "[nbd]\nlisten = [\"unix:s\"]\n";

/// An `up` in a folder of its own, with a registry of its own; killed when it is dropped.
struct Up {
    child: Child,
    folder: tempfile::TempDir,
    printed: Vec<String>,
    reloads: usize,
}

fn export(name: &str, spec: &str) -> String {
    format!("[[export]]\nname = \"{name}\"\nspec = \"{spec}\"\n")
}

/// Not below the checkout: sockets have short names.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn blockhaus(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = blockhaus_below(env!("CARGO_BIN_EXE_blockhaus"), folder);
    command.args(arguments);
    command
}

/// With what the program must have around it.
fn blockhaus_below(program: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null());
    command.env("BLOCKHAUS_RUN_DIR", folder.join("run")).env_remove("NOTIFY_SOCKET");
    command
}

impl Up {
    /// One that is ready, which it says in so many lines.
    fn start(text: &str, lines: usize) -> Up {
        Up::start_in(folder(), text, lines, &[])
    }

    fn start_in(folder: tempfile::TempDir, text: &str, lines: usize, more: &[&str]) -> Up {
        fs::write(folder.path().join("up.toml"), text).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        // As below nohup(1): to `up` SIGHUP is a command all the same.
        let mut child = blockhaus_below("sh", folder.path())
            .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_blockhaus"), "up", "up.toml"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let printed: Vec<String> = stdout.lines().take(lines).map(Result::unwrap).collect();
        let up = Up { child, folder, printed, reloads: 0 };
        assert_eq!(up.printed.len(), lines, "{:?}; {}", up.printed, up.log());
        up
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn socket(&self) -> PathBuf {
        self.folder().join("s")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap()
    }

    fn kill(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill(1) is there").success());
    }

    /// Has it read another file, and waits until it has done what that says.
    fn reload(&mut self, text: &str) {
        fs::write(self.folder().join("up.toml"), text).unwrap();
        self.kill("-HUP");
        self.reloads += 1;
        wait_until("a reload", || self.log().matches(" now\n").count() == self.reloads);
    }

    fn run(&self, arguments: &[&str]) -> Output {
        blockhaus(self.folder(), arguments).output().unwrap()
    }

    /// What `list` says of the exports: names, states and connections.
    fn listed(&self) -> Vec<(String, String, u64)> {
        let output = self.run(&["list", "--exports", "--json"]);
        let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let one = |one: &serde_json::Value| {
            assert_eq!(one["pid"], self.child.id());
            let text = |key: &str| one[key].as_str().unwrap().to_owned();
            (text("name"), text("state"), one["connections"].as_u64().unwrap())
        };
        listed.as_array().unwrap().iter().map(one).collect()
    }

    /// How it ended, which it must soon.
    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Nothing of it may be left.
    fn assert_gone(&self) {
        let left: Vec<_> = fs::read_dir(self.folder().join("run")).unwrap().flatten().collect();
        let left: Vec<_> = left.iter().map(|file| file.file_name()).collect();
        assert!(left.iter().all(|name| name == "lock"), "{left:?}");
        assert!(!self.socket().exists());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_reload_adds_and_removes_and_a_connection_to_another_goes_on() {
    let home = folder();
    let image = home.path().join("b.img");
    let file = format!("file:{},size=1M", image.display());
    let mut up = Up::start(&format!("{NBD}{}{}", export("a", "ram:64M"), export("b", &file)), 2);
    assert!(up.printed[0].starts_with("nbd+unix:///a?socket=/"), "{:?}", up.printed);
    let mut first = Client::choosing(&up.socket(), "a");
    let mut other = Client::choosing(&up.socket(), "b");
    // Chosen nothing yet, and so in the middle of it when what there is changes.
    let mut undecided = Client::connect(&up.socket());
    undecided.send(&[0, 0, 0, 3]);
    first.write(4096, &[7; 8192]).unwrap();
    other.write(0, &[8; 4096]).unwrap();
    assert_eq!(up.listed(), [("a".into(), "live".into(), 1), ("b".into(), "live".into(), 1)]);
    // One writes and reads all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let busy = {
        let (stop, socket) = (stop.clone(), up.socket());
        std::thread::spawn(move || {
            let mut client = Client::choosing(&socket, "a");
            let mut rounds = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let bytes = [rounds as u8; 40_000];
                client.write(1 << 20, &bytes).unwrap();
                assert_eq!(client.ask(READ, 1 << 20, 40_000).unwrap(), bytes);
                rounds += 1;
            }
            rounds
        })
    };
    up.reload(&format!("{NBD}{}{}", export("c", "ram:2M"), export("a", "ram:64M")));
    assert!(other.is_closed());
    assert_eq!(first.ask(READ, 4096, 8192).unwrap(), [7; 8192]);
    undecided.send(&go("b"));
    assert_eq!(undecided.option_replies(), [UNKNOWN]);
    undecided.send(&go("c"));
    assert_eq!(undecided.option_replies(), [3, 3, 1]);
    undecided.write(0, &[9; 512]).unwrap();
    // It has written everything.
    assert_eq!(fs::read(&image).unwrap()[..4096], [8; 4096]);
    // The same file under another name, and back again.
    up.reload(&format!("{NBD}{}{}", export("a", "ram:64M"), export("b2", &file)));
    assert!(undecided.is_closed());
    let mut again = Client::choosing(&up.socket(), "b2");
    assert_eq!(again.ask(READ, 0, 4096).unwrap(), [8; 4096]);
    let readers = format!("{}depth = 7\n", export("b2", &file));
    up.reload(&format!("{NBD}{}{readers}", export("a", "ram:64M")));
    assert!(again.is_closed(), "it has changed, and was stopped and started");
    let mut again = Client::choosing(&up.socket(), "b2");
    assert_eq!(again.ask(READ, 0, 4096).unwrap(), [8; 4096]);
    // What is wrong changes nothing, and so does another place to listen at.
    for (wrong, why) in [
        (format!("{NBD}{}", export("a", "rma:1M")), "did you mean ram?"),
        (format!("{NBD}{}{}", export("a", "ram:64M"), export("x", "file:/nowhere/x")), "/nowhere/x"),
        (format!("{}{}", NBD.replace(":s", ":t"), export("a", "ram:64M")), "[nbd] has changed"),
    ] {
        up.reload(&wrong);
        assert!(up.log().contains(why), "{}", up.log());
        assert_eq!(again.ask(READ, 0, 4096).unwrap(), [8; 4096]);
    }
    let names: Vec<String> = up.listed().into_iter().map(|(name, _, _)| name).collect();
    assert_eq!(names, ["a", "b2"]);
    stop.store(true, Ordering::Relaxed);
    assert!(busy.join().unwrap() > 0);
    assert_eq!(first.ask(READ, 4096, 8192).unwrap(), [7; 8192]);
    let second = up.run(&["up", "up.toml"]);
    assert!(second.status.code() == Some(1) && said(&second).contains("is up already"), "{}", said(&second));
    let down = up.run(&["down", "up.toml"]);
    assert!(down.status.success() && said(&down).contains("is down"), "{}", said(&down));
    assert!(first.is_closed() && again.is_closed());
    assert!(up.ended().success(), "{}", up.log());
    up.assert_gone();
    let none = up.run(&["down", "up.toml"]);
    assert!(none.status.code() == Some(1) && said(&none).contains("nothing is up"), "{}", said(&none));
}

#[test]
fn sigterm_answers_what_was_asked_and_ends() {
    let mut up = Up::start(&format!("{NBD}{}{}", export("", "ram:64M"), export("b", "ram:1M")), 2);
    let mut busy = Client::transmitting(&up.socket());
    let mut idle = Client::choosing(&up.socket(), "b");
    let mut half_open = Client::connect(&up.socket());
    let reads: Vec<u8> = (0..30).flat_map(|n| request(READ, n, 0, 1 << 20)).collect();
    busy.send(&reads);
    assert_eq!(busy.reply().1, 0);
    busy.receive(1 << 20);
    up.kill("-TERM");
    assert!(idle.is_closed());
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut busy.stream, &mut rest);
    assert_eq!(rest.len() % ((1 << 20) + 16), 0, "a reply was cut off");
    assert!(half_open.is_closed());
    assert!(up.ended().success(), "{}", up.log());
    up.assert_gone();
}

#[test]
fn who_does_not_listen_is_cut_off_by_the_second_signal() {
    let mut up = Up::start(&format!("{NBD}{}", export("", "ram:64M")), 1);
    let mut deaf = Client::transmitting(&up.socket());
    let reads: Vec<u8> = (0..20).flat_map(|n| request(READ, n, 0, 32 << 20)).collect();
    deaf.send(&reads);
    deaf.receive(1 << 20);
    up.kill("-TERM");
    wait_until("its word", || up.log().contains("SIGTERM"));
    assert_eq!(up.listed().iter().map(|one| one.1.as_str()).collect::<Vec<_>>(), ["stopping"]);
    up.kill("-TERM");
    assert!(up.ended().success(), "{}", up.log());
    assert!(up.log().contains("not waited for any longer"), "{}", up.log());
    up.assert_gone();
}

#[test]
fn at_the_start_it_is_all_or_none() {
    let home = folder();
    for (text, why) in [
        (format!("{NBD}{}{}", export("a", "ram:1M"), export("b", "file:/nowhere/x")), "/nowhere/x"),
        (format!("[nbd]\nlisten = [\"unix:nowhere/s\"]\n{}", export("a", "ram:1M")), "nowhere/s"),
        (format!("[nbd]\nlisten = [\"tcp:0.0.0.0:10809\"]\n{}", export("a", "ram:1M")), "insecure-listen"),
        (format!("{NBD}{}{}", export("a", "ram:1M"), export("a", "ram:1M")), "two exports named"),
        (format!("{NBD}{}queues = 9999\n", export("a", "ram:1M")), "9999"),
    ] {
        fs::write(home.path().join("up.toml"), &text).unwrap();
        let output = blockhaus(home.path(), &["up", "up.toml"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(said(&output).contains(why), "{}", said(&output));
        assert!(output.stdout.is_empty() && !home.path().join("s").exists());
        assert!(blockhaus(home.path(), &["list", "--exports"]).output().unwrap().stdout.is_empty());
    }
    let is_left = |file: &fs::DirEntry| file.file_name() != "lock";
    let left = fs::read_dir(home.path().join("run")).into_iter().flatten().flatten().filter(is_left).count();
    assert_eq!(left, 0);
}

#[test]
fn what_a_killed_one_left_is_in_nobodys_way() {
    let text = format!("{NBD}{}", export("", "ram:1M"));
    let mut up = Up::start(&text, 1);
    up.kill("-KILL");
    up.ended();
    assert!(up.listed().is_empty() && up.socket().exists());
    let gc = up.run(&["gc"]);
    let removed = String::from_utf8_lossy(&gc.stdout).into_owned();
    assert!(removed.contains(".json") && removed.contains(".sock"), "{removed}");
    // The same again, with nobody to clean up before.
    let folder = std::mem::replace(&mut up.folder, folder());
    let mut second = Up::start_in(folder, &text, 1, &[]);
    Client::transmitting(&second.socket()).ask(FLUSH, 0, 0).unwrap();
    second.kill("-KILL");
    second.ended();
    let folder = std::mem::replace(&mut second.folder, self::folder());
    let mut third = Up::start_in(folder, &text, 1, &[]);
    // One that does not answer is killed by force, and not without.
    third.kill("-STOP");
    let down = third.run(&["down", "up.toml"]);
    assert!(down.status.code() == Some(1) && said(&down).contains("does not answer"), "{}", said(&down));
    assert!(third.child.try_wait().unwrap().is_none());
    let down = third.run(&["down", "--all", "--force"]);
    assert!(down.status.success() && said(&down).contains("(killed)"), "{}", said(&down));
    assert!(!third.ended().success());
    let is_clean = |up: &Up| fs::read_dir(up.folder().join("run")).unwrap().flatten().count() == 1;
    assert!(is_clean(&third));
    // What a dead one left is taken by `down`, too.
    let folder = std::mem::replace(&mut third.folder, self::folder());
    let mut fourth = Up::start_in(folder, &text, 1, &[]);
    fourth.kill("-KILL");
    fourth.ended();
    let down = fourth.run(&["down", "up.toml"]);
    assert!(down.status.success() && said(&down).contains("(cleaned-up)"), "{}", said(&down));
    assert!(is_clean(&fourth));
}

#[test]
fn json_names_the_engine_and_the_addresses_and_max_connections_hold_for_all() {
    let text = format!("{NBD}max-connections = 2\n{}{}", export("a", "ram:1M"), export("b", "ram:2M"));
    let up = Up::start_in(folder(), &text, 1, &["--json"]);
    let said: serde_json::Value = serde_json::from_str(&up.printed[0]).unwrap();
    assert_eq!((&said[1]["engine"], &said[1]["name"]), (&"nbd".into(), &"b".into()));
    assert_eq!((&said[1]["size"], said.as_array().unwrap().len()), (&(2 << 20).into(), 2));
    assert!(said[0]["uris"][0].as_str().unwrap().starts_with("nbd+unix:///a?socket=/"));
    let _clients = [Client::choosing(&up.socket(), "a"), Client::choosing(&up.socket(), "b")];
    let list = up.run(&["list"]);
    let table = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(table.starts_with("EXPORT") || table.contains("\nEXPORT"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("b ") && line.contains("ram:2M")), "{table}");
    let mut third = Client { stream: std::os::unix::net::UnixStream::connect(up.socket()).unwrap() };
    assert!(third.is_closed());
}
