//! Our client with foreign servers, with our own, with servers that go away, and with hostile ones.

mod extents;
mod foreign;
mod hostile;
mod lost;
mod secure;
mod verified;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockhaus::error::Result;
use blockhaus::queue::Stack;
use blockhaus::stack::{OpenOptions, SpecTable};

use crate::played::Disk;

/// A foreign server, which is killed when this is dropped.
struct Foreign {
    child: Child,
}

impl Foreign {
    /// Starts a program of a package, and waits until it has made `ready`.
    fn start(package: &str, program: &str, arguments: &[&str], folder: &Path, ready: &str) -> Foreign {
        let ready = folder.join(ready);
        let _ = std::fs::remove_file(&ready);
        let log = File::create(folder.join("server.log")).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}: apt-get install {package}"));
        let mut server = Foreign { child };
        let until = Instant::now() + Duration::from_secs(30);
        while !ready.exists() {
            let ended = server.child.try_wait().unwrap();
            let said = || std::fs::read_to_string(folder.join("server.log")).unwrap_or_default();
            assert!(ended.is_none(), "{program} {arguments:?} ended: {}", said());
            assert!(Instant::now() < until, "{program} {arguments:?} does not start: {}", said());
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// nbdkit with its socket at `s` in the folder.
    fn nbdkit(folder: &Path, arguments: &[&str]) -> Foreign {
        let _ = std::fs::remove_file(folder.join("s"));
        let mut all = vec!["-f", "-U", "s", "-P", "pid"];
        all.extend(arguments);
        Foreign::start("nbdkit", "nbdkit", &all, folder, "pid")
    }

    fn qemu_nbd(folder: &Path, arguments: &[&str]) -> Foreign {
        let _ = std::fs::remove_file(folder.join("s"));
        let socket = folder.join("s").display().to_string();
        let mut all = vec!["-k", &socket, "--persistent", "-e", "16", "--pid-file", "pid", "-f", "raw"];
        all.extend(arguments);
        Foreign::start("qemu-utils", "qemu-nbd", &all, folder, "pid")
    }

    /// As by SIGKILL, at once.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The spec of the export at `s` in a folder, with these keys.
fn spec(folder: &Path, keys: &str) -> String {
    let comma = if keys.is_empty() { "" } else { "," };
    format!("nbd+unix:///?socket={}{comma}{keys}", folder.join("s").display())
}

fn open(spec: &str) -> Result<Arc<dyn Stack>> {
    SpecTable::builtin().open(&spec.parse()?, &OpenOptions::default())
}

fn disk(spec: &str, depth: u16) -> Disk {
    let stack = open(spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
    Disk::open(stack, 2, depth)
}

/// A sparse file.
fn image(folder: &Path, size: u64) -> PathBuf {
    let path = folder.join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}
