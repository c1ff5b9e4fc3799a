//! What a process that serves a disk must be: never waiting on the disk that it serves.

use crate::port::{memory, system, thread};

/// Prepares this process, before a backend is opened and before threads are made: locks its memory
/// as it is touched, and declares this thread an IO_FLUSHER. An ordinary user gets a folder of their own for what is
/// known of it. Yields what was not permitted, a line
/// each for the person who attaches.
pub fn prepare() -> Vec<String> {
    system::make_run_folder();
    let mut notes = Vec::new();
    if let Err(error) = memory::lock_all() {
        notes.push(format!(
            "memory is not locked ({error}): under memory pressure the server may wait for its own disk; \
             run as root or raise `ulimit -l`"
        ));
    }
    if let Err(error) = thread::become_io_flusher() {
        notes.push(format!(
            "not an IO_FLUSHER ({error}): under memory pressure the server may wait for its own disk; \
             it needs CAP_SYS_RESOURCE"
        ));
    }
    notes
}
