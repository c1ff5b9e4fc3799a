//! The life of a device: queues seated → connected → live → written back → disconnected → threads joined → disk
//! closed.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockhaus_uapi::nbd::ServerFlags;

use super::by_netlink::{Driver, Wanted};
use super::mending::Mender;
use super::{DEPTH, available, by_ioctl, sysfs};
use crate::engine::nbd::{self, Catalogue, Exported, Offer};
use crate::engine::{Alarm, DeviceName, LiveDevice, Memory, Report, Tell};
use crate::error::{Error, Kind, Result};
use crate::io::{Capabilities, Geometry};
use crate::metrics::Stats;
use crate::nbd::MAX_PAYLOAD;
use crate::port::clock::{Deadline, Duration, sleep};
use crate::port::node;
use crate::port::stream::Socket;
use crate::port::system::{cpu_count, page_size};
use crate::queue::Stack;

/// How a device was made that outlives its server.
pub const BY_NETLINK: &str = "netlink";

/// How one was that does not.
const BY_IOCTL: &str = "ioctl";

/// How long a device node may take until it can be opened.
const NODE_WAIT: Duration = Duration::from_secs(10);

/// How long a device whose server was killed may take for its new connections.
const RECOVERY: Duration = Duration::from_secs(10);

/// How long it takes at most until a queue sees that its other side was closed.
const SETTLE: Duration = Duration::from_millis(50);

/// How long requests in flight may take at the end, after everything was written back.
const DRAIN: Duration = Duration::from_secs(3);

/// What a person may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// N of /dev/nbdN; the driver takes a free one where none is given.
    pub id: Option<u32>,
    /// Queues, at most one a processor.
    pub queues: u16,
    /// Requests that a queue has in service at once, 1 to 4096.
    pub depth: u16,
    /// Connections, each served by one of the queues.
    pub connections: u16,
    /// How long a request may take before its connection counts as dead and it is sent again, in whole
    /// seconds, at least one.
    pub timeout: Duration,
    /// How long requests wait for a connection while there is none, in whole seconds.
    pub dead_connection: Duration,
    /// The server of the device `id`, with this identity, was killed: this one takes its place.
    pub recover: Option<u64>,
}

impl Options {
    /// What does well where nobody says more.
    pub fn plain(queues: u16) -> Options {
        Options {
            id: None,
            queues,
            depth: DEPTH,
            connections: queues,
            timeout: Duration::from_secs(30),
            dead_connection: Duration::from_secs(120),
            recover: None,
        }
    }
}

/// A device that is live, served by threads of this process.
pub struct Attached {
    /// None once it has been taken down.
    shared: Option<Arc<Shared>>,
    by_ioctl: Option<by_ioctl::Disk>,
    mender: Option<Mender>,
    stack: Arc<dyn Stack>,
    report: Report,
    /// The device is another server's that was killed, and stays when this one cannot take its place.
    stays: bool,
}

/// What the thread that mends connections works with, too.
pub(super) struct Shared {
    pub id: u32,
    pub wanted: Wanted,
    pub connections: usize,
    pub exported: Exported,
    pub alarm: Alarm,
    /// The device is being taken away. Held while the driver is given connections, since a kernel that has no rule
    /// against it takes them after a DISCONNECT, too.
    pub stopping: Mutex<bool>,
    /// Why it is of no use any more.
    pub lost: Mutex<Option<String>>,
}

/// How a try to give the driver new connections ended.
#[derive(PartialEq, Eq)]
enum Try {
    /// It has all of them.
    Whole,
    /// It has, or will have, a use for more.
    Again,
    /// The device is being taken away.
    InVain,
}

impl Shared {
    /// New connections for those that are not there: the ends that the kernel is to get.
    pub fn missing(&self) -> io::Result<Vec<OwnedFd>> {
        let missing = self.connections.saturating_sub(self.exported.connections());
        (0..missing)
            .map(|_| {
                let (ours, theirs) = Socket::pair_with_kernel()?;
                match self.exported.connect(ours) {
                    true => Ok(theirs),
                    false => Err(io::Error::other("there are too many connections that have not ended")),
                }
            })
            .collect()
    }

    /// Gives the driver new connections until it has as many as it should. False when there is no time left, or the
    /// device is being taken away. InvalidInput: the driver takes no more for this device, which was disconnected.
    pub fn reconnect(&self, driver: &mut Driver, deadline: Deadline) -> io::Result<bool> {
        let mut tried = Ok(Try::Again);
        deadline.wait_until(|| {
            match self.try_reconnect(driver) {
                // What was refused is closed, which the queues may not have seen yet.
                Ok(Try::Whole) if tried.is_err() => {}
                now => tried = now,
            }
            match &tried {
                Ok(tried) => *tried != Try::Again,
                Err(error) => error.kind() == io::ErrorKind::InvalidInput,
            }
        });
        Ok(tried? == Try::Whole)
    }

    fn try_reconnect(&self, driver: &mut Driver) -> io::Result<Try> {
        let stopping = self.stopping();
        if *stopping {
            return Ok(Try::InVain);
        }
        let missing = self.missing()?;
        if missing.is_empty() {
            return Ok(Try::Whole);
        }
        // What the driver has not yet seen dead it does not replace, and closes what it got.
        let given = driver.reconnect(self.id, &self.wanted, &missing);
        drop((stopping, missing));
        // The queues see a moment later what it has closed.
        sleep(SETTLE);
        given.map(|()| Try::Again)
    }

    /// Whether the device is being taken away, to be looked at or changed.
    pub fn stopping(&self) -> MutexGuard<'_, bool> {
        self.stopping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device has ended by itself.
    pub fn lose(&self, why: &str) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
        self.alarm.ring();
    }
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").field("report", &self.report).finish_non_exhaustive()
    }
}

impl Attached {
    /// Makes and starts a device; returns when its disk can be opened. `added` is told its number as soon as there is
    /// one. When it fails, nothing is left behind, but for a device whose killed server this one was to replace.
    pub fn start(
        stack: Arc<dyn Stack>,
        options: &Options,
        added: &mut dyn FnMut(u32) -> Result<()>,
    ) -> Result<Attached> {
        let geometry = stack.geometry();
        check(&geometry, options)?;
        available()?;
        let catalogue = Catalogue::new(options.connections.saturating_mul(2));
        let (name, description) = ("nbd".to_owned(), String::new());
        let offer = Offer { name, description, stack: stack.clone(), is_shared: false };
        let shape = nbd::Options { queues: options.queues, depth: options.depth };
        let exported = Exported::start(&catalogue, offer, &shape)?;
        let flags = ServerFlags::from_bits_truncate(exported.export().flags.bits().into());
        let wanted = Wanted {
            id: options.id,
            size: geometry.size,
            block_size: geometry.logical_block_size,
            flags,
            timeout: options.timeout,
            dead_connection: options.dead_connection,
            identity: options.recover.unwrap_or_else(|| sysfs::new_identity(random())),
        };
        let shared = Shared {
            id: options.id.unwrap_or_default(),
            wanted,
            connections: usize::from(options.connections),
            exported,
            alarm: Alarm::default(),
            stopping: Mutex::default(),
            lost: Mutex::default(),
        };
        let made = match options.recover {
            Some(_) => recover(shared)?,
            None => connect(shared)?,
        };
        let (shared, by_ioctl, why) = (Arc::new(made.shared), made.by_ioctl, made.why);
        let mut attached = Attached {
            report: report(&shared, &*stack, options, by_ioctl.is_some(), why),
            shared: Some(shared.clone()),
            by_ioctl,
            mender: None,
            stack,
            stays: options.recover.is_some(),
        };
        added(shared.id)?;
        attached.open_node()?;
        if attached.by_ioctl.is_none() {
            attached.mender = Some(Mender::start(shared.clone())?);
        }
        shared.exported.started();
        attached.stays = false;
        Ok(attached)
    }

    fn shared(&self) -> Option<&Shared> {
        self.shared.as_deref()
    }

    fn disconnect(&self, shared: &Shared) -> io::Result<()> {
        match &self.by_ioctl {
            Some(disk) => disk.disconnect(),
            None => Driver::open()?.disconnect(shared.id, shared.wanted.identity),
        }
    }

    /// Whether the kernel still has our disk there, and not another program's.
    fn is_ours(&self, shared: &Shared) -> bool {
        match &self.by_ioctl {
            Some(disk) => !disk.has_ended(),
            None => sysfs::identity(shared.id) == Some(shared.wanted.identity),
        }
    }

    fn open_node(&self) -> Result<()> {
        let path = self.path();
        let mut failure = None;
        let opened = Deadline::after(NODE_WAIT).wait_until(|| {
            failure = node::try_open(&path).err();
            failure.is_none() || self.failure().is_some()
        });
        match (self.failure(), failure) {
            (Some(why), _) => Err(Error::new(Kind::Failed, format!("cannot start {}", path.display()), why)),
            (None, Some(error)) => Err(Error::system(format!("cannot open {}", path.display()), error)
                .cure("is /dev a devtmpfs, or does udev run here?")),
            (None, None) if opened => Ok(()),
            (None, None) => {
                let why = "it cannot be opened";
                Err(Error::new(Kind::Deadline, format!("cannot start {}", path.display()), why))
            }
        }
    }

    /// Undoes everything, as far as it was done.
    fn take_down(&mut self) -> Result<()> {
        let Some(shared) = self.shared.take() else { return Ok(()) };
        *shared.stopping() = true;
        if !self.stays {
            let _ = self.disconnect(&shared);
        }
        drop(self.mender.take());
        // Its thread ends when the connections do.
        shared.exported.close(true);
        if let Some(disk) = &mut self.by_ioctl {
            disk.join();
        }
        let lost = shared.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Nobody else has it any more.
        let finished = Arc::into_inner(shared).map_or(Ok(()), |shared| shared.exported.finish());
        match lost {
            Some(why) => Err(Error::new(Kind::Failed, "the nbd device failed", why)),
            None => finished,
        }
    }
}

impl LiveDevice for Attached {
    fn name(&self) -> DeviceName {
        DeviceName::nbd(self.shared().map_or(0, |shared| shared.id))
    }

    fn path(&self) -> PathBuf {
        path(self.shared().map_or(0, |shared| shared.id))
    }

    fn report(&self) -> Report {
        let mut report = self.report.clone();
        report.memory.backend = self.stack.memory_used();
        let alive = self.shared().map_or(0, |shared| shared.exported.connections());
        let wanted = self.shared().map_or(0, |shared| shared.connections);
        if alive < wanted {
            report.notes.push(format!("{alive} of {wanted} connections are alive"));
        }
        report
    }

    /// A request is as many of theirs as it has pieces of 256 KiB.
    fn stats(&self) -> Stats {
        self.shared().map_or_else(|| Stats::of(&[]), |shared| shared.exported.stats())
    }

    fn on_end(&self, tell: Tell) {
        if let Some(shared) = self.shared() {
            shared.exported.on_end(tell.clone());
            shared.alarm.tell(tell);
        }
    }

    fn failure(&self) -> Option<String> {
        let shared = self.shared()?;
        let lost = || shared.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ended = || {
            let ended = self.by_ioctl.as_ref().is_some_and(by_ioctl::Disk::has_ended);
            let by_itself = ended && !*shared.stopping();
            by_itself.then(|| "the kernel has ended the disk; dmesg may say why".to_owned())
        };
        shared.exported.failure().or_else(lost).or_else(ended)
    }

    /// Who has it open was looked up before: this driver cannot refuse by itself. Nobody can mount it or the like
    /// between that look and the end.
    fn stop(&self, only_if_idle: bool) -> Result<()> {
        let Some(shared) = self.shared() else { return Ok(()) };
        let cannot = |what: &str| format!("cannot {what} {}", self.path().display());
        // A disk that nobody answers for any more would keep us until its requests give up.
        let is_served = shared.exported.failure().is_none() && shared.exported.connections() > 0;
        let claimed = match only_if_idle && self.is_ours(shared) {
            true => node::open_exclusive(&self.path()),
            false if is_served => File::open(self.path()),
            false => Err(io::ErrorKind::NotConnected.into()),
        };
        if only_if_idle
            && let Err(error) = &claimed
            && error.kind() == io::ErrorKind::ResourceBusy
        {
            return Err(Error::new(Kind::Busy, cannot("stop"), "somebody has it to himself, as a mount has"));
        }
        *shared.stopping() = true;
        if is_served && claimed.as_ref().is_ok_and(|disk| disk.sync_all().is_ok()) {
            Deadline::after(DRAIN).wait_until(|| sysfs::in_flight(shared.id) == 0);
        }
        self.disconnect(shared).map_err(|error| {
            *shared.stopping() = false;
            Error::system(cannot("disconnect"), error)
        })
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.stays = true;
        self.take_down()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Whoever drops it is on the way out with an error of its own.
        let _ = self.take_down();
    }
}

fn path(id: u32) -> PathBuf {
    format!("/dev/nbd{id}").into()
}

/// Numbers that nobody can foresee, as far as a name of a device needs that.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn check(geometry: &Geometry, options: &Options) -> Result<()> {
    let what = "cannot make an nbd device";
    let (block, page) = (geometry.logical_block_size, page_size() as u32);
    if block < 512 || block > page {
        let why = format!("its blocks have {block} bytes, and the driver takes 512 to {page}");
        return Err(Error::invalid(what, why).cure(format!("give --block-size 512 or --block-size {page}")));
    }
    if geometry.size == 0 {
        return Err(Error::invalid(what, "it has no size").cure("make it larger"));
    }
    if options.connections == 0 || options.timeout.as_secs() == 0 {
        return Err(Error::invalid(what, "it has no connection, or no time for a request")
            .cure("give --connections 1 --timeout 30"));
    }
    Ok(())
}

/// A device that the driver has.
struct Made {
    shared: Shared,
    by_ioctl: Option<by_ioctl::Disk>,
    /// How it was told, for a person.
    why: String,
}

/// Tells the driver of a new device: over netlink, or by ioctls where that is not to be had.
fn connect(mut shared: Shared) -> Result<Made> {
    let id = shared.wanted.id.map_or_else(String::new, |id| format!(" {id}"));
    let failed = |error: io::Error| {
        let error = Error::system(format!("cannot make nbd device{id}"), error);
        match error.kind() {
            Kind::Busy => error.cure("leave --id away, or see `blockhaus list` for what is taken"),
            Kind::Permission => error.cure("run as root"),
            _ => error.cure("dmesg may say more"),
        }
    };
    let sockets = shared.missing().map_err(failed)?;
    let asked = match Driver::open() {
        Ok(mut driver) => match driver.connect(&shared.wanted, &sockets) {
            // A driver that does not let itself be asked, and not one that says what is wrong.
            Err(error) if !is_refusal(&error) => return Err(failed(error)),
            answer => answer,
        },
        Err(error) => Err(error),
    };
    let refused = match asked {
        Ok(id) => {
            shared.id = id;
            let (count, wait) = (shared.connections, shared.wanted.dead_connection.as_secs());
            let plural = if count == 1 { "" } else { "s" };
            let idle = match count.saturating_sub(usize::from(cpu_count())) {
                0 => String::new(),
                idle => format!(" ({idle} of them in reserve: the driver uses one a processor)"),
            };
            let why = format!(
                "{count} connection{plural}{idle}, requests wait {wait} s for a server that was killed"
            );
            return Ok(Made { shared, by_ioctl: None, why });
        }
        Err(error) => error,
    };
    let disk = by_ioctl::Disk::connect(&shared.wanted, &sockets, &shared.alarm).map_err(failed)?;
    shared.id = disk.id;
    let why = format!(
        "netlink is not to be had ({refused}), so that the disk ends when its server is killed, and how long requests \
         would wait for another has no meaning"
    );
    Ok(Made { shared, by_ioctl: Some(disk), why })
}

fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied, Unsupported};
    matches!(error.kind(), NotFound | PermissionDenied | Unsupported)
}

/// Takes the place of a server that was killed.
fn recover(shared: Shared) -> Result<Made> {
    let what = format!("cannot serve {} again", path(shared.id).display());
    if sysfs::identity(shared.id) != Some(shared.wanted.identity) {
        return Err(Error::new(Kind::NotFound, what, "the kernel has another device there, or none"));
    }
    if sysfs::size(shared.id) != Some(shared.wanted.size) {
        let why = format!("it had another size than the {} bytes that there are now", shared.wanted.size);
        return Err(Error::invalid(what, why).cure("put back what it was made of"));
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidInput => {
            let why = "the kernel takes no connections for it any more: it was disconnected";
            Error::new(Kind::NotFound, what.as_str(), why).cure("`blockhaus gc` removes what is left of it")
        }
        _ => Error::system(what.as_str(), error).cure("dmesg may say more"),
    };
    let mut driver = Driver::open().map_err(failed)?;
    if !shared.reconnect(&mut driver, Deadline::after(RECOVERY)).map_err(failed)? {
        return Err(Error::new(Kind::Deadline, what, "the kernel does not take its new connections"));
    }
    let why = "its server was killed, and this one has taken its place".to_owned();
    Ok(Made { shared, by_ioctl: None, why })
}

fn report(shared: &Shared, stack: &dyn Stack, options: &Options, by_ioctl: bool, why: String) -> Report {
    let flags = shared.wanted.flags.iter_names().map(|(name, _)| name.to_owned()).collect();
    let geometry = stack.geometry();
    Report {
        engine: "nbd".into(),
        data_path: if by_ioctl { BY_IOCTL } else { BY_NETLINK }.into(),
        data_path_reason: why,
        queues: options.queues,
        depth: options.depth,
        block_size: geometry.logical_block_size,
        size: geometry.size,
        max_io_size: MAX_PAYLOAD,
        read_only: !stack.capabilities().contains(Capabilities::WRITE),
        features: Vec::new(),
        flags,
        memory: Memory { locked_buffers: shared.exported.locked_buffers(), backend: stack.memory_used() },
        queue_threads: shared.exported.threads().to_vec(),
        notes: stack.notes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_cannot_show_is_refused_before_it_is_asked() {
        let plain = Options::plain(1);
        assert!(check(&Geometry::plain(1 << 20), &plain).is_ok());
        let large = Geometry { logical_block_size: 1 << 20, ..Geometry::plain(1 << 20) };
        let error = check(&large, &plain).unwrap_err().to_string();
        assert!(error.contains("1048576") && error.contains("--block-size 512"), "{error}");
        let bytes = Geometry { logical_block_size: 1, ..Geometry::plain(1 << 20) };
        assert!(check(&bytes, &plain).is_err() && check(&Geometry::plain(0), &plain).is_err());
        let none = Options { connections: 0, ..plain };
        let hurry = Options { timeout: Duration::from_millis(10), ..plain };
        assert!(check(&large, &none).is_err() && check(&Geometry::plain(512), &none).is_err());
        assert!(check(&Geometry::plain(512), &hurry).is_err());
    }
}
