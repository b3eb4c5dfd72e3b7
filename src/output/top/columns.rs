//! The columns of the list: which ones fit a width, and what they hold.

use super::history::diagram;
use super::model::{Item, Model, SortBy, both};
use crate::printable::{printable, printable_command};

/// From these widths on there are more columns.
const MEDIUM: usize = 110;
const WIDE: usize = 150;
/// Below these widths there are fewer.
const NARROW: usize = 80;
const VERY_NARROW: usize = 60;

/// A column of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    In,
    Out,
    Both,
    Total,
    Received,
    Sent,
    Minute,
    Connections,
    Processes,
    Pid,
    User,
    Unit,
    Name,
}

/// A column and its width; the last one, the name, has the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub kind: Kind,
    pub width: usize,
}

/// The columns of a screen of this width. Before each of them is a blank; that of the first is for a mark.
pub(super) fn columns(model: &Model, width: usize) -> Vec<Column> {
    let (rate, total) = (model.unit.rate_columns(), model.unit.total_columns());
    let column = |kind, width| Column { kind, width };
    let mut rates = vec![column(Kind::In, rate), column(Kind::Out, rate)];
    if width >= MEDIUM {
        rates.push(column(Kind::Both, rate));
    }
    let totals = match width {
        _ if width >= WIDE || (model.totals_first && width >= VERY_NARROW) => {
            vec![column(Kind::Received, total.max(8)), column(Kind::Sent, total)]
        }
        VERY_NARROW.. => vec![column(Kind::Total, total)],
        _ => Vec::new(),
    };
    let mut all = if model.totals_first { [totals, rates].concat() } else { [rates, totals].concat() };
    if width >= WIDE {
        all.push(column(Kind::Minute, 30));
    } else if width >= MEDIUM || (width >= NARROW && !model.totals_first) {
        all.push(column(Kind::Minute, 10));
    }
    if model.is_grouped() || !model.has_processes() {
        all.push(column(Kind::Connections, 5));
        all.push(column(Kind::Processes, 5));
    } else {
        if width >= WIDE {
            all.push(column(Kind::Connections, 5));
        }
        if width >= VERY_NARROW {
            all.push(column(Kind::Pid, 7));
        }
        if width >= NARROW {
            all.push(column(Kind::User, if width >= WIDE { 12 } else { 8 }));
        }
        if width >= MEDIUM {
            all.push(column(Kind::Unit, if width >= WIDE { 26 } else { 16 }));
        }
    }
    let used: usize = all.iter().map(|column| 1 + column.width).sum();
    all.push(column(Kind::Name, width.saturating_sub(used + 1)));
    all
}

impl Column {
    /// Its head, at least as narrow as its cells.
    pub fn head(&self, model: &Model) -> String {
        let sort = |kind| if self.sorts() == Some(kind) && model.sort_by == kind { model.mark() } else { "" };
        let title = match self.kind {
            Kind::In => "IN/s",
            Kind::Out => "OUT/s",
            Kind::Both => "SUM/s",
            Kind::Total => "TOTAL",
            Kind::Received => "RECEIVED",
            Kind::Sent => "SENT",
            Kind::Minute => return format!("{:<width$}", model.minute(), width = self.width),
            Kind::Connections => "CONNS",
            Kind::Processes => "PROCS",
            Kind::Pid => "PID",
            Kind::User => "USER",
            Kind::Unit => "UNIT / CONTAINER",
            Kind::Name => model.title(),
        };
        // Sorted by the sum, both of its parts are marked where it has no column.
        let both = matches!(self.kind, Kind::In | Kind::Out | Kind::Both) && model.sort_by == SortBy::Both;
        let totals = matches!(self.kind, Kind::Received | Kind::Sent) && model.sort_by == SortBy::Total;
        let mark = if both || totals { model.mark() } else { self.sorts().map_or("", sort) };
        // A title that fills its column has no room for the mark: it is bold.
        let mark = if title.len() < self.width { mark } else { "" };
        let width = self.width;
        if self.is_left() {
            format!("{:<width$}", format!("{title}{mark}"))
        } else {
            format!("{:>width$}", format!("{title}{mark}"))
        }
    }

    /// What a click on the head sorts by.
    pub fn sorts(&self) -> Option<SortBy> {
        Some(match self.kind {
            Kind::In => SortBy::In,
            Kind::Out => SortBy::Out,
            Kind::Both | Kind::Minute => SortBy::Both,
            Kind::Total | Kind::Received | Kind::Sent => SortBy::Total,
            Kind::Pid => SortBy::Pid,
            Kind::User => SortBy::User,
            Kind::Name => SortBy::Name,
            Kind::Connections | Kind::Processes | Kind::Unit => return None,
        })
    }

    /// Whether rows are sorted by this column, alone or with another.
    pub fn is_sorted(&self, model: &Model) -> bool {
        self.kind != Kind::Minute && self.sorts() == Some(model.sort_by)
            || matches!(self.kind, Kind::In | Kind::Out) && model.sort_by == SortBy::Both
    }

    fn is_left(&self) -> bool {
        matches!(self.kind, Kind::Minute | Kind::User | Kind::Unit | Kind::Name)
    }

    /// The cell of a row. `most` is the biggest cell of all diagrams.
    pub fn cell(&self, model: &Model, item: &Item, most: f64) -> String {
        let width = self.width;
        let text = match self.kind {
            Kind::In => model.unit.rate(item.rate.0),
            Kind::Out => model.unit.rate(item.rate.1),
            Kind::Both => model.unit.rate(both(item.rate)),
            Kind::Total => model.unit.total(item.total.0.saturating_add(item.total.1)),
            Kind::Received => model.unit.total(item.total.0),
            Kind::Sent => model.unit.total(item.total.1),
            Kind::Minute => diagram(&item.history.cells(model.shown_tick, width, both), most, model.look.utf8),
            Kind::Connections => if_any(item.connections),
            Kind::Processes => if_any(item.pids.len() as u64),
            Kind::Pid => item.pids.last().map(u32::to_string).unwrap_or_default(),
            Kind::User => short(&item.user, width),
            Kind::Unit => short(if item.container.is_empty() { &item.unit } else { &item.container }, width),
            Kind::Name => return printable_command(&item.name, width),
        };
        if self.is_left() { padded(text, width) } else { format!("{text:>width$}") }
    }
}

fn if_any(count: u64) -> String {
    if count == 0 { String::new() } else { count.to_string() }
}

/// A name in its column: one that is too long ends in `+`, as in ps.
fn short(name: &str, width: usize) -> String {
    let text = printable(name.as_bytes(), usize::MAX);
    if crate::printable::columns(&text) <= width {
        return text;
    }
    let mut used = 1;
    let kept = text.chars().take_while(|c| {
        used += crate::printable::columns(c.encode_utf8(&mut [0; 4]));
        used <= width
    });
    kept.chain(['+']).collect()
}

/// Fills up a text to its width on a terminal.
fn padded(mut text: String, width: usize) -> String {
    let used = crate::printable::columns(&text);
    text.extend(std::iter::repeat_n(' ', width.saturating_sub(used)));
    text
}

/// The column at a place of a line.
pub(super) fn at(columns: &[Column], place: usize) -> Option<Column> {
    let mut end = 0;
    columns.iter().copied().find(|column| {
        end += 1 + column.width;
        place < end
    })
}
