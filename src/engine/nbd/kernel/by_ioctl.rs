//! The driver's ioctls on /dev/nbdN: a thread of this process is the disk, and so it ends with the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::by_netlink::Wanted;
use super::sysfs;
use crate::engine::Alarm;
use crate::port::clock::{Deadline, Duration};
use crate::port::thread::{self, JoinHandle};
use crate::port::{nbd, node};

/// Nodes that are tried for a free one.
const MOST_NODES: u32 = 4096;

/// How long the disk may take to be there.
const START: Duration = Duration::from_secs(10);

/// A disk that a thread of this process is.
pub(super) struct Disk {
    pub id: u32,
    node: Arc<File>,
    thread: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
}

impl Disk {
    /// Makes a disk of these sockets; `alarm` rings when it has ended.
    pub fn connect(wanted: &Wanted, sockets: &[OwnedFd], alarm: &Alarm) -> io::Result<Disk> {
        let (id, node) = match wanted.id {
            Some(id) => (id, set_up(id, wanted, sockets)?),
            None => first_free(wanted, sockets)?,
        };
        let (node, ended) = (Arc::new(node), Arc::new(AtomicBool::new(false)));
        let (of_thread, told, alarm) = (node.clone(), ended.clone(), alarm.clone());
        let body = move || {
            // However it ended: there is nothing more to be done for it.
            let _ = nbd::be_disk(&of_thread);
            told.store(true, Ordering::Release);
            alarm.ring();
        };
        let thread = thread::spawn(format!("nbd{id}"), body)?;
        let disk = Disk { id, node, thread: Some(thread), ended };
        let begun = || sysfs::is_connected(id) || disk.has_ended();
        if !Deadline::after(START).wait_until(begun) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if disk.has_ended() {
            return Err(io::Error::other("the kernel has ended the disk at once; dmesg may say why"));
        }
        Ok(disk)
    }

    /// Whether the kernel has ended it.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends it. Where the kernel has done so, its node may be another program's disk by now.
    pub fn disconnect(&self) -> io::Result<()> {
        if self.has_ended() { Ok(()) } else { nbd::disconnect(&self.node) }
    }

    /// Waits for its thread, after [`disconnect`](Self::disconnect).
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic aborts the process, so that there is none to report here.
            let _ = thread.join();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = self.disconnect();
            self.join();
        }
    }
}

fn path(id: u32) -> PathBuf {
    format!("/dev/nbd{id}").into()
}

fn nodes() -> impl Iterator<Item = u32> {
    (0..MOST_NODES).take_while(|id| node::exists(&path(*id)))
}

/// Whether there is any node that can be told something.
pub(super) fn has_node() -> bool {
    nodes().any(|id| node::open(&path(id)).is_ok())
}

fn first_free(wanted: &Wanted, sockets: &[OwnedFd]) -> io::Result<(u32, File)> {
    if nodes().next().is_none() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "there is no /dev/nbd0, and only netlink makes one",
        ));
    }
    for id in nodes().filter(|id| !sysfs::is_connected(*id)) {
        match set_up(id, wanted, sockets) {
            // Somebody was faster.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            result => return result.map(|node| (id, node)),
        }
    }
    let why = "every device of the NBD driver is taken, and only netlink makes more (or `modprobe nbd nbds_max=64`)";
    Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
}

/// Tells the driver all about the disk. What fails leaves the node free. The connections come first: the driver takes
/// them from one task alone, and everything else from anybody, whosever disk it is.
fn set_up(id: u32, wanted: &Wanted, sockets: &[OwnedFd]) -> io::Result<File> {
    if sysfs::is_connected(id) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let node = node::open(&path(id))?;
    let mut is_ours = false;
    let mut tell = || {
        for socket in sockets {
            nbd::add_socket(&node, socket.as_fd())?;
            is_ours = true;
        }
        nbd::set_size(&node, wanted.block_size, wanted.size / u64::from(wanted.block_size))?;
        nbd::set_flags(&node, wanted.flags)?;
        nbd::set_timeout(&node, wanted.timeout.as_secs())
    };
    let told = tell();
    if told.is_err() && is_ours {
        let _ = nbd::forget_sockets(&node);
    }
    told.map(|()| node)
}

/// Ends the disk of this number and identity, whoever is it.
pub(super) fn disconnect(id: u32, identity: u64) -> io::Result<()> {
    if sysfs::identity(id) != Some(identity) {
        return Ok(());
    }
    nbd::disconnect(&node::open(&path(id))?)
}
