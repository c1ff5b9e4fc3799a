//! The life of a device: added → queues parked → live → stopping → drained → deleted.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use blockhaus_uapi::ublk::{CtrlDevInfo, Features, IoDesc, NEW_DEV_ID, ParamTypes, Params};

use super::control::Control;
use super::data_path::{self, DataPath, Load, Wish};
use super::queue_thread::Seat;
use super::{MAX_HIDDEN_IO_SIZE, MAX_IO_SIZE, params};
use crate::engine::seating::{Queue, Seating, check_shape};
use crate::engine::{Alarm, DeviceName, LiveDevice, Memory, QueueThread, Report, Tell};
use crate::error::{Error, Kind, Result};
use crate::io::{Capabilities, Geometry};
use crate::metrics::Stats;
use crate::port::clock::{Deadline, Duration, Instant, sleep};
use crate::port::node;
use crate::port::remote::Remote;
use crate::port::system::{cpu_count, page_size};
use crate::queue::Stack;

/// How long a device node may take to appear, and udev to let go of it.
const NODE_WAIT: Duration = Duration::from_secs(10);
/// How long a stop right after a start is tried again, while the kernel still reads partitions.
const SCAN_WAIT: Duration = Duration::from_secs(3);
/// How long the id of a deleted device may stay taken before that is left to its last users.
const ID_FREE: Duration = Duration::from_secs(1);
/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(20);

/// What a person may choose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// N of /dev/ublkbN; the kernel chooses where none is given.
    pub id: Option<u32>,
    /// Queues, at most one a processor.
    pub queues: u16,
    /// Requests in flight per queue, 1 to 4096.
    pub depth: u16,
    /// Whether the kernel looks for partitions at the start.
    pub partition_scan: bool,
    /// How the bytes travel.
    pub data_path: Wish,
    /// What the load will be like, where the data path is left to us.
    pub load: Load,
    /// How long a queue's thread looks for work before it sleeps, at most.
    pub spin: Duration,
    /// For tests: tags from this one on have no place in the ring's table of buffers, so that the
    /// driver cannot register theirs and the fallback of [`DataPath::AutoBuf`] is taken.
    pub registered_tags: Option<u16>,
}

/// A device that is live, served by threads of this process.
#[derive(Debug)]
pub struct Device {
    added: Added,
    features: Features,
    report: Report,
}

/// What has to be undone, in this order: stop, join, close, delete.
struct Added {
    control: Control,
    info: CtrlDevInfo,
    node: Option<Arc<File>>,
    queues: Vec<Queue<Arc<Remote>>>,
    stack: Arc<dyn Stack>,
    /// The way of the bytes, and why.
    data_path: (DataPath, String),
    alarm: Alarm,
    stopped: bool,
    gone: bool,
}

impl std::fmt::Debug for Added {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Added")
            .field("info", &self.info)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// Makes and starts a device; returns when its disk can be opened. `added` is told the id as
    /// soon as there is one. When it fails, nothing is left behind.
    pub fn start(
        stack: Arc<dyn Stack>,
        options: &Options,
        added: &mut dyn FnMut(u32) -> Result<()>,
    ) -> Result<Device> {
        check_shape("cannot make a ublk device", options.queues, options.depth)?;
        let geometry = stack.geometry();
        // What is wrong with the disk is said before anything about the kernel.
        params::check(&geometry)?;
        let control = Control::open()?;
        let features = control.features()?;
        let data_path = data_path::choose(
            options.data_path,
            options.load,
            features,
            stack.capabilities(),
            options.depth,
        )?;
        let max_io_size = max_io_size(&geometry, data_path.0);
        let parameters = params::params(&geometry, stack.capabilities(), max_io_size, data_path.0);
        let mut notes = stack.notes();
        notes.extend(about_spin(options.spin));
        let wanted = wanted(options, features, data_path.0, max_io_size);
        let info = add(&control, wanted)?;
        let mut device = Added {
            control,
            info,
            node: None,
            queues: Vec::new(),
            stack,
            data_path,
            alarm: Alarm::default(),
            stopped: false,
            gone: false,
        };
        added(info.dev_id)?;
        device.check_granted(wanted.flags)?;
        if info.nr_hw_queues != options.queues || info.queue_depth != options.depth {
            notes.push(format!(
                "the kernel gave {} queues of depth {} instead of {} of {}",
                info.nr_hw_queues, info.queue_depth, options.queues, options.depth
            ));
        }
        device.set_params(parameters, &mut notes)?;
        let seats = device.seat_queues(options)?;
        device.go_live()?;
        device.stack.started();
        let report = device.report(features, seats, notes);
        Ok(Device { added: device, features, report })
    }

    /// How a request's bytes travel.
    pub fn data_path(&self) -> DataPath {
        self.added.data_path.0
    }

    fn id(&self) -> u32 {
        self.added.id()
    }
}

impl LiveDevice for Device {
    fn name(&self) -> DeviceName {
        DeviceName::ublk(self.id())
    }

    fn path(&self) -> PathBuf {
        block_path(self.id())
    }

    fn report(&self) -> Report {
        let mut report = self.report.clone();
        report.memory.backend = self.added.stack.memory_used();
        report
    }

    fn stats(&self) -> Stats {
        Queue::stats(&self.added.queues)
    }

    fn on_end(&self, tell: Tell) {
        self.added.alarm.tell(tell);
    }

    fn failure(&self) -> Option<String> {
        self.added.failure()
    }

    /// The kernel refuses by itself since Linux 7.0.
    fn stop(&self, only_if_idle: bool) -> Result<()> {
        let control = &self.added.control;
        if !only_if_idle || !self.features.contains(Features::SAFE_STOP_DEV) {
            return control.stop(self.id());
        }
        // The kernel itself has the disk open while it reads partitions, and udev right after.
        let until = Instant::now() + SCAN_WAIT;
        loop {
            match control.try_stop(self.id()) {
                Err(error) if error.kind() == Kind::Busy && Instant::now() < until => sleep(RETRY),
                result => return result,
            }
        }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.added.stopped = true;
        self.added.take_down()
    }
}

/// With one processor whoever has work could not run while somebody looks for it.
fn spin(wanted: Duration) -> Duration {
    if cpu_count() > 1 { wanted } else { Duration::ZERO }
}

fn about_spin(wanted: Duration) -> Option<String> {
    let micros = wanted.as_micros();
    match (micros, spin(wanted).is_zero()) {
        (0, _) => None,
        (_, true) => {
            Some("its threads do not look for work before they sleep: there is one processor".into())
        }
        (_, false) => Some(format!("its threads look for work for up to {micros} us before they sleep")),
    }
}

/// Longest read or write: what the backend wants in one piece, as far as there is room for it.
fn max_io_size(geometry: &Geometry, data_path: DataPath) -> u32 {
    let room = if data_path.hides() { MAX_HIDDEN_IO_SIZE } else { MAX_IO_SIZE };
    let least = geometry.logical_block_size.max(page_size() as u32);
    geometry.max_io_size.min(room).max(least) / least * least
}

fn wanted(options: &Options, features: Features, data_path: DataPath, max_io_size: u32) -> CtrlDevInfo {
    let mut flags = Features::CMD_IOCTL_ENCODE | data_path.features();
    if !options.partition_scan && features.contains(Features::NO_AUTO_PART_SCAN) {
        flags |= Features::NO_AUTO_PART_SCAN;
    }
    CtrlDevInfo {
        nr_hw_queues: options.queues,
        queue_depth: options.depth,
        max_io_buf_bytes: max_io_size,
        dev_id: options.id.unwrap_or(NEW_DEV_ID),
        ublksrv_pid: -1,
        flags,
        ..CtrlDevInfo::default()
    }
}

fn add(control: &Control, wanted: CtrlDevInfo) -> Result<CtrlDevInfo> {
    let id = wanted.dev_id;
    control.add(wanted).map_err(|error| match (error.kind(), id) {
        (io::ErrorKind::AlreadyExists, _) => {
            Error::new(Kind::Busy, format!("cannot make ublk device {id}"), format!("id {id} is in use"))
                .cure("leave --id away, or see `blockhaus list` for what is taken")
        }
        (io::ErrorKind::PermissionDenied, _) => {
            Error::system("cannot make a ublk device", error).cure("run as root")
        }
        (_, NEW_DEV_ID) => Error::system("cannot make a ublk device", error).cure("dmesg may say more"),
        _ => Error::system(format!("cannot make ublk device {id}"), error)
            .cure("leave --id away to let the kernel choose"),
    })
}

impl Added {
    fn id(&self) -> u32 {
        self.info.dev_id
    }

    fn failure(&self) -> Option<String> {
        Queue::failure(&self.queues)
    }

    /// What the driver drops silently would make every later step a guess.
    fn check_granted(&self, wanted: Features) -> Result<()> {
        let missing = wanted - self.info.flags;
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter_names().map(|(name, _)| name).collect();
        let why = format!("the driver did not grant {}", names.join(", "));
        Err(Error::new(Kind::Unsupported, self.cannot_start(), why).cure("give --data-path copy"))
    }

    /// Sets the parameters, and reads back which of them this kernel knows.
    fn set_params(&self, wanted: Params, notes: &mut Vec<String>) -> Result<()> {
        self.control.set_params(self.id(), wanted)?;
        // An alignment of memory is only a wish: without it the block layer aligns more than needed.
        let ignored = wanted.types - ParamTypes::DMA_ALIGN - self.control.params(self.id())?.types;
        if !ignored.is_empty() {
            let names: Vec<&str> = ignored.iter_names().map(|(name, _)| name).collect();
            notes.push(format!("this kernel does not know the parameters {}", names.join(", ")));
        }
        Ok(())
    }

    /// Opens the character device and starts a thread for each queue; returns when all are ready.
    fn seat_queues(&mut self, options: &Options) -> Result<Vec<QueueThread>> {
        let node = Arc::new(open_node(&PathBuf::from(format!("/dev/ublkc{}", self.id())))?);
        self.node = Some(node.clone());
        let mut seating = Seating::new(self.info.nr_hw_queues, self.alarm.clone());
        for queue in 0..self.info.nr_hw_queues {
            let affinity = self.control.queue_affinity(self.id(), queue)?;
            let remote = Remote::new(self.info.queue_depth)
                .map_err(|error| Error::system(format!("cannot make queue {queue}"), error))?;
            let seat = Seat {
                device: node.clone(),
                stack: self.stack.clone(),
                queue,
                depth: self.info.queue_depth,
                max_io_size: self.info.max_io_buf_bytes,
                descriptor_size: self.descriptor_size(),
                affinity,
                remote: remote.clone(),
                metrics: Arc::default(),
                spin: spin(options.spin),
                data_path: self.data_path.0,
                load: options.load,
                registered_tags: options.registered_tags.unwrap_or(self.info.queue_depth),
                prevent_partition_scan: !options.partition_scan
                    && !self.info.flags.contains(Features::NO_AUTO_PART_SCAN),
            };
            let name = format!("bh{}-q{queue}", self.id());
            let metrics = seat.metrics.clone();
            let thread = seating.start(name, move |seated| seat.serve(seated))?;
            self.queues.push(Queue { thread, handle: remote, metrics });
        }
        seating.wait_for_queues(self.cannot_start())
    }

    /// Bytes of a descriptor: the driver says so where it can be other than it always was.
    fn descriptor_size(&self) -> usize {
        match self.info.flags.contains(Features::IO_DESC_SIZE) {
            true => usize::from(self.info.io_desc_size),
            false => size_of::<IoDesc>(),
        }
    }

    fn cannot_start(&self) -> String {
        format!("cannot start ublk device {}", self.id())
    }

    fn ended_early(&self) -> Error {
        let why = self.failure().unwrap_or_else(|| "a queue ended".into());
        Error::new(Kind::Failed, self.cannot_start(), why)
    }

    /// START_DEV, and then until the disk can be opened.
    fn go_live(&mut self) -> Result<()> {
        let mut failed = false;
        let started = self.control.start(self.id(), process::id(), &mut || {
            failed = self.failure().is_some();
            failed
        });
        match started {
            Err(_) if failed => return Err(self.ended_early()),
            other => other?,
        }
        let block = block_path(self.id());
        wait_for(&block, &mut || node::try_open(&block))
    }

    fn report(&self, features: Features, queue_threads: Vec<QueueThread>, notes: Vec<String>) -> Report {
        let geometry = self.stack.geometry();
        let (queues, depth) = (self.info.nr_hw_queues, self.info.queue_depth);
        let slot = (self.info.max_io_buf_bytes as usize).next_multiple_of(page_size()) as u64;
        let names = |features: Features| features.iter_names().map(|(name, _)| name.to_string()).collect();
        Report {
            engine: "ublk".into(),
            data_path: self.data_path.0.name().into(),
            data_path_reason: self.data_path.1.clone(),
            queues,
            depth,
            block_size: geometry.logical_block_size,
            size: geometry.size,
            max_io_size: self.info.max_io_buf_bytes,
            read_only: !self.stack.capabilities().contains(Capabilities::WRITE),
            features: names(features),
            flags: names(self.info.flags),
            memory: Memory {
                locked_buffers: match self.data_path.0.hides() {
                    true => 0,
                    false => slot * u64::from(queues) * u64::from(depth),
                },
                backend: self.stack.memory_used(),
            },
            queue_threads,
            notes,
        }
    }

    /// Undoes everything, as far as it was done. The first error is told, the rest is done all the same.
    fn take_down(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.gone, true) {
            return Ok(());
        }
        let stopped = if self.stopped { Ok(()) } else { self.control.stop(self.id()) };
        for queue in &mut self.queues {
            // A stop gave all tags back, and the thread ends by itself; without one it is told.
            queue.handle.stop();
            queue.thread.join();
        }
        let failed = self.failure();
        self.node = None;
        let closed = self.stack.close();
        let deleted = self.delete();
        stopped.and(closed).and(deleted)?;
        match failed {
            Some(why) => Err(Error::new(Kind::Failed, format!("ublk device {} failed", self.id()), why)),
            None => Ok(()),
        }
    }
}

impl Added {
    /// Deletes without waiting for whoever still has the disk mounted or open: the kernel keeps what
    /// they need, and they see errors. Waits a moment for the id to be free again, so that the same
    /// `--id` works right after.
    fn delete(&self) -> Result<()> {
        let id = self.id();
        match self.control.delete_async(id) {
            Err(error) if error.kind() == Kind::Unsupported => return self.control.delete(id),
            result => result?,
        }
        let is_free = || self.control.info(id).is_err_and(|error| error.kind() == Kind::NotFound);
        Deadline::after(ID_FREE).wait_until(is_free);
        Ok(())
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        // Whoever drops it is on the way out with an error of its own.
        let _ = self.take_down();
    }
}

fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// The character device appears a moment after ADD_DEV, and udev may have it open (EBUSY) or not
/// yet have given it away (EACCES).
fn open_node(path: &Path) -> Result<File> {
    let mut opened = None;
    wait_for(path, &mut || {
        opened = Some(node::open_character_device(path)?);
        Ok(())
    })?;
    opened.ok_or_else(|| {
        Error::new(Kind::Failed, format!("cannot open {}", path.display()), "it did not appear")
    })
}

fn wait_for(path: &Path, attempt: &mut dyn FnMut() -> io::Result<()>) -> Result<()> {
    use io::ErrorKind::{NotFound, PermissionDenied, ResourceBusy};
    let until = Instant::now() + NODE_WAIT;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error)
                if Instant::now() < until
                    && matches!(error.kind(), NotFound | PermissionDenied | ResourceBusy) =>
            {
                sleep(RETRY);
            }
            // ENXIO: the node is there before its disk.
            Err(error) if Instant::now() < until && error.raw_os_error() == Some(6) => sleep(RETRY),
            Err(error) => {
                let cure = match error.kind() {
                    NotFound => "is /dev a devtmpfs, or does udev run here?",
                    _ => "something else has it open; see `fuser`",
                };
                return Err(Error::system(format!("cannot open {}", path.display()), error).cure(cure));
            }
        }
    }
}
