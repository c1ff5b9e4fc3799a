//! What a filter costs: nanoseconds for each request and each layer, on the queue's own loop.
//!
//!     cargo bench --bench layers
//!
//! A front end asks for the same over and over; what is below does nothing, at once or in a future of
//! its own. No system call is in the figures but one a turn of the loop.

#![expect(clippy::print_stdout, reason = "standard output is what this program is for")]

use std::sync::Arc;
use std::time::Instant;

use blockhaus::backend::dynamic::Dynamic;
use blockhaus::backend::null::Null;
use blockhaus::backend::{Backend, Queue, QueueContext};
use blockhaus::error::Result;
use blockhaus::filter::blocksize::Blocksize;
use blockhaus::filter::fault::{Fault, Rule};
use blockhaus::filter::log::Log;
use blockhaus::filter::offset::Offset;
use blockhaus::filter::stripe::Stripe;
use blockhaus::filter::throttle::{Limits, Throttle};
use blockhaus::io::{Capabilities, Errno, Geometry, Io, IoResult};
use blockhaus::metrics::QueueMetrics;
use blockhaus::payload::Payload;
use blockhaus::port::remote::Remote;
use blockhaus::port::ring::Ring;
use blockhaus::queue::{Buffers, Stack};
use straight::Straight;

#[path = "../tests/harness/straight.rs"]
mod straight;

const DEPTH: u16 = 32;
const SIZE: u64 = 1 << 30;
const LEN: u64 = 4096;
const MAX_IO: u32 = 256 << 10;
const WARM: u64 = 50_000;
const RUNS: usize = 7;

/// A disk that does nothing, and never at once.
struct Later(Null);

struct LaterQueue;

impl Backend for Later {
    type Queue = LaterQueue;

    fn geometry(&self) -> Geometry {
        Geometry { logical_block_size: 4096, ..Backend::geometry(&self.0) }
    }

    fn capabilities(&self) -> Capabilities {
        Backend::capabilities(&self.0)
    }

    fn open_queue(&self, _context: &QueueContext<'_>) -> Result<LaterQueue> {
        Ok(LaterQueue)
    }
}

impl Queue for LaterQueue {
    async fn serve(&self, io: Io, payload: Payload<'_>) -> IoResult {
        std::hint::black_box((io, payload));
        Ok(())
    }
}

/// Nanoseconds for a request on each stack: the fastest of some runs, since nothing makes one faster
/// than it is; in turn, since the machine may do something else for a while.
fn measure(stacks: &[&dyn Stack], count: u64) -> Vec<f64> {
    let run = |stack: &dyn Stack| {
        let buffers = Buffers::new(DEPTH, MAX_IO).expect("memory");
        let ring = Ring::new(DEPTH, Remote::new(DEPTH).expect("an eventfd")).expect("a ring");
        let context = QueueContext { ring: &ring, index: 0, depth: DEPTH, max_io_size: MAX_IO };
        let mut marks = Vec::with_capacity(2);
        let mut mark = || marks.push(Instant::now());
        let mut front = Straight::new(DEPTH, LEN, SIZE / 2, WARM, count, &mut mark);
        stack.serve(&context, &buffers, &mut front, &QueueMetrics::new()).expect("served");
        assert_eq!(front.failed, 0);
        (marks[1] - marks[0]).as_nanos() as f64 / count as f64
    };
    let mut fastest = vec![f64::INFINITY; stacks.len()];
    for _ in 0..RUNS {
        for (fastest, stack) in fastest.iter_mut().zip(stacks) {
            *fastest = fastest.min(run(*stack));
        }
    }
    fastest
}

fn later() -> Later {
    Later(Null::new(SIZE, 512, false))
}

fn null() -> Null {
    Null::new(SIZE, 4096, false)
}

fn never() -> Rule {
    Rule { start: u64::MAX - 1, errno: Some(Errno::EIO), ..Rule::default() }
}

/// More than can be asked for, so that nothing waits.
fn plenty() -> Limits {
    Limits { iops: Some(1_000_000_000), bandwidth: None, burst_ms: 60_000 }
}

fn offset<B: Backend>(below: B) -> Offset<B> {
    Offset::new(below, 4096, None).expect("a window")
}

fn fault<B: Backend>(below: B) -> Fault<B> {
    Fault::new(below, never()).expect("a rule")
}

fn dynamic(backend: impl Backend) -> Dynamic {
    Dynamic::new(Arc::new(backend))
}

fn main() {
    // `cargo test --benches` builds and runs this, too: once round, to see that it works.
    let count = if std::env::args().any(|argument| argument == "--bench") { 1_000_000 } else { 1000 };
    let three: [(&str, [Box<dyn Stack>; 3]); 2] = [
        (
            "answered at once",
            [
                Box::new(null()),
                Box::new(offset(fault(offset(null())))),
                Box::new(offset(dynamic(fault(dynamic(offset(dynamic(null()))))))),
            ],
        ),
        (
            "answered by a future",
            [
                Box::new(later()),
                Box::new(offset(fault(offset(later())))),
                Box::new(offset(dynamic(fault(dynamic(offset(dynamic(later()))))))),
            ],
        ),
    ];
    println!("ns a request, 4 KiB, reads and writes in turn, depth {DEPTH}");
    let filters = "offset, fault, offset";
    for (how, stacks) in &three {
        let took = measure(&stacks.each_ref().map(|stack| &**stack), count);
        let (bare, fixed, dynamic) = (took[0], took[1], took[2]);
        println!("\n{how}: bare {bare:.1}");
        println!("  three static  ({filters}): {fixed:.1}, a layer {:.1} (goal 25)", (fixed - bare) / 3.0);
        println!(
            "  three dynamic ({filters}): {dynamic:.1}, a layer {:.1} (goal 60)",
            (dynamic - bare) / 3.0
        );
    }
    let single: [(&str, Box<dyn Stack>); 8] = [
        ("nothing", Box::new(later())),
        ("offset", Box::new(offset(later()))),
        ("fault that strikes nothing", Box::new(fault(later()))),
        ("throttle that is never reached", Box::new(Throttle::new(later(), plenty()).expect("limits"))),
        ("log", Box::new(Log::new(later(), Box::new(std::io::sink()), "nothing").expect("a log"))),
        ("blocksize, whole blocks", Box::new(Blocksize::new(later(), 512).expect("a filter"))),
        ("stripe of two, within a chunk", {
            Box::new(Stripe::new(vec![later(), later()], 64 << 10).expect("a stripe"))
        }),
        ("type erased, nothing else", Box::new(dynamic(later()))),
    ];
    let stacks: Vec<&dyn Stack> = single.iter().map(|(_, stack)| &**stack).collect();
    let took = measure(&stacks, count);
    println!("\none filter, static, on a disk that answers by a future ({:.1}):", took[0]);
    for ((name, _), took_with) in single.iter().zip(&took).skip(1) {
        println!("  {name}: {:.1}", took_with - took[0]);
    }
}
