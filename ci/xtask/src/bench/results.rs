//! What the guest says while it measures.

use std::collections::HashMap;

/// The figures so far.
#[derive(Debug, Default)]
pub struct Results {
    /// What took part, in the order it was said: name and version.
    pub versions: Vec<(String, String)>,
    cells: HashMap<(String, String), Vec<f64>>,
}

impl Results {
    /// Take one line of the guest's. `Ok` has progress to show, if any; `Err`
    /// has a line that is no result.
    pub fn take(&mut self, line: &str) -> Result<Option<String>, String> {
        let line = line.trim_end_matches('\r');
        if let Some((name, text)) = line.strip_prefix("@version ").and_then(|rest| rest.split_once(' ')) {
            // `fio-3.39`, `rublk 0.2.15`: the name is said already.
            let version = text.strip_prefix(name).unwrap_or(text).trim_start_matches(['-', ' ']);
            self.versions.push((name.to_string(), version.to_string()));
            return Ok(None);
        }
        let (device, column, instructions) = cell(line).ok_or_else(|| line.to_string())?;
        let progress = format!("{device:16}{column:20}{:>10}", thousands(instructions));
        self.cells.entry((device.to_string(), column.to_string())).or_default().push(instructions);
        Ok(Some(progress))
    }

    /// How many figures there are.
    pub fn taken(&self) -> usize {
        self.cells.values().map(Vec::len).sum()
    }

    /// All figures of a cell: instructions per I/O.
    pub fn values(&self, device: &str, column: &str) -> &[f64] {
        self.cells.get(&(device.to_string(), column.to_string())).map_or(&[], Vec::as_slice)
    }

    /// The median of a cell.
    pub fn median(&self, device: &str, column: &str) -> Option<f64> {
        let mut values = self.values(device, column).to_vec();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
        Some((low + high) / 2.0)
    }
}

/// `@cell DEVICE COLUMN IOS MILLISECONDS`, as instructions per I/O: the
/// guest's nanoseconds are its instructions.
fn cell(line: &str) -> Option<(&str, &str, f64)> {
    let words: Vec<&str> = line.strip_prefix("@cell ")?.split_whitespace().collect();
    let [device, column, ios, milliseconds] = words[..] else { return None };
    let (ios, milliseconds) = (ios.parse::<u64>().ok()?, milliseconds.parse::<u64>().ok()?);
    (ios > 0 && milliseconds > 0).then(|| (device, column, milliseconds as f64 * 1e6 / ios as f64))
}

/// A whole number with commas.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_become_instructions_and_medians() {
        let mut results = Results::default();
        for milliseconds in [608, 600, 604] {
            let line = format!("@cell rublk-null 4k-randread-qd64 40000 {milliseconds}\r");
            assert!(results.take(&line).unwrap().unwrap().contains("rublk-null"));
        }
        assert_eq!(results.taken(), 3);
        assert_eq!(results.median("rublk-null", "4k-randread-qd64"), Some(15_100.0));
        assert_eq!(results.median("rublk-null", "128k-read-qd16"), None);
        results.take("@cell rublk-null 4k-randread-qd64 40000 612").unwrap();
        assert_eq!(results.median("rublk-null", "4k-randread-qd64"), Some(15_150.0));
    }

    #[test]
    fn what_is_no_result_is_handed_back() {
        let mut results = Results::default();
        for line in ["bench: fio failed", "@cell a b 0 5", "@cell a b 5", "@cell a b 5 0", ""] {
            assert_eq!(results.take(line), Err(line.to_string()));
        }
        assert_eq!(results.taken(), 0);
    }

    #[test]
    fn versions_lose_the_name_that_is_said_already() {
        let mut results = Results::default();
        for line in ["@version kernel 7.2.12", "@version fio fio-3.39", "@version rublk rublk 0.2.15"] {
            assert_eq!(results.take(line), Ok(None));
        }
        let versions: Vec<_> = results.versions.iter().map(|(_, version)| version.as_str()).collect();
        assert_eq!(versions, ["7.2.12", "3.39", "0.2.15"]);
    }

    #[test]
    fn thousands_have_commas() {
        assert_eq!(thousands(999.4), "999");
        assert_eq!(thousands(1000.0), "1,000");
        assert_eq!(thousands(1_234_567.0), "1,234,567");
    }
}
