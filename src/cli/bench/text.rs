//! The report for a terminal of 80 columns.

use std::fmt::Write as _;

use super::figures;
use super::histogram;
use super::report::Report;
use crate::config::human_size;
use crate::engine::load::Measured;

const WIDTH: usize = 79;

pub(super) fn of(report: &Report) -> String {
    let mut text = String::new();
    let mut say = |name: &str, value: &str| {
        for (number, line) in wrapped(value, WIDTH - 11).iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            let _ = writeln!(text, "{name:<11}{line}");
        }
    };
    say("disk", &report.name);
    say("", &disk(report));
    report.notes.iter().for_each(|note| say("", note));
    if let Some(measured) = report.results.first() {
        say("requests", &requests(measured));
    }
    say("machine", &report.host.machine());
    for measured in &report.results {
        text.push('\n');
        text.push_str(&block(measured));
    }
    text.push('\n');
    if let Some(interruption) = report.interruption() {
        wrapped(&interruption, WIDTH).iter().for_each(|line| {
            let _ = writeln!(text, "{line}");
        });
    }
    for remark in &report.remarks {
        for (number, line) in wrapped(remark, WIDTH - 2).iter().enumerate() {
            let _ = writeln!(text, "{} {line}", if number == 0 { '*' } else { ' ' });
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// The disk's shape in words.
pub(super) fn disk(report: &Report) -> String {
    let disk = &report.disk;
    let (size, block) = (human_size(disk.size), disk.logical_block_size);
    let access = if report.write { "opened to read and write" } else { "opened read-only" };
    let kind = if disk.is_rotational { ", rotational" } else { "" };
    format!("{size} in blocks of {block} bytes{kind}, {access}")
}

/// How requests got to the disk.
pub(super) fn requests(measured: &Measured) -> String {
    let ring = &measured.ring;
    let buffers = if ring.registered_buffers { "registered buffers" } else { "buffers not registered" };
    format!("io_uring ({}), {buffers}; a thread and a ring a job", ring.flags.join(" "))
}

fn block(measured: &Measured) -> String {
    let mut text = String::new();
    let left = figures::load(&measured.load);
    let seconds = measured.window.as_secs_f64();
    let mark = if measured.interrupted { "INTERRUPTED after " } else { "" };
    let right = format!("{mark}{seconds:.1} s, {} requests", figures::count(measured.served));
    text.push_str(&both_ends(&left, &right));
    for line in filled(&figures::rates(measured)).into_iter().chain(filled(&figures::latencies(measured))) {
        let _ = writeln!(text, "  {line}");
    }
    let failures = [(&measured.failures, ""), (&measured.warm_up_failures, " while warming up")];
    for (failures, when) in failures {
        for (errno, count) in failures.kinds() {
            let line = format!("failed {} times{when}: {errno}", figures::count(count));
            wrapped(&line, WIDTH - 2).iter().for_each(|line| {
                let _ = writeln!(text, "  {line}");
            });
        }
    }
    histogram::lines(&measured.latencies).iter().for_each(|line| {
        let _ = writeln!(text, "{line}");
    });
    text
}

/// One text at the left and one at the right, in a line where both fit.
fn both_ends(left: &str, right: &str) -> String {
    let room = WIDTH.saturating_sub(left.chars().count());
    match right.chars().count() < room {
        true => format!("{left}{right:>room$}\n"),
        false => format!("{left}\n{right:>WIDTH$}\n"),
    }
}

/// Figures in as few lines as there is room for.
fn filled(figures: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for figure in figures {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 3 + figure.chars().count() <= WIDTH - 2 => {
                line.push_str("   ");
                line.push_str(figure);
            }
            _ => lines.push(figure.clone()),
        }
    }
    lines
}

/// Lines of at most so many characters, broken between words where that can be.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        if used != 0 && used + 1 + word.len() > width {
            lines.push(String::new());
            used = 0;
        }
        while word.len() > width {
            let rest = word.split_off(width);
            lines.last_mut().into_iter().for_each(|line| line.extend(&word));
            lines.push(String::new());
            word = rest;
        }
        if let Some(line) = lines.last_mut() {
            if used != 0 {
                line.push(' ');
                used += 1;
            }
            line.extend(&word);
            used += word.len();
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_do_not_fit_go_to_the_next_line() {
        assert_eq!(both_ends("left", "right"), format!("left{:>75}\n", "right"));
        for long in [74, 75, 79] {
            let text = both_ends("left", &"x".repeat(long));
            let lengths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
            assert_eq!(lengths, if long < 75 { vec![79] } else { vec![4, 79] });
            assert!(!text.contains("leftx"));
        }
        let figures = ["a".repeat(40), "b".repeat(34), "c".repeat(76), "d".into()];
        let lines = filled(&figures);
        assert_eq!(lines, [figures[..2].join("   "), figures[2].clone(), figures[3].clone()]);
    }

    #[test]
    fn no_line_is_longer_than_allowed_and_no_letter_is_lost() {
        let text = "a bc def ghijklmnopqrstuvwxyz é";
        let lines = wrapped(text, 6);
        assert!(lines.iter().all(|line| line.chars().count() <= 6), "{lines:?}");
        assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
        assert_eq!(wrapped("one two", 80), ["one two"]);
    }
}
