//! Control commands, to the driver of the world where the thread is in one.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::current;
use super::file::{Object, object_of};
use crate::port::linux::command as linux;

/// How often a waiting command looks whether it should give up, as the real one does.
const LOOK_EVERY_NS: u64 = 100_000_000;

/// As `linux::CommandRing`.
#[derive(Debug)]
pub struct CommandRing(Kind);

#[derive(Debug)]
enum Kind {
    Linux(Box<linux::CommandRing>),
    Simulated { waiting: bool },
}

impl CommandRing {
    /// A new ring.
    pub fn new() -> io::Result<CommandRing> {
        match current() {
            Some(_) => Ok(CommandRing(Kind::Simulated { waiting: false })),
            None => linux::CommandRing::new().map(|ring| CommandRing(Kind::Linux(Box::new(ring)))),
        }
    }

    /// As `linux::CommandRing::run`.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn run(
        &mut self,
        file: &impl AsRawFd,
        opcode: u32,
        command: [u8; 80],
        deadline: Duration,
        give_up: &mut dyn FnMut() -> bool,
    ) -> io::Result<i32> {
        match &mut self.0 {
            // SAFETY: the caller's promise.
            Kind::Linux(ring) => unsafe { ring.run(file, opcode, command, deadline, give_up) },
            Kind::Simulated { waiting } if *waiting => {
                Err(io::Error::other("an earlier command was never answered"))
            }
            Kind::Simulated { waiting } => {
                *waiting = true;
                let answer = simulated(file, opcode, &command, deadline, give_up)?;
                *waiting = false;
                Ok(answer)
            }
        }
    }
}

fn simulated(
    file: &impl AsRawFd,
    opcode: u32,
    command: &[u8; 80],
    deadline: Duration,
    give_up: &mut dyn FnMut() -> bool,
) -> io::Result<i32> {
    let dead = || io::Error::from(io::ErrorKind::Interrupted);
    let handle = current().ok_or_else(dead)?;
    let mut state = handle.alive().ok_or_else(dead)?;
    if object_of(&state.files, file.as_raw_fd()) != Some(Object::Control) {
        state.fail("a control command went to another file than the control device".into());
    }
    let number = state.send_control(handle.thread, opcode, command);
    let until = state.schedule.now_ns.saturating_add(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX));
    loop {
        if let Some(answer) = state.take_control_answer(number) {
            return Ok(answer);
        }
        let now = state.schedule.now_ns;
        if now >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let look = until.min(now + LOOK_EVERY_NS);
        state = handle.block(state, "a control command", Some(look)).ok_or_else(dead)?;
        // The question is the server's own code, which may ask the world something.
        drop(state);
        if give_up() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        state = handle.alive().ok_or_else(dead)?;
    }
}
