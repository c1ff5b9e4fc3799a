//! How the bytes of a request travel between the kernel's pages and the server, and which way is
//! taken: it is fixed when the device is added (`Documentation/block/ublk.rst`).

use std::fmt;
use std::str::FromStr;

use blockhaus_uapi::ublk::Features;

use crate::error::{Error, Kind, Result};
use crate::io::Capabilities;
use crate::port::thread::Scheduling;

/// A way for the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataPath {
    /// The driver copies between the request's pages and the slot's buffer, at fetch and at commit.
    Copy,
    /// The server copies by reading and writing the character device.
    UserCopy,
    /// As copy, but a write's data is asked for by a command of its own.
    GetData,
    /// The request's pages are registered with the ring by a command of the server.
    ZeroCopy,
    /// The request's pages are registered with the ring by the driver.
    AutoBuf,
    /// As copy, with many requests in a command.
    BatchCopy,
    /// As auto-buf, with many requests in a command.
    BatchAutoBuf,
}

/// Every way, in the order in which they are shown.
pub const DATA_PATHS: [DataPath; 7] = [
    DataPath::Copy,
    DataPath::UserCopy,
    DataPath::GetData,
    DataPath::ZeroCopy,
    DataPath::AutoBuf,
    DataPath::BatchCopy,
    DataPath::BatchAutoBuf,
];

impl DataPath {
    /// As a person writes it.
    pub const fn name(self) -> &'static str {
        match self {
            DataPath::Copy => "copy",
            DataPath::UserCopy => "user-copy",
            DataPath::GetData => "get-data",
            DataPath::ZeroCopy => "zero-copy",
            DataPath::AutoBuf => "auto-buf",
            DataPath::BatchCopy => "batch-copy",
            DataPath::BatchAutoBuf => "batch-auto-buf",
        }
    }

    /// What happens to the bytes, half a sentence.
    const fn about(self) -> &'static str {
        match self {
            DataPath::Copy => "the driver copies between the request's pages and the queue's buffers",
            DataPath::UserCopy => "the server copies through the character device",
            DataPath::GetData => "the driver copies, a write's data when it is asked for",
            DataPath::ZeroCopy => "the server registers the request's pages with its ring, nothing is copied",
            DataPath::AutoBuf => "the driver registers the request's pages with the ring, nothing is copied",
            DataPath::BatchCopy => {
                "requests go in batches, and the driver copies between their pages and the queue's buffers"
            }
            DataPath::BatchAutoBuf => {
                "requests go in batches, and the driver registers their pages with the ring, nothing is copied"
            }
        }
    }

    /// Whether payloads are hidden.
    pub const fn hides(self) -> bool {
        matches!(self, DataPath::ZeroCopy | DataPath::AutoBuf | DataPath::BatchAutoBuf)
    }

    /// Whether the driver registers a request's pages by itself, unless it cannot.
    pub const fn registers(self) -> bool {
        matches!(self, DataPath::AutoBuf | DataPath::BatchAutoBuf)
    }

    /// Whether many requests go in a command.
    pub const fn is_batch(self) -> bool {
        matches!(self, DataPath::BatchCopy | DataPath::BatchAutoBuf)
    }

    /// What the driver must grant for it.
    pub const fn features(self) -> Features {
        match self {
            DataPath::Copy => Features::empty(),
            DataPath::UserCopy => Features::USER_COPY,
            DataPath::GetData => Features::NEED_GET_DATA,
            DataPath::ZeroCopy => Features::SUPPORT_ZERO_COPY,
            // Where a registration fails, the bytes of that request go by user copy.
            DataPath::AutoBuf => Features::AUTO_BUF_REG.union(Features::USER_COPY),
            DataPath::BatchCopy => Features::BATCH_IO,
            DataPath::BatchAutoBuf => DataPath::AutoBuf.features().union(Features::BATCH_IO),
        }
    }

    /// Whether a kernel with these features has it. Before 6.16 zero copy was there in name only:
    /// the same release that made it usable without harm brought AUTO_BUF_REG.
    fn is_in(self, kernel: Features) -> bool {
        let needed = match self {
            DataPath::ZeroCopy => self.features().union(Features::AUTO_BUF_REG),
            _ => self.features(),
        };
        kernel.contains(needed)
    }
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a person wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// The best that the kernel and the stack have.
    #[default]
    Auto,
    /// This, or an error.
    Exactly(DataPath),
}

impl FromStr for Wish {
    type Err = Error;

    fn from_str(text: &str) -> Result<Wish> {
        if text == "auto" {
            return Ok(Wish::Auto);
        }
        DATA_PATHS.into_iter().find(|path| path.name() == text).map(Wish::Exactly).ok_or_else(|| {
            let names: Vec<&str> = DATA_PATHS.iter().map(|path| path.name()).collect();
            Error::invalid(format!("cannot take the data path {text:?}"), "there is none of this name")
                .cure(format!("give auto, or one of {}", names.join(", ")))
        })
    }
}

/// What a person says about the load, for [`Wish::Auto`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// Nothing: what does well at any depth.
    #[default]
    Any,
    /// Few requests at once, each of which somebody waits for.
    Latency,
    /// Many requests at once.
    Throughput,
}

impl Load {
    /// Who waits for each request has it served when it comes; of many requests the more are served in a turn, the
    /// longer those who make them are left alone.
    pub(in crate::engine) fn scheduling(self) -> Scheduling {
        match self {
            Load::Any => Scheduling::Adaptive,
            Load::Latency => Scheduling::RealTime,
            Load::Throughput => Scheduling::Batch,
        }
    }
}

impl FromStr for Load {
    type Err = Error;

    fn from_str(text: &str) -> Result<Load> {
        match text {
            "any" => Ok(Load::Any),
            "latency" => Ok(Load::Latency),
            "throughput" => Ok(Load::Throughput),
            _ => {
                Err(Error::invalid(format!("cannot choose for a load of {text:?}"), "there is no such kind")
                    .cure("give latency, throughput or any"))
            }
        }
    }
}

/// The way to take, and why.
pub(super) fn choose(
    wish: Wish,
    load: Load,
    kernel: Features,
    stack: Capabilities,
    depth: u16,
) -> Result<(DataPath, String)> {
    let sees_bytes = !stack.contains(Capabilities::HIDDEN_PAYLOAD);
    match wish {
        Wish::Exactly(path) => {
            let what = || format!("cannot take the data path {path}");
            if !path.is_in(kernel) {
                let has: Vec<&str> =
                    DATA_PATHS.iter().filter(|path| path.is_in(kernel)).map(|path| path.name()).collect();
                return Err(Error::new(Kind::Unsupported, what(), "this kernel's ublk driver has it not")
                    .cure(format!("it has {}; or leave the choice to --data-path auto", has.join(", "))));
            }
            if path.hides() && sees_bytes {
                let why = "the backend or a filter on it must see the bytes, which this path hides";
                return Err(
                    Error::new(Kind::Unsupported, what(), why).cure("leave the choice to --data-path auto")
                );
            }
            if path.is_batch() && depth < 2 {
                // The driver's list of what has come cannot be shorter (kfifo_alloc).
                return Err(Error::invalid(what(), "with a depth of 1 there are no batches")
                    .cure("give --depth 2 or more, or leave the choice to --data-path auto"));
            }
            Ok((path, format!("as asked for: {}", path.about())))
        }
        Wish::Auto if load == Load::Throughput && depth > 1 && DataPath::BatchCopy.is_in(kernel) => {
            let hides = !sees_bytes && DataPath::BatchAutoBuf.is_in(kernel);
            let path = if hides { DataPath::BatchAutoBuf } else { DataPath::BatchCopy };
            Ok((path, format!("for throughput: {}", path.about())))
        }
        Wish::Auto if sees_bytes => {
            let why = format!("{}, and the stack must see the bytes", DataPath::Copy.about());
            Ok((DataPath::Copy, why))
        }
        Wish::Auto if DataPath::AutoBuf.is_in(kernel) => {
            Ok((DataPath::AutoBuf, DataPath::AutoBuf.about().into()))
        }
        Wish::Auto => {
            let why = format!("{}; this kernel has no zero copy, 6.16 is the first", DataPath::Copy.about());
            Ok((DataPath::Copy, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOADS: [Load; 3] = [Load::Any, Load::Latency, Load::Throughput];

    const OLD: Features =
        Features::NEED_GET_DATA.union(Features::USER_COPY).union(Features::SUPPORT_ZERO_COPY);

    #[test]
    fn a_stack_that_must_see_the_bytes_never_gets_a_path_that_hides_them() {
        for kernel in [Features::empty(), OLD, Features::all()] {
            let wishes = DATA_PATHS.map(Wish::Exactly).into_iter().chain([Wish::Auto]);
            for (wish, load) in wishes.flat_map(|wish| LOADS.map(|load| (wish, load))) {
                if let Ok((path, _)) =
                    choose(wish, load, kernel, Capabilities::all() - Capabilities::HIDDEN_PAYLOAD, 2)
                {
                    assert!(!path.hides(), "{wish:?} {load:?} {kernel:?}");
                }
            }
        }
    }

    #[test]
    fn auto_takes_what_the_kernel_has_and_a_wish_is_fulfilled_or_refused() {
        let chosen =
            |wish, kernel| choose(wish, Load::Any, kernel, Capabilities::all(), 2).map(|(path, _)| path);
        assert_eq!(chosen(Wish::Auto, OLD).unwrap(), DataPath::Copy);
        assert_eq!(chosen(Wish::Auto, Features::all()).unwrap(), DataPath::AutoBuf);
        for path in DATA_PATHS {
            assert_eq!(chosen(Wish::Exactly(path), Features::all()).unwrap(), path);
            assert_eq!(path.name().parse::<Wish>().unwrap(), Wish::Exactly(path));
        }
        let error = chosen(Wish::Exactly(DataPath::ZeroCopy), OLD).unwrap_err().to_string();
        assert!(error.contains("copy, user-copy, get-data;"), "{error}");
        for path in DATA_PATHS {
            let alone = choose(Wish::Exactly(path), Load::Any, Features::all(), Capabilities::all(), 1);
            assert_eq!(alone.is_err(), path.is_batch(), "{path}");
        }
        let load = |load, kernel, stack, depth| choose(Wish::Auto, load, kernel, stack, depth).unwrap().0;
        let (all, seeing) = (Capabilities::all(), Capabilities::all() - Capabilities::HIDDEN_PAYLOAD);
        assert_eq!(load(Load::Throughput, Features::all(), all, 2), DataPath::BatchAutoBuf);
        assert_eq!(load(Load::Throughput, Features::all(), seeing, 2), DataPath::BatchCopy);
        assert_eq!(load(Load::Throughput, Features::all(), all, 1), DataPath::AutoBuf);
        assert_eq!(load(Load::Throughput, OLD, all, 128), DataPath::Copy);
        assert_eq!(load(Load::Latency, Features::all(), all, 128), DataPath::AutoBuf);
        assert!("speed".parse::<Load>().unwrap_err().to_string().contains("latency, throughput"));
        assert!("zerocopy".parse::<Wish>().unwrap_err().to_string().contains("auto-buf"));
    }
}
