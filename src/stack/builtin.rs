//! The spec types that blockhaus has itself.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::read_only::ReadOnly;
use super::{Key, OpenOptions, SpecType};
use crate::backend::{Backend, file, nbd, null, ram};
use crate::config::{Spec, human_size};
use crate::error::{Error, Result};
use crate::filter::blocksize::Blocksize;
use crate::nbd::uri::Address;
use crate::port::clock::{Duration, utc_now};
use crate::port::system::page_size;
use crate::queue::Stack;

/// The block size of a disk that has no reason for another one.
const DEFAULT_BLOCK_SIZE: u32 = 512;

pub(super) fn types() -> Vec<SpecType> {
    vec![null_type(), ram_type(), file_type(), nbd_type(), nbds_type()]
}

fn null_type() -> SpecType {
    SpecType {
        name: "null",
        argument: "SIZE",
        about: "A disk without contents, for benchmarks: writes are thrown away, what a read returns is undefined.",
        keys: vec![Key {
            name: "zero-copy",
            values: "yes|no",
            about: "Allow data paths without a copy. A read then returns what the kernel's pages held before, \
                    which can be anybody's data: for a machine of your own (no).",
        }],
        open: Box::new(|spec, options| {
            let block_size = any_block_size(options);
            let size = whole_blocks(spec, spec.size_arg("null:1G")?, block_size)?;
            let zero_copy = spec.flag("zero-copy")?.unwrap_or(false);
            Ok(erase(null::Null::new(size, block_size, zero_copy), options))
        }),
    }
}

fn ram_type() -> SpecType {
    SpecType {
        name: "ram",
        argument: "SIZE",
        about: "A disk in memory, gone when it is detached. Memory is taken when it is written to, and given back when \
                it is discarded.",
        keys: vec![Key {
            name: "hugepages",
            values: "yes|no",
            about: "Keep the contents in huge pages where the kernel has them (no).",
        }],
        open: Box::new(|spec, options| {
            let block_size = any_block_size(options);
            let size = whole_blocks(spec, spec.size_arg("ram:1G")?, block_size)?;
            let huge_pages = spec.flag("hugepages")?.unwrap_or(false);
            Ok(erase(ram::Ram::new(size, block_size, huge_pages)?, options))
        }),
    }
}

fn file_type() -> SpecType {
    SpecType {
        name: "file",
        argument: "PATH",
        about: "A regular file or a block device. It is locked while it is attached.",
        keys: vec![
            Key {
                name: "size",
                values: "SIZE",
                about: "Create the file with this size where there is none, or let it grow to it. It never shrinks.",
            },
            Key {
                name: "direct",
                values: "auto|yes|no",
                about: "Whether to go past the page cache (O_DIRECT). auto does where the file system can (auto).",
            },
        ],
        open: Box::new(|spec, options| {
            let path = PathBuf::from(spec.required_arg("a path", "file:/path/to/disk.img")?);
            let block_size = any_block_size(options);
            let size = spec.size("size")?.map(|size| whole_blocks(spec, size, block_size)).transpose()?;
            let direct = spec.choice(
                "direct",
                &[("auto", file::Direct::Auto), ("yes", file::Direct::Yes), ("no", file::Direct::No)],
            )?;
            Ok(Arc::new(file::File::open(&file::Options {
                path,
                // What was there is to be served again, and nothing that is made in its place.
                size: size.filter(|_| !options.again),
                direct: direct.unwrap_or(file::Direct::Auto),
                read_only: options.read_only,
                block_size: options.block_size,
                unit: options.engine_unit.unwrap_or(DEFAULT_BLOCK_SIZE),
            })?))
        }),
    }
}

fn nbd_type() -> SpecType {
    SpecType {
        name: "nbd",
        argument: "//HOST[:PORT][/EXPORT]",
        about: "An export of an NBD server, by its URI; on a socket of this machine \
                nbd+unix:///[EXPORT]?socket=PATH. A comma in a URI is written twice or as %2C.",
        keys: nbd_keys(),
        open: Box::new(open_nbd),
    }
}

fn nbds_type() -> SpecType {
    SpecType {
        name: "nbds",
        about: "The same by TLS, which must be; on a socket of this machine nbds+unix:///[EXPORT]?socket=PATH. In the \
                URI: tls-certificates=FOLDER with ca-cert.pem, and client-cert.pem and client-key.pem where the server \
                asks for them (without it the CAs of this machine count); tls-hostname=NAME where the certificate has \
                another name than HOST.",
        ..nbd_type()
    }
}

/// Seconds that may be given as a limit: longer than any person waits.
const MOST_SECONDS: u64 = 24 * 60 * 60;

fn nbd_keys() -> Vec<Key> {
    vec![
        Key {
            name: "connections",
            values: "N",
            about: "So many connections, 1 to 16, where the server promises that a flush on one covers all; else 1 (4).",
        },
        Key {
            name: "replay",
            values: "SIZE",
            about: "Memory for what was written and not flushed, to be written again to a server that was lost and is \
                    back; 0: the disk fails for good where something may be lost (64M).",
        },
        Key {
            name: "answer_s",
            values: "N",
            about: "A server that was asked and says nothing for so many seconds is given up, and connected to again \
                    (30).",
        },
        Key {
            name: "dead_s",
            values: "N",
            about: "Requests fail after so many seconds without a server, until there is one again (60).",
        },
    ]
}

fn open_nbd(spec: &Spec, options: &OpenOptions) -> Result<Arc<dyn Stack>> {
    let example = "nbd://localhost/disk or nbd+unix:///disk?socket=/run/nbd.sock";
    spec.required_arg("an address", example)?;
    let address = Address::parse(&format!("{}:{}", spec.kind(), spec.arg()))
        .map_err(|why| Error::invalid(spec.named(), why).cure(format!("write, for example, {example}")))?;
    let between = |key: &str, least: u64, most: u64, usual: u64| match spec.number(key)?.unwrap_or(usual) {
        number if (least..=most).contains(&number) => Ok(number),
        number => Err(Error::invalid(spec.named(), format!("{key}={number} is not from {least} to {most}"))),
    };
    let disk = nbd::Nbd::open(&nbd::Options {
        address,
        connections: between("connections", 1, nbd::MOST_CONNECTIONS.into(), 4)? as u16,
        answer: Duration::from_secs(between("answer_s", 1, MOST_SECONDS, 30)?),
        dead: Duration::from_secs(between("dead_s", 0, MOST_SECONDS, 60)?),
        replay: spec.size("replay")?.unwrap_or(64 << 20),
        unit: any_block_size(options),
        // Losing it is better than ending a disk over it.
        say: |text| drop(writeln!(std::io::stderr(), "blockhaus: {} {text}", utc_now())),
    })?;
    // No device has larger blocks than pages.
    let page = page_size() as u32;
    match Backend::geometry(&disk).logical_block_size > page {
        true => Ok(Arc::new(Blocksize::new(disk, page)?)),
        false => Ok(Arc::new(disk)),
    }
}

/// The block size of a disk that can have any: what was asked for, or what the engine's clients count in.
fn any_block_size(options: &OpenOptions) -> u32 {
    options.block_size.or(options.engine_unit).unwrap_or(DEFAULT_BLOCK_SIZE)
}

/// Erases the type, behind [`ReadOnly`] where that was asked for and the backend does not do it.
fn erase(backend: impl Backend, options: &OpenOptions) -> Arc<dyn Stack> {
    match options.read_only {
        true => Arc::new(ReadOnly(backend)),
        false => Arc::new(backend),
    }
}

/// Passes a size that is a whole number of blocks and more than none.
fn whole_blocks(spec: &Spec, size: u64, block_size: u32) -> Result<u64> {
    if size == 0 {
        return Err(
            Error::invalid(spec.named(), "a disk of size 0 has no blocks").cure("give it a size above 0")
        );
    }
    let block_size = u64::from(block_size);
    if !size.is_multiple_of(block_size) {
        let why = format!("{size} bytes are not a multiple of the block size, {block_size}");
        let down = size - size % block_size;
        let near = if down == 0 { block_size } else { down };
        return Err(Error::invalid(spec.named(), why)
            .cure(format!("the nearest size is {near} ({})", human_size(near))));
    }
    Ok(size)
}
