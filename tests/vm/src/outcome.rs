//! What a test can end in: fine, failed with a reason, or skipped with one.

use std::fmt::Display;

/// Why a test did not pass. `why` is one line; `details` is what one reads next.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Fail {
    pub why: String,
    pub details: Vec<String>,
    pub skip: bool,
}

pub type Outcome<T = ()> = Result<T, Fail>;

impl Fail {
    pub fn new(why: impl Display) -> Self {
        let text = why.to_string();
        let mut lines = text.lines();
        let why = lines.next().unwrap_or("no reason given").to_string();
        Self { why, details: lines.map(String::from).collect(), skip: false }
    }

    /// The test cannot run here; that is not a failure.
    pub fn skip(why: impl Display) -> Self {
        Self { skip: true, ..Self::new(why) }
    }

    pub fn detail(mut self, title: &str, text: &str) -> Self {
        if !text.trim().is_empty() {
            self.details.push(format!("{title}:"));
            self.details.extend(last_lines(text, 12).map(|line| format!("  {line}")));
        }
        self
    }
}

/// The last `count` lines of `text`.
pub fn last_lines(text: &str, count: usize) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(count);
    lines.into_iter().skip(from)
}

/// Says what was being done when something went wrong.
pub trait Context<T> {
    fn context(self, doing: impl Display) -> Outcome<T>;
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl Display) -> Outcome<T> {
        self.map_err(|error| Fail::new(format!("{doing}: {error}")))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl Display) -> Outcome<T> {
        self.ok_or_else(|| Fail::new(doing))
    }
}

impl Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)?;
        for line in &self.details {
            write!(f, "\n{line}")?;
        }
        Ok(())
    }
}

/// Fails the test with a message unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::outcome::Fail::new(format!($($message)+)));
        }
    };
}
