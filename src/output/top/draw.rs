//! The screen: lines of cells, made of the [model](super::model) alone.
//!
//! ```text
//!  bwmon atlas  in 44.6 MB/s  out 88.9 MB/s    conntrack  313 processes  23:31:00
//!    IN/s▾  OUT/s▾   TOTAL 60 s           PID USER     COMMAND
//!  3.11 MB 66.6 MB 1.70 TB ▅▅▆▆▇▇▇▇▇▇     815 www-data nginx -g daemon off;
//! ›28.2 MB  545 kB  710 GB ▆▇▇▆▇▇▇▇▆▆   40213 alice    rclone sync b2:archive ...
//!  / filter  g group  t totals  u unit  Space pause  ? help  q quit   1-21 of 313
//! ```

use ratatui_core::buffer::Buffer;
use ratatui_core::style::Style;

use super::columns::{Kind, columns};
use super::history::{Rate, diagram};
use super::model::{CHART_TICKS, Item, Model, Overlay, RemoteItem};
use crate::output::text::local_time;
use crate::output::tty::Size;
use crate::printable::{columns as columns_of, printable, printable_command};

/// A smaller screen shows the sums alone.
const LEAST: Size = Size { columns: 40, lines: 6 };
/// A row with this part of the host's traffic is strong.
const MUCH: f64 = 0.1;

const HELP: [&str; 19] = [
    "Keys",
    "up down j k   select          Enter   open, close the row",
    "PgUp PgDn     a page          Esc     back; clears filter, selection",
    "Home End      first, last     /       filter as you type",
    "",
    "Sort  I in  O out  B both  T total  N name  P pid  U user  r reverse",
    "      < >  the column to the left, to the right; a click on a head",
    "",
    "g G   group: program, user, unit, container",
    "t     rates or totals first    u   bytes, bits, binary (KiB)",
    "w     without owner, by reason n   notes and notifications",
    "Space pause                    m   mouse on, off (to select text)",
    "Ctrl-L  paint anew             q   quit, as does Ctrl-C",
    "",
    "in   received by the process      /s    mean of the last tick",
    "out  sent by it                   60 s  in + out, to its own top",
    "!    above a notification limit   (...) nobody's, with the reason",
    "",
    "any key closes",
];

/// Draws the whole screen.
pub(super) fn draw(model: &mut Model, screen: &mut Buffer) {
    let size = Size { columns: screen.area.width.into(), lines: screen.area.height.into() };
    let mut canvas = Canvas { screen, size };
    if size.columns < LEAST.columns || size.lines < LEAST.lines {
        let text = format!("in {}  out {}", rate(model, model.sum.0), rate(model, model.sum.1));
        canvas.line(0, &[(&text, model.look.strong())]);
        return;
    }
    let list_lines = model.list_lines(size);
    model.scroll(list_lines);

    head(model, &mut canvas);
    if model.has_new_note {
        let note = model.notes.back().map(|note| printable(note.as_bytes(), size.columns - 4)).unwrap_or_default();
        canvas.line(1, &[(" ! ", model.look.warning()), (&note, model.look.warning())]);
    }
    if model.chart_lines(size) > 0 {
        chart(model, &mut canvas, 1 + usize::from(model.has_new_note));
    }
    if model.opened.is_none() || model.opened_is_below(size) {
        list(model, &mut canvas, model.head_line(size), list_lines);
    }
    if let Some(opened) = &model.opened {
        let lines = model.opened_lines(size) - usize::from(model.has_new_note && !model.opened_is_below(size));
        open(model, opened, &mut canvas, size.lines - 1 - lines, lines);
    }
    if model.is_editing {
        filter(model, &mut canvas);
    }
    keys(model, &mut canvas, list_lines);
    match model.overlay {
        Some(Overlay::Help) => overlay(model, &mut canvas, HELP.iter().map(|line| (*line).to_owned()).collect()),
        Some(Overlay::Notes) => overlay(model, &mut canvas, notes(model, size)),
        None => {}
    }
}

/// Writes lines of text to the cells of a screen.
struct Canvas<'a> {
    screen: &'a mut Buffer,
    size: Size,
}

impl Canvas<'_> {
    /// Pieces of text, one after the other, from the beginning of a line on; what does not fit is cut.
    fn line(&mut self, line: usize, pieces: &[(&str, Style)]) {
        self.text(0, line, pieces);
    }

    fn text(&mut self, column: usize, line: usize, pieces: &[(&str, Style)]) {
        let (Ok(mut column), Ok(line)) = (u16::try_from(column), u16::try_from(line)) else { return };
        if line >= self.screen.area.height {
            return;
        }
        for (text, style) in pieces {
            let room = self.screen.area.width.saturating_sub(column);
            (column, _) = self.screen.set_stringn(column, line, text, room.into(), *style);
        }
    }

    /// Two parts of a line, at its left and its right end.
    fn ends(&mut self, line: usize, left: &[(&str, Style)], right: &[(&str, Style)]) {
        self.line(line, left);
        let width: usize = right.iter().map(|(text, _)| columns_of(text)).sum();
        self.text(self.size.columns.saturating_sub(width), line, right);
    }

    /// Gives a whole line another style.
    fn style(&mut self, line: usize, style: Style) {
        for column in 0..self.screen.area.width {
            if let Ok(line) = u16::try_from(line)
                && let Some(cell) = self.screen.cell_mut((column, line))
            {
                cell.set_style(style);
            }
        }
    }
}

/// A rate without the blanks that columns need.
fn rate(model: &Model, bytes_per_s: f64) -> String {
    format!("{}/s", model.unit.rate(bytes_per_s).trim())
}

/// A rate in the width of the biggest, so that what follows stands still.
fn fixed_rate(model: &Model, bytes_per_s: f64) -> String {
    let text = model.unit.rate(bytes_per_s);
    format!("{:<width$}", format!("{}/s", text.trim_end()), width = model.unit.rate_columns() + 2)
}

/// The host's sums; at the right the source of the figures, the number of rows, and the time or since when it stands still.
fn head(model: &Model, canvas: &mut Canvas<'_>) {
    let look = model.look;
    let clock = local_time(model.shown_at().wall_clock).split_off("2012-11-22 ".len());
    let is_paused = model.paused.is_some();
    let clock = if is_paused { format!(" PAUSED at {clock} ") } else { clock };
    let (rate_in, rate_out) = (fixed_rate(model, model.sum.0), fixed_rate(model, model.sum.1));
    let both = fixed_rate(model, model.sum.0 + model.sum.1);
    let host = format!(" {}", printable(model.host.as_bytes(), 20));
    let (source, count) = (model.frame.facts.counters.unwrap_or_default(), model.count());
    // What does not fit goes: the sum of both, the source, the host, the number.
    for dropped in 0..=4 {
        let mut left = vec![(" bwmon", look.weak())];
        if dropped < 3 {
            left.push((&host, look.weak()));
        }
        left.extend([
            ("  in ", look.weak()),
            (&rate_in, look.strong()),
            ("  out ", look.weak()),
            (&rate_out, look.strong()),
        ]);
        if dropped < 1 {
            left.extend([("  both ", look.weak()), (&*both, look.strong())]);
        }
        let mut right: Vec<(&str, Style)> = Vec::new();
        if dropped < 2 && !source.is_empty() {
            right.extend([(source, look.weak()), ("  ", look.weak())]);
        }
        if dropped < 4 {
            right.extend([(&*count, look.weak()), ("  ", look.weak())]);
        }
        right.push((&clock, if is_paused { look.reversed() } else { look.weak() }));
        let width = |pieces: &[(&str, Style)]| pieces.iter().map(|(text, _)| columns_of(text)).sum::<usize>();
        if dropped == 4 || width(&left) + width(&right) < canvas.size.columns {
            return canvas.ends(0, &left, &right);
        }
    }
}

/// Ten minutes of the host: in above the middle, out below, on one scale.
fn chart(model: &Model, canvas: &mut Canvas<'_>, top: usize) {
    const HALF: usize = 3;
    const UP: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    const DOWN: [&str; 3] = [" ", "▀", "█"];
    let look = model.look;
    let width = canvas.size.columns - 24;
    let means = model.chart(width);
    let most = |of: fn(Rate) -> f64| means.iter().map(|rate| of(*rate)).fold(0.0, f64::max);
    let (most_in, most_out) = (most(|rate| rate.0), most(|rate| rate.1));
    let scale = most_in.max(most_out).max(1.0) / HALF as f64;
    // How much of a cell is filled whose base has so many cells between it and the middle.
    let part = |rate: f64, base: usize, levels: &[&'static str]| {
        let full = levels.len() - 1;
        let filled = (rate / scale - base as f64) * full as f64;
        // Whatever moved is seen.
        let least = usize::from(base == 0 && rate > 0.0);
        levels[(filled.round().max(0.0) as usize).clamp(least, full)]
    };
    let left = 1 + width - means.len();
    let in_lines = (0..HALF).rev().map(|base| means.iter().map(|rate| part(rate.0, base, &UP)).collect::<String>());
    let out_lines = (0..HALF).map(|base| means.iter().map(|rate| part(rate.1, base, &DOWN)).collect::<String>());
    for (at, line) in in_lines.chain(out_lines).enumerate() {
        canvas.text(left, top + at, &[(&line, look.diagram())]);
    }
    let share = |of: fn(Rate) -> f64| {
        let item = model.biggest(of).filter(|item| of(item.rate) > 0.0)?;
        let name = printable_command(item.name.split(|byte| *byte == b' ').next().unwrap_or_default(), 14);
        Some(format!("{name} {:.0} %", of(item.rate) / of(model.sum) * 100.0))
    };
    let labels = [
        Some(format!("in, most {}", rate(model, most_in))),
        None,
        share(|rate| rate.0),
        share(|rate| rate.1),
        None,
        Some(format!("out, most {}", rate(model, most_out))),
    ];
    for (at, label) in labels.iter().enumerate() {
        let label = label.as_deref().unwrap_or_default();
        canvas.text(width + 2, top + at, &[(label, look.weak())]);
    }
    let seconds = model.frame.interval.map_or(1.0, |interval| interval.as_secs_f64())
        * means.len() as f64
        * CHART_TICKS.div_ceil(width) as f64;
    let begin = format!("-{:.0} min", (seconds / 60.0).ceil());
    canvas.text(left.min(width - 12), top + 2 * HALF, &[(&begin, look.weak())]);
    canvas.text(width - 2, top + 2 * HALF, &[("now", look.weak())]);
}

/// The heads of the columns in `line`, and below them so many rows.
fn list(model: &Model, canvas: &mut Canvas<'_>, line: usize, lines: usize) {
    let look = model.look;
    let columns = columns(model, canvas.size.columns);
    let heads: Vec<String> = columns.iter().map(|column| column.head(model)).collect();
    let mut pieces = vec![(" ", look.head(false))];
    for (column, head) in columns.iter().zip(&heads) {
        pieces.extend([(&**head, look.head(column.is_sorted(model))), (" ", look.head(false))]);
    }
    canvas.line(line, &pieces);

    let cells = columns.iter().find(|column| column.kind == Kind::Minute).map_or(0, |column| column.width);
    let most = if cells > 0 { model.most(cells) } else { 0.0 };
    for (at, item) in model.items_from(model.first).take(lines).enumerate() {
        let line = line + 1 + at;
        let is_selected = model.selected.as_ref() == Some(&item.key);
        let style = row_style(model, item);
        let mark = match (item.is_alarmed, is_selected) {
            (_, true) if look.utf8 => "›",
            (_, true) => ">",
            (true, false) => "!",
            (false, false) => " ",
        };
        let texts: Vec<String> = columns.iter().map(|column| column.cell(model, item, most)).collect();
        let mut pieces = vec![(mark, style)];
        for (column, text) in columns.iter().zip(&texts) {
            let cell = if column.kind == Kind::Minute && !item.is_quiet() { look.diagram() } else { style };
            pieces.extend([(&**text, cell), (" ", style)]);
        }
        canvas.line(line, &pieces);
        if is_selected {
            canvas.style(line, look.reversed());
        }
    }
    if model.count_shown() == 0 {
        let text = if model.filter.is_empty() {
            " Nothing has moved yet.".to_owned()
        } else {
            format!(" Nothing matches {}: Esc shows all {}.", printable(model.filter.as_bytes(), 40), model.count())
        };
        canvas.line(line + 1, &[(&text, look.weak())]);
    }
}

fn row_style(model: &Model, item: &Item) -> Style {
    let of = |part: f64, sum: f64| sum > 0.0 && part >= sum * MUCH;
    match item {
        _ if item.is_alarmed => model.look.alarm(),
        _ if item.is_quiet() => model.look.weak(),
        _ if of(item.rate.0, model.sum.0) || of(item.rate.1, model.sum.1) => model.look.strong(),
        _ => Style::new(),
    }
}

/// A row by itself, in so many lines from `top` on: who it is, its last minute, its remote ends.
fn open(model: &Model, item: &Item, canvas: &mut Canvas<'_>, top: usize, lines: usize) {
    let (look, unit) = (model.look, model.unit);
    let mut line = top;
    let bottom = top + lines;
    if model.opened_is_below(canvas.size) {
        let width = canvas.size.columns;
        let rule = if look.utf8 { "─" } else { "-" }.repeat(width);
        canvas.line(line, &[(&rule, look.weak())]);
        line += 1;
    }
    let name = printable_command(&item.name, canvas.size.columns.saturating_sub(2));
    canvas.line(line, &[(" ", look.strong()), (&name, look.strong())]);
    let mut facts: Vec<(&str, String)> = Vec::new();
    let (several, last) = (item.pids.len().saturating_sub(1), item.pids.last());
    let pids = match last {
        Some(pid) if several > 0 => format!("{pid} +{several}"),
        Some(pid) => pid.to_string(),
        None => String::new(),
    };
    facts.push(("pid", pids));
    for (label, text) in [("user", &item.user), ("unit", &item.unit), ("container", &item.container)] {
        facts.push((label, printable(text.as_bytes(), 40)));
    }
    if item.connections > 0 {
        facts.push(("connections", item.connections.to_string()));
    }
    let mut pieces = vec![(" ", look.weak())];
    for (label, text) in facts.iter().filter(|(_, text)| !text.is_empty()) {
        pieces.extend([(*label, look.weak()), (" ", look.weak()), (text, Style::new()), ("   ", look.weak())]);
    }
    canvas.line(line + 1, &pieces);

    let cells = if canvas.size.columns >= 80 { 30 } else { 10 };
    let minute = |of: fn(Rate) -> f64| diagram(&item.history.cells(model.shown_tick, cells, of), 0.0, look.utf8);
    let (diagram_in, diagram_out) = (minute(|rate| rate.0), minute(|rate| rate.1));
    let (received, sent) = (unit.total(item.total.0), unit.total(item.total.1));
    for (at, (label, rate, diagram, moved, total)) in
        [("in ", item.rate.0, diagram_in, "received", received), ("out", item.rate.1, diagram_out, "sent    ", sent)]
            .into_iter()
            .enumerate()
    {
        let rate = fixed_rate(model, rate);
        let (label, moved) = (format!(" {label} "), format!("  {moved} "));
        let pieces = [
            (&*label, look.weak()),
            (&*rate, look.strong()),
            ("  ", look.weak()),
            (&*diagram, look.diagram()),
            (&*moved, look.weak()),
            (&*total, look.strong()),
        ];
        canvas.line(line + 3 + at, &pieces);
    }
    remotes(model, canvas, line + 6, bottom.saturating_sub(line + 6));
}

/// The remote ends of the opened row, in so many lines.
fn remotes(model: &Model, canvas: &mut Canvas<'_>, top: usize, lines: usize) {
    let (look, unit) = (model.look, model.unit);
    let (ends, others) = model.remotes();
    if ends.is_empty() {
        return canvas.line(top, &[(" No remote end is known.", look.weak())]);
    }
    let (rate, total) = (unit.rate_columns(), unit.total_columns().max(8));
    let name = canvas.size.columns.saturating_sub(2 * (rate + 1) + 2 * (total + 1) + 2).min(60);
    let head = format!(
        " {:<name$} {:>rate$} {:>rate$} {:>total$} {:>total$}",
        "REMOTE END", "IN/s", "OUT/s", "RECEIVED", "SENT"
    );
    canvas.line(top, &[(&head, look.head(false))]);
    // The last line is for the others.
    let shown = ends.len().min(lines.saturating_sub(2));
    for (at, end) in ends[..shown].iter().enumerate() {
        let text = printable(remote(end).as_bytes(), name);
        let [rate_in, rate_out] = [unit.rate(end.rate.0), unit.rate(end.rate.1)];
        let [received, sent] = [unit.total(end.total.0), unit.total(end.total.1)];
        let line = format!(" {text:<name$} {rate_in:>rate$} {rate_out:>rate$} {received:>total$} {sent:>total$}");
        canvas.line(top + 1 + at, &[(&line, Style::new())]);
    }
    let rest = ends[shown..].iter().fold(others, |sum, end| (sum.0 + end.total.0, sum.1 + end.total.1));
    if rest != (0, 0) {
        let text = match ends.len() - shown {
            0 => "all others".to_owned(),
            count if others == (0, 0) => format!("and {count} more"),
            count => format!("and {count} more, and all others"),
        };
        let blank = " ".repeat(2 * (rate + 1));
        let line = format!(" {text:<name$}{blank} {:>total$} {:>total$}", unit.total(rest.0), unit.total(rest.1));
        canvas.line(top + 1 + shown, &[(&line, look.weak())]);
    }
}

/// `tcp 203.0.113.77:443`, and the name if it is known.
fn remote(end: &RemoteItem) -> String {
    let protocol = end.remote.protocol_name();
    let name = end.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    match end.remote.port {
        0 => format!("{protocol} {}{name}", end.remote.address),
        port => format!("{protocol} {}{name}", std::net::SocketAddr::new(end.remote.address, port)),
    }
}

fn filter(model: &Model, canvas: &mut Canvas<'_>) {
    let look = model.look;
    let line = canvas.size.lines - 2;
    let cursor = if look.utf8 { "▏" } else { "_" };
    let text = printable(model.filter.as_bytes(), canvas.size.columns / 2);
    let count = format!("{} of {} match   Enter keeps  Esc clears ", model.count_shown(), model.count_all());
    let blank = " ".repeat(canvas.size.columns);
    canvas.line(line, &[(&blank, Style::new())]);
    canvas.ends(
        line,
        &[(" Filter: ", look.strong()), (&text, Style::new()), (cursor, Style::new())],
        &[(&count, look.weak())],
    );
}

/// What the keys do, and which rows are on the screen.
fn keys(model: &Model, canvas: &mut Canvas<'_>, list_lines: usize) {
    let look = model.look;
    let mut hints = if model.opened.is_some() {
        vec![("Esc", "back"), ("Space", "pause"), ("u", "unit"), ("?", "help"), ("q", "quit")]
    } else {
        vec![("/", "filter"), ("t", "totals"), ("u", "unit"), ("Space", "pause"), ("?", "help"), ("q", "quit")]
    };
    if model.opened.is_none() {
        if model.has_processes() {
            hints.insert(1, ("g", "group"));
        }
        if canvas.size.columns >= 100 {
            hints.insert(1, ("B", "sort"));
            hints.insert(1, ("Enter", "open"));
        }
    }
    let texts: Vec<String> = hints.iter().map(|(_, does)| format!(" {does} ")).collect();
    let mut pieces = vec![(" ", look.weak())];
    for ((key, _), text) in hints.iter().zip(&texts) {
        pieces.extend([(*key, look.strong()), (&**text, look.weak()), (" ", look.weak())]);
    }
    let shown = model.count_shown();
    let last = (model.first + list_lines).min(shown);
    let (of, filter) = (model.count_all(), printable(model.filter.as_bytes(), 20));
    let mut place = format!("{}-{last} of {shown}", (model.first + 1).min(last));
    if model.is_editing {
        // The line above says it.
        place.clear();
    } else if !model.filter.is_empty() {
        place = format!("{shown} of {of} match {filter}");
    }
    if model.opened.is_some() && !model.opened_is_below(canvas.size) {
        place.clear();
    }
    // That rows are left out matters more than the last hints, of three pieces each.
    let used = |pieces: &[(&str, Style)]| pieces.iter().map(|(text, _)| columns_of(text)).sum::<usize>();
    while pieces.len() > 3 && used(&pieces) + columns_of(&place) >= canvas.size.columns {
        pieces.truncate(pieces.len() - 3);
    }
    canvas.ends(canvas.size.lines - 1, &pieces, &[(&place, look.weak())]);
}

/// The messages so far, the newest last.
fn notes(model: &Model, size: Size) -> Vec<String> {
    let width = size.columns.saturating_sub(10);
    let mut lines = vec!["Notes and notifications".to_owned(), String::new()];
    if model.notes.is_empty() {
        lines.push("none so far".to_owned());
    }
    let room = size.lines.saturating_sub(8);
    let from = model.notes.len().saturating_sub(room);
    lines.extend(model.notes.range(from..).map(|note| printable(note.as_bytes(), width)));
    lines.extend([String::new(), "any key closes".to_owned()]);
    lines
}

/// A box with text over the list.
fn overlay(model: &Model, canvas: &mut Canvas<'_>, lines: Vec<String>) {
    let look = model.look;
    let [across, down, corners] = if look.utf8 { ["─", "│", "┌┐└┘"] } else { ["-", "|", "++++"] };
    let corner = |at| corners.chars().nth(at).map(String::from).unwrap_or_default();
    let room = canvas.size.columns.saturating_sub(4);
    let inner = lines.iter().map(|line| columns_of(line)).max().unwrap_or_default().clamp(20, room.max(20)) + 2;
    let left = canvas.size.columns.saturating_sub(inner + 2) / 2;
    let top = 2.min(canvas.size.lines.saturating_sub(lines.len() + 2));
    let edge = across.repeat(inner);
    let blank = " ".repeat(canvas.size.columns);
    for line in top..(top + lines.len() + 2).min(canvas.size.lines - 1) {
        canvas.line(line, &[(&blank, Style::new())]);
    }
    canvas.text(left, top, &[(&corner(0), look.weak()), (&edge, look.weak()), (&corner(1), look.weak())]);
    for (at, line) in lines.iter().enumerate() {
        let padding = " ".repeat((inner - 2).saturating_sub(columns_of(line)));
        let style = if at == 0 { look.strong() } else { Style::new() };
        let text = format!(" {line}{padding} ");
        canvas.text(left, top + 1 + at, &[(down, look.weak()), (&text, style), (down, look.weak())]);
    }
    canvas.text(
        left,
        top + 1 + lines.len(),
        &[(&corner(2), look.weak()), (&edge, look.weak()), (&corner(3), look.weak())],
    );
}
