//! Processes of `up`: each has an entry and a control socket of its own besides those of its
//! devices, since it may have none.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::control::{Client, ExportStatus, Reply, Request};
use super::survey::PATIENCE;
use super::{Registry, boot_id};
use crate::error::{Error, Kind, Result};
use crate::port::clock::{self, Deadline};
use crate::port::socket::remove_if_there;
use crate::port::{process, socket, thread};

/// What such a process is known by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Server {
    /// The process.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pid_start: u64,
    /// Which run of the machine that was.
    boot: String,
    /// The file that it was given.
    pub config: PathBuf,
    /// When it was announced, in seconds since the machine was started.
    started_since_boot: u64,
}

impl Server {
    /// This process, with the file that it was given.
    fn own(config: &Path) -> Server {
        let pid = process::own_pid();
        Server {
            pid,
            pid_start: process::stat(pid).map_or(0, |stat| stat.start),
            boot: boot_id(),
            config: config.to_owned(),
            started_since_boot: clock::seconds_since_boot(),
        }
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        self.boot == boot_id() && process::is_alive(self.pid, self.pid_start)
    }

    /// The process, to be waited for or killed; none where it has gone.
    pub(super) fn process(&self) -> Option<process::Other> {
        self.is_alive().then(|| process::Other::open(self.pid, self.pid_start)).flatten()
    }

    /// Seconds since it was announced.
    pub fn uptime(&self) -> u64 {
        clock::seconds_since_boot().saturating_sub(self.started_since_boot)
    }

    fn is_same(&self, other: &Server) -> bool {
        (self.pid, self.pid_start, &self.boot) == (other.pid, other.pid_start, &other.boot)
    }
}

/// The error for a second process with the same file.
pub fn is_up_already(server: &Server) -> Error {
    let (pid, path) = (server.pid, server.config.display());
    Error::new(Kind::Busy, format!("{path} is up already"), format!("process {pid} serves it"))
        .cure(format!("`kill -HUP {pid}` has it read the file again, `blockhaus down {path}` takes it down"))
}

impl Registry {
    fn server_entry(&self, pid: i32) -> PathBuf {
        self.folder.join(format!("up-{pid}.json"))
    }

    /// The control socket of a process of `up`.
    pub fn server_socket(&self, pid: i32) -> PathBuf {
        self.folder.join(format!("up-{pid}.sock"))
    }

    /// Announces this process; Busy where another one that lives has the same file.
    pub fn announce_server(&self, config: &Path) -> Result<(Server, UnixListener)> {
        let _lock = self.lock()?;
        if let Some(other) = self.server_of(config) {
            return Err(is_up_already(&other));
        }
        let server = Server::own(config);
        // First, so that no socket is ever there without an entry that says whose it is.
        Registry::write_whole(&self.server_entry(server.pid), &server)?;
        let path = self.server_socket(server.pid);
        let listener = socket::listen(&path).map_err(|error| {
            let _ = remove_if_there(&self.server_entry(server.pid));
            Error::system(format!("cannot make the control socket {}", path.display()), error)
                .cure(format!("set {} to a folder with a short path", super::FOLDER_VARIABLE))
        })?;
        Ok((server, listener))
    }

    /// The living process that was given this file.
    pub fn server_of(&self, config: &Path) -> Option<Server> {
        self.servers().into_iter().find(|server| server.config == config && server.is_alive())
    }

    /// Every process of `up` that has an entry which can be read, living or not.
    pub fn servers(&self) -> Vec<Server> {
        self.server_files().into_values().filter_map(|(_, server)| server).collect()
    }

    /// The files of every process of `up`, with its entry where that can be read.
    pub(super) fn server_files(&self) -> BTreeMap<i32, (Vec<PathBuf>, Option<Server>)> {
        let mut found: BTreeMap<i32, (Vec<PathBuf>, Option<Server>)> = BTreeMap::new();
        for file in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = file.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix("up-")?.split_once('.'));
            let Some(pid) = pid.and_then(|(pid, _)| pid.parse::<i32>().ok()) else { continue };
            found.entry(pid).or_default().0.push(file.path());
        }
        for (pid, (files, server)) in &mut found {
            files.sort();
            let text = fs::read_to_string(self.server_entry(*pid)).ok();
            let read: Option<Server> = text.and_then(|text| serde_json::from_str(&text).ok());
            *server = read.filter(|server| server.pid == *pid);
        }
        found
    }

    /// Removes the files of a process, unless another one of its number has taken them since.
    pub fn remove_server(&self, server: &Server) -> Result<Vec<PathBuf>> {
        let _lock = self.lock()?;
        match self.server_files().remove(&server.pid) {
            Some((files, now)) if now.as_ref().is_none_or(|now| now.is_same(server)) => {
                self.remove_files(files)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Removes the files of all processes of `up` that are gone.
    pub(super) fn remove_dead_servers(&self) -> Result<Vec<PathBuf>> {
        let is_dead = |pid: i32, server: &Option<Server>| match server {
            Some(server) => !server.is_alive(),
            None => !process::exists(pid),
        };
        if !self.server_files().iter().any(|(pid, (_, server))| is_dead(*pid, server)) {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        let dead = self.server_files().into_iter().filter(|(pid, (_, server))| is_dead(*pid, server));
        self.remove_files(dead.flat_map(|(_, (files, _))| files))
    }
}

/// Asks every process of `up` for its exports, all at once, each for a bounded time.
pub fn exports(registry: &Registry) -> Vec<(Server, Result<Vec<ExportStatus>>)> {
    let deadline = Deadline::after(PATIENCE);
    let living = registry.servers().into_iter().filter(Server::is_alive);
    let asked: Vec<_> = living
        .map(|server| {
            let registry = registry.clone();
            thread::spawn(format!("ask-{}", server.pid), move || {
                let answer = ask(&registry, &server, deadline);
                (server, answer)
            })
        })
        .collect();
    // A thread that could not be made or panicked has nothing to say.
    let answers = asked.into_iter().flatten().filter_map(|thread| thread.join().ok());
    // Nor has one that has ended meanwhile.
    answers.filter(|(server, answer)| answer.is_ok() || server.is_alive()).collect()
}

fn ask(registry: &Registry, server: &Server, deadline: Deadline) -> Result<Vec<ExportStatus>> {
    match Client::send_to_server(registry, server, Request::Exports)?.receive(deadline)? {
        Reply::Exports { exports } => Ok(exports),
        Reply::Failed { kind, text } => Err(super::control::received_error(&kind, &text)),
        _ => {
            let what = format!("cannot ask process {}", server.pid);
            Err(Error::new(Kind::Failed, what, "it answered something else"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_a_file_and_what_the_dead_left_goes() {
        let (_folder, registry) = Registry::temporary();
        let config = Path::new("/etc/a.toml");
        let (server, _listener) = registry.announce_server(config).unwrap();
        let error = registry.announce_server(config).unwrap_err();
        assert!(error.kind() == Kind::Busy && error.to_string().contains("is up already"), "{error}");
        // It is no device's, and lives.
        assert!(registry.names().is_empty() && registry.remove_dead_servers().unwrap().is_empty());
        let dead = Server { boot: "another".into(), ..server.clone() };
        assert!(registry.remove_server(&dead).unwrap().is_empty());
        assert_eq!(registry.remove_server(&server).unwrap().len(), 2);
        Registry::write_whole(&registry.server_entry(dead.pid), &dead).unwrap();
        // Above what any machine has.
        fs::write(registry.server_entry(i32::MAX), "{").unwrap();
        fs::write(registry.server_socket(i32::MAX), "").unwrap();
        assert!(registry.server_of(config).is_none());
        assert_eq!(registry.remove_dead_servers().unwrap().len(), 3);
        assert!(registry.server_files().is_empty());
    }
}
