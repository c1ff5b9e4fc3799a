//! Bars in an SVG: a panel a load, a bar a device, ours in a colour of their own.

use super::device::Owner;
use super::number::shown;

/// One picture.
#[derive(Debug)]
pub struct Chart {
    /// What it shows, with the unit.
    pub title: String,
    /// Where, how and with what it was measured: lines below it.
    pub notes: Vec<String>,
    /// Its parts.
    pub panels: Vec<Panel>,
}

/// The bars that are compared with one another; each panel has a scale of its own, from zero.
#[derive(Debug)]
pub struct Panel {
    /// The load.
    pub title: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// One figure.
#[derive(Debug)]
pub struct Bar {
    /// The device.
    pub label: String,
    /// How long it is.
    pub value: f64,
    /// Gives its colour.
    pub owner: Owner,
}

const WIDTH: usize = 1080;
const MARGIN: usize = 24;
const COLUMNS: usize = 2;
const BAR: usize = 17;
const PANEL_HEAD: usize = 34;
/// Letters of the small font that fit into a note's line, and the width of one, in pixels.
const NOTE_LETTERS: usize = 150;
const LETTER: usize = 7;
const NOTE: usize = 17;

impl Chart {
    /// The picture as a file's text.
    pub fn svg(&self) -> String {
        let panel_width = (WIDTH - MARGIN * (COLUMNS + 1)) / COLUMNS;
        let mut body = String::new();
        let mut top = 92;
        for row in self.panels.chunks(COLUMNS) {
            for (at, panel) in row.iter().enumerate() {
                body += &panel.svg(MARGIN + at * (panel_width + MARGIN), top, panel_width);
            }
            top += row.iter().map(Panel::height).max().unwrap_or(0);
        }
        let lines: Vec<String> = self.notes.iter().flat_map(|note| wrapped(note, NOTE_LETTERS)).collect();
        for line in &lines {
            top += NOTE;
            body += &text(MARGIN, top, "note", line);
        }
        let height = top + MARGIN;
        let legend: String = [Owner::Ours, Owner::Peer, Owner::Floor]
            .into_iter()
            .enumerate()
            .map(|(at, owner)| {
                let left = MARGIN + at * 150;
                rectangle(left, 56, 12, 12, class(owner)) + &text(left + 18, 66, "label", about(owner))
            })
            .collect();
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" class=\"paper\"/>\n{}{legend}{body}</svg>\n",
            escaped(&self.title),
            text(MARGIN, 38, "title", &self.title),
        )
    }
}

const STYLE: &str = "\
.paper{fill:#fff}text{font-family:sans-serif;fill:#222}.title{font-size:20px;font-weight:bold}\
.panel{font-size:14px;font-weight:bold}.label,.value,.note{font-size:12px}.end{text-anchor:end}\
.note{fill:#555}.ours{fill:#1f6fb2}.peer{fill:#c9a36a}.floor{fill:#c4c9ce}.axis{stroke:#888}";

fn class(owner: Owner) -> &'static str {
    match owner {
        Owner::Ours => "ours",
        Owner::Peer => "peer",
        Owner::Floor => "floor",
    }
}

fn about(owner: Owner) -> &'static str {
    match owner {
        Owner::Ours => "blockhaus",
        Owner::Peer => "peers",
        Owner::Floor => "the floor",
    }
}

impl Panel {
    fn height(&self) -> usize {
        PANEL_HEAD + self.bars.len() * BAR + 14
    }

    fn svg(&self, left: usize, top: usize, width: usize) -> String {
        let longest = self.bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0);
        let labels = longest * LETTER + 8;
        // Room for the figure beside the longest bar.
        let room = width.saturating_sub(labels + 64).max(1);
        let highest = self.bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
        let mut body = text(left, top + 16, "panel", &self.title);
        for (at, bar) in self.bars.iter().enumerate() {
            let y = top + PANEL_HEAD - 8 + at * BAR;
            let share = if highest > 0.0 { bar.value / highest } else { 0.0 };
            let length = (share * room as f64).round() as usize;
            body += &text(left + labels - 6, y + 12, "label end", &bar.label);
            body += &rectangle(left + labels, y + 2, length.max(1), BAR - 4, class(bar.owner));
            body += &text(left + labels + length + 6, y + 12, "value", &shown(bar.value));
        }
        let (x, from) = (left + labels, top + PANEL_HEAD - 8);
        let to = from + self.bars.len() * BAR;
        body + &format!("<line x1=\"{x}\" y1=\"{from}\" x2=\"{x}\" y2=\"{to}\" class=\"axis\"/>\n")
    }
}

fn text(x: usize, y: usize, class: &str, words: &str) -> String {
    format!("<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{}</text>\n", escaped(words))
}

fn rectangle(x: usize, y: usize, width: usize, height: usize, class: &str) -> String {
    format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" class=\"{class}\"/>\n")
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Lines of at most `letters`, broken between words.
fn wrapped(words: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                line.push(' ');
                *line += word;
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let bar = |label: &str, value, owner| Bar { label: label.into(), value, owner };
        let panel = |title: &str| Panel {
            title: title.into(),
            bars: vec![
                bar("null-blk", 8_000.0, Owner::Floor),
                bar("rublk & <co>", 14_600.0, Owner::Peer),
                bar("blockhaus-null", 14_000.0, Owner::Ours),
            ],
        };
        Chart {
            title: "Instructions per I/O".into(),
            notes: vec!["kernel 7.2.12, \"quoted\" ".repeat(20)],
            panels: ["a", "b", "c"].map(panel).into(),
        }
    }

    /// Tags nest, attributes are quoted, and nothing else has an angle bracket.
    fn well_formed(svg: &str) -> Result<usize, String> {
        let mut open: Vec<&str> = Vec::new();
        let mut tags = 0;
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            if rest[..start].contains('>') {
                return Err(format!("a stray > before {}", &rest[start..start + 20]));
            }
            let end = rest.find('>').ok_or("a tag does not end")?;
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            tags += 1;
            if let Some(name) = tag.strip_prefix('/') {
                match open.pop() {
                    Some(last) if last == name => continue,
                    last => return Err(format!("{name} ends {last:?}")),
                }
            }
            if tag.contains('<') || tag.matches('"').count() % 2 == 1 {
                return Err(format!("{tag} is no tag"));
            }
            if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap_or_default());
            }
        }
        if open.is_empty() { Ok(tags) } else { Err(format!("{open:?} never end")) }
    }

    #[test]
    fn the_picture_is_well_formed() {
        let svg = chart().svg();
        assert!(well_formed(&svg).unwrap() > 40, "{svg}");
        assert!(svg.contains("rublk &amp; &lt;co&gt;"), "{svg}");
        assert!(well_formed("<a><b></a></b>").is_err() && well_formed("<a>").is_err());
        let none = Chart { title: String::new(), notes: Vec::new(), panels: Vec::new() };
        well_formed(&none.svg()).unwrap();
    }

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let panel = &chart().panels[0];
        let svg = panel.svg(0, 0, 500);
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.starts_with("<rect"))
            .map(|line| line.split('"').nth(5).unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 3);
        assert!((widths[0] / widths[1] - 8_000.0 / 14_600.0).abs() < 0.01, "{widths:?}");
        assert!(svg.contains("14,600") && svg.contains("class=\"ours\""), "{svg}");
    }

    #[test]
    fn long_notes_are_wrapped() {
        assert_eq!(wrapped("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrapped("abcdef", 3), ["abcdef"]);
        assert!(wrapped(" ", 3).is_empty());
    }
}
