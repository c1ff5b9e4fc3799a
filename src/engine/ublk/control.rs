//! Control commands to `/dev/ublk-control`, each with a deadline.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use blockhaus_uapi::ublk::{CtrlCmd, CtrlDevInfo, Features, NEW_DEV_ID, NO_QUEUE, Params, cmd};

use super::availability;
use crate::error::{Error, Kind, Result};
use crate::port::clock::Duration;
use crate::port::command::CommandRing;
use crate::port::node;
use crate::port::thread::CpuMask;

/// For one try of a command that only asks or sets something. It takes microseconds, but the kernel
/// runs it on a worker thread, which a busy machine may let wait.
const QUICK: Duration = Duration::from_secs(5);
/// How often such a command is tried. Under load it happens that one that was handed to a worker
/// never runs, while the next does (seen with SET_PARAMS on 7.2); asking or setting twice is harmless.
const TRIES: u32 = 4;
/// For making a device, which cannot be tried twice.
const ADD: Duration = Duration::from_secs(20);
/// For a start: queues fetch, and before 7.0 partitions are read.
const START: Duration = Duration::from_secs(60);
/// For a deletion, which waits for every reference to the character device.
const DELETE: Duration = Duration::from_secs(60);
/// For a stop, which waits for what is in flight: the caller decides how long it wants to look on.
const STOP: Duration = Duration::from_secs(24 * 3600);

/// Longest CPU mask that is asked for: 8192 processors.
const MASK_LEN: usize = 1024;

/// The driver's control device.
#[derive(Debug)]
pub struct Control {
    file: File,
    /// A ring that nobody uses at this moment, kept open. On 7.2 closing a thread's last ring ends the
    /// kernel's worker thread for it, and a command sent through a new ring just then is never run
    /// (4 attaches of 300; none of 600 with a ring that stays).
    spare: Mutex<Option<CommandRing>>,
}

/// What the kernel says of a device.
pub type Info = CtrlDevInfo;

impl Control {
    /// Opens the control device, loading the driver where it is not loaded. The error says why
    /// there is no ublk, or that permission is missing.
    pub fn open() -> Result<Control> {
        if !availability::load_driver() {
            return Err(availability::missing());
        }
        let file = node::open(Path::new(availability::CONTROL_PATH)).map_err(|error| {
            let error = Error::system(format!("cannot open {}", availability::CONTROL_PATH), error);
            match error.kind() {
                Kind::Permission => error.cure("run as root"),
                Kind::NotFound => availability::missing(),
                _ => error,
            }
        })?;
        Ok(Control { file, spare: Mutex::new(None) })
    }

    /// What this kernel's driver offers.
    pub fn features(&self) -> Result<Features> {
        let (features, result) = self.ask(cmd::GET_FEATURES, command(NEW_DEV_ID), Features::empty());
        result.map_err(|error| {
            Error::system("cannot ask the kernel for its ublk features", error)
                .cure("this needs a kernel from 6.5 on; 6.12 or newer is best")
        })?;
        Ok(features)
    }

    /// Makes a device as `wanted` has it; yields what the driver made of it.
    pub fn add(&self, wanted: Info) -> io::Result<Info> {
        let (made, result) = self.exchange(cmd::ADD_DEV, command(wanted.dev_id), wanted, ADD);
        result.map(|()| made)
    }

    /// What the kernel says of device `id`. Somebody who may not ask for all devices asks again by
    /// the path of one, which is allowed to its owner (GET_DEV_INFO2).
    pub fn info(&self, id: u32) -> Result<Info> {
        let (info, result) = self.ask(cmd::GET_DEV_INFO, command(id), Info::default());
        let result = match result {
            Ok(()) => Ok(info),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.info_by_path(id),
            Err(error) => Err(error),
        };
        result.map_err(|error| device_error("ask for", id, error))
    }

    fn info_by_path(&self, id: u32) -> io::Result<Info> {
        const PATH_ROOM: usize = 32;
        #[derive(Clone, Copy)]
        #[repr(C)]
        struct WithPath {
            path: [u8; PATH_ROOM],
            info: Info,
        }
        let mut buffer = WithPath { path: [0; PATH_ROOM], info: Info::default() };
        let path = format!("/dev/ublkc{id}");
        buffer.path[..path.len()].copy_from_slice(path.as_bytes());
        let header = CtrlCmd { dev_path_len: PATH_ROOM as u16, ..command(id) };
        let (answer, result) = self.ask(cmd::GET_DEV_INFO2, header, buffer);
        result.map(|()| answer.info)
    }

    /// Sets a device's parameters, before its start.
    pub fn set_params(&self, id: u32, params: Params) -> Result<()> {
        let (_, result) = self.ask(cmd::SET_PARAMS, command(id), params);
        result.map_err(|error| device_error("set the parameters of", id, error))
    }

    /// A device's parameters, as the kernel took them.
    pub fn params(&self, id: u32) -> Result<Params> {
        let asked = Params { len: size_of::<Params>() as u32, ..Params::default() };
        let (params, result) = self.ask(cmd::GET_PARAMS, command(id), asked);
        result.map_err(|error| device_error("get the parameters of", id, error))?;
        Ok(params)
    }

    /// The processors whose requests come to this queue.
    pub fn queue_affinity(&self, id: u32, queue: u16) -> Result<CpuMask> {
        let header = CtrlCmd { data: [u64::from(queue)], ..command(id) };
        let (mask, result) = self.ask(cmd::GET_QUEUE_AFFINITY, header, [0u64; MASK_LEN / 8]);
        result.map_err(|error| device_error("ask for the processors of", id, error))?;
        let bytes: Vec<u8> = mask.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(CpuMask::from_bitmap(&bytes))
    }

    /// Shows the disk. Returns when all queues have fetched; `give_up` ends the wait.
    pub fn start(&self, id: u32, process: u32, give_up: &mut dyn FnMut() -> bool) -> Result<()> {
        let header = CtrlCmd { data: [u64::from(process)], ..command(id) };
        self.send(cmd::START_DEV, header, START, give_up).map_err(|error| device_error("start", id, error))
    }

    /// Takes the disk away. Its requests must be served until this returns.
    pub fn stop(&self, id: u32) -> Result<()> {
        self.send(cmd::STOP_DEV, command(id), STOP, &mut never)
            .map_err(|error| device_error("stop", id, error))
    }

    /// The same, refused (Busy) while somebody has the disk open. Since 7.0.
    pub fn try_stop(&self, id: u32) -> Result<()> {
        self.send(cmd::TRY_STOP_DEV, command(id), STOP, &mut never)
            .map_err(|error| device_error("stop", id, error).cure("close what has it open, or force it"))
    }

    /// Removes a device that was stopped; returns when its last reference is gone.
    pub fn delete(&self, id: u32) -> Result<()> {
        self.send(cmd::DEL_DEV, command(id), DELETE, &mut never)
            .map_err(|error| device_error("delete", id, error))
    }

    /// The same without waiting, since 6.9; the id is free once the last reference is gone.
    pub fn delete_async(&self, id: u32) -> Result<()> {
        self.send(cmd::DEL_DEV_ASYNC, command(id), DELETE, &mut never)
            .map_err(|error| device_error("delete", id, error))
    }

    fn send(
        &self,
        opcode: u32,
        header: CtrlCmd,
        deadline: Duration,
        give_up: &mut dyn FnMut() -> bool,
    ) -> io::Result<()> {
        // SAFETY: the command points at nothing.
        outcome(unsafe { self.run(opcode, header, deadline, give_up) }?)
    }

    /// Sends a command that may be sent again when it is not answered.
    fn ask<T: Copy>(&self, opcode: u32, header: CtrlCmd, buffer: T) -> (T, io::Result<()>) {
        let mut answer = self.exchange(opcode, header, buffer, QUICK);
        for _ in 1..TRIES {
            match &answer.1 {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                _ => break,
            }
            answer = self.exchange(opcode, header, buffer, QUICK);
        }
        answer
    }

    /// Sends a command with a buffer that goes in and comes back.
    fn exchange<T: Copy>(
        &self,
        opcode: u32,
        header: CtrlCmd,
        buffer: T,
        deadline: Duration,
    ) -> (T, io::Result<()>) {
        let room = Box::into_raw(Box::new(buffer));
        let header = CtrlCmd { addr: room as u64, len: size_of::<T>() as u16, ..header };
        // SAFETY: the buffer has that length, and is freed only when the command was answered.
        match unsafe { self.run(opcode, header, deadline, &mut never) } {
            // SAFETY: the command was answered, so the box is ours alone again.
            Ok(answer) => (*unsafe { Box::from_raw(room) }, outcome(answer)),
            // The kernel may still write to it: it is left where it is.
            Err(error) => (buffer, Err(error)),
        }
    }

    /// Yields the driver's answer; an error means that there was none.
    ///
    /// # Safety
    /// As [`CommandRing::run`]: what the command points at stays until it is answered, or for ever.
    unsafe fn run(
        &self,
        opcode: u32,
        header: CtrlCmd,
        deadline: Duration,
        give_up: &mut dyn FnMut() -> bool,
    ) -> io::Result<i32> {
        let mut bytes = [0u8; 80];
        // SAFETY: CtrlCmd is 32 bytes of plain numbers without padding (asserted in uapi).
        let plain: [u8; size_of::<CtrlCmd>()] = unsafe { std::mem::transmute(header) };
        bytes[..plain.len()].copy_from_slice(&plain);
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = spare().take();
        let mut ring = kept.map_or_else(CommandRing::new, Ok)?;
        // SAFETY: the caller's promise.
        let answer = unsafe { ring.run(&self.file, opcode, bytes, deadline, give_up) }?;
        // Answered, so that it can serve the next; one that was not is closed with its error above.
        *spare() = Some(ring);
        Ok(answer)
    }
}

fn outcome(answer: i32) -> io::Result<()> {
    if answer < 0 { Err(io::Error::from_raw_os_error(-answer)) } else { Ok(()) }
}

fn never() -> bool {
    false
}

fn command(id: u32) -> CtrlCmd {
    CtrlCmd { dev_id: id, queue_id: NO_QUEUE, ..CtrlCmd::default() }
}

fn device_error(what: &str, id: u32, error: io::Error) -> Error {
    let missing = error.raw_os_error() == Some(blockhaus_uapi::ublk::res::ABORT.abs());
    let what = format!("cannot {what} ublk device {id}");
    if missing {
        return Error::new(Kind::NotFound, what, "there is no such device")
            .cure("`blockhaus list` shows what there is");
    }
    let error = Error::system(what, error);
    match error.kind() {
        Kind::Permission => error.cure("run as root, or as the device's owner"),
        Kind::Deadline => error.cure("the kernel did not answer; see dmesg for what it waits for"),
        _ => error,
    }
}
