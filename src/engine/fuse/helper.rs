//! The process that deals with loop devices, since who does that may wait for whoever serves the file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::port::clock::{Deadline, Duration};
use crate::port::loop_device::{self, Made, Wish};
use crate::port::process::{self, Helper};

/// The hidden verb of the helper.
pub const VERB: &str = "loop-device";

/// Longest line that a helper says.
const MAX_LINE: usize = 64 << 10;

/// How long a helper that has answered may take to end; one that takes longer is left to itself.
const END: Duration = Duration::from_secs(1);

/// What the helper is to do, as its one argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Order {
    Add { file: PathBuf, number: Option<u32>, block_size: u32, read_only: bool, partition_scan: bool },
    Remove { number: u32, file: PathBuf, only_if_idle: bool },
}

/// What came of it, as one line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// There is a device.
    Added {
        /// N of /dev/loopN.
        number: u32,
        /// It reads and writes past the page cache.
        direct: bool,
    },
    /// There is none any more, or there will be none once nobody has it open.
    Removed {
        /// Whether it is away.
        gone: bool,
    },
    /// It did not work: an errno, where there is one, and a text for a person.
    Failed {
        /// The errno.
        errno: Option<i32>,
        /// The text.
        text: String,
    },
}

/// The helper's side: carries out the order and says what came of it.
pub fn serve(order: &str) -> Answer {
    // Ctrl-C at the terminal is for the command line, not for this.
    let _ = process::own_session();
    let result = match serde_json::from_str(order) {
        Ok(Order::Add { file, number, block_size, read_only, partition_scan }) => {
            let wish = Wish { number, block_size, read_only, partition_scan };
            loop_device::configure(&file, &wish)
                .map(|Made { number, direct }| Answer::Added { number, direct })
        }
        Ok(Order::Remove { number, file, only_if_idle }) => {
            loop_device::release(number, &file, only_if_idle).map(|gone| Answer::Removed { gone })
        }
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| Answer::Failed { errno: error.raw_os_error(), text: error.to_string() })
}

/// Puts a loop device on `file`, and returns when it can be opened.
pub(super) fn add(file: &Path, wish: &Wish, deadline: Deadline) -> Result<Made> {
    let Wish { number, block_size, read_only, partition_scan } = *wish;
    let order = Order::Add { file: file.to_owned(), number, block_size, read_only, partition_scan };
    let what = || format!("cannot put a loop device on {}", file.display());
    match run(&order, &what, deadline)? {
        Answer::Added { number, direct } => Ok(Made { number, direct }),
        Answer::Failed { errno, text } => Err(failed(what(), errno, text).cure("see `losetup --list`")),
        Answer::Removed { .. } => Err(Error::new(Kind::Failed, what(), "the helper answered something else")),
    }
}

/// Takes the loop device with this number off `file`. With `only_if_idle` it is refused (Busy) while somebody has
/// the device open; without, it goes when they close it.
pub(super) fn remove(number: u32, file: &Path, only_if_idle: bool, deadline: Deadline) -> Result<()> {
    let order = Order::Remove { number, file: file.to_owned(), only_if_idle };
    let what = || format!("cannot remove {}", loop_device::path(number).display());
    match run(&order, &what, deadline)? {
        Answer::Removed { .. } => Ok(()),
        Answer::Failed { errno, text } => Err(failed(what(), errno, text)),
        Answer::Added { .. } => Err(Error::new(Kind::Failed, what(), "the helper answered something else")),
    }
}

fn failed(what: String, errno: Option<i32>, text: String) -> Error {
    match errno {
        Some(errno) => Error::system(what, std::io::Error::from_raw_os_error(errno)),
        None => Error::new(Kind::Failed, what, text),
    }
}

fn run(order: &Order, what: &dyn Fn() -> String, deadline: Deadline) -> Result<Answer> {
    let failed = |error: std::io::Error| Error::system(what(), error);
    let order: OsString = serde_json::to_string(order).map_err(|error| failed(error.into()))?.into();
    let mut helper = Helper::spawn(&[VERB.into(), order], MAX_LINE, true).map_err(failed)?;
    let line = match helper.lines.receive_by(deadline) {
        Ok(line) => line,
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            let cure = format!("process {} goes on with it; `blockhaus gc` tries again", helper.pid());
            return Err(Error::new(Kind::Deadline, what(), "the kernel has not done it in time").cure(cure));
        }
        Err(error) => return Err(failed(error)),
    };
    helper.ended_by(Deadline::after(END));
    serde_json::from_str(&line).map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_travel_whole() {
        let order = Order::Remove { number: 3, file: "/run/a b/disk".into(), only_if_idle: true };
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), order);
        let Answer::Failed { errno: None, .. } = serve("{") else { panic!("half an order was taken") };
        let gone = Order::Remove { number: 1 << 20, file: "/nowhere".into(), only_if_idle: true };
        let Answer::Removed { gone: true } = serve(&serde_json::to_string(&gone).unwrap()) else {
            panic!("a device that is not there is as it should be")
        };
    }
}
