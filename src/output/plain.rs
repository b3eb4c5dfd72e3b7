//! The lines of the original as a view of a terminal: under a header, above their sum, cut to the size of the screen.
//!
//! ```text
//!     B/s in /    B/s out -- process                              rates | conntrack | atlas | 23:31:00
//!    2799352 /    2759133 -- (279 smaller)
//!    3105305 /   66579088 -- /usr/sbin/nginx -g daemon off;
//!   45142796 /   89378222 -- all 300 processes
//! ```
//! The biggest line is last, above the sum, where the eye is when the program ends; all lines add up. A view is drawn over the last
//! one, so that what was on the terminal before the first stays in its scrollback, and nothing else gets there (ECMA-48: CUP,
//! EL, ED; SGR; and mode 2026, with which a terminal shows a whole view at once).

use std::fmt::Write;
use std::time::SystemTime;

use super::text::{Amounts, Figures, amounts, local_time};
use super::tty::Size;
use super::{Frame, host};
use crate::printable::{columns, printable, printable_command};
use crate::traffic::rates::BYTES_PER_KB;

/// The least width of a column of figures, as in the original.
const COLUMN: usize = 10;
/// The most messages below the figures.
const MOST_NOTES: usize = 8;

const BEGIN: &str = "\x1b[?2026h\x1b[H";
const END: &str = "\x1b[J\x1b[?2026l";
const ERASE_LINE: &str = "\x1b[K";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const NORMAL: &str = "\x1b[0m";

/// What the lines show, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    pub figures: Figures,
    /// What a line is for, and several of them: `("process", "processes")`.
    pub of: (&'static str, &'static str),
    /// Whether names are shown whole, on several lines of the terminal.
    pub wide: bool,
    /// What to say while there is no line.
    pub nothing: &'static str,
}

/// The views of one run.
#[derive(Debug)]
pub(super) struct View {
    content: Content,
    host: String,
    /// When the first frame was.
    since: Option<SystemTime>,
    /// Whether the screen shows something else, which the next view moves away.
    on_foreign_screen: bool,
    /// The width of a column of figures: it grows, and never shrinks.
    column: usize,
}

impl View {
    pub fn new(content: Content) -> Self {
        Self { content, host: printable(host().as_bytes(), 64), since: None, on_foreign_screen: true, column: COLUMN }
    }

    /// Others have written to the terminal.
    pub fn begin_anew(&mut self) {
        self.on_foreign_screen = true;
    }

    /// The bytes that show a frame, and messages below it, the newest last.
    pub fn draw(&mut self, frame: &Frame, notes: &[&str], size: Size) -> Vec<u8> {
        let mut text = String::new();
        self.since.get_or_insert(frame.at.wall_clock);
        if std::mem::take(&mut self.on_foreign_screen) {
            // Moves what is on the screen to the scrollback.
            text.extend(std::iter::repeat_n('\n', size.lines - 1));
        }
        text.push_str(BEGIN);
        for (at, line) in self.lines(frame, notes, size).iter().enumerate() {
            // No line end after the last line, which may be the last of the screen.
            let _ = write!(text, "{}{ERASE_LINE}{line}", if at == 0 { "" } else { "\r\n" });
        }
        text.push_str(END);
        text.into_bytes()
    }

    /// The lines of the view: no more than the screen has.
    fn lines(&mut self, frame: &Frame, notes: &[&str], size: Size) -> Vec<String> {
        let rows = amounts(self.content.figures, frame.interval, &frame.rows);
        let unowned = amounts(self.content.figures, frame.interval, &frame.unowned);
        let (processes, has_unowned) = (rows.len(), !unowned.is_empty());
        let mut entries: Vec<Amounts<'_>> = rows.into_iter().chain(unowned).collect();
        let size_of = |entry: &Amounts<'_>| entry.bytes_in.saturating_add(entry.bytes_out);
        entries.sort_by(|a, b| (size_of(a), &a.name).cmp(&(size_of(b), &b.name)));

        let sum = |entries: &[Amounts<'_>]| {
            let add = |sum: (u64, u64), entry: &Amounts<'_>| {
                (sum.0.saturating_add(entry.bytes_in), sum.1.saturating_add(entry.bytes_out))
            };
            entries.iter().fold((0, 0), add)
        };
        let total = sum(&entries);
        self.column = self.column.max(self.figure(total.0).len().max(self.figure(total.1).len()));

        let mut notes = wrapped(notes, size);
        let mut below = if entries.is_empty() {
            vec![printable(self.content.nothing.as_bytes(), size.columns)]
        } else {
            let (one, several) = self.content.of;
            let of = match processes {
                1 => format!("all: 1 {one}"),
                count => format!("all {count} {several}"),
            };
            let and = if has_unowned { ", and without an owner" } else { "" };
            let line = self.line(total, &printable(format!("{of}{and}").as_bytes(), self.name_columns(size)));
            vec![format!("{BOLD}{line}{NORMAL}")]
        };
        // The sum matters most, then the biggest lines, then the header and the messages.
        let fixed = 1 + below.len();
        notes.truncate(size.lines.saturating_sub(fixed + 2));
        let mut room = size.lines.saturating_sub(fixed + notes.len());
        below.append(&mut notes);

        let mut shown: Vec<String> = Vec::new();
        let mut left = entries.as_slice();
        while let Some((entry, smaller)) = left.split_last() {
            let name = self.name(&entry.name, size);
            let mut block = vec![self.line((entry.bytes_in, entry.bytes_out), &name)];
            for (end, bytes_in, bytes_out) in &entry.remotes {
                let end = printable(end.as_bytes(), self.name_columns(size));
                block.push(self.line((*bytes_in, *bytes_out), &end));
            }
            let height: usize = block.iter().map(|line| columns(line).div_ceil(size.columns).max(1)).sum();
            // All but the smallest entry leave room for the line of the smaller ones.
            if height + usize::from(!smaller.is_empty()) > room {
                break;
            }
            room -= height;
            shown.extend(block.into_iter().rev());
            left = smaller;
        }
        if !left.is_empty() && room > 0 {
            let name = printable(format!("({} smaller)", left.len()).as_bytes(), self.name_columns(size));
            shown.push(format!("{DIM}{}{NORMAL}", self.line(sum(left), &name)));
        }
        let mut lines = vec![format!("{DIM}{}{NORMAL}", self.header(frame, size))];
        lines.extend(shown.into_iter().rev());
        lines.append(&mut below);
        // A screen of one or two lines has the sum alone.
        let excess = lines.len().saturating_sub(size.lines.max(1));
        lines.drain(..excess);
        lines
    }

    fn figure(&self, bytes: u64) -> String {
        match self.content.figures {
            Figures::Totals | Figures::Rates => bytes.to_string(),
            Figures::ApplicationRates => format!("{:.2} KiB", bytes as f64 / BYTES_PER_KB as f64),
        }
    }

    fn line(&self, (bytes_in, bytes_out): (u64, u64), name: &str) -> String {
        let (bytes_in, bytes_out, width) = (self.figure(bytes_in), self.figure(bytes_out), self.width());
        format!("{bytes_in:>width$} / {bytes_out:>width$} -- {name}")
    }

    /// The width of a column of figures with its unit.
    fn width(&self) -> usize {
        match self.content.figures {
            Figures::Totals | Figures::Rates => self.column,
            Figures::ApplicationRates => self.column.max(COLUMN + " KiB".len()),
        }
    }

    /// The columns before a name.
    fn before_name(&self) -> usize {
        2 * self.width() + " / ".len() + " -- ".len()
    }

    fn name_columns(&self, size: Size) -> usize {
        size.columns.saturating_sub(self.before_name())
    }

    fn name(&self, name: &[u8], size: Size) -> String {
        if self.content.wide {
            // A command line may be longer than any screen.
            return printable(name.trim_ascii_end(), size.columns * (size.lines / 4).max(1));
        }
        printable_command(name.trim_ascii_end(), self.name_columns(size))
    }

    /// What the columns are; at the right since when, from where, on which host, and the time: what does not fit goes, the host
    /// first.
    fn header(&self, frame: &Frame, size: Size) -> String {
        let since = self.since.unwrap_or(frame.at.wall_clock);
        let clock = |at| local_time(at).split_off("2012-11-22 ".len());
        let (titles, since) = match self.content.figures {
            Figures::Totals => (["bytes in", "bytes out"], format!("since {}", clock(since))),
            Figures::Rates => (["B/s in", "B/s out"], "rates".to_owned()),
            Figures::ApplicationRates => (["in per second", "out per second"], String::new()),
        };
        let width = self.width();
        let left = format!("{:>width$} / {:>width$} -- {}", titles[0], titles[1], self.content.of.0);
        let now = clock(frame.at.wall_clock);
        let source = frame.facts.counters.unwrap_or_default();
        for parts in
            [vec![&*since, source, &self.host, &now], vec![&since, source, &now], vec![&since, source], vec![&since]]
        {
            let right: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            let right = right.join(" | ");
            let gap = size.columns.saturating_sub(columns(&left) + columns(&right));
            if gap >= 2 {
                return format!("{left}{}{right}", " ".repeat(gap));
            }
        }
        printable(left.as_bytes(), size.columns)
    }
}

/// An empty line and messages, a third of the screen at most: the newest ones that fit, wrapped at its width.
fn wrapped(notes: &[&str], size: Size) -> Vec<String> {
    let most = size.lines / 3;
    let mut lines: Vec<String> = Vec::new();
    for note in notes.iter().rev().take(MOST_NOTES) {
        let note = wrap(note, size.columns);
        let room = most.saturating_sub(lines.len() + 1);
        if note.len() > room {
            // The beginning of a long message is better than none.
            if lines.is_empty() {
                lines.extend(note.into_iter().take(room));
            }
            break;
        }
        lines.splice(0..0, note);
    }
    if !lines.is_empty() {
        lines.insert(0, String::new());
    }
    lines
}

/// Breaks a line at blanks where it can; further lines begin with two blanks.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let word_width = columns(word.trim_end());
        if used + word_width > width && used > 2 {
            lines.push("  ".to_owned());
            used = 2;
        }
        for c in word.chars() {
            let last = lines.len() - 1;
            let column = columns(c.encode_utf8(&mut [0; 4]));
            if used + column > width {
                if c == ' ' {
                    continue;
                }
                lines.push(format!("  {c}"));
                used = 2 + column;
            } else {
                lines[last].push(c);
                used += column;
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;
    use crate::output::{Moment, golden};

    fn frame(rows: usize) -> Frame {
        let mut frame = crate::output::top::samples::frame(rows, 3);
        frame.rows.iter_mut().for_each(|row| row.detail = None);
        frame
    }

    fn view(figures: Figures, wide: bool) -> View {
        let content = Content { figures, of: ("process", "processes"), wide, nothing: "Nothing has moved yet." };
        View { host: "atlas".to_owned(), ..View::new(content) }
    }

    fn plain(lines: &[String]) -> Vec<String> {
        lines
            .iter()
            .map(|line| [BOLD, DIM, NORMAL].iter().fold(line.clone(), |line, code| line.replace(code, "")))
            .collect()
    }

    fn size(columns: usize, lines: usize) -> Size {
        Size { columns, lines }
    }

    /// The figures in and out of a line.
    fn figures(line: &str) -> (u64, u64) {
        let (bytes_in, rest) = line.split_once('/').unwrap();
        (bytes_in.trim().parse().unwrap(), rest.split_once(" -- ").unwrap().0.trim().parse().unwrap())
    }

    #[test]
    fn busy_hosts_look_as_documented() {
        for (figures, columns, height) in
            [(Figures::Totals, 80, 24), (Figures::Totals, 200, 50), (Figures::Rates, 80, 24)]
        {
            let frame = frame(300);
            let lines = plain(&view(figures, false).lines(&frame, &[], size(columns, height)));
            let kind = if figures == Figures::Rates { "-rates" } else { "" };
            let clock = local_time(frame.at.wall_clock).split_off("2012-11-22 ".len());
            let text = lines.join("\n").replace(&clock, "23:31:00") + "\n";
            golden::assert_golden(&format!("../../docs/screens/plain{kind}-{columns}x{height}.txt"), &text);
        }
    }

    #[test]
    fn the_biggest_are_last_and_all_lines_add_up() {
        let lines = plain(&view(Figures::Totals, false).lines(&frame(300), &[], size(80, 24)));
        assert_eq!(lines.len(), 24);
        let [_header, entries @ .., total] = &lines[..] else { unreachable!() };
        let size_of = |line: &String| figures(line).0 + figures(line).1;
        assert!(entries[0].contains("(279 smaller)"), "{}", entries[0]);
        assert!(entries[1..].is_sorted_by_key(size_of));
        let sums = entries.iter().map(|line| figures(line)).fold((0, 0), |sum, line| (sum.0 + line.0, sum.1 + line.1));
        assert_eq!(sums, figures(total));
        assert!(total.ends_with(" -- all 300 processes"));
    }

    #[test]
    fn messages_stand_below_and_the_newest_is_last() {
        let notes: Vec<String> = (0..12).map(|note| format!("note {note} {}", "word ".repeat(20))).collect();
        let notes: Vec<&str> = notes.iter().map(String::as_str).collect();
        let lines = plain(&view(Figures::Totals, false).lines(&frame(300), &notes, size(80, 24)));
        assert_eq!(lines.len(), 24);
        let total = lines.iter().position(|line| line.contains(" -- all 300 processes")).unwrap();
        assert_eq!(lines[total + 1], "");
        assert!(lines[total + 2].starts_with("note 9 word"), "{lines:#?}");
        assert!(lines[23].starts_with("  word"), "{lines:#?}");
        assert!(lines.len() - total - 1 <= 8);
    }

    #[test]
    fn without_figures_the_view_says_so() {
        let frame = Frame::at(Moment { monotonic: Instant::now(), wall_clock: SystemTime::UNIX_EPOCH });
        let lines = plain(&view(Figures::Totals, false).lines(&frame, &[], size(80, 24)));
        assert_eq!(lines[1..], ["Nothing has moved yet."]);
    }

    #[test]
    fn a_view_is_drawn_over_the_last_one_and_nothing_is_cleared() {
        let mut view = view(Figures::Totals, false);
        let mut draw = |seconds| {
            let mut frame = frame(3);
            frame.at.wall_clock += Duration::from_secs(seconds);
            String::from_utf8(view.draw(&frame, &[], size(80, 24))).unwrap()
        };
        let (first, second) = (draw(0), draw(1));
        assert!(first.starts_with(&("\n".repeat(23) + BEGIN)), "{first:?}");
        assert!(second.starts_with(BEGIN) && second.ends_with(END), "{second:?}");
        assert_eq!(second.matches("\r\n").count(), second.matches(ERASE_LINE).count() - 1);
        assert!(!second.contains("\x1b[2J") && !second.contains("\x1b[3J"));
    }

    #[test]
    fn wide_names_are_not_cut() {
        let frame = frame(300);
        let lines = plain(&view(Figures::Totals, true).lines(&frame, &[], size(60, 24)));
        assert!(
            lines.iter().any(|line| line.ends_with("-- /usr/bin/rclone sync b2:archive /srv/archive")),
            "{lines:#?}"
        );
        let height: usize = lines.iter().map(|line| columns(line).div_ceil(60).max(1)).sum();
        assert!(height <= 24, "{height}");
    }

    #[test]
    fn remote_ends_stand_below_their_process() {
        let frame = crate::output::top::samples::frame(300, 3);
        let lines = plain(&view(Figures::Rates, false).lines(&frame, &[], size(80, 24)));
        let [.., process, first, _, _, total] = &lines[..] else { unreachable!() };
        assert!(process.ends_with(" -- /usr/sbin/nginx -g daemon off;"), "{lines:#?}");
        assert!(first.ends_with(" --   203.0.113.1:51001 tcp"), "{lines:#?}");
        assert!(total.ends_with(" -- all 300 processes"), "{lines:#?}");
        assert!(lines.len() <= 24);
    }

    proptest! {
        #[test]
        fn a_view_fits_every_screen(width in 1usize..250, height in 1usize..80, rows in 0usize..90, notes: Vec<String>) {
            let notes: Vec<String> = notes.iter().map(|note| printable(note.as_bytes(), 300)).collect();
            let notes: Vec<&str> = notes.iter().map(String::as_str).collect();
            let lines = plain(&view(Figures::Rates, false).lines(&frame(rows), &notes, size(width, height)));
            prop_assert!(lines.len() <= height);
            for line in &lines {
                // Figures are never cut.
                prop_assert!(columns(line) <= width.max(30), "{}", line);
            }
        }
    }
}
