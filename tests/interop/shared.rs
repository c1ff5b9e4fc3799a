//! One disk that two engines serve: each has queues of its own on it, and one of the two tells it of its
//! start and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blockhaus::backend::ram::{Ram, RamQueue};
use blockhaus::backend::{Backend, QueueContext};
use blockhaus::engine::nbd::{Catalogue, Exported, Offer, Options, Server};
use blockhaus::error::Result;
use blockhaus::filter::blocksize::Blocksize;
use blockhaus::io::{Capabilities, Geometry};
use blockhaus::port::stream::Listener;
use blockhaus::queue::Stack;

use crate::raw::{Client, READ};

/// What a backend was told.
#[derive(Default)]
struct Told {
    queues: AtomicUsize,
    started: AtomicUsize,
    closed: AtomicUsize,
}

struct Counted {
    ram: Ram,
    told: Arc<Told>,
}

impl Backend for Counted {
    type Queue = RamQueue;

    fn geometry(&self) -> Geometry {
        Backend::geometry(&self.ram)
    }

    fn capabilities(&self) -> Capabilities {
        Backend::capabilities(&self.ram)
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<RamQueue> {
        self.told.queues.fetch_add(1, Ordering::SeqCst);
        self.ram.open_queue(context)
    }

    fn started(&self) {
        self.told.started.fetch_add(1, Ordering::SeqCst);
    }

    fn close(&self) -> Result<()> {
        self.told.closed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn two_that_serve_one_disk_see_the_same_and_it_begins_and_ends_once() {
    let told = Arc::new(Told::default());
    let ram = Ram::new(1 << 20, 4096, false).unwrap();
    // The lock on ranges has to cover the queues of both, each of which has a queue 0.
    let below = Counted { ram, told: told.clone() };
    let stack: Arc<dyn Stack> = Arc::new(Blocksize::new(below, 512).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let options = Options { queues: 1, depth: 16 };
    let start = |name: &str, is_shared| {
        let catalogue = Catalogue::new(8);
        let (name, description) = (name.to_owned(), String::new());
        let offer = Offer { name, description, stack: stack.clone(), is_shared };
        let exported = Exported::start(&catalogue, offer, &options).unwrap();
        let path = folder.path().join(if is_shared { "shared" } else { "own" });
        let server = Server::open(&catalogue, vec![Listener::unix(&path).unwrap()]).unwrap();
        exported.started();
        (exported, server, path)
    };
    let (own, _own_door, own_path) = start("own", false);
    let (shared, _shared_door, shared_path) = start("shared", true);
    let (mut one, mut other) = (Client::choosing(&own_path, "own"), Client::choosing(&shared_path, "shared"));
    one.write(0, &[1; 4096]).unwrap();
    other.write(512, &[2; 512]).unwrap();
    assert_eq!(one.ask(READ, 512, 512).unwrap(), [2; 512]);
    // Halves of the same blocks from both sides at once: no half is lost to the other's whole block.
    let writers: Vec<_> = [(own_path, "own", 0), (shared_path, "shared", 512)]
        .into_iter()
        .map(|(path, name, half)| {
            std::thread::spawn(move || {
                let mut client = Client::choosing(&path, name);
                for round in 0..400u32 {
                    let offset = u64::from(round % 8) * 1024 + half;
                    let bytes = [round as u8 ^ half as u8; 512];
                    client.write(offset, &bytes).unwrap();
                    assert_eq!(client.ask(READ, offset, 512).unwrap(), bytes, "{name} at {offset}");
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let count = |what: &AtomicUsize| what.load(Ordering::SeqCst);
    assert_eq!((count(&told.queues), count(&told.started), count(&told.closed)), (2, 1, 0));
    shared.finish().unwrap();
    assert!(other.is_closed());
    assert_eq!(count(&told.closed), 0, "it was closed under the other's queues");
    assert_eq!(one.ask(READ, 512 * 17, 512).unwrap().len(), 512);
    own.finish().unwrap();
    assert_eq!((count(&told.started), count(&told.closed)), (1, 1));
}
