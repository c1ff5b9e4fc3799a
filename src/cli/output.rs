//! Everything that is printed. Results go to standard output, remarks and errors to standard
//! error, so that a script can read the one and a person the other.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::error::{Error, Result};

/// Prints bytes as they are.
pub(super) fn raw(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        // Whoever read it has read enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::system("cannot write to standard output", error)),
        Ok(()) => Ok(()),
    }
}

/// Prints a line. Unlike [`raw`] it tells when nobody reads.
pub(super) fn line(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(format!("{text}\n").as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| Error::system("cannot write to standard output", error))
}

/// Prints a value as JSON, in one line.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    line(&to_json(value)?)
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::system("cannot write JSON", std::io::Error::from(error)))
}

/// Prints a remark to standard error.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "blockhaus: {text}");
}

/// Prints an error to standard error.
pub(super) fn error(error: &Error) {
    note(&error.to_string());
}

/// Rows under headings, in columns as wide as they must be. Numbers stand at the right.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let is_number = |column: usize| {
        rows.iter().all(|row| {
            row.get(column).is_some_and(|cell| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
        })
    };
    let right: Vec<bool> = (0..headings.len()).map(is_number).collect();
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let cells = row.iter().zip(&widths).zip(&right).map(|((cell, &width), &right)| match right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["0".into(), "ram:1G".into(), "x".into()], vec!["10".into(), "r".into(), "".into()]];
        assert_eq!(table(&["ID", "SPEC", "WHY"], &rows), "ID  SPEC    WHY\n 0  ram:1G  x\n10  r\n");
    }
}
