//! The matrix of the done-when: which cells there are, and which of them CI runs.

use std::fmt;
use std::str::FromStr;

/// Kernels on which every combination is promised.
pub const KERNELS: [&str; 3] = ["6.12", "6.18", "7.2"];
const BACKENDS: [Backend; 2] = [Backend::Ram, Backend::File];
const QUEUES: [u16; 2] = [1, 2];
const DEPTHS: [u16; 3] = [1, 16, 128];
/// Data paths.
const PATHS: [&str; 7] =
    ["copy", "user-copy", "get-data", "zero-copy", "auto-buf", "batch-copy", "batch-auto-buf"];
/// Those that hide the bytes, which is in no kernel before 6.16.
const HIDING: [&str; 3] = ["zero-copy", "auto-buf", "batch-auto-buf"];
/// Those that go in batches, which only the newest kernel has.
const BATCHES: [&str; 2] = ["batch-copy", "batch-auto-buf"];
/// What lies on the backend: nothing, or three filters, put together by the compiler or at run time.
const FILTERS: [Filters; 3] = [Filters::None, Filters::Static, Filters::Dynamic];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Ram,
    File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filters {
    None,
    Static,
    Dynamic,
}

impl Filters {
    fn name(self) -> &'static str {
        match self {
            Filters::None => "bare",
            Filters::Static => "static",
            Filters::Dynamic => "dynamic",
        }
    }
}

/// How much is done with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// One file system, of the three in turn.
    Part,
    /// Every file system.
    Usual,
    /// Much more of everything, and every file system filled to the brim.
    Full,
}

impl Extent {
    fn suffix(self) -> &'static str {
        match self {
            Extent::Part => "/part",
            Extent::Usual => "",
            Extent::Full => "/full",
        }
    }
}

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub backend: Backend,
    pub filters: Filters,
    pub path: &'static str,
    pub queues: u16,
    pub depth: u16,
    pub extent: Extent,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = match self.backend {
            Backend::Ram => "ram",
            Backend::File => "file",
        };
        let Self { path, queues, depth, .. } = self;
        write!(f, "cell/{backend}/{}/{path}/q{queues}/d{depth}{}", self.filters.name(), self.extent.suffix())
    }
}

impl Cell {
    /// Which turn of several it is where cells take turns: neighbours have different ones.
    pub fn turn(&self) -> usize {
        let at = |found: Option<usize>| found.unwrap_or(0);
        at(DEPTHS.iter().position(|depth| *depth == self.depth))
            + at(PATHS.iter().position(|path| *path == self.path))
            + at(FILTERS.iter().position(|filters| *filters == self.filters))
            + usize::from(self.queues)
    }
}

impl FromStr for Cell {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let marked = |extent: Extent| Some((name.strip_suffix(extent.suffix())?, extent));
        let (name, extent) = marked(Extent::Part).or(marked(Extent::Full)).unwrap_or((name, Extent::Usual));
        let mut parts = name.split('/');
        let mut next = || parts.next().ok_or(());
        if next()? != "cell" {
            return Err(());
        }
        let backend = match next()? {
            "ram" => Backend::Ram,
            "file" => Backend::File,
            _ => return Err(()),
        };
        let filters = next()?;
        let filters = FILTERS.into_iter().find(|known| known.name() == filters).ok_or(())?;
        let path = next()?;
        let path = PATHS.into_iter().find(|&known| known == path).ok_or(())?;
        let queues = next()?.strip_prefix('q').and_then(|n| n.parse().ok()).ok_or(())?;
        let depth = next()?.strip_prefix('d').and_then(|n| n.parse().ok()).ok_or(())?;
        match parts.next() {
            None => Ok(Self { backend, filters, path, queues, depth, extent }),
            Some(_) => Err(()),
        }
    }
}

/// The cells that `kernel` runs: with `full` all, of which those of the pairwise cover are full, else that
/// cover.
pub fn cells(kernel: &str, full: bool) -> Vec<Cell> {
    let Some(kernel) = KERNELS.iter().position(|&known| known == kernel) else {
        let (backend, filters, path) = (Backend::File, Filters::None, "auto-buf");
        let extent = if full { Extent::Full } else { Extent::Usual };
        let newest = Cell { backend, filters, path, queues: 2, depth: 128, extent };
        return if kernel == "7.3" { vec![newest] } else { Vec::new() };
    };
    let cover = cover();
    let rows = if full { candidates() } else { cover.clone() };
    let rows = rows.into_iter().filter(|row| row[0] == kernel);
    let extent = |row: &Row| match (full, cover.contains(row)) {
        (false, _) => Extent::Usual,
        (true, false) => Extent::Part,
        (true, true) => Extent::Full,
    };
    rows.map(|row| cell(row, extent(&row))).collect()
}

/// A choice of value per parameter: kernel, backend, queues, depth, data path, filters.
type Row = [usize; 6];

fn cell([_, backend, queues, depth, path, filters]: Row, extent: Extent) -> Cell {
    let (path, filters) = (PATHS[path], FILTERS[filters]);
    Cell { backend: BACKENDS[backend], filters, path, queues: QUEUES[queues], depth: DEPTHS[depth], extent }
}

/// `ram:` must see the bytes, the oldest kernel cannot hide them, and only the newest has batches, of two
/// at least.
fn exists([kernel, backend, _, depth, path, _]: Row) -> bool {
    let hidden = BACKENDS[backend] == Backend::File && KERNELS[kernel] != "6.12";
    let batches = KERNELS[kernel] == "7.2" && DEPTHS[depth] > 1;
    (hidden || !HIDING.contains(&PATHS[path])) && (batches || !BATCHES.contains(&PATHS[path]))
}

fn candidates() -> Vec<Row> {
    let values = [KERNELS.len(), BACKENDS.len(), QUEUES.len(), DEPTHS.len(), PATHS.len(), FILTERS.len()];
    let all = (0..values.iter().product()).map(|mut number: usize| {
        let mut row = values;
        for (place, count) in row.iter_mut().zip(values).rev() {
            *place = number % count;
            number /= count;
        }
        row
    });
    all.filter(|&row| exists(row)).collect()
}

/// The pairs of values a row shows together.
fn pairs(row: Row) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..row.len()).flat_map(move |a| (a + 1..row.len()).map(move |b| (a, row[a], b, row[b])))
}

/// Greedy and deterministic: always the row that adds most pairs not seen before, the first of
/// equals. Covers every pair of values of any two parameters.
fn cover() -> Vec<Row> {
    let mut seen = std::collections::BTreeSet::new();
    let mut chosen = Vec::new();
    loop {
        let gain = |row: &Row| pairs(*row).filter(|pair| !seen.contains(pair)).count();
        let mut best: Option<(usize, Row)> = None;
        for row in candidates() {
            let gain = gain(&row);
            if gain > best.map_or(0, |(most, _)| most) {
                best = Some((gain, row));
            }
        }
        let Some((_, row)) = best else { break };
        seen.extend(pairs(row));
        chosen.push(row);
    }
    // What later rows show together may have made an earlier one superfluous.
    let mut index = 0;
    while index < chosen.len() {
        let others: std::collections::BTreeSet<_> =
            chosen.iter().enumerate().filter(|(i, _)| *i != index).flat_map(|(_, row)| pairs(*row)).collect();
        match others.len() == seen.len() {
            true => drop(chosen.remove(index)),
            false => index += 1,
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_pair_is_covered_and_no_row_is_wasted() {
        let chosen = cover();
        let seen: BTreeSet<_> = chosen.iter().flat_map(|row| pairs(*row)).collect();
        let all: BTreeSet<_> = candidates().into_iter().flat_map(pairs).collect();
        assert_eq!(seen, all);
        // Depths times paths is the least that can be.
        assert!((19..=22).contains(&chosen.len()), "{} rows: {chosen:?}", chosen.len());
        assert_eq!(chosen, cover(), "the cover must be the same in every run");
        for left_out in 0..chosen.len() {
            let fewer: BTreeSet<_> = chosen
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != left_out)
                .flat_map(|(_, row)| pairs(*row))
                .collect();
            assert_ne!(fewer, all, "row {left_out} adds nothing");
        }
    }

    #[test]
    fn full_is_all_that_exist_on_each_kernel_and_one_on_the_newest() {
        for (kernel, all) in [("6.12", 108), ("6.18", 144), ("7.2", 180)] {
            assert_eq!(cells(kernel, true).len(), all);
            let few = cells(kernel, false);
            assert!((4..=13).contains(&few.len()), "{kernel}: {few:?}");
            assert_eq!(
                cells(kernel, true).iter().filter(|cell| cell.extent == Extent::Full).count(),
                few.len()
            );
        }
        assert_eq!(cells("7.3", false).len(), 1);
        assert!(cells("6.1", true).is_empty());
    }

    #[test]
    fn a_name_is_read_back_as_it_was_written() {
        for full in [false, true] {
            for cell in cells("6.18", full) {
                assert_eq!(cell.to_string().parse(), Ok(cell));
            }
        }
        for wrong in [
            "cell/ram/copy/q1/d1",
            "cell/ram/bare/copy/q1/d1/x",
            "cell/ram/bare/swap/q1/d1",
            "cell/ram/loose/copy/q1/d1",
            "cell/tape/bare/copy/q1/d1",
            "life/ids",
            "cell/ram/bare/copy/1/1",
        ] {
            assert!(wrong.parse::<Cell>().is_err(), "{wrong}");
        }
    }
}
