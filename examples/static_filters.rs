//! Filters put together when the program is compiled: one type, one state machine, nothing called
//! through a pointer.
//!
//! Registers the spec types `guarded:PATH[,size=SIZE]`, a file, and `guarded-ram:SIZE`, memory. Above
//! either lie three filters: a window that leaves out the first MiB, a rule that makes each 997th request
//! wait for a millisecond, and a limit of 1 GiB a second. `--filter` would do the same at run time.
//!
//! ```text
//! cargo run --example static_filters -- attach guarded:/srv/disk.img,size=1G
//! ```

use std::process::ExitCode;
use std::sync::Arc;

use blockhaus::backend::Backend;
use blockhaus::backend::{file, ram};
use blockhaus::error::Result;
use blockhaus::filter::fault::{Fault, Rule, When};
use blockhaus::filter::offset::Offset;
use blockhaus::filter::throttle::{Limits, Throttle};
use blockhaus::queue::Stack;
use blockhaus::stack::{Key, OpenOptions, ReadOnly, SpecTable, SpecType};

const LEFT_OUT: u64 = 1 << 20;

/// All that the filters need to know is that `below` is a backend.
fn guarded<B: Backend>(below: B) -> Result<Throttle<Fault<Offset<B>>>> {
    let window = Offset::new(below, LEFT_OUT, None)?;
    let rule = Rule {
        op: None,
        start: 0,
        end: u64::MAX,
        when: When::Every(997),
        seed: 0,
        delay_ms: 1,
        errno: None,
        torn: false,
    };
    let limits = Limits { iops: None, bandwidth: Some(1 << 30), burst_ms: 100 };
    Throttle::new(Fault::new(window, rule)?, limits)
}

/// Erases the type, once, above everything.
fn stack<B: Backend>(below: B, options: &OpenOptions) -> Result<Arc<dyn Stack>> {
    let disk = guarded(below)?;
    Ok(if options.read_only { Arc::new(ReadOnly(disk)) } else { Arc::new(disk) })
}

fn main() -> ExitCode {
    let guarded_file = SpecType {
        name: "guarded",
        argument: "PATH",
        about: "A file behind three filters.",
        keys: vec![Key {
            name: "size",
            values: "SIZE",
            about: "Create the file so large, or let it grow. The disk has 1 MiB less.",
        }],
        open: Box::new(|spec, options| {
            let file = file::File::open(&file::Options {
                path: spec.required_arg("a path", "guarded:/srv/disk.img")?.into(),
                size: spec.size("size")?,
                read_only: options.read_only,
                block_size: options.block_size,
                ..file::Options::default()
            })?;
            stack(file, options)
        }),
    };
    let guarded_ram = SpecType {
        name: "guarded-ram",
        argument: "SIZE",
        about: "Memory behind three filters; the disk has 1 MiB less.",
        keys: Vec::new(),
        open: Box::new(|spec, options| {
            let block_size = options.block_size.unwrap_or(512);
            stack(ram::Ram::new(spec.size_arg("guarded-ram:1G")?, block_size, false)?, options)
        }),
    };
    blockhaus::cli::run(SpecTable::builtin().register(guarded_file).register(guarded_ram))
}
