//! Threads: real ones, which wait for their turn where they are in a world.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

pub use crate::port::linux::thread::{
    AbortOnPanic, CpuMask, Scheduling, become_io_flusher, current_id, give_up_administration, give_way,
    is_io_flusher, schedule, touch_stack, waited_for_processor,
};

use super::schedule::{Status, ThreadId};
use super::world::{Killed, Waiting, words_of};
use super::{Handle, current, enter};

/// Room for the production code and what the test adds.
const STACK: usize = 1 << 20;

/// Waits for a thread and takes what it returned.
#[derive(Debug)]
pub struct JoinHandle<T>(Kind<T>);

#[derive(Debug)]
enum Kind<T> {
    Linux(thread::JoinHandle<T>),
    Simulated { thread: ThreadId, inner: thread::JoinHandle<Option<T>> },
}

impl<T> JoinHandle<T> {
    /// As [`std::thread::JoinHandle::join`].
    pub fn join(self) -> Result<T, Box<dyn Any + Send + 'static>> {
        match self.0 {
            Kind::Linux(handle) => handle.join(),
            Kind::Simulated { thread, inner } => {
                if let Some(handle) = current() {
                    handle.await_end(thread);
                }
                inner.join().and_then(|value| value.ok_or_else(|| Box::new("killed") as _))
            }
        }
    }

    /// As [`std::thread::JoinHandle::is_finished`].
    pub fn is_finished(&self) -> bool {
        match &self.0 {
            Kind::Linux(handle) => handle.is_finished(),
            Kind::Simulated { thread, .. } => current()
                .is_none_or(|handle| handle.state().schedule.threads[*thread].status == Status::Finished),
        }
    }
}

/// As the real one. In a world a panic is a failure of the run.
pub fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let Some(handle) = current() else {
        return crate::port::linux::thread::spawn(name, body).map(|handle| JoinHandle(Kind::Linux(handle)));
    };
    let process = {
        let Some(state) = handle.alive() else { return Err(io::ErrorKind::Other.into()) };
        state.schedule.threads[handle.thread].process
    };
    let (thread, inner) = handle.spawn(process, name, STACK, body)?;
    Ok(JoinHandle(Kind::Simulated { thread, inner }))
}

impl Handle {
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        process: usize,
        name: String,
        stack: usize,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<(ThreadId, thread::JoinHandle<Option<T>>)> {
        let thread = {
            let mut state = self.state();
            let thread = state.new_thread(name.clone(), process);
            state.note("spawn", [thread as u64, process as u64, 0, 0]);
            state.wake(thread);
            thread
        };
        let own = Handle { world: self.world.clone(), thread };
        let inner = thread::Builder::new().name(name).stack_size(stack).spawn(move || {
            enter(Some(own.clone()));
            let mut value = None;
            if own.first_turn() {
                match catch_unwind(AssertUnwindSafe(body)) {
                    Ok(returned) => value = Some(returned),
                    Err(panic) if panic.is::<Killed>() => {}
                    Err(panic) => own.state().fail(words_of(&*panic)),
                }
            }
            own.last_turn();
            enter(None);
            value
        });
        match inner {
            Ok(inner) => Ok((thread, inner)),
            Err(error) => {
                let mut state = self.state();
                state.schedule.threads[thread].status = Status::Finished;
                state.thread_ended(thread);
                Err(error)
            }
        }
    }

    fn await_end(&self, thread: ThreadId) {
        let Some(mut state) = self.alive() else { return };
        while state.schedule.threads[thread].status != Status::Finished {
            state.wait_for(Waiting::Thread(thread), self.thread);
            match self.block(state, "a thread to end", None) {
                Some(next) => state = next,
                None => return,
            }
        }
    }
}
