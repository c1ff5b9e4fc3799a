//! All that a report is made of, whatever form it takes.

use serde::Serialize;

use crate::engine::load::{Disk, Measured};
use crate::port::{clock, system};

/// One run of `bench`.
#[derive(Debug)]
pub(super) struct Report {
    /// What was measured.
    pub name: String,
    /// It was opened for writing.
    pub write: bool,
    /// As it was before the first load.
    pub disk: Disk,
    /// What the stack says of how it was opened.
    pub notes: Vec<String>,
    pub host: Host,
    /// Loads that were asked for; with an interruption there are fewer results.
    pub loads: usize,
    pub results: Vec<Measured>,
    pub interrupted: bool,
    /// What a reader has to know.
    pub remarks: Vec<String>,
}

impl Report {
    /// Where it was interrupted, if it was.
    pub fn interruption(&self) -> Option<String> {
        let (done, wanted) = (self.results.len(), self.loads);
        let is_short = self.results.last().is_some_and(|last| last.interrupted);
        self.interrupted.then(|| match is_short {
            true => format!(
                "INTERRUPTED in load {done} of {wanted}: the figures of that one are of a shorter time."
            ),
            false => format!("INTERRUPTED after load {done} of {wanted}."),
        })
    }
}

/// Where and when.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Host {
    /// Model of the processors, where the kernel tells.
    pub processor: Option<String>,
    /// How many there are.
    pub processors: u16,
    /// The kernel's release.
    pub kernel: String,
    /// Of blockhaus.
    pub version: &'static str,
    /// Date and time in UTC.
    pub time: String,
    /// The command line.
    pub command: Vec<String>,
}

impl Host {
    pub fn this() -> Host {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Host {
            processor: processor(&text),
            processors: system::cpu_count(),
            kernel: system::kernel_release(),
            version: env!("CARGO_PKG_VERSION"),
            time: clock::utc_now(),
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        }
    }

    /// The machine in a line.
    pub fn machine(&self) -> String {
        let processor = self.processor.as_deref().unwrap_or("processors");
        format!("{} x {processor}, Linux {}", self.processors, self.kernel)
    }

    /// The command as one would type it, the program without its folder.
    pub fn command_line(&self) -> String {
        let program = self.command.first().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
        let rest = self.command.iter().skip(1).map(String::as_str);
        std::iter::once(program).chain(rest).map(quoted).collect::<Vec<_>>().join(" ")
    }
}

/// The first model in /proc/cpuinfo.
fn processor(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned()).filter(|model| !model.is_empty())
}

fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "-_=+:,./@%^".contains(letter);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_typed_again() {
        let command = ["/usr/bin/blockhaus", "bench", "file:/a b", "--op=read", "it's", ""].map(String::from);
        let host = Host { command: command.into(), ..Host::this() };
        assert_eq!(host.command_line(), r"blockhaus bench 'file:/a b' --op=read 'it'\''s' ''");
        assert_eq!(processor("x: y\nmodel name\t: A CPU\nmodel name: B").as_deref(), Some("A CPU"));
        assert_eq!(processor(""), None);
    }
}
