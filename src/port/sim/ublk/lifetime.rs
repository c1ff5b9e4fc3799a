//! The life of a device: start, partition scan, stop, and what is left when a server dies.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use blockhaus_uapi::ublk::Features;

use super::{Life, TagState};
use crate::port::sim::file::{Object, object_of};
use crate::port::sim::schedule::Event;
use crate::port::sim::world::State;

/// The N of `/dev/ublkcN`.
fn number_of(path: &Path, prefix: &str) -> Option<u32> {
    path.to_str()?.strip_prefix(prefix)?.parse().ok()
}

impl State {
    /// What exists before any device does.
    pub fn make_control_node(&mut self) -> io::Result<()> {
        self.files.add(Path::new("/dev/ublk-control"), Object::Control, 0)
    }

    pub fn open_node(&mut self, path: &Path) -> io::Result<File> {
        if let Some(id) = number_of(path, "/dev/ublkc") {
            let udev = self.driver.kernel.udev;
            let now = self.schedule.now_ns;
            let device = self.driver.device(id).ok_or(io::ErrorKind::NotFound)?;
            if now < device.node_at_ns {
                return Err(io::ErrorKind::NotFound.into());
            }
            if udev && self.random.chance(300) {
                self.note("node refused", [id.into(), 0, 0, 0]);
                return Err(io::Error::from_raw_os_error(*self.random.pick(&[libc::EBUSY, libc::EACCES])));
            }
            let file = self.files.open(path, true)?;
            let device = self.driver.device(id).ok_or(io::ErrorKind::NotFound)?;
            device.opened.push(file.as_raw_fd());
            return Ok(file);
        }
        self.files.open(path, true)
    }

    /// Opens and closes `/dev/ublkbN`.
    pub fn try_open_disk(&mut self, path: &Path) -> io::Result<()> {
        let now = self.schedule.now_ns;
        let id = number_of(path, "/dev/ublkb").ok_or(io::ErrorKind::NotFound)?;
        let device = self.driver.device(id).ok_or(io::ErrorKind::NotFound)?;
        match device.life {
            Life::Live if now >= device.disk_open_from_ns => Ok(()),
            Life::Live => Err(io::Error::from_raw_os_error(libc::ENXIO)),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// START_DEV goes on when every tag of every queue was fetched.
    pub(super) fn look_at_start(&mut self, id: u32) {
        let version = self.driver.kernel.version;
        let Some(device) = self.driver.device(id) else { return };
        let ready = device.life == Life::Starting && device.scan.is_none() && device.all_fetched();
        if !ready {
            return;
        }
        if version >= 700 {
            return self.go_live(id);
        }
        // The kernel reads partitions before it answers: queues must serve by now.
        let scan = self.scan(id);
        if let Some(device) = self.driver.device(id) {
            device.scan = Some(scan);
        }
    }

    /// The partition scan has its answer.
    pub(super) fn scanned(&mut self, id: u32, key: u64) {
        if self.driver.device(id).is_some_and(|device| device.scan == Some(key)) {
            self.go_live(id);
        }
    }

    fn go_live(&mut self, id: u32) {
        let version = self.driver.kernel.version;
        let open_after = self.random.between(0, 30_000_000);
        let busy = self.random.below(3) as u32;
        let now = self.schedule.now_ns;
        let Some(device) = self.driver.device(id) else { return };
        device.life = Life::Live;
        device.scan = None;
        device.disk_open_from_ns = now + open_after;
        device.busy = busy;
        let scans_later = version >= 700 && !device.info.flags.contains(Features::NO_AUTO_PART_SCAN);
        let (start, shape) = (device.start.take(), device.shape());
        self.note("live", [id.into(), 0, 0, 0]);
        if let Some(start) = start {
            self.answer_control(start, 0);
        }
        if scans_later {
            self.scan(id);
        }
        if let (Some(client), Some(shape)) = (&mut self.client, shape) {
            client.live(shape);
        }
        self.schedule.after(open_after, Event::Client(id));
    }

    /// STOP_DEV: who uses the disk writes back what it has, and is then refused.
    pub(super) fn begin_stop(&mut self, id: u32) {
        let Some(life) = self.driver.device(id).map(|device| device.life) else { return };
        if self.driver.requests.values().any(|request| request.device == id && request.result.is_none()) {
            self.note("stop while busy", [id.into(), 0, 0, 0]);
        }
        self.note("stop", [id.into(), 0, 0, 0]);
        match life {
            Life::Syncing => {
                if let Some(client) = &mut self.client {
                    client.stopping();
                }
                self.ask_client(id);
                let after = self.random.between(0, 3_000_000);
                self.schedule.after(after, Event::StopDrains(id));
            }
            Life::Aborting => {
                self.abort_all(id);
                self.look_at_stop(id);
            }
            _ => {}
        }
    }

    /// From here on nothing new is taken.
    pub fn stop_drains(&mut self, id: u32) {
        if let Some(device) = self.driver.device(id)
            && device.life == Life::Syncing
        {
            device.life = Life::Draining;
            self.look_at_stop(id);
        }
    }

    /// A stop goes on when what it waits for has happened.
    pub(super) fn look_at_stop(&mut self, id: u32) {
        let in_flight =
            self.driver.requests.values().any(|request| request.device == id && request.result.is_none());
        let Some(device) = self.driver.device(id) else { return };
        if device.life == Life::Draining && !in_flight {
            device.life = Life::Aborting;
            self.abort_all(id);
        }
        let Some(device) = self.driver.device(id) else { return };
        let held = device
            .queues
            .iter()
            .flat_map(|queue| &queue.tags)
            .any(|tag| !matches!(tag.state, TagState::Empty | TagState::Aborted));
        if device.life == Life::Aborting && !held {
            device.life = Life::Dead;
            for stop in std::mem::take(&mut device.stop) {
                self.answer_control(stop, 0);
            }
        }
    }

    /// Whether somebody still has the device open or registered.
    fn references(&self, id: u32) -> bool {
        let object = Object::Device(id);
        let open = |fd: &i32| object_of(&self.files, *fd) == Some(object);
        let registered = self.rings.iter().any(|ring| !ring.closed && ring.files.contains(&Some(object)));
        registered || self.driver.devices.get(&id).is_some_and(|device| device.opened.iter().any(open))
    }

    /// A deleted device goes with its last reference.
    pub(super) fn purge(&mut self, id: u32) {
        let deleted = self.driver.device(id).is_some_and(|device| device.life == Life::Deleted);
        if deleted && !self.references(id) {
            self.note("gone", [id.into(), 0, 0, 0]);
            self.driver.devices.remove(&id);
        }
    }

    /// The server's process is gone: its requests fail, and its devices are removed, as `gc` would.
    pub fn server_died(&mut self, process: usize) {
        let ids: Vec<u32> = self.driver.devices.keys().copied().collect();
        for id in ids {
            let requests: Vec<u64> = self
                .driver
                .requests
                .iter()
                .filter(|(_, request)| request.device == id && request.result.is_none())
                .map(|(&key, _)| key)
                .collect();
            for key in requests {
                self.note("request of the dead", [key, 0, 0, 0]);
                self.finish(key, Err(libc::EIO));
            }
            self.note("orphan", [id.into(), process as u64, 0, 0]);
            self.files.remove(&PathBuf::from(format!("/dev/ublkc{id}")));
            self.driver.devices.remove(&id);
        }
        self.driver.commands.clear();
    }

    /// What should be gone and is not.
    pub fn leftovers(&mut self) -> Option<String> {
        let ids: Vec<u32> = self.driver.devices.keys().copied().collect();
        ids.iter().for_each(|&id| self.purge(id));
        let (id, device) = self.driver.devices.iter().next()?;
        let held = self.references(*id);
        Some(format!("ublk device {id} is still there, {:?}, held by somebody: {held}", device.life))
    }
}
