//! The lines of the original: figures on stdout, messages on stderr.
//!
//! ```text
//!      15500 /       2500 -- wget http://x/
//!     100.00 KiB /      50.00 KiB -- Web
//! 2012-11-22 10:37:01: Web exceeding 'out' bandwidth limit      49.00:      50.00 kB/s (102.04 %)
//! ```
//! Scripts read these lines, so their format is fixed. Subjects with the same name share a line.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::plain::{Content, View};
use super::terminal::Terminal;
use super::{Announcement, Frame, Notification, Output};
use crate::printable::printable;
use crate::traffic::detail::{Remote, RemoteBytes};
use crate::traffic::rates::{BYTES_PER_KB, Row, per_second};

/// The bytes per second that an application must exceed in either direction to have a line.
const APPLICATION_FLOOR: f64 = BYTES_PER_KB as f64;
/// After this many frames without a line, the user learns that there is nothing to show yet.
const IDLE_FRAMES: u32 = 5;
/// The most columns of a name in a line of figures, and in a message.
const NAME_WIDTH: usize = 60;
const NAME_WIDTH_IN_MESSAGE: usize = 50;

/// Which figures the lines show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figures {
    /// Bytes since each subject appeared.
    Totals,
    /// Whole bytes per second.
    Rates,
    /// KiB per second of each application that moves more than 1 KiB per second.
    ApplicationRates,
}

/// Shows frames as lines.
#[derive(Debug)]
pub struct Text {
    content: Content,
    terminal: Terminal,
    /// What a terminal shows instead of the bare lines.
    view: Option<View>,
    /// What to say if there is nothing to show; `None` once that was said, or there was something.
    idle_note: Option<&'static str>,
    frames: u32,
}

impl Text {
    /// Writes to stdout and stderr of this process.
    pub fn new(figures: Figures) -> Self {
        let content = Content { figures, of: ("process", "processes"), wide: false, nothing: "Nothing has moved yet." };
        Self { content, terminal: Terminal::of_this_process(), view: None, idle_note: None, frames: 0 }
    }

    /// Says on a terminal what a line is for, and several of them: `("user", "users")`.
    pub fn of(mut self, one: &'static str, several: &'static str) -> Self {
        self.content.of = (one, several);
        self
    }

    /// Cuts no names.
    pub fn wide(mut self, wide: bool) -> Self {
        self.content.wide = wide;
        self
    }

    /// Says this on a terminal while there is nothing to show.
    pub fn with_nothing(mut self, nothing: &'static str) -> Self {
        self.content.nothing = nothing;
        self
    }

    /// Also writes this message if there is nothing to show for some seconds from the start on.
    pub fn with_idle_note(self, note: &'static str) -> Self {
        Self { idle_note: Some(note), ..self }
    }
}

impl Output for Text {
    fn show(&mut self, frame: &Frame) -> io::Result<()> {
        let mut messages = messages(frame);
        if self.terminal.is_screen() {
            let view = self.view.get_or_insert_with(|| View::new(self.content));
            return self.terminal.redraw(|notes, size| view.draw(frame, notes, size), messages);
        }
        let name_width = if self.content.wide { usize::MAX } else { NAME_WIDTH };
        let table = table_of_width(self.content.figures, frame, name_width);
        self.frames = self.frames.saturating_add(1);
        if !table.is_empty() {
            self.idle_note = None;
        } else if self.frames > IDLE_FRAMES {
            messages.extend(self.idle_note.take().map(str::to_owned));
        }
        self.terminal.table(table, messages)
    }

    fn tell(&mut self, frame: &Frame) -> io::Result<()> {
        self.terminal.append(&[], messages(frame))
    }

    fn announce(&mut self, announcements: &[Announcement]) -> io::Result<()> {
        let (mut lines, mut notes) = (Vec::new(), Vec::new());
        for announcement in announcements {
            match announcement {
                Announcement::Ending => lines.extend_from_slice(b"Please wait...\n"),
                Announcement::WaitingForConnections => lines.extend_from_slice(b"Waiting for threads to finish...\n"),
                Announcement::Note(note) => notes.push(note.clone()),
            }
        }
        self.terminal.append(&lines, notes)
    }

    fn is_written(&self) -> bool {
        self.terminal.is_written()
    }

    fn suspend(&mut self) {
        self.terminal.suspend();
        if let Some(view) = &mut self.view {
            view.begin_anew();
        }
    }
}

/// The lines for stdout: the subjects, and below them the bytes without an owner.
pub fn table(figures: Figures, frame: &Frame) -> Vec<u8> {
    table_of_width(figures, frame, NAME_WIDTH)
}

/// The same, with names of at most so many columns.
fn table_of_width(figures: Figures, frame: &Frame, name_width: usize) -> Vec<u8> {
    let mut text = lines(figures, frame.interval, &frame.rows, name_width);
    text.extend(lines(figures, frame.interval, &frame.unowned, name_width));
    text
}

/// A name that has a line, and its figures in whole bytes or bytes per second.
pub(super) struct Amounts<'a> {
    pub name: Cow<'a, [u8]>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Its remote ends, the biggest first.
    pub remotes: Vec<(String, u64, u64)>,
}

/// The names that have a line.
pub(super) fn amounts(figures: Figures, interval: Option<Duration>, rows: &[Row]) -> Vec<Amounts<'_>> {
    match (figures, interval) {
        (Figures::Totals, _) => {
            let mut sums = sums(rows, |row| (row.bytes_in, row.bytes_out));
            sums.retain(|sum| sum.bytes_in != 0 || sum.bytes_out != 0);
            let amounts = sums.into_iter().map(|sum| {
                let remotes = remote_sums(&sum.remotes, |end| (end.bytes_in, end.bytes_out));
                Amounts { name: sum.name, bytes_in: sum.bytes_in, bytes_out: sum.bytes_out, remotes }
            });
            amounts.collect()
        }
        (Figures::Rates | Figures::ApplicationRates, None) => Vec::new(),
        (Figures::Rates | Figures::ApplicationRates, Some(interval)) => {
            let floor = if figures == Figures::ApplicationRates { APPLICATION_FLOOR } else { 0.0 };
            let whole = |moved| per_second(moved, interval) as u64;
            let amounts = rates(rows, interval, floor).into_iter().map(|(sum, rate_in, rate_out)| {
                let ends = remote_sums(&sum.remotes, |end| (end.moved_in, end.moved_out)).into_iter();
                let remotes = ends.map(|(end, moved_in, moved_out)| (end, whole(moved_in), whole(moved_out))).collect();
                Amounts { name: sum.name, bytes_in: rate_in as u64, bytes_out: rate_out as u64, remotes }
            });
            amounts.collect()
        }
    }
}

/// The lines for stderr, without line ends.
pub fn messages(frame: &Frame) -> Vec<String> {
    let mut lines = frame.notes.clone();
    if !frame.notifications.is_empty() {
        let local_time = local_time(frame.at.wall_clock);
        for notification in &frame.notifications {
            lines.extend(notification_line(notification, &local_time));
            lines.extend(notification.command_failure.clone());
        }
    }
    lines
}

/// One line per name, ordered by bytes in, bytes out and name: the largest is last.
fn lines(figures: Figures, interval: Option<Duration>, rows: &[Row], name_width: usize) -> Vec<u8> {
    let mut text = Vec::new();
    match (figures, interval) {
        (Figures::Totals, _) => {
            let mut sums = sums(rows, |row| (row.bytes_in, row.bytes_out));
            sums.retain(|sum| sum.bytes_in != 0 || sum.bytes_out != 0);
            sums.sort_by(|a, b| (a.bytes_in, a.bytes_out, &a.name).cmp(&(b.bytes_in, b.bytes_out, &b.name)));
            for sum in &sums {
                line(&mut text, &sum.bytes_in, &sum.bytes_out, &sum.name, name_width);
                remote_lines(&mut text, &sum.remotes, |end| (end.bytes_in, end.bytes_out), |bytes| bytes.to_string());
            }
        }
        // Rates need two readings.
        (Figures::Rates | Figures::ApplicationRates, None) => {}
        // A rate below one byte per second is still a line, `0 / 0`, as it was in the original.
        (Figures::Rates, Some(interval)) => {
            let whole = |moved| (per_second(moved, interval) as u64).to_string();
            for (sum, rate_in, rate_out) in rates(rows, interval, 0.0) {
                line(&mut text, &(rate_in as u64), &(rate_out as u64), &sum.name, name_width);
                remote_lines(&mut text, &sum.remotes, |end| (end.moved_in, end.moved_out), whole);
            }
        }
        (Figures::ApplicationRates, Some(interval)) => {
            let kib = |bytes_per_s: f64| format!("{:10.2} KiB", bytes_per_s / BYTES_PER_KB as f64);
            let kib_of = |moved| kib(per_second(moved, interval));
            for (sum, rate_in, rate_out) in rates(rows, interval, APPLICATION_FLOOR) {
                line(&mut text, &kib(rate_in), &kib(rate_out), &sum.name, name_width);
                remote_lines(&mut text, &sum.remotes, |end| (end.moved_in, end.moved_out), kib_of);
            }
        }
    }
    text
}

/// The bytes of all subjects with one name.
struct Sum<'a> {
    name: Cow<'a, [u8]>,
    bytes_in: u64,
    bytes_out: u64,
    /// The remote ends of each of the subjects.
    remotes: Vec<&'a [RemoteBytes]>,
}

fn sums(rows: &[Row], bytes: fn(&Row) -> (u64, u64)) -> Vec<Sum<'_>> {
    let sum = |row| {
        let (bytes_in, bytes_out) = bytes(row);
        let remotes = row.detail.iter().map(|detail| &*detail.remotes).collect();
        Sum { name: row.subject.name(), bytes_in, bytes_out, remotes }
    };
    let mut sums: Vec<Sum<'_>> = rows.iter().map(sum).collect();
    sums.sort_by(|a, b| a.name.cmp(&b.name));
    sums.dedup_by(|next, sum| {
        let equal = next.name == sum.name;
        if equal {
            sum.bytes_in += next.bytes_in;
            sum.bytes_out += next.bytes_out;
            sum.remotes.append(&mut next.remotes);
        }
        equal
    });
    sums
}

/// The bytes of a name, and how many that is per second in and out.
type NameRate<'a> = (Sum<'a>, f64, f64);

/// The rates of the names that exceed `floor` in either direction, ascending.
fn rates(rows: &[Row], interval: Duration, floor: f64) -> Vec<NameRate<'_>> {
    let mut shown: Vec<NameRate<'_>> = Vec::new();
    for sum in sums(rows, |row| (row.moved_in, row.moved_out)) {
        let (rate_in, rate_out) = (per_second(sum.bytes_in, interval), per_second(sum.bytes_out, interval));
        if rate_in > floor || rate_out > floor {
            shown.push((sum, rate_in, rate_out));
        }
    }
    shown.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.2.total_cmp(&b.2)).then_with(|| a.0.name.cmp(&b.0.name)));
    shown
}

/// A line for each remote end of a name, the biggest first.
fn remote_lines(
    text: &mut Vec<u8>,
    remotes: &[&[RemoteBytes]],
    bytes: fn(&RemoteBytes) -> (u64, u64),
    shown: impl Fn(u64) -> String,
) {
    for (name, bytes_in, bytes_out) in remote_sums(remotes, bytes) {
        line(text, &shown(bytes_in), &shown(bytes_out), name.as_bytes(), NAME_WIDTH);
    }
}

/// The remote ends of a name and their bytes, the biggest first: as many as one of its subjects has.
fn remote_sums(remotes: &[&[RemoteBytes]], bytes: fn(&RemoteBytes) -> (u64, u64)) -> Vec<(String, u64, u64)> {
    let mut sums: HashMap<Remote, (Option<&str>, (u64, u64))> = HashMap::new();
    for end in remotes.iter().copied().flatten() {
        let (bytes_in, bytes_out) = bytes(end);
        let (_, sum) = sums.entry(end.remote).or_insert((end.name.as_deref(), (0, 0)));
        *sum = (sum.0 + bytes_in, sum.1 + bytes_out);
    }
    let mut sums: Vec<_> = sums.into_iter().filter(|(_, (_, bytes))| *bytes != (0, 0)).collect();
    sums.sort_unstable_by_key(|(remote, (_, bytes))| (std::cmp::Reverse(bytes.0 + bytes.1), *remote));
    let most = remotes.iter().map(|remotes| remotes.len()).max().unwrap_or_default();
    let line = |(remote, (name, (bytes_in, bytes_out))): (Remote, (Option<&str>, (u64, u64)))| {
        let end = SocketAddr::new(remote.address, remote.port);
        let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
        (format!("  {end} {}{name}", remote.protocol_name()), bytes_in, bytes_out)
    };
    sums.into_iter().take(most).map(line).collect()
}

fn line(text: &mut Vec<u8>, bytes_in: &dyn Display, bytes_out: &dyn Display, name: &[u8], name_width: usize) {
    // Writing to a Vec cannot fail.
    let _ = writeln!(text, "{bytes_in:>10} / {bytes_out:>10} -- {}", printable(name, name_width));
}

/// The message of a notification; `None` for an application that has recovered.
pub fn notification_line(notification: &Notification, local_time: &str) -> Option<String> {
    if notification.recovered {
        return None;
    }
    let Notification { direction, value_kb_per_s: value, .. } = notification;
    let name = printable(&notification.application.name(), NAME_WIDTH_IN_MESSAGE);
    let limit = notification.threshold_kb_per_s as f64;
    let percent = value / limit * 100.0;
    Some(format!(
        "{local_time}: {name} exceeding '{direction}' bandwidth limit {limit:10.2}: {value:10.2} kB/s ({percent:3.2} %)"
    ))
}

/// The local time as in `2012-11-22 10:37:01`; for a clock beyond the year 9999, the beginning of 1970.
pub(super) fn local_time(at: SystemTime) -> String {
    let timestamp = jiff::Timestamp::try_from(at).unwrap_or_default();
    timestamp.to_zoned(jiff::tz::TimeZone::system()).strftime("%F %T").to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::output::Direction;
    use crate::traffic::subject::Subject;
    use crate::workload::cgroup::Cgroup;

    fn row(name: &str, bytes_in: u64, bytes_out: u64) -> Row {
        let subject = Arc::new(Subject::Named(name.as_bytes().into()));
        Row { subject, bytes_in, bytes_out, moved_in: bytes_in, moved_out: bytes_out, detail: None }
    }

    fn text(figures: Figures, seconds: u64, rows: &[Row]) -> String {
        String::from_utf8(lines(figures, Some(Duration::from_secs(seconds)), rows, NAME_WIDTH)).unwrap()
    }

    #[test]
    fn totals_are_sorted_and_silent_subjects_have_no_line() {
        let rows = [row("b ", 5, 5), row("B ", 5, 5), row("quiet ", 0, 0), row("z ", 1, 9)];
        assert_eq!(
            text(Figures::Totals, 1, &rows),
            "         1 /          9 -- z \n         5 /          5 -- B \n         5 /          5 -- b \n"
        );
    }

    #[test]
    fn subjects_with_one_label_share_a_line() {
        let container = |cgroup: &str, bytes_in| {
            let subject = Subject::Processes {
                command_line: Box::from(&b"nginx "[..]),
                uid: Some(33),
                cgroup: Cgroup::parse(format!("0::{cgroup}").as_bytes(), b""),
                executable: None,
                nameless: false,
            };
            Row { subject: Arc::new(subject), ..row("", bytes_in, 1) }
        };
        let rows = [container("/a", 10), row("curl ", 15, 0), container("/b", 6)];
        assert_eq!(
            text(Figures::Totals, 1, &rows),
            "        15 /          0 -- curl \n        16 /          2 -- nginx \n"
        );
    }

    #[test]
    fn rates_are_cut_to_whole_bytes_after_the_lines_are_chosen() {
        let rows = [row("a", 1, 0), row("b", 0, 0)];
        assert_eq!(text(Figures::Rates, 2, &rows), "         0 /          0 -- a\n");
    }

    #[test]
    fn an_application_needs_more_than_1024_bytes_per_second() {
        let rows = [row("at", 1024, 1024), row("over", 1025, 0)];
        assert_eq!(text(Figures::ApplicationRates, 1, &rows), "      1.00 KiB /       0.00 KiB -- over\n");
    }

    #[test]
    fn without_an_interval_there_are_no_rates() {
        assert_eq!(lines(Figures::Rates, None, &[row("a", 1, 1)], NAME_WIDTH), b"");
    }

    #[test]
    fn the_message_is_that_of_the_original() {
        let notification = |application: &str, recovered| Notification {
            rule: 0,
            application: Arc::new(Subject::Named(application.as_bytes().into())),
            direction: Direction::Out,
            threshold_kb_per_s: 49,
            value_kb_per_s: 50.0,
            recovered,
            command_failure: None,
        };
        let name = "x".repeat(51);
        assert_eq!(
            notification_line(&notification(&name, false), "2012-11-22 10:37:01").unwrap(),
            format!(
                "2012-11-22 10:37:01: {}... exceeding 'out' bandwidth limit      49.00:      50.00 kB/s (102.04 %)",
                "x".repeat(47)
            )
        );
        assert_eq!(notification_line(&notification(&name, true), "2012-11-22 10:37:01"), None);
    }
}
