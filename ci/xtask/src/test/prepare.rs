//! Downloads and images, made in the background while the host suites run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::headers;
use crate::vm::{Machine, kernel};

/// The work in progress.
pub struct Preparation {
    headers: Receiver<Result<PathBuf>>,
    images: JoinHandle<Images>,
}

/// What came of it.
#[derive(Default)]
pub struct Images {
    /// Why there is no machine with these kernels.
    pub broken: BTreeMap<String, String>,
    /// How long it took.
    pub took: Duration,
}

impl Preparation {
    /// Begin: the headers first, since the host suite waits for them.
    pub fn start(want_headers: bool, kernels: Vec<String>, refresh: bool) -> Self {
        let (send, headers) = mpsc::channel();
        let images = thread::spawn(move || {
            if want_headers {
                // A receiver that has gone wants no headers any more.
                let _ = send.send(headers::ensure(refresh));
            }
            let began = Instant::now();
            let mut images = Images::default();
            // One root file system serves all: it is looked for anew with the first kernel only.
            for (at, kernel) in kernels.into_iter().enumerate() {
                let machine = Machine::with_kernel(&kernel);
                let made = if at == 0 {
                    machine.prepare(refresh)
                } else {
                    kernel::ensure(&kernel, refresh).and_then(|_| machine.prepare(false))
                };
                if let Err(error) = made {
                    images.broken.insert(kernel, format!("{error:#}"));
                }
            }
            images.took = began.elapsed();
            images
        });
        Self { headers, images }
    }

    /// Wait for the folder with the newest kernel's headers.
    pub fn headers(&self) -> Result<PathBuf> {
        self.headers.recv().unwrap_or_else(|_| Err(anyhow!("nobody fetched the kernel's headers")))
    }

    /// Wait for the images.
    pub fn images(self) -> Result<Images> {
        self.images.join().map_err(|_| anyhow!("the thread that prepares machines panicked"))
    }
}
