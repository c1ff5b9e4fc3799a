//! Counts allocations of a whole process while it serves a disk: none is made per I/O.
//!
//! Needs a kernel with ublk, so `cargo xtask test` builds it and runs it in a virtual machine.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blockhaus::backend::{file, null::Null, ram::Ram};
use blockhaus::engine::LiveDevice;
use blockhaus::engine::ublk::{DATA_PATHS, Device, Load, Options, Wish};
use blockhaus::error::Kind;
use blockhaus::queue::Stack;
use counting::Counting;

#[path = "harness/counting.rs"]
mod counting;

/// What was asked for, on every thread.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting(|| {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
});

const SIZE: u64 = 64 << 20;
const ROUNDS: u64 = 2000;

#[repr(align(4096))]
struct Page([u8; 4096]);

/// Allocations while `ROUNDS` writes, reads and flushes go through the disk.
fn count(path: &Path) -> std::io::Result<u64> {
    let disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut page = Box::new(Page([7; 4096]));
    let mut run = |rounds: u64| -> std::io::Result<()> {
        for round in 0..rounds {
            let offset = round * 7919 * 4096 % SIZE;
            disk.write_all_at(&page.0, offset)?;
            disk.read_exact_at(&mut page.0, offset)?;
            if round % 64 == 0 {
                disk.sync_data()?;
            }
        }
        Ok(())
    };
    run(100)?;
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    run(ROUNDS)?;
    Ok(ALLOCATIONS.load(Ordering::SeqCst) - before)
}

fn main() -> ExitCode {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "/tmp".into());
    let backing = Path::new(&folder).join("alloc-count.img");
    let options = file::Options { path: backing.clone(), size: Some(SIZE), ..file::Options::default() };
    let null: Arc<dyn Stack> = Arc::new(Null::new(SIZE, 512, false));
    let ram: Arc<dyn Stack> = Arc::new(Ram::new(SIZE, 512, false).expect("a RAM disk"));
    let file: Arc<dyn Stack> = Arc::new(file::File::open(&options).expect("a file"));
    let mut runs = vec![
        ("null", null.clone(), Wish::Auto),
        ("ram", ram, Wish::Auto),
        ("file", file.clone(), Wish::Auto),
    ];
    runs.extend(DATA_PATHS.map(|path| (path.name(), file.clone(), Wish::Exactly(path))));
    let mut failed = false;
    for (name, stack, data_path) in runs {
        let options = Options {
            id: None,
            queues: 1,
            depth: 32,
            partition_scan: false,
            data_path,
            load: Load::Any,
            spin: Duration::ZERO,
            registered_tags: None,
        };
        let device = match Device::start(stack, &options, &mut |_| Ok(())) {
            Ok(device) => device,
            Err(error) if error.kind() == Kind::Unsupported => {
                println!("{name}: not on this kernel");
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        };
        let counted = count(&device.path());
        device.stop(false).expect("stopped");
        Box::new(device).finish().expect("finished");
        let operations = ROUNDS * 2 + ROUNDS / 64 + 1;
        println!("{name}: {counted:?} allocations in {operations} operations");
        failed |= !matches!(counted, Ok(0));
    }
    let _ = std::fs::remove_file(backing);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
