//! The steps' words, made into what a person sees.

use super::table::Table;
use crate::say;

/// Takes the steps' lines as they come.
pub struct Show {
    steps: usize,
    step: usize,
    table: Table,
    failure: Option<String>,
}

impl Show {
    /// For the steps of this script.
    pub fn new(script: &str) -> Self {
        let steps = script.lines().filter(|line| line.starts_with("echo \"@step ")).count();
        Self { steps, step: 0, table: Table::default(), failure: None }
    }

    /// Show one line.
    pub fn take(&mut self, line: &str) {
        for line in self.shown(line.trim_end_matches('\r')).lines() {
            say::line(line);
        }
    }

    /// Why a step failed, if one did.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// What to show for a line.
    fn shown(&mut self, line: &str) -> String {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "@step" => {
                self.step += 1;
                format!("\n[{}/{}] {rest}", self.step, self.steps)
            }
            "@run" => format!("  $ {rest}"),
            "@note" => format!("\n{rest}"),
            "@fio" => match self.table.take(rest) {
                Ok(progress) => format!("    {progress}"),
                Err(why) => self.failed(why),
            },
            "@table" => format!("\n{}", self.table.shown()),
            "@fail" => self.failed(rest.to_string()),
            _ => format!("    {line}").trim_end().to_string() + "\n",
        }
    }

    /// The first reason counts; the error at the end says it.
    fn failed(&mut self, why: String) -> String {
        self.failure.get_or_insert(why);
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_commands_marked_and_output_indented() {
        let mut show = Show::new(super::super::STEPS);
        assert_eq!(show.steps, 7);
        assert_eq!(show.shown("@step make a disk"), "\n[1/7] make a disk");
        assert_eq!(show.shown("@run mkfs.ext4 -q /dev/ublkb0"), "  $ mkfs.ext4 -q /dev/ublkb0");
        assert_eq!(show.shown("/dev/ublkb0"), "    /dev/ublkb0\n");
        assert_eq!(show.shown(""), "\n");
        assert_eq!(show.failure(), None);
    }

    #[test]
    fn the_first_failure_is_the_reason() {
        let mut show = Show::new("");
        assert_eq!(show.shown("@fail fio failed"), "");
        show.shown("@fio blockhaus randread-1 no json");
        assert_eq!(show.failure(), Some("fio failed"));
    }
}
