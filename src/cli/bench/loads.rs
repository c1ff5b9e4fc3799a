//! From the command line to loads, which a disk may not take as they are.

use super::{Arguments, Op};
use crate::config::parse_size;
use crate::engine::load::{Course, Disk, Load, Pattern};
use crate::error::{Error, Result};
use crate::port::clock::Duration;

/// Longest warm-up; a short measurement has a shorter one.
const WARM_UP: Duration = Duration::from_millis(500);

/// Length and depth of what is measured unless somebody says otherwise.
const SHAPES: [(Pattern, Pattern, u32, u16); 3] = [
    (Pattern::RandRead, Pattern::RandWrite, 4 << 10, 1),
    (Pattern::RandRead, Pattern::RandWrite, 4 << 10, 64),
    (Pattern::Read, Pattern::Write, 128 << 10, 16),
];

/// A load that somebody wants, and for how long.
#[derive(Debug)]
pub(super) struct Wish {
    load: Load,
    /// The length need not be exactly this.
    may_fit: bool,
    pub course: Course,
}

impl Wish {
    /// The load on this disk.
    pub fn on(&self, disk: &Disk) -> Result<Load> {
        let mut load = self.load;
        if self.may_fit {
            load.block_size = disk.nearest(load.block_size);
        }
        load.check(disk)?;
        Ok(load)
    }
}

/// What the command line asks for.
pub(super) fn wishes(arguments: &Arguments) -> Result<Vec<Wish>> {
    let course = course(arguments.seconds)?;
    // What does not fit is too much for any disk, and `check` says what would be right.
    let narrow = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    let jobs = narrow(arguments.jobs);
    let wish = |load, may_fit| Wish { load, may_fit, course };
    if arguments.ops.is_empty() {
        let load = |pattern, block_size, depth| wish(Load { pattern, block_size, depth, jobs }, true);
        let reads = SHAPES.iter().map(|&(read, _, len, depth)| load(read, len, depth));
        let writes = SHAPES.iter().map(|&(_, write, len, depth)| load(write, len, depth));
        return Ok(reads.chain(writes.filter(|_| arguments.write)).collect());
    }
    let block_size = arguments.block_size.as_deref().map(block_size).transpose()?;
    let load = |op: &Op| {
        let pattern = op.pattern();
        if pattern.writes() && !arguments.write {
            let what = format!("cannot measure a {}", pattern.words());
            return Err(
                Error::invalid(what, "it destroys what is on the disk").cure("say --write if you mean it")
            );
        }
        let (len, depth) = if pattern.is_random() { (4 << 10, 64) } else { (128 << 10, 16) };
        let load = Load {
            pattern,
            block_size: block_size.unwrap_or(len),
            depth: arguments.depth.map_or(depth, narrow),
            jobs,
        };
        Ok(wish(load, block_size.is_none()))
    };
    arguments.ops.iter().map(load).collect()
}

fn course(seconds: f64) -> Result<Course> {
    if !(0.1..=3600.0).contains(&seconds) {
        let why = format!("{seconds} is outside 0.1 to 3600");
        return Err(Error::invalid("cannot measure for so many seconds", why).cure("give --seconds 3"));
    }
    let window = Duration::from_secs_f64(seconds);
    Ok(Course { warm_up: WARM_UP.min(window), window, seed: 0 })
}

fn block_size(text: &str) -> Result<u32> {
    let what = || format!("cannot make requests of {text:?}");
    let size = parse_size(text).map_err(|why| Error::invalid(what(), why).cure("write 4096, 4K or 1M"))?;
    u32::try_from(size).map_err(|_| {
        Error::invalid(what(), "no disk takes so much in one piece").cure("give --block-size 128K")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn wishes_of(line: &[&str]) -> Result<Vec<Wish>> {
        let line = ["bench", "ram:1M"].iter().chain(line);
        wishes(&Line::parse_from(line).arguments)
    }

    fn loads_of(line: &[&str]) -> Vec<(Pattern, u32, u16, u16)> {
        let load = |wish: Wish| (wish.load.pattern, wish.load.block_size, wish.load.depth, wish.load.jobs);
        wishes_of(line).unwrap().into_iter().map(load).collect()
    }

    #[test]
    fn nothing_is_written_unless_somebody_says_so() {
        assert!(wishes_of(&[]).unwrap().iter().all(|wish| !wish.load.pattern.writes()));
        assert_eq!(
            wishes_of(&["--write"]).unwrap().iter().filter(|wish| wish.load.pattern.writes()).count(),
            3
        );
        for op in ["write", "randwrite"] {
            assert!(wishes_of(&["--op", op]).unwrap_err().to_string().contains("--write"));
            assert_eq!(wishes_of(&["--op", op, "--write"]).unwrap().len(), 1);
        }
    }

    #[test]
    fn what_is_said_holds_and_the_rest_is_as_usual() {
        assert_eq!(
            loads_of(&["--op", "randread", "--rw", "read", "--depth", "8", "--jobs", "2"]),
            [(Pattern::RandRead, 4096, 8, 2), (Pattern::Read, 128 << 10, 8, 2)]
        );
        assert_eq!(loads_of(&["--op", "read", "--block-size", "1M"]), [(Pattern::Read, 1 << 20, 16, 1)]);
        for line in [["--seconds", "0"], ["--seconds", "NaN"], ["--seconds", "1e9"]] {
            assert!(wishes_of(&line).unwrap_err().to_string().contains("0.1 to 3600"), "{line:?}");
        }
        assert!(wishes_of(&["--op", "read", "--block-size", "8G"]).is_err());
        assert!(wishes_of(&["--op", "read", "--block-size", "x"]).unwrap_err().to_string().contains("4K"));
    }
}
