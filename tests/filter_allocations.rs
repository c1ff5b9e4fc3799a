//! Counts what a queue thread allocates while requests go through a stack of filters: nothing.

use std::cell::Cell;
use std::sync::Arc;

use blockhaus::backend::dynamic::Dynamic;
use blockhaus::backend::file::{self, File};
use blockhaus::backend::ram::Ram;
use blockhaus::backend::{Backend, QueueContext};
use blockhaus::filter::blocksize::Blocksize;
use blockhaus::filter::fault::{Fault, Rule, When};
use blockhaus::filter::log::Log;
use blockhaus::filter::offset::Offset;
use blockhaus::filter::stripe::Stripe;
use blockhaus::filter::throttle::{Limits, Throttle};
use blockhaus::io::Errno;
use blockhaus::metrics::QueueMetrics;
use blockhaus::port::remote::Remote;
use blockhaus::port::ring::Ring;
use blockhaus::queue::{Buffers, Stack};
use counting::Counting;
use straight::Straight;
use strict::Strict;

#[path = "harness/counting.rs"]
mod counting;
#[path = "harness/straight.rs"]
mod straight;
#[path = "harness/strict.rs"]
mod strict;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ = ALLOCATIONS.try_with(|counter| counter.set(counter.get() + 1));
}

#[global_allocator]
static ALLOCATOR: Counting = Counting(count);

const DEPTH: u16 = 16;
const MAX_IO: u32 = 256 << 10;
const SIZE: u64 = 1 << 20;
const WARM: u64 = 200;
const COUNT: u64 = 4000;

/// Allocations of this thread while so many requests of `len` bytes were served.
fn allocations(stack: &dyn Stack, len: u64) -> u64 {
    let buffers = Buffers::new(DEPTH, MAX_IO).unwrap();
    let ring = Ring::new(DEPTH, Remote::new(DEPTH).unwrap()).unwrap();
    let context = QueueContext { ring: &ring, index: 0, depth: DEPTH, max_io_size: MAX_IO };
    let mut marks = Vec::with_capacity(2);
    let mut mark = || marks.push(ALLOCATIONS.get());
    let size = stack.geometry().size;
    let mut front = Straight::new(DEPTH, len, size - size % len, WARM, COUNT, &mut mark);
    stack.serve(&context, &buffers, &mut front, &QueueMetrics::new()).unwrap();
    assert_eq!((front.failed, front.asked), (0, WARM + COUNT));
    stack.close().unwrap();
    marks[1] - marks[0]
}

fn dynamic(backend: impl Backend) -> Dynamic {
    Dynamic::new(Arc::new(backend))
}

#[test]
fn nothing_is_allocated_for_a_request() {
    let folder = tempfile::tempdir().unwrap();
    let number = Cell::new(0);
    let file = || {
        number.set(number.get() + 1);
        let path = folder.path().join(number.get().to_string());
        File::open(&file::Options { path, size: Some(SIZE), ..file::Options::default() }).unwrap()
    };
    let strict = || Strict::new(SIZE, 4096, 512);
    let ram = || Ram::new(SIZE, 4096, false).unwrap();
    let limits = Limits { iops: Some(100_000), bandwidth: None, burst_ms: 0 };
    let late = Rule { when: When::Every(500), delay_ms: 1, ..Rule::default() };
    let never = Rule { start: u64::MAX - 1, errno: Some(Errno::EIO), ..Rule::default() };
    let stacks: Vec<(&str, Arc<dyn Stack>)> = vec![
        ("ram", Arc::new(ram())),
        ("file", Arc::new(file())),
        ("strict", Arc::new(strict())),
        ("three static on ram", {
            let two = Throttle::new(Offset::new(ram(), 4096, None).unwrap(), limits).unwrap();
            Arc::new(Fault::new(two, late).unwrap())
        }),
        ("three static on a file", {
            let two = Throttle::new(Offset::new(file(), 4096, None).unwrap(), limits).unwrap();
            Arc::new(Fault::new(two, never).unwrap())
        }),
        ("three static on a slow disk", {
            let two = Blocksize::new(Offset::new(strict(), 4096, None).unwrap(), 512).unwrap();
            Arc::new(Log::new(two, Box::new(std::io::sink()), "nothing").unwrap())
        }),
        ("three dynamic on ram", {
            let two = dynamic(
                Blocksize::new(dynamic(Offset::new(dynamic(ram()), 4096, None).unwrap()), 512).unwrap(),
            );
            Arc::new(Fault::new(two, late).unwrap())
        }),
        ("three dynamic on a file", {
            let one = dynamic(Offset::new(dynamic(file()), 4096, None).unwrap());
            let two = dynamic(Throttle::new(one, limits).unwrap());
            Arc::new(Log::new(two, Box::new(std::io::sink()), "nothing").unwrap())
        }),
        ("three dynamic on a slow disk", {
            let one = dynamic(Blocksize::new(dynamic(strict()), 512).unwrap());
            let two = dynamic(Throttle::new(one, limits).unwrap());
            Arc::new(Fault::new(two, late).unwrap())
        }),
        ("a dynamic stripe", {
            let members = (0..4).map(|_| dynamic(Blocksize::new(dynamic(strict()), 512).unwrap()));
            Arc::new(Stripe::new(members.collect(), 4096).unwrap())
        }),
    ];
    for (name, stack) in stacks {
        let block = u64::from(stack.geometry().logical_block_size);
        for len in [block, 5 * block, 4096, 20480, 64 << 10] {
            let counted = allocations(&*stack, len);
            assert_eq!(counted, 0, "{name}: {counted} allocations in {COUNT} requests of {len} bytes");
        }
    }
}
