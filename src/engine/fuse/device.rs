//! The life of a disk: folder taken → queues seated → mounted → loop device → and the way back.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::line::{Lines, line};
use super::seat::Seat;
use super::{availability, helper, io_size, place};
use crate::engine::seating::{Queue, Seating, Thread, check_shape};
use crate::engine::{Alarm, DeviceName, LiveDevice, Memory, QueueThread, Report, Tell};
use crate::error::{Error, Kind, Result};
use crate::io::Capabilities;
use crate::metrics::{QueueMetrics, Stats};
use crate::port::clock::{Deadline, Duration};
use crate::port::fuse::{self, Session, Shape};
use crate::port::loop_device::{self, Made, Wish};
use crate::port::remote::Remote;
use crate::port::system::page_size;
use crate::port::thread::{self, Scheduling};
use crate::queue::Stack;

/// Most threads that take requests from the kernel.
const MAX_THREADS: u16 = 64;

/// How long the kernel may take to make a loop device: it reads partitions, from us.
const LOOP_PATIENCE: Duration = Duration::from_secs(30);

/// And how long to take it away.
const LOOP_END: Duration = Duration::from_secs(7);

/// How long the kernel may take to let go of a file whose loop device has gone.
const LET_GO: Duration = Duration::from_secs(2);

/// How long the session's threads may take to see that nothing is mounted any more. They are not waited for longer
/// where somebody still has the file open of a mount that went by force.
const SESSION_END: Duration = Duration::from_secs(2);

/// What a person may choose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// N of the folder fuseN; the lowest free one where none is given.
    pub id: Option<u32>,
    /// Queues, at most one a processor.
    pub queues: u16,
    /// Requests that a queue has in service at once, 1 to 4096.
    pub depth: u16,
    /// Threads that take requests from the kernel, 1 to 64; at least one a queue is made.
    pub threads: u16,
    /// Put a loop device on the file, where this process may.
    pub loop_device: bool,
    /// Bytes of the loop device's logical blocks: those of the disk, known once it is open. The file takes any bytes.
    pub block_size: u32,
    /// Whether the kernel looks for partitions at the start.
    pub partition_scan: bool,
    /// When the queues' threads run.
    pub scheduling: Scheduling,
    /// How long a queue's thread looks for work before it sleeps, at most.
    pub spin: Duration,
}

/// A disk that is mounted, served by threads of this process. When it is dropped, all of it is undone.
pub struct Device {
    id: u32,
    folder: PathBuf,
    stack: Arc<dyn Stack>,
    wish: Wish,
    queues: Vec<Queue<Arc<Remote>>>,
    session: Option<Thread>,
    loop_device: Mutex<Option<Made>>,
    report: Report,
    alarm: Alarm,
    /// The session is to end; if it does without that, somebody else has unmounted the file.
    ending: Arc<AtomicBool>,
    gone: bool,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Device {
    /// Mounts `stack`, which takes any bytes, and returns when the disk can be opened. `added` is told the number as
    /// soon as there is one. When it fails, nothing is left behind.
    pub fn start(
        stack: Arc<dyn Stack>,
        options: &Options,
        added: &mut dyn FnMut(u32) -> Result<()>,
    ) -> Result<Device> {
        check(options, &*stack)?;
        availability::check()?;
        let (id, folder) = place::take(&place::root(), options.id)?;
        let read_only = !stack.capabilities().contains(Capabilities::WRITE);
        let mut device = Device {
            id,
            folder,
            wish: Wish {
                number: None,
                block_size: options.block_size,
                read_only,
                partition_scan: options.partition_scan,
            },
            report: report(&*stack, options),
            stack,
            queues: Vec::new(),
            session: None,
            loop_device: Mutex::new(None),
            alarm: Alarm::default(),
            ending: Arc::default(),
            gone: false,
        };
        added(id)?;
        let (lines, threads) = device.seat_queues(options)?;
        device.report.queue_threads = threads;
        device.mount(options, lines)?;
        device.put_loop_device(options)?;
        device.stack.started();
        Ok(device)
    }

    fn loop_device(&self) -> MutexGuard<'_, Option<Made>> {
        self.loop_device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its loop device. A helper that was too late for a stop, which was refused then, may have taken it away since.
    fn shown_by(&self) -> Option<Made> {
        let made = (*self.loop_device())?;
        (loop_device::backing_file(made.number)? == self.file_path()).then_some(made)
    }

    fn cannot(&self, what: &str) -> String {
        format!("cannot {what} {}", self.file_path().display())
    }

    /// Starts a thread for each queue; returns when all are ready.
    fn seat_queues(&mut self, options: &Options) -> Result<(Lines, Vec<QueueThread>)> {
        let mut seating = Seating::new(options.queues, self.alarm.clone());
        let mut lines = Vec::with_capacity(options.queues.into());
        let io_size = self.report.max_io_size;
        for queue in 0..options.queues {
            let remote = Remote::new(options.depth)
                .map_err(|error| Error::system(format!("cannot make queue {queue}"), error))?;
            let (here, counter) = line(options.depth, io_size, remote.clone());
            let metrics: Arc<QueueMetrics> = Arc::default();
            let seat = Seat {
                stack: self.stack.clone(),
                queue,
                depth: options.depth,
                io_size,
                counter,
                remote: remote.clone(),
                metrics: metrics.clone(),
                spin: options.spin,
                scheduling: options.scheduling,
            };
            let name = format!("fuse{}-q{queue}", self.id);
            let thread = seating.start(name, move |seated| seat.serve(seated))?;
            lines.push(here);
            self.queues.push(Queue { thread, handle: remote, metrics });
        }
        let threads = seating.wait_for_queues(self.cannot("make"))?;
        Ok((Lines(lines), threads))
    }

    /// Mounts the file and has it served.
    fn mount(&mut self, options: &Options, lines: Lines) -> Result<()> {
        let geometry = self.stack.geometry();
        let slots = u32::from(options.queues) * u32::from(options.depth);
        let shape = Shape {
            size: geometry.size,
            read_only: self.wish.read_only,
            unit: options.block_size.max(geometry.discard_granularity),
            max_transfer: self.report.max_io_size,
            max_background: slots.min(u16::MAX.into()) as u16,
            threads: options.threads.max(options.queues),
        };
        let session = Session::mount(&self.folder, shape, Arc::new(lines)).map_err(|error| {
            let cure = "see `blockhaus features` for what this machine has of FUSE";
            Error::system(self.cannot("mount"), error).cure(cure)
        })?;
        let mut seating = Seating::new(1, self.alarm.clone());
        let ending = self.ending.clone();
        let what = format!("{} is not mounted any more", self.file_path().display());
        let serve = move |seated: &mut dyn FnMut(())| {
            // What it starts inherits that: all of them take part in writing to the disk.
            let _ = thread::become_io_flusher();
            seated(());
            session.serve().map_err(|error| Error::system("the FUSE session failed", error))?;
            match ending.load(Ordering::Acquire) {
                true => Ok(()),
                false => Err(Error::new(Kind::Failed, what, "somebody else has unmounted it")),
            }
        };
        self.session = Some(seating.start(format!("fuse{}", self.id), serve)?);
        seating.wait(self.cannot("serve")).map(drop)
    }

    /// Makes a block device of the file, where that is wanted and possible; says in the report what was done.
    fn put_loop_device(&mut self, options: &Options) -> Result<()> {
        let file = self.file_path();
        let (path, why) = match (options.loop_device, availability::has_loop_devices()) {
            (true, true) => {
                let made =
                    helper::add(&file, &self.wish, Deadline::after(LOOP_PATIENCE)).inspect_err(|_| {
                        // One that came too late would keep the file for ever.
                        for number in loop_device::devices_of(&file) {
                            let _ = helper::remove(number, &file, false, Deadline::after(LOOP_END));
                        }
                    })?;
                *self.loop_device() = Some(made);
                if !made.direct {
                    let note =
                        "its loop device goes through the page cache: this kernel would not do without";
                    self.report.notes.push(note.into());
                }
                ("loop", format!("a loop device on {}", file.display()))
            }
            (true, false) => ("file", "a loop device on it takes root and the kernel's loop driver".into()),
            (false, _) => ("file", "asked for".into()),
        };
        self.report.data_path = path.into();
        self.report.data_path_reason = why;
        Ok(())
    }

    /// Unmounts; whoever lets go of the file in a moment is waited for, where that is `expected`.
    fn unmount(&self, expected: bool) -> Result<()> {
        if !fuse::is_mounted(&self.folder) {
            return Ok(());
        }
        let patience = if expected { LET_GO } else { Duration::ZERO };
        let mut result = Ok(());
        Deadline::after(patience).wait_until(|| {
            result = fuse::unmount(&self.folder);
            !result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
        });
        result.map_err(|error| Error::system(self.cannot("unmount"), error))
    }

    /// Undoes everything, as far as it was done. The first error is told, the rest is done all the same.
    fn take_down(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.gone, true) {
            return Ok(());
        }
        let failed = self.failure();
        let stopped = match self.session.is_some() {
            true => self.stop(false),
            false => {
                fuse::force_unmount(&self.folder).map_err(|error| Error::system("cannot unmount", error))
            }
        };
        if let Some(session) = &mut self.session
            && Deadline::after(SESSION_END).wait_until(|| session.has_ended())
        {
            session.join();
        }
        for queue in &mut self.queues {
            queue.handle.stop();
            queue.thread.join();
        }
        let closed = self.stack.close();
        let removed = std::fs::remove_dir(&self.folder)
            .map_err(|error| Error::system(format!("cannot remove {}", self.folder.display()), error));
        stopped.and(closed).and(removed)?;
        match failed {
            Some(why) => Err(Error::new(Kind::Failed, format!("FUSE disk {} failed", self.id), why)),
            None => Ok(()),
        }
    }

    fn file_path(&self) -> PathBuf {
        fuse::file_in(&self.folder)
    }
}

impl LiveDevice for Device {
    fn name(&self) -> DeviceName {
        DeviceName::fuse(self.id)
    }

    /// The loop device, or the file where there is none.
    fn path(&self) -> PathBuf {
        self.shown_by().map_or_else(|| self.file_path(), |made| loop_device::path(made.number))
    }

    fn file(&self) -> Option<PathBuf> {
        Some(self.file_path())
    }

    fn report(&self) -> Report {
        let mut report = self.report.clone();
        report.memory.backend = self.stack.memory_used();
        let had = self.loop_device().is_some();
        if had && self.shown_by().is_none() {
            report.data_path = "file".into();
            report.data_path_reason = "its loop device was taken away".into();
        }
        report
    }

    fn stats(&self) -> Stats {
        Queue::stats(&self.queues)
    }

    fn on_end(&self, tell: Tell) {
        self.alarm.tell(tell);
    }

    fn failure(&self) -> Option<String> {
        Queue::failure(&self.queues).or_else(|| self.session.as_ref()?.failure())
    }

    fn stop(&self, only_if_idle: bool) -> Result<()> {
        let mut loop_device = self.loop_device();
        let had = *loop_device;
        let mut removed = Ok(());
        if let Some(made) = had {
            let remove = |patience| {
                helper::remove(made.number, &self.file_path(), only_if_idle, Deadline::after(patience))
            };
            match remove(LOOP_END) {
                Err(_) if !only_if_idle => {
                    // Whatever it waits for, it waits for us: nobody does any more after this.
                    fuse::cut(&self.folder);
                    removed = remove(LET_GO);
                }
                result => result?,
            }
            *loop_device = None;
        }
        self.ending.store(true, Ordering::Release);
        let error = match self.unmount(had.is_some()) {
            Ok(()) => return removed,
            Err(error) => error,
        };
        if !only_if_idle {
            let forced = fuse::force_unmount(&self.folder);
            return forced.map_err(|error| Error::system(self.cannot("stop"), error)).and(removed);
        }
        self.ending.store(false, Ordering::Release);
        if let Some(made) = had {
            let wish = Wish { number: Some(made.number), ..self.wish };
            *loop_device = Some(helper::add(&self.file_path(), &wish, Deadline::after(LOOP_END))?);
        }
        Err(error)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.take_down()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Whoever drops it is on the way out with an error of its own.
        let _ = self.take_down();
    }
}

fn check(options: &Options, stack: &dyn Stack) -> Result<()> {
    let what = "cannot make a FUSE disk";
    check_shape(what, options.queues, options.depth)?;
    if options.threads == 0 || options.threads > MAX_THREADS {
        let why = format!("{} threads are outside 1 to {MAX_THREADS}", options.threads);
        return Err(Error::invalid(what, why).cure("give 1 to 4"));
    }
    let (block, most) = (options.block_size, page_size() as u32);
    if options.loop_device && (!block.is_power_of_two() || !(512..=most).contains(&block)) {
        let why =
            format!("its block size is {block}, and a loop device takes a power of two from 512 to {most}");
        return Err(Error::invalid(what, why).cure("give another --block-size"));
    }
    let unit = stack.geometry().logical_block_size;
    if unit != 1 {
        return Err(Error::new(
            Kind::Failed,
            what,
            format!("a file has bytes, and its disk blocks of {unit}"),
        ));
    }
    Ok(())
}

fn report(stack: &dyn Stack, options: &Options) -> Report {
    let geometry = stack.geometry();
    let page = page_size() as u32;
    let io_size = geometry.max_io_size.min(io_size(options.depth)).max(page) / page * page;
    let slots = u64::from(options.queues) * u64::from(options.depth);
    Report {
        engine: "fuse".into(),
        data_path: "file".into(),
        data_path_reason: String::new(),
        queues: options.queues,
        depth: options.depth,
        block_size: options.block_size,
        size: geometry.size,
        max_io_size: io_size,
        read_only: !stack.capabilities().contains(Capabilities::WRITE),
        features: Vec::new(),
        flags: Vec::new(),
        memory: Memory { locked_buffers: slots * u64::from(io_size), backend: stack.memory_used() },
        queue_threads: Vec::new(),
        notes: stack.notes(),
    }
}
