//! Where clients come in: listeners and the thread at the door, which live as long as the process
//! serves anything to anybody.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::catalogue::Catalogue;
use super::door::Door;
use crate::error::{Error, Result};
use crate::port::socket;
use crate::port::stream::{Listener, Socket};
use crate::port::thread::{self, JoinHandle};

/// A door that is open. When it is dropped, it is closed.
#[derive(Debug)]
pub struct Server {
    door: Option<JoinHandle<()>>,
    waker: File,
    closing: Arc<AtomicBool>,
}

impl Server {
    /// Lets in whoever comes to `listeners`, to choose from what the catalogue has at that moment.
    pub fn open(catalogue: &Arc<Catalogue>, listeners: Vec<Listener>) -> Result<Server> {
        Server::open_for(catalogue, listeners, Vec::new())
    }

    /// The same, with clients that are there already.
    pub fn open_for(
        catalogue: &Arc<Catalogue>,
        listeners: Vec<Listener>,
        connections: Vec<Socket>,
    ) -> Result<Server> {
        let (woken, waker) =
            socket::wake_pipe().map_err(|error| Error::system("cannot make the server's pipe", error))?;
        let closing = Arc::new(AtomicBool::new(false));
        let door = Door::new(listeners, catalogue.clone(), woken, closing.clone());
        // Before anybody can ask how many there are.
        let visitors = connections.into_iter().filter_map(|socket| door.receive(socket)).collect();
        let door = thread::spawn("door".into(), move || door.attend(visitors))
            .map_err(|error| Error::system("cannot start the thread that accepts connections", error))?;
        Ok(Server { door: Some(door), waker, closing })
    }

    /// Nobody listens any more, and who has not chosen yet is sent away. Who has chosen stays.
    pub fn close(&mut self) {
        self.closing.store(true, Ordering::Release);
        // A full pipe wakes as well.
        let _ = self.waker.write(&[1]);
        if let Some(door) = self.door.take() {
            // A panic aborts the process, so that there is none to report here.
            let _ = door.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}
