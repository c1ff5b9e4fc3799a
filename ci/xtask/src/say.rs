//! What the commands tell a person: progress on stderr, results on stdout.

use std::io::Write;

/// One line of progress. Goes to stderr, so that it never mixes with results.
pub fn step(text: impl AsRef<str>) {
    eprintln!("xtask: {}", text.as_ref());
}

/// One line of a result, on stdout.
pub fn line(text: impl AsRef<str>) {
    raw(text.as_ref().as_bytes());
    raw(b"\n");
}

/// Bytes of a result, passed through as they are. A reader that has gone away
/// is not our failure.
pub fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// An error with all its reasons.
pub fn error(error: &anyhow::Error) {
    eprintln!("xtask: {error:#}");
}
