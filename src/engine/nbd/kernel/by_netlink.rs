//! The driver's commands over netlink (`linux/nbd-netlink.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use blockhaus_uapi::nbd::{
    ClientFlags, GENL_FAMILY_NAME, GENL_MCAST_GROUP_NAME, GENL_VERSION, ServerFlags, attr, cmd, sock,
    sock_item,
};

use super::sysfs;
use crate::port::clock::{Deadline, Duration};
use crate::port::netlink::{Attributes, Generic, find_u32};

/// How long the kernel may take for an answer, once it has carried a command out.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a device is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// N of /dev/nbdN; the driver takes a free one where none is given.
    pub id: Option<u32>,
    pub size: u64,
    pub block_size: u32,
    pub flags: ServerFlags,
    /// How long a request may take before its connection counts as dead, whole seconds.
    pub timeout: Duration,
    /// How long requests wait for a connection while there is none, whole seconds.
    pub dead_connection: Duration,
    /// What tells it from others.
    pub identity: u64,
}

/// The driver, asked over netlink.
#[derive(Debug)]
pub(super) struct Driver {
    generic: Generic,
}

impl Driver {
    /// NotFound where the driver is not loaded, or not to be asked from this network namespace.
    pub fn open() -> io::Result<Driver> {
        let generic = Generic::open(GENL_FAMILY_NAME, GENL_VERSION, Deadline::after(PATIENCE))?;
        Ok(Driver { generic })
    }

    /// Makes a disk of these sockets; yields its number.
    pub fn connect(&mut self, wanted: &Wanted, sockets: &[OwnedFd]) -> io::Result<u32> {
        let mut attributes = Attributes::new();
        if let Some(id) = wanted.id {
            attributes = attributes.u32(attr::INDEX, id);
        }
        let attributes = attributes
            .u64(attr::SIZE_BYTES, wanted.size)
            .u64(attr::BLOCK_SIZE_BYTES, wanted.block_size.into())
            .u64(attr::SERVER_FLAGS, wanted.flags.bits())
            .u64(attr::CLIENT_FLAGS, ClientFlags::empty().bits());
        let attributes = with_times(attributes, wanted).nested(attr::SOCKETS, list(sockets));
        let answer = self.generic.ask(cmd::CONNECT, &attributes, Deadline::after(PATIENCE))?;
        find_u32(&answer, attr::INDEX)
            .ok_or_else(|| io::Error::other("the driver does not say which device it has made"))
    }

    /// Gives a disk these sockets for as many of its dead connections. What it has no use for it closes.
    pub fn reconnect(&mut self, id: u32, wanted: &Wanted, sockets: &[OwnedFd]) -> io::Result<()> {
        let attributes = with_times(Attributes::new().u32(attr::INDEX, id), wanted);
        let attributes = attributes.nested(attr::SOCKETS, list(sockets));
        self.generic.ask(cmd::RECONFIGURE, &attributes, Deadline::after(PATIENCE)).map(drop)
    }

    /// Ends a disk. One that is not connected is as it should be, and so is one whose number another program has by
    /// now: the command itself goes by the number alone.
    pub fn disconnect(&mut self, id: u32, identity: u64) -> io::Result<()> {
        if sysfs::identity(id) != Some(identity) {
            return Ok(());
        }
        let attributes = Attributes::new().u32(attr::INDEX, id);
        self.generic.ask(cmd::DISCONNECT, &attributes, Deadline::after(PATIENCE)).map(drop)
    }

    /// From now on a connection that dies wakes whoever polls this.
    pub fn listen(self) -> io::Result<Listening> {
        self.generic.join(GENL_MCAST_GROUP_NAME)?;
        Ok(Listening { generic: self.generic })
    }
}

/// What hears of dead connections.
#[derive(Debug)]
pub(super) struct Listening {
    generic: Generic,
}

impl Listening {
    /// What to poll.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.generic)
    }

    /// Forgets what has come.
    pub fn discard(&self) {
        self.generic.discard();
    }
}

fn with_times(attributes: Attributes, wanted: &Wanted) -> Attributes {
    attributes
        .u64(attr::TIMEOUT, wanted.timeout.as_secs())
        .u64(attr::DEAD_CONN_TIMEOUT, wanted.dead_connection.as_secs())
        .text(attr::BACKEND_IDENTIFIER, &sysfs::identifier(wanted.identity))
}

fn list(sockets: &[OwnedFd]) -> Attributes {
    sockets.iter().fold(Attributes::new(), |list, socket| {
        // A descriptor is never negative.
        let socket = Attributes::new().u32(sock::FD, socket.as_raw_fd() as u32);
        list.nested(sock_item::ITEM, socket)
    })
}
