//! A server's process in the world: it runs until it is told to stop, and how it ended is kept.

use std::sync::{Arc, Mutex, PoisonError};

use blockhaus::error::Result;
use blockhaus::port::channel::{Receiver, Sender, bounded};
use blockhaus::port::sim::{Process, World};

type Ended = Option<std::result::Result<(), String>>;

pub struct Server {
    pub process: Process,
    stop: Sender<()>,
    end: Arc<Mutex<Ended>>,
}

impl Server {
    /// `serve` does what a server's main thread does; it receives when it is to stop.
    pub fn start(world: &World, serve: impl FnOnce(&Receiver<()>) -> Result<()> + Send + 'static) -> Server {
        let (stop, stopped) = bounded(1);
        let end = Arc::new(Mutex::new(None));
        let result = end.clone();
        let process = world.start(move || {
            let ended = serve(&stopped).map_err(|error| error.to_string());
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        });
        Server { process, stop, end }
    }

    pub fn stop(&self) {
        let _ = self.stop.try_send(());
    }

    fn end(&self) -> Ended {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn ended(&self) -> bool {
        self.end().is_some()
    }

    pub fn error(&self) -> Option<String> {
        self.end().and_then(std::result::Result::err)
    }
}
