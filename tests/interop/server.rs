//! `blockhaus serve` as a child, in a folder of its own.

use crate::waiting::wait_at_most;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A server that listens on a Unix socket; killed when it is dropped.
pub struct Server {
    child: Child,
    folder: tempfile::TempDir,
    /// The URIs that it printed.
    pub uris: Vec<String>,
}

/// What an export can be made of, each once, `file:` in `folder`.
pub fn specs(folder: &Path, size: &str) -> Vec<String> {
    vec![format!("ram:{size}"), format!("file:{},size={size}", folder.join("disk.img").display())]
}

pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The command, not yet started, with its socket in `folder`.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockhaus"));
    // Sockets have short names; relative to the folder they fit wherever the checkout lies.
    command.arg("serve").args(arguments).current_dir(folder).stdin(Stdio::null());
    command
}

impl Server {
    pub fn start(arguments: &[&str]) -> Server {
        Server::start_in(folder(), arguments)
    }

    pub fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Server {
        let mut listening = vec!["--listen", "unix:s"];
        listening.extend(arguments);
        Server::started(folder, &listening)
    }

    pub fn started(folder: tempfile::TempDir, arguments: &[&str]) -> Server {
        let mut child = command(folder.path(), arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut first = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut first).unwrap();
        if first.is_empty() {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("the server has not started: {said}");
        }
        // It says them all at once, and nothing after them until it ends.
        let is_export =
            |argument: &&&str| ["ram:", "file:", "null:"].iter().any(|kind| argument.contains(kind));
        let exports = arguments.iter().filter(is_export);
        let listens = arguments.iter().filter(|argument| **argument == "--listen");
        let count = if arguments.contains(&"--json") { 1 } else { exports.count() * listens.count() };
        let mut uris = vec![first.trim_end().to_string()];
        for _ in 1..count {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            uris.push(line.trim_end().to_string());
        }
        Server { child, folder, uris }
    }

    /// The first URI.
    pub fn uri(&self) -> &str {
        &self.uris[0]
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn terminate(&self) {
        let status = Command::new("kill").arg(self.pid().to_string()).status().expect("kill(1) is there");
        assert!(status.success());
    }

    /// How it ended, which it must soon; and what it said on standard error.
    pub fn ended(mut self) -> (ExitStatus, String) {
        wait_at_most(30, "the server's end", || !self.is_alive());
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
