//! Filters as a person names them: the table, and how a stack grows by one.

use std::fmt;
use std::fs::OpenOptions as FileOptions;
use std::sync::Arc;

use super::{Key, OpenOptions, SpecTable};
use crate::backend::Backend;
use crate::backend::dynamic::Dynamic;
use crate::config::Spec;
use crate::error::{Error, Result};
use crate::filter::blocksize::Blocksize;
use crate::filter::fault::{Fault, Rule, When};
use crate::filter::log::{Log, Sink};
use crate::filter::offset::Offset;
use crate::filter::stripe::Stripe;
use crate::filter::throttle::{Limits, Throttle};
use crate::io::{Errno, Op};
use crate::queue::Stack;

/// Puts a filter on what is below it. The table has checked its name and its keys by then, not the
/// values; it is given so that a filter can open other disks.
pub type Wrap = Box<dyn Fn(Dynamic, &Spec, &OpenOptions, &SpecTable) -> Result<Arc<dyn Stack>> + Send + Sync>;

/// One filter: how it is written, what it does, and how it is put on a stack.
pub struct FilterType {
    /// How it is called.
    pub name: &'static str,
    /// What it does, a sentence or two.
    pub about: &'static str,
    /// The keys it takes.
    pub keys: Vec<Key>,
    /// Puts it on a stack.
    pub wrap: Wrap,
}

impl FilterType {
    /// How it is written: `throttle[,iops=N]`.
    pub fn usage(&self) -> String {
        super::usage(self.name, &self.keys)
    }
}

impl fmt::Debug for FilterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FilterType").field(&self.usage()).finish()
    }
}

/// The filters that blockhaus has itself.
pub(super) fn builtin() -> Vec<FilterType> {
    vec![blocksize(), throttle(), fault(), log(), offset(), stripe()]
}

fn stack(backend: impl Backend) -> Arc<dyn Stack> {
    Arc::new(backend)
}

fn blocksize() -> FilterType {
    FilterType {
        name: "blocksize",
        about: "Shows the disk in blocks of another size. Blocks that are smaller than the disk's own are changed by \
                reading and writing whole ones.",
        keys: vec![Key { name: "size", values: "SIZE", about: "The block size, a power of two (512)." }],
        wrap: Box::new(|below, spec, _, _| {
            let size = spec.size("size")?.unwrap_or(512);
            let unit = u32::try_from(size).unwrap_or(u32::MAX);
            Ok(stack(Blocksize::new(below, unit)?))
        }),
    }
}

fn throttle() -> FilterType {
    FilterType {
        name: "throttle",
        about: "Makes requests wait that come faster than allowed, over all queues together.",
        keys: vec![
            Key { name: "iops", values: "N", about: "So many requests a second; flushes are not counted." },
            Key { name: "bandwidth", values: "SIZE", about: "So many bytes a second, read and written." },
            Key {
                name: "burst_ms",
                values: "N",
                about: "What was not used in so many milliseconds may be used at once later (100).",
            },
        ],
        wrap: Box::new(|below, spec, _, _| {
            let limits = Limits {
                iops: spec.number("iops")?,
                bandwidth: spec.size("bandwidth")?,
                burst_ms: spec.number("burst_ms")?.unwrap_or(100),
            };
            Ok(stack(Throttle::new(below, limits)?))
        }),
    }
}

/// Names of errors that a disk may well return.
const ERRORS: [(&str, Errno); 9] = [
    ("EIO", Errno::EIO),
    ("ENOSPC", Errno::ENOSPC),
    ("EINVAL", Errno::EINVAL),
    ("EPERM", Errno::EPERM),
    ("EROFS", Errno::EROFS),
    ("EAGAIN", Errno::EAGAIN),
    ("EBUSY", Errno::EBUSY),
    ("EOPNOTSUPP", Errno::EOPNOTSUPP),
    ("ETIMEDOUT", Errno::new(110)),
];

fn fault() -> FilterType {
    let ops: &[(&str, Option<Op>)] = &[
        ("any", None),
        ("read", Some(Op::Read)),
        ("write", Some(Op::Write)),
        ("flush", Some(Op::Flush)),
        ("discard", Some(Op::Discard)),
        ("write-zeroes", Some(Op::WriteZeroes)),
    ];
    FilterType {
        name: "fault",
        about: "Makes requests fail or wait that would not. Give it several times for several rules.",
        keys: vec![
            Key {
                name: "op",
                values: "any|read|write|flush|discard|write-zeroes",
                about: "Only these (any; write with torn=yes).",
            },
            Key {
                name: "offset",
                values: "SIZE",
                about: "Only what touches the disk from this byte on (0).",
            },
            Key { name: "length", values: "SIZE", about: "And only in so many bytes from there (all)." },
            Key { name: "every", values: "N", about: "Of those, each so-manyth (1)." },
            Key { name: "probability", values: "P", about: "Or each with this probability, 0 to 1." },
            Key { name: "seed", values: "N", about: "The same seed strikes the same requests (0)." },
            Key { name: "delay_ms", values: "N", about: "They wait for so many milliseconds (0)." },
            Key {
                name: "errno",
                values: "NAME|none",
                about: "They fail with this, EIO or ENOSPC say (EIO, or none with a delay).",
            },
            Key { name: "torn", values: "yes|no", about: "Writes fail after a part has been written (no)." },
        ],
        wrap: Box::new(move |below, spec, _, _| {
            let delay_ms = spec.number("delay_ms")?.unwrap_or(0);
            let torn = spec.flag("torn")?.unwrap_or(false);
            let names: Vec<(&str, Option<Errno>)> = ERRORS
                .iter()
                .map(|(name, errno)| (*name, Some(*errno)))
                .chain(std::iter::once(("none", None)))
                .collect();
            let usual = if delay_ms == 0 || torn { Some(Errno::EIO) } else { None };
            let start = spec.size("offset")?.unwrap_or(0);
            let when = match (spec.number("every")?, spec.probability("probability")?) {
                (Some(_), Some(_)) => {
                    return Err(Error::invalid(spec.named(), "every and probability are both there")
                        .cure("give one of them"));
                }
                (Some(count), None) => When::Every(count),
                (None, Some(probability)) => When::Probability(probability),
                (None, None) => When::Always,
            };
            let rule = Rule {
                // Nothing else can be torn, and who asks for that has not asked for failing reads.
                op: spec.choice("op", ops)?.unwrap_or(torn.then_some(Op::Write)),
                start,
                end: spec.size("length")?.map_or(u64::MAX, |length| start.saturating_add(length)),
                when,
                seed: spec.number("seed")?.unwrap_or(0),
                delay_ms,
                errno: spec.choice("errno", &names)?.unwrap_or(usual),
                torn,
            };
            Ok(stack(Fault::new(below, rule)?))
        }),
    }
}

fn log() -> FilterType {
    FilterType {
        name: "log",
        about: "Writes a line for each request. Requests never wait for that: when they are too many, lines are lost \
                and counted.",
        keys: vec![Key {
            name: "file",
            values: "PATH",
            about: "Append to this file (standard error, which in the background is /run/blockhaus/NAME.log).",
        }],
        wrap: Box::new(|below, spec, _, _| {
            let (sink, to): (Sink, String) = match spec.get("file") {
                None => (Box::new(std::io::stderr()), "standard error".into()),
                Some(path) => {
                    let file = FileOptions::new().create(true).append(true).open(path).map_err(|error| {
                        Error::system(format!("cannot write a log to {path}"), error)
                            .cure("name a file that can be written to")
                    })?;
                    (Box::new(file), path.into())
                }
            };
            Ok(stack(Log::new(below, sink, to)?))
        }),
    }
}

fn offset() -> FilterType {
    FilterType {
        name: "offset",
        about: "Shows a window of the disk.",
        keys: vec![
            Key { name: "start", values: "SIZE", about: "From this byte on (0)." },
            Key { name: "length", values: "SIZE", about: "So many bytes (the rest)." },
        ],
        wrap: Box::new(|below, spec, _, _| {
            let (start, length) = (spec.size("start")?.unwrap_or(0), spec.size("length")?);
            Ok(stack(Offset::new(below, start, length)?))
        }),
    }
}

fn stripe() -> FilterType {
    FilterType {
        name: "stripe",
        about: "Spreads the disk over this one and others, chunk by chunk; a large request is served by all at once.",
        keys: vec![
            Key {
                name: "with",
                values: "SPEC;SPEC",
                about: "The other disks, up to 7; a comma in a SPEC is written twice (,,).",
            },
            Key {
                name: "chunk",
                values: "SIZE",
                about: "So many bytes from each in turn, a power of two (64K).",
            },
        ],
        wrap: Box::new(|below, spec, options, table| {
            let Some(with) = spec.get("with") else {
                return Err(Error::invalid(spec.named(), "stripe needs other disks")
                    .cure("write, for example, stripe,with=ram:1G"));
            };
            let chunk = u32::try_from(spec.size("chunk")?.unwrap_or(64 << 10)).unwrap_or(u32::MAX);
            let mut members = vec![below];
            for other in with.split(';') {
                members.push(table.open_disk(&other.parse()?, options)?.into_backend());
            }
            Ok(stack(Stripe::new(members, chunk)?))
        }),
    }
}
