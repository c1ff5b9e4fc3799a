//! fio's JSON, and the small table made of it.

use std::collections::BTreeMap;

use serde_json::Value;

/// The loads of steps.sh, and what the table calls them.
const LOADS: [(&str, &str); 3] = [
    ("randread-1", "random read, depth 1"),
    ("randread-32", "random read, depth 32"),
    ("randwrite-32", "random write, depth 32"),
];

/// One load on one device.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    iops: f64,
    p50_us: f64,
    p99_us: f64,
}

/// The figures so far, by device and load.
#[derive(Debug, Default)]
pub struct Table {
    cells: BTreeMap<(String, String), Figures>,
}

impl Table {
    /// Take `DEVICE LOAD JSON`; what to show meanwhile, or why it cannot be used.
    pub fn take(&mut self, words: &str) -> Result<String, String> {
        let mut parts = words.splitn(3, ' ');
        let (device, load) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let figures = figures(parts.next().unwrap_or_default())
            .ok_or_else(|| format!("fio's report on {device}, {load}, has no figures"))?;
        self.cells.insert((device.to_string(), load.to_string()), figures);
        Ok(format!("{device:10} {load:13} {:>9.0} a second", figures.iops))
    }

    /// blockhaus beside loop.
    pub fn shown(&self) -> String {
        let mut text = format!(
            "    {:24}{:>28}{:>30}\n    {:24}{:>10}{:>9}{:>9}  {:>10}{:>9}{:>9}\n",
            "",
            "blockhaus",
            "loop, direct I/O",
            "4 KiB",
            "IOPS",
            "p50 µs",
            "p99 µs",
            "IOPS",
            "p50 µs",
            "p99 µs"
        );
        for (load, name) in LOADS {
            text += &format!("    {name:24}");
            for device in ["blockhaus", "loop"] {
                text += &match self.cells.get(&(device.to_string(), load.to_string())) {
                    Some(Figures { iops, p50_us, p99_us }) => {
                        format!("{iops:>10.0}{p50_us:>9.0}{p99_us:>9.0}  ")
                    }
                    None => format!("{:>10}{:>9}{:>9}  ", "-", "-", "-"),
                };
            }
            text.truncate(text.trim_end().len());
            text += "\n";
        }
        text + "    Seconds each, for a first look: a busy host shows, an emulated CPU more so. `cargo xtask bench` is exact.\n"
    }
}

/// What the table needs of fio's JSON, which may have notes before it.
fn figures(json: &str) -> Option<Figures> {
    let json: Value = serde_json::from_str(json.get(json.find('{')?..)?).ok()?;
    let job = json.get("jobs")?.get(0)?;
    let side =
        ["read", "write"].iter().map(|side| &job[side]).find(|side| side["total_ios"].as_u64() > Some(0))?;
    let percentile = |name: &str| Some(side["clat_ns"]["percentile"][name].as_f64()? / 1000.0);
    Some(Figures {
        iops: side["iops"].as_f64()?,
        p50_us: percentile("50.000000")?,
        p99_us: percentile("99.000000")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: &str = r#"{"jobs":[{"read":{"total_ios":0},"write":{"total_ios":9,"iops":1234.5,
        "clat_ns":{"percentile":{"50.000000":20000,"99.000000":91000}}}}]}"#;

    #[test]
    fn the_side_that_did_something_counts() {
        let figures = figures(&format!("fio: a note{WRITE}")).unwrap();
        assert_eq!(figures, Figures { iops: 1234.5, p50_us: 20.0, p99_us: 91.0 });
        assert!(super::figures("{}").is_none());
        assert!(super::figures("no").is_none());
    }

    #[test]
    fn the_table_has_both_side_by_side() {
        let mut table = Table::default();
        assert!(table.take(&format!("blockhaus randwrite-32 {WRITE}")).is_ok());
        assert!(table.take("loop randwrite-32 {}").unwrap_err().contains("loop"));
        let shown = table.shown();
        let line = shown.lines().find(|line| line.contains("random write")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>()[4..], ["1234", "20", "91", "-", "-", "-"]);
    }

    #[test]
    fn the_steps_measure_what_the_table_shows() {
        for (load, _) in LOADS {
            assert!(super::super::STEPS.contains(&format!(" {load}")), "{load}");
        }
    }
}
