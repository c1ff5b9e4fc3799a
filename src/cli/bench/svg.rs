//! The report as a picture: a panel with a histogram for each load. Written here, a few shapes and words: see
//! docs/decisions.

use std::fmt::Write as _;

use super::axis::Axis;
use super::figures::{self, PERCENTILES};
use super::report::Report;
use super::text::{self, wrapped};
use crate::engine::load::Measured;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
/// Of a panel's histogram.
const PLOT_HEIGHT: f64 = 150.0;
/// From the top of a panel to its histogram, and from there to the next panel.
const ABOVE: f64 = 76.0;
const BELOW: f64 = 64.0;
const LINE: f64 = 16.0;
const COLUMNS: usize = 120;
/// Letters of the small font that fit into a line.
const LETTERS: usize = 132;
/// Least distance of two labels along the axis.
const LABEL: f64 = 46.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#222}.title{font-size:18px;font-weight:bold}\
    .load{font-size:14px;font-weight:bold}.bar{fill:#4a7ba6}.grid{stroke:#ddd}.axis{stroke:#444}\
    .mark{stroke:#b3362b;stroke-dasharray:3 2}.marked{fill:#b3362b}.bad{fill:#b3362b;font-weight:bold}";

/// Where a text stands to its place.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Default)]
struct Picture {
    shapes: String,
}

impl Picture {
    fn text(&mut self, (x, y): (f64, f64), class: &str, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        // XML takes several spaces for one.
        let text = escaped(&text.replace("   ", " · "));
        let _ = writeln!(
            self.shapes,
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}">{text}</text>"#
        );
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.shapes,
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        );
    }

    fn bar(&mut self, (x, y): (f64, f64), width: f64, height: f64) {
        let _ = writeln!(
            self.shapes,
            r#"<rect class="bar" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
        );
    }

    /// Lines of small text; yields where the next would stand.
    fn paragraph(&mut self, mut y: f64, class: &str, text: &str) -> f64 {
        for line in wrapped(text, LETTERS) {
            self.text((RIGHT, y), class, Anchor::Start, &line);
            y += LINE;
        }
        y
    }
}

pub(super) fn of(report: &Report) -> String {
    let mut picture = Picture::default();
    let title = format!("How fast {} answers", report.name);
    let mut y = 32.0;
    for line in wrapped(&title, 80) {
        picture.text((RIGHT, y), "title", Anchor::Start, &line);
        y += 22.0;
    }
    for line in [text::disk(report), report.notes.join("; ")].iter().filter(|line| !line.is_empty()) {
        y = picture.paragraph(y, "", line);
    }
    if let Some(measured) = report.results.first() {
        y = picture.paragraph(y, "", &text::requests(measured));
    }
    y = picture.paragraph(y, "", &report.host.machine());
    if let Some(interruption) = report.interruption() {
        y = picture.paragraph(y, "bad", &interruption);
    }
    for measured in &report.results {
        y = panel(&mut picture, y, measured);
    }
    for remark in &report.remarks {
        y = picture.paragraph(y, "", &format!("* {remark}"));
    }
    let host = &report.host;
    let foot = format!("{}   (blockhaus {}, {})", host.command_line(), host.version, host.time);
    y = picture.paragraph(y + LINE / 2.0, "", &foot);
    let (title, shapes) = (escaped(&title), picture.shapes);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y:.0}\" viewBox=\"0 0 {WIDTH} {y:.0}\" \
         role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{y:.0}\" fill=\"#fff\"/>\n{shapes}</svg>\n"
    )
}

/// One load; yields where the next begins.
fn panel(picture: &mut Picture, top: f64, measured: &Measured) -> f64 {
    let mut title = figures::load(&measured.load);
    if measured.interrupted {
        title.push_str(" (interrupted)");
    }
    let right =
        format!("{:.1} s, {} requests", measured.window.as_secs_f64(), figures::count(measured.served));
    picture.text((RIGHT, top + 20.0), "load", Anchor::Start, &title);
    picture.text((WIDTH - RIGHT, top + 20.0), "", Anchor::End, &right);
    picture.text((RIGHT, top + 38.0), "", Anchor::Start, &figures::rates(measured).join("   "));
    picture.text((RIGHT, top + 54.0), "", Anchor::Start, &figures::latencies(measured).join("   "));
    let Some(axis) = Axis::of(&measured.latencies) else { return top + ABOVE };
    let (plot_top, bottom, width) = (top + ABOVE, top + ABOVE + PLOT_HEIGHT, WIDTH - LEFT - RIGHT);
    let shares = axis.shares(&measured.latencies, COLUMNS);
    let peak = shares.iter().copied().fold(0.0, f64::max);
    for (part, share) in [(0.0, 0.0), (0.5, peak / 2.0), (1.0, peak)] {
        let y = bottom - part * PLOT_HEIGHT;
        picture.line("grid", (LEFT, y), (WIDTH - RIGHT, y));
        picture.text((LEFT - 6.0, y + 4.0), "", Anchor::End, &format!("{:.1} %", share * 100.0));
    }
    let step = width / COLUMNS as f64;
    for (column, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
        // One that few requests are in is still seen.
        let height = (share / peak * PLOT_HEIGHT).max(1.0);
        picture.bar((LEFT + column as f64 * step, bottom - height), step - 0.5, height);
    }
    picture.line("axis", (LEFT, bottom), (WIDTH - RIGHT, bottom));
    scale(picture, &axis, bottom, width);
    marks(picture, measured, &axis, plot_top, width);
    let middle = LEFT + width / 2.0;
    picture.text((middle, bottom + 36.0), "", Anchor::Middle, "latency (logarithmic axis)");
    picture.text((LEFT, plot_top - 8.0), "", Anchor::End, "share");
    bottom + BELOW
}

/// Round numbers along the axis, with labels where there is room for them.
fn scale(picture: &mut Picture, axis: &Axis, bottom: f64, width: f64) {
    let mut taken: Vec<f64> = Vec::new();
    for tick in axis.ticks() {
        let x = LEFT + axis.position(tick) * width;
        picture.line("axis", (x, bottom), (x, bottom + 4.0));
        if taken.iter().all(|other| (other - x).abs() >= LABEL) {
            picture.text((x, bottom + 18.0), "", Anchor::Middle, &figures::round_time(tick));
            taken.push(x);
        }
    }
}

/// Lines where the percentiles are.
fn marks(picture: &mut Picture, measured: &Measured, axis: &Axis, plot_top: f64, width: f64) {
    let latencies = &measured.latencies;
    let percentiles = PERCENTILES.iter().map(|&(percent, name)| (latencies.percentile_ns(percent), name));
    let mut height = 0.0;
    let mut before = f64::MIN;
    for (value, name) in percentiles.chain([(latencies.longest_ns(), "max")]) {
        let Some(value) = value else { continue };
        let x = LEFT + axis.position(value) * width;
        // Labels that would lie on each other go one below the other.
        height = if x - before < LABEL { height + 13.0 } else { 0.0 };
        before = x;
        picture.line("mark", (x, plot_top - 4.0), (x, plot_top + PLOT_HEIGHT));
        let (place, anchor) = match x > WIDTH - RIGHT - LABEL {
            true => (x - 4.0, Anchor::End),
            false => (x + 4.0, Anchor::Start),
        };
        picture.text((place, plot_top + 6.0 + height), "marked", anchor, name);
    }
}

/// Text as XML takes it; what no XML may have becomes a question mark.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_breaks_out_of_its_place() {
        assert_eq!(escaped("a<b>&\"c\"\u{1}\n"), "a&lt;b&gt;&amp;&quot;c&quot;? ");
    }
}
