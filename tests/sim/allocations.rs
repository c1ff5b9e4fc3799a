//! What queue threads allocate for a request on its whole way, from the descriptor to the commit:
//! nothing. What the world allocates to play its part is not theirs.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blockhaus::backend::dynamic::Dynamic;
use blockhaus::backend::ram::{Ram, RamQueue};
use blockhaus::backend::{Backend, Queue, QueueContext};
use blockhaus::engine::ublk::{DATA_PATHS, DataPath, Load, Options, Wish};
use blockhaus::error::Result;
use blockhaus::io::{Capabilities, Geometry, Io, IoResult};
use blockhaus::metrics::QueueMetrics;
use blockhaus::payload::Payload;
use blockhaus::port::channel::bounded;
use blockhaus::port::sim::{Config, DiskShape, Faults, Kernel, Random, World, in_the_world};
use blockhaus::queue::{Buffers, FrontEnd, Stack};

use crate::counting::Counting;
use crate::model::Model;
use crate::scenario::{LONG_NS, serve};
use crate::slow::Slow;
use crate::stacks::{Filters, Kind, Layers};
use crate::workload::{Habits, Shared};

thread_local! {
    /// Whether this is a queue thread of the test below.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    // A thread that is ending has no such place any more.
    if COUNTS.try_with(Cell::get).unwrap_or(false) && !in_the_world() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting(count);

/// A stack whose queue threads are counted.
struct Counted {
    stack: Arc<dyn Stack>,
}

impl Stack for Counted {
    fn geometry(&self) -> Geometry {
        self.stack.geometry()
    }

    fn capabilities(&self) -> Capabilities {
        self.stack.capabilities()
    }

    fn memory_used(&self) -> Option<u64> {
        self.stack.memory_used()
    }

    fn notes(&self) -> Vec<String> {
        self.stack.notes()
    }

    fn started(&self) {
        self.stack.started();
    }

    fn close(&self) -> Result<()> {
        self.stack.close()
    }

    fn serve(
        &self,
        context: &QueueContext<'_>,
        buffers: &Buffers,
        front: &mut dyn FrontEnd,
        metrics: &QueueMetrics,
    ) -> Result<()> {
        COUNTS.set(true);
        self.stack.serve(context, buffers, front, metrics)
    }

    fn into_backend(self: Arc<Self>) -> Dynamic {
        self.stack.clone().into_backend()
    }
}

/// A backend that allocates once for each request, to see that it is counted.
struct Wasteful(Ram);

struct WastefulQueue(RamQueue);

impl Backend for Wasteful {
    type Queue = WastefulQueue;

    fn geometry(&self) -> Geometry {
        Backend::geometry(&self.0)
    }

    fn capabilities(&self) -> Capabilities {
        Backend::capabilities(&self.0)
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<WastefulQueue> {
        self.0.open_queue(context).map(WastefulQueue)
    }
}

impl Queue for WastefulQueue {
    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        drop(std::hint::black_box(Box::new(io)));
        match self.0.serve_now(&io, &mut payload) {
            Some(result) => result,
            None => self.0.serve(io, payload).await,
        }
    }
}

const WARM: u64 = 200;
const COUNT: u64 = 400;
const IN_FLIGHT: usize = 24;
const SECTOR: u32 = 4096;

/// Allocations of the queue threads while so many requests were served.
fn allocations(layers: &Layers, disk: DiskShape, path: DataPath, wasteful: bool) -> u64 {
    let kernel =
        Kernel { version: 703, udev: false, lost_commands: 0, queues_max: 2, failed_registrations: 100 };
    // What is short or interrupted is asked for again, which is part of the way.
    let faults = Faults { short: 50, interrupted: 20, ..Faults::default() };
    let config = Config { seed: 1, kernel, faults, cpus: 2, points_per_thousand: 50, bug: None };
    let options = Options {
        id: None,
        queues: 2,
        depth: 8,
        partition_scan: false,
        data_path: Wish::Exactly(path),
        load: Load::Any,
        spin: Duration::ZERO,
        registered_tags: None,
    };
    let habits = Habits {
        in_flight: IN_FLIGHT,
        longest: 8,
        crowded: 16,
        flushes: 20,
        discard_zeroes: layers.discard_zeroes(),
        shape: (layers.size(), layers.block()),
        hard_faults: false,
    };
    let mut counted = None;
    let outcome = World::run(config, |world| {
        let disk_path = world.add_disk(disk);
        let workload = Shared::new(1, habits, Model::new(layers.size(), layers.atom()));
        world.set_client(Box::new(workload.clone()));
        workload.lock().begin((WARM + COUNT) as u32 + 200);
        let (stop, stopped) = bounded(1);
        let layers = *layers;
        let server = world.start(move || {
            let stack: Arc<dyn Stack> = match wasteful {
                true => Arc::new(Wasteful(Ram::new(disk.size, SECTOR, false).expect("memory"))),
                false => layers.open(&disk_path, Slow::new(disk.size, SECTOR, 1)).expect("the stack opens"),
            };
            let stack = Arc::new(Counted { stack });
            serve(stack, &options, &stopped, true, &|_, _| ()).expect("the server serves");
        });
        let mut marks = [0; 2];
        for (mark, answers) in marks.iter_mut().zip([WARM, WARM + COUNT]) {
            world.wait_for_client(LONG_NS, || workload.lock().answers >= answers);
            *mark = ALLOCATIONS.load(Ordering::Relaxed);
        }
        counted = Some(marks[1] - marks[0]);
        let served = workload.lock().answers;
        assert!(served >= WARM + COUNT, "{served} requests were served");
        world.wait_for_client(LONG_NS, || workload.lock().done());
        assert_eq!(workload.lock().failure, None);
        let _ = stop.try_send(());
        assert!(!world.join(server, LONG_NS), "the server does not stop");
    });
    if let Some(failure) = outcome.failure {
        panic!("{}\n{}", failure.trace, failure.what);
    }
    counted.expect("the world ran")
}

#[test]
fn nothing_is_allocated_for_a_request() {
    let disk = DiskShape { size: 1 << 20, sector: SECTOR, punches: true, zeroes: true, direct: true };
    let plain = Layers::new(&mut Random::new(2), disk, Kind::Ram, Filters::None, false);
    let counted = allocations(&plain, disk, DataPath::Copy, true);
    // Whatever was in flight at either mark may be counted on its other side.
    assert!(counted.abs_diff(COUNT) <= IN_FLIGHT as u64, "{counted} of {COUNT} allocations were counted");
    let mut ran = 0;
    for kind in [Kind::Ram, Kind::File] {
        for filters in [Filters::None, Filters::Window, Filters::Faulty, Filters::Striped] {
            for dynamic in [false, true] {
                let mut layers = Layers::new(&mut Random::new(2), disk, kind, filters, false);
                layers.dynamic = dynamic;
                let paths: &[DataPath] = match layers.takes_hidden() {
                    true => &DATA_PATHS,
                    false if dynamic => &[DataPath::Copy, DataPath::BatchCopy],
                    false => &[DataPath::UserCopy],
                };
                for &path in paths {
                    let counted = allocations(&layers, disk, path, false);
                    let what = format!("{kind:?} below {filters:?}, dynamic {dynamic}, by {path}");
                    assert_eq!(counted, 0, "{what}: {counted} allocations in {COUNT} requests");
                    ran += 1;
                }
            }
        }
    }
    assert!(ran >= 16, "{ran} stacks");
}
