//! The load engine makes nothing for a request: as much is allocated for many of them as for few. And it can be ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blockhaus::backend::file::{self, Direct};
use blockhaus::backend::ram::Ram;
use blockhaus::engine::load::{Course, Load, Pattern, measure};
use blockhaus::queue::Stack;
use counting::Counting;

#[path = "harness/counting.rs"]
mod counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
}

#[global_allocator]
static ALLOCATOR: Counting = Counting(count);

/// Allocations of all threads, and requests that were served.
fn of(stack: &Arc<dyn Stack>, pattern: Pattern, milliseconds: u64) -> (u64, u64) {
    let load = Load { pattern, block_size: 4096, depth: 16, jobs: 2 };
    let window = Duration::from_millis(milliseconds);
    let course = Course { warm_up: Duration::from_millis(50), window, seed: 1 };
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let measured = measure(stack, &load, &course, &mut |_| true).unwrap();
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    assert_eq!(measured.failures.count(), 0);
    (after - before, measured.served)
}

/// One test after the other, so that nothing else allocates meanwhile.
#[test]
fn a_load_allocates_nothing_for_a_request_and_ends_when_it_is_asked_to() {
    nothing_is_allocated_for_a_request();
    an_end_that_is_asked_for_comes();
}

fn nothing_is_allocated_for_a_request() {
    let folder = tempfile::tempdir().unwrap();
    let options = file::Options {
        path: folder.path().join("disk"),
        size: Some(1 << 20),
        direct: Direct::No,
        ..Default::default()
    };
    let ram: Arc<dyn Stack> = Arc::new(Ram::new(1 << 20, 512, false).unwrap());
    let file: Arc<dyn Stack> = Arc::new(file::File::open(&options).unwrap());
    for stack in [ram, file] {
        for pattern in [Pattern::RandRead, Pattern::Write] {
            let (first, _) = of(&stack, pattern, 50);
            let (second, served) = of(&stack, pattern, 800);
            assert!(served > 2000, "{served} requests say nothing");
            assert!(second <= first + 16, "{second} and {first} for {served} requests");
        }
    }
}

/// Whoever watches can end it, and gets what there is.
fn an_end_that_is_asked_for_comes() {
    let stack: Arc<dyn Stack> = Arc::new(Ram::new(1 << 20, 512, false).unwrap());
    let load = Load { pattern: Pattern::RandWrite, block_size: 4096, depth: 4, jobs: 1 };
    let course = Course { warm_up: Duration::ZERO, window: Duration::from_secs(3600), seed: 1 };
    let measured = measure(&stack, &load, &course, &mut |progress| progress.ended < 1000).unwrap();
    assert!(measured.interrupted && measured.served >= 1000, "{measured:?}");
    assert!(measured.window < Duration::from_secs(60) && measured.iops() > 0.0);
}
