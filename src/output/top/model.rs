//! What the screen shows: the rows of the last tick, grouped, filtered and in order; and what the keys have changed.
//!
//! Here nothing is drawn, and no key is known: [`draw`](super::draw) makes a screen of this, [`keys`](super::keys) calls it.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::history::{History, Rate, SHOWN_TICKS};
use super::look::Look;
use super::unit::Unit;
use super::{Property, Rows};
use crate::output::text::messages;
use crate::output::tty::Size;
use crate::output::{Frame, Moment};
use crate::traffic::detail::Remote;
use crate::traffic::rates::{Row, per_second};
use crate::traffic::subject::Subject;
use crate::workload::names::Names;

/// The order changes at most this often, and not for a while after a key that moves in the list.
const ORDER_STANDS: Duration = Duration::from_secs(3);
const ORDER_STANDS_AFTER_KEY: Duration = Duration::from_secs(10);
/// A row's place changes when what it is sorted by has changed by more than this part.
const CHANGE_THAT_MATTERS: f64 = 0.1;
/// The most messages that are kept.
const MOST_NOTES: usize = 100;
/// On a screen of so many lines, an opened row has the lower half, and otherwise all of it.
const LINES_FOR_TWO: usize = 40;
/// From this width on such a screen also has a chart: so many lines, for so many ticks.
const COLUMNS_FOR_CHART: usize = 150;
const CHART_LINES: usize = 7;
pub(super) const CHART_TICKS: usize = 600;
/// The longest filter, in characters.
const LONGEST_FILTER: usize = 100;

/// What rows are sorted by. Figures: the biggest is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SortBy {
    In,
    Out,
    Both,
    Total,
    Pid,
    User,
    Name,
}

impl SortBy {
    const ALL: [Self; 7] = [Self::In, Self::Out, Self::Both, Self::Total, Self::Pid, Self::User, Self::Name];

    /// The next of them, or the one before.
    pub fn neighbour(self, step: isize) -> Self {
        let at = Self::ALL.iter().position(|by| *by == self).unwrap_or_default();
        Self::ALL[at.saturating_add_signed(step).min(Self::ALL.len() - 1)]
    }
}

/// What covers the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overlay {
    Help,
    Notes,
}

/// What makes a row the same at the next tick.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Subject(Arc<Subject>),
    Group(Vec<u8>),
}

/// A row of the list: a subject, or a group of them.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub key: Key,
    /// What it is called, not yet safe to print.
    pub name: Vec<u8>,
    /// The processes that are known, the most recent last.
    pub pids: Vec<u32>,
    pub connections: u64,
    pub user: String,
    pub unit: String,
    pub container: String,
    /// Bytes per second in the last tick.
    pub rate: Rate,
    /// Bytes in and out.
    pub total: (u64, u64),
    pub history: History,
    /// Whether it exceeds a threshold.
    pub is_alarmed: bool,
}

impl Item {
    /// Whether this is nobody's.
    fn is_unowned(&self) -> bool {
        matches!(&self.key, Key::Subject(subject) if matches!(**subject, Subject::Unowned(_)))
    }

    pub fn is_quiet(&self) -> bool {
        self.rate == (0.0, 0.0)
    }

    fn matches(&self, filter: &str) -> bool {
        let contains = |text: &str| text.to_lowercase().contains(filter);
        contains(&String::from_utf8_lossy(&self.name))
            || [&self.user, &self.unit, &self.container].into_iter().any(|text| contains(text))
            || self.pids.iter().any(|pid| pid.to_string() == filter)
    }
}

/// The traffic with a remote end.
#[derive(Debug, Clone)]
pub(super) struct RemoteItem {
    pub remote: Remote,
    pub name: Option<Arc<str>>,
    pub rate: Rate,
    pub total: (u64, u64),
}

/// What the view shows, and what it remembers from one tick to the next.
#[derive(Debug)]
pub(super) struct Model {
    pub host: String,
    pub look: Look,
    groupings: Vec<(&'static str, Property)>,
    /// What one row is called, and several.
    of: (&'static str, &'static str),
    group: usize,

    pub unit: Unit,
    pub totals_first: bool,
    pub sort_by: SortBy,
    pub reversed: bool,
    pub shows_unowned: bool,
    pub filter: String,
    /// Whether what is typed goes to the filter.
    pub is_editing: bool,
    pub overlay: Option<Overlay>,
    pub paused: Option<Moment>,
    pub opened: Option<Item>,
    pub selected: Option<Key>,
    /// The first row on the screen.
    pub first: usize,
    pub notes: VecDeque<String>,
    /// Whether the last message has not been dismissed.
    pub has_new_note: bool,

    names: Names,
    /// The last frame.
    pub frame: Frame,
    /// The number of the last tick, and of the one that the rows are of.
    tick: u64,
    pub shown_tick: u64,
    histories: HashMap<Arc<Subject>, History>,
    /// The groups of subjects, where rows are groups.
    groups: HashMap<Arc<Subject>, Vec<u8>>,
    /// The rates in and out of all rows, those that are not shown too; of the last tick, and of those before for the chart.
    pub sum: Rate,
    sums: VecDeque<Rate>,
    /// All rows in their order, and those of them that the filter lets through.
    items: Vec<Item>,
    shown: Vec<usize>,
    ranks: HashMap<Key, f64>,
    ordered_at: Option<Instant>,
    order_stands_until: Option<Instant>,
}

impl Model {
    /// A view without figures.
    pub fn new(host: String, look: Look, rows: Rows, now: Moment) -> Self {
        let Rows { of, groupings, first } = rows;
        Self {
            host,
            look,
            groupings,
            of,
            group: first,
            unit: Unit::default(),
            totals_first: false,
            sort_by: SortBy::Both,
            reversed: false,
            shows_unowned: true,
            filter: String::new(),
            is_editing: false,
            overlay: None,
            paused: None,
            opened: None,
            selected: None,
            first: 0,
            notes: VecDeque::new(),
            has_new_note: false,
            names: Names::read_by_another_thread(),
            frame: Frame::at(now),
            tick: 0,
            shown_tick: 0,
            histories: HashMap::new(),
            groups: HashMap::new(),
            sum: (0.0, 0.0),
            sums: VecDeque::new(),
            items: Vec::new(),
            shown: Vec::new(),
            ranks: HashMap::new(),
            ordered_at: None,
            order_stands_until: None,
        }
    }

    /// Takes the figures of a tick.
    pub fn take(&mut self, frame: Frame) {
        self.tick += 1;
        self.names.refresh();
        self.add_notes(messages(&frame));
        let mut sum = (0.0, 0.0);
        if let Some(interval) = frame.interval {
            for row in frame.rows.iter().chain(&frame.unowned) {
                let rate = (per_second(row.moved_in, interval), per_second(row.moved_out, interval));
                sum = (sum.0 + rate.0, sum.1 + rate.1);
                if rate != (0.0, 0.0) {
                    self.histories.entry(Arc::clone(&row.subject)).or_default().add(self.tick, rate);
                }
            }
        }
        self.sums.push_back(sum);
        self.sums.drain(..self.sums.len().saturating_sub(CHART_TICKS));
        let tick = self.tick;
        self.histories.retain(|_, history| history.forget(tick));
        self.frame = frame;
        if self.paused.is_none() {
            self.rebuild();
        }
    }

    /// Takes messages that belong to no tick.
    pub fn add_notes(&mut self, notes: Vec<String>) {
        self.has_new_note |= !notes.is_empty();
        self.notes.extend(notes);
        self.notes.drain(..self.notes.len().saturating_sub(MOST_NOTES));
    }

    /// The time that the screen shows.
    pub fn shown_at(&self) -> Moment {
        self.paused.unwrap_or(self.frame.at)
    }

    /// Whether rows are groups of processes.
    pub fn is_grouped(&self) -> bool {
        self.group > 0
    }

    /// What the rows are: `COMMAND`, `UNIT`.
    pub fn title(&self) -> &'static str {
        self.groupings.get(self.group).map_or("APPLICATION", |(title, _)| title)
    }

    /// Whether rows that are not groups are processes.
    pub fn has_processes(&self) -> bool {
        !self.groupings.is_empty()
    }

    /// The mark of the column that rows are sorted by.
    pub fn mark(&self) -> &'static str {
        match (self.look.utf8, self.reversed) {
            (true, false) => "▾",
            (true, true) => "▴",
            (false, false) => "v",
            (false, true) => "^",
        }
    }

    /// The time of a diagram.
    pub fn minute(&self) -> String {
        let seconds = self.frame.interval.map_or(1.0, |interval| interval.as_secs_f64().max(0.1)) * SHOWN_TICKS as f64;
        if seconds < 120.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
    }

    /// How many rows there are, in words.
    pub fn count(&self) -> String {
        let count = self.items.iter().filter(|item| !item.is_unowned()).count();
        match (self.is_grouped(), count) {
            (false, 1) => format!("1 {}", self.of.0),
            (false, count) => format!("{count} {}", self.of.1),
            (true, 1) => format!("1 {}", self.title().to_lowercase()),
            (true, count) => format!("{count} {}s", self.title().to_lowercase()),
        }
    }

    /// The number of rows.
    pub fn count_all(&self) -> usize {
        self.items.len()
    }

    /// The number of rows that the filter lets through.
    pub fn count_shown(&self) -> usize {
        self.shown.len()
    }

    /// The rows from a place in the list on.
    pub fn items_from(&self, first: usize) -> impl Iterator<Item = &Item> {
        self.shown.iter().skip(first).map(|&at| &self.items[at])
    }

    /// The biggest rate of any cell of this number, for diagrams.
    pub fn most(&self, cells: usize) -> f64 {
        let of_item = |item: &Item| item.history.cells(self.shown_tick, cells, both).into_iter().fold(0.0, f64::max);
        self.items.iter().map(of_item).fold(0.0, f64::max)
    }

    /// The remote ends of the opened row, the biggest first, and the bytes of all others.
    pub fn remotes(&self) -> (Vec<RemoteItem>, (u64, u64)) {
        let Some(opened) = &self.opened else { return Default::default() };
        let mut ends: HashMap<Remote, RemoteItem> = HashMap::new();
        let mut others = (0, 0);
        let interval = self.frame.interval.unwrap_or(Duration::from_secs(1));
        for row in self.frame.rows.iter().filter(|row| self.belongs(row, &opened.key)) {
            let Some(detail) = &row.detail else { continue };
            for end in &detail.remotes {
                let new = RemoteItem { remote: end.remote, name: end.name.clone(), rate: (0.0, 0.0), total: (0, 0) };
                let item = ends.entry(end.remote).or_insert(new);
                item.total = (item.total.0 + end.bytes_in, item.total.1 + end.bytes_out);
                item.rate.0 += per_second(end.moved_in, interval);
                item.rate.1 += per_second(end.moved_out, interval);
            }
            others = (others.0 + detail.other_remotes.0, others.1 + detail.other_remotes.1);
        }
        let mut items: Vec<RemoteItem> = ends.into_values().collect();
        items.sort_unstable_by_key(|item| (Reverse(item.total.0 + item.total.1), item.remote));
        (items, others)
    }

    fn belongs(&self, row: &Row, key: &Key) -> bool {
        match key {
            Key::Subject(subject) => row.subject == *subject,
            Key::Group(name) => self.groups.get(&row.subject).is_some_and(|group| group == name),
        }
    }

    /// Makes the rows of the last frame anew.
    fn rebuild(&mut self) {
        let frame = std::mem::replace(&mut self.frame, Frame::at(Moment::now()));
        let alarmed: HashSet<&Arc<Subject>> = frame
            .notifications
            .iter()
            .filter(|notification| !notification.recovered)
            .map(|notification| &notification.application)
            .collect();
        let unowned: &[Row] = if self.shows_unowned { &frame.unowned } else { &[] };
        let mut items: HashMap<Key, Item> = HashMap::new();
        self.shown_tick = self.tick;
        self.groups.clear();
        self.sum = self.sums.back().copied().unwrap_or_default();
        for row in frame.rows.iter().chain(unowned) {
            if (row.bytes_in, row.bytes_out, row.moved_in, row.moved_out) == (0, 0, 0, 0) {
                continue;
            }
            let mut item = self.item(row, frame.interval);
            item.is_alarmed = alarmed.contains(&row.subject);
            if let Key::Group(group) = &item.key {
                self.groups.insert(Arc::clone(&row.subject), group.clone());
            }
            match items.get_mut(&item.key) {
                None => drop(items.insert(item.key.clone(), item)),
                Some(sum) => {
                    sum.pids.extend(&item.pids);
                    sum.connections += item.connections;
                    sum.rate = (sum.rate.0 + item.rate.0, sum.rate.1 + item.rate.1);
                    sum.total = (sum.total.0 + item.total.0, sum.total.1 + item.total.1);
                    sum.history.extend(&item.history);
                    sum.is_alarmed |= item.is_alarmed;
                    for (one, other) in
                        [(&mut sum.user, item.user), (&mut sum.unit, item.unit), (&mut sum.container, item.container)]
                    {
                        if *one != other {
                            "(several)".clone_into(one);
                        }
                    }
                }
            }
        }
        self.frame = frame;
        if let Some(opened) = &self.opened
            && let Some(now) = items.get(&opened.key)
        {
            self.opened = Some(now.clone());
        }
        self.order(items);
    }

    fn item(&mut self, row: &Row, interval: Option<Duration>) -> Item {
        let subject = &row.subject;
        let (mut user, mut unit, mut container) = Default::default();
        if let Subject::Processes { uid, cgroup, .. } = &**subject {
            user = uid.map(|uid| self.names.user(uid)).unwrap_or_default();
            if let Some(cgroup) = cgroup {
                unit = cgroup.workload().unit_label().map(|label| label.into_owned()).unwrap_or_default();
                let label = self.names.container(cgroup).unwrap_or_default();
                container = String::from_utf8_lossy(&label).into_owned();
            }
        }
        let is_process = matches!(**subject, Subject::Processes { .. });
        let (key, name) = match self.groupings.get(self.group) {
            Some((title, property)) if self.group > 0 && is_process => {
                let name = property(subject, &mut self.names);
                let name = name.unwrap_or_else(|| format!("(no {})", title.to_lowercase()).into_bytes());
                (Key::Group(name.clone()), name)
            }
            _ => (Key::Subject(Arc::clone(subject)), subject.name().trim_ascii_end().to_vec()),
        };
        let rate = interval
            .map_or((0.0, 0.0), |interval| (per_second(row.moved_in, interval), per_second(row.moved_out, interval)));
        let detail = row.detail.as_deref();
        Item {
            key,
            name,
            pids: detail.map(|detail| detail.processes.iter().map(|(pid, _)| *pid).collect()).unwrap_or_default(),
            connections: detail.map(|detail| detail.connections).unwrap_or_default(),
            user,
            unit,
            container,
            rate,
            total: (row.bytes_in, row.bytes_out),
            history: self.histories.get(subject).cloned().unwrap_or_default(),
            is_alarmed: false,
        }
    }

    /// Puts rows in their order. It stands for a while, so that nobody's target moves away under the finger.
    fn order(&mut self, mut items: HashMap<Key, Item>) {
        let now = self.frame.at.monotonic;
        let stands = self.order_stands_until.is_some_and(|until| now < until)
            || self.ordered_at.is_some_and(|at| now.saturating_duration_since(at) < ORDER_STANDS);
        let before: Vec<Key> = self.items.drain(..).map(|item| item.key).collect();
        let mut kept: Vec<Item> = before.iter().filter_map(|key| items.remove(key)).collect();
        let mut new: Vec<Item> = items.into_values().collect();
        if stands {
            self.sort(&mut new);
            kept.append(&mut new);
        } else {
            kept.append(&mut new);
            self.sort(&mut kept);
            // The first tick has no rates.
            self.ordered_at = self.frame.interval.map(|_| now);
        }
        let present: HashSet<&Key> = kept.iter().map(|item| &item.key).collect();
        self.ranks.retain(|key, _| present.contains(key));
        self.items = kept;
        self.refilter();
    }

    fn sort(&mut self, items: &mut [Item]) {
        let (tick, by) = (self.shown_tick, self.sort_by);
        let mut ranks = std::mem::take(&mut self.ranks);
        let mut rank = |item: &Item| {
            let mean = item.history.mean(tick);
            let value = match by {
                SortBy::In => mean.0,
                SortBy::Out => mean.1,
                SortBy::Both => both(mean),
                _ => return,
            };
            let rank = ranks.entry(item.key.clone()).or_insert(value);
            if (value - *rank).abs() > *rank * CHANGE_THAT_MATTERS {
                *rank = value;
            }
        };
        items.iter().for_each(&mut rank);
        let total = |item: &Item| item.total.0.saturating_add(item.total.1);
        let rank = |item: &Item| ranks.get(&item.key).copied().unwrap_or_default();
        items.sort_by(|a, b| {
            let order = match by {
                SortBy::In | SortBy::Out | SortBy::Both => rank(b).total_cmp(&rank(a)),
                SortBy::Total => total(b).cmp(&total(a)),
                SortBy::Pid => a.pids.last().cmp(&b.pids.last()),
                SortBy::User => a.user.cmp(&b.user),
                SortBy::Name => a.name.cmp(&b.name),
            };
            let order = order.then_with(|| total(b).cmp(&total(a))).then_with(|| a.name.cmp(&b.name));
            if self.reversed { order.reverse() } else { order }
        });
        self.ranks = ranks;
    }

    fn refilter(&mut self) {
        let filter = self.filter.to_lowercase();
        self.shown = (0..self.items.len()).filter(|&at| filter.is_empty() || self.items[at].matches(&filter)).collect();
    }

    /// Sorts anew at once: the user has asked for it.
    fn reorder(&mut self) {
        self.ranks.clear();
        self.order_stands_until = None;
        let mut items = std::mem::take(&mut self.items);
        self.sort(&mut items);
        self.items = items;
        self.first = 0;
        self.refilter();
    }

    // What keys do.

    pub fn sort_by(&mut self, by: SortBy) {
        self.sort_by = by;
        self.reorder();
    }

    pub fn reverse(&mut self) {
        self.reversed = !self.reversed;
        self.reorder();
    }

    /// Totals first and sorted by them, or rates.
    pub fn swap_totals(&mut self) {
        self.totals_first = !self.totals_first;
        self.sort_by = if self.totals_first { SortBy::Total } else { SortBy::Both };
        self.reorder();
    }

    /// The next grouping, or the one before.
    pub fn regroup(&mut self, step: isize) {
        let count = self.groupings.len().max(1) as isize;
        self.group = (self.group as isize + step).rem_euclid(count) as usize;
        self.selected = None;
        self.opened = None;
        self.ranks.clear();
        self.rebuild();
        self.reorder();
    }

    pub fn toggle_unowned(&mut self) {
        self.shows_unowned = !self.shows_unowned;
        self.rebuild();
    }

    pub fn pause(&mut self) {
        self.paused = if self.paused.is_none() { Some(self.frame.at) } else { None };
        if self.paused.is_none() {
            self.rebuild();
        }
    }

    /// Changes the filter as it is typed.
    pub fn edit_filter(&mut self, edit: impl FnOnce(&mut String)) {
        edit(&mut self.filter);
        if let Some((end, _)) = self.filter.char_indices().nth(LONGEST_FILTER) {
            self.filter.truncate(end);
        }
        self.first = 0;
        self.refilter();
    }

    /// The place of the selected row in the list.
    fn selected_at(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.shown.iter().position(|&at| self.items[at].key == *selected)
    }

    /// Selects the row that is so far below the selected one.
    pub fn move_selection(&mut self, by: isize) {
        let at = match self.selected_at() {
            None if by > 0 => self.first.saturating_add_signed(by - 1),
            None => self.first,
            Some(at) => at.saturating_add_signed(by),
        };
        self.select(at);
    }

    /// Selects the row at a place in the list, or the last one.
    pub fn select(&mut self, at: usize) {
        let at = at.min(self.shown.len().saturating_sub(1));
        self.selected = self.shown.get(at).map(|&at| self.items[at].key.clone());
        self.order_stands_until = Some(self.frame.at.monotonic + ORDER_STANDS_AFTER_KEY);
    }

    /// A click on a row: selects it, or opens it if it is the selected one.
    pub fn click(&mut self, at: usize) {
        if at >= self.shown.len() {
            return;
        }
        if self.selected_at() == Some(at) { self.open() } else { self.select(at) }
    }

    /// Opens the selected row, or the first.
    pub fn open(&mut self) {
        if self.selected_at().is_none() {
            self.select(self.first);
        }
        self.opened = self.selected_at().map(|at| self.items[self.shown[at]].clone());
    }

    /// One step back: message, opened row, filter, selection.
    pub fn back(&mut self) {
        if self.has_new_note {
            self.has_new_note = false;
        } else if self.opened.is_some() {
            self.opened = None;
        } else if !self.filter.is_empty() {
            self.edit_filter(String::clear);
        } else {
            self.selected = None;
        }
    }

    /// Scrolls so that the selected row is one of the `lines` on the screen, and no line stays empty.
    pub fn scroll(&mut self, lines: usize) {
        if let Some(at) = self.selected_at() {
            self.first = self.first.clamp((at + 1).saturating_sub(lines), at);
        }
        self.first = self.first.min(self.shown.len().saturating_sub(lines));
    }

    /// The lines of the list on a screen of this size.
    pub fn list_lines(&self, size: Size) -> usize {
        // The sums, the heads of the columns, the keys; the message; the filter.
        let others = 3 + usize::from(self.has_new_note) + usize::from(self.is_editing);
        let others = others + self.chart_lines(size);
        size.lines.saturating_sub(others + if self.opened_is_below(size) { self.opened_lines(size) } else { 0 })
    }

    /// The line with the heads of the columns: below the sums, the message and the chart.
    pub fn head_line(&self, size: Size) -> usize {
        1 + usize::from(self.has_new_note) + self.chart_lines(size)
    }

    /// The lines of the chart on a screen of this size.
    pub fn chart_lines(&self, size: Size) -> usize {
        let has_room = size.lines >= LINES_FOR_TWO && size.columns >= COLUMNS_FOR_CHART;
        if has_room && self.opened.is_none() && self.look.utf8 { CHART_LINES } else { 0 }
    }

    /// The mean rates in and out of the host in the columns of a chart of this width, the latest last. Where a column begins does not
    /// depend on the time, so that only the last one changes.
    pub fn chart(&self, width: usize) -> Vec<Rate> {
        let ticks_per_column = CHART_TICKS.div_ceil(width.max(1));
        let first = usize::try_from(self.tick).unwrap_or(usize::MAX) + 1 - self.sums.len();
        let mut columns: Vec<(Rate, f64)> = Vec::new();
        // None of what has moved during a pause.
        let hidden = usize::try_from(self.tick - self.shown_tick).unwrap_or(usize::MAX);
        for (tick, rate) in (first..).zip(&self.sums).take(self.sums.len().saturating_sub(hidden)) {
            if columns.is_empty() || tick % ticks_per_column == 0 {
                columns.push(((0.0, 0.0), 0.0));
            }
            if let Some((sum, ticks)) = columns.last_mut() {
                *sum = (sum.0 + rate.0, sum.1 + rate.1);
                *ticks += 1.0;
            }
        }
        let means = columns.into_iter().map(|((rate_in, rate_out), ticks)| (rate_in / ticks, rate_out / ticks));
        let mut means: Vec<Rate> = means.collect();
        means.drain(..means.len().saturating_sub(CHART_TICKS / ticks_per_column));
        means
    }

    /// The row with the highest rate of a direction.
    pub fn biggest(&self, of: fn(Rate) -> f64) -> Option<&Item> {
        self.items.iter().max_by(|a, b| of(a.rate).total_cmp(&of(b.rate)))
    }

    /// Whether an opened row leaves room for the list above it.
    pub fn opened_is_below(&self, size: Size) -> bool {
        self.opened.is_some() && size.lines >= LINES_FOR_TWO
    }

    /// The lines of the opened row on a screen of this size.
    pub fn opened_lines(&self, size: Size) -> usize {
        if size.lines >= LINES_FOR_TWO { size.lines / 2 } else { size.lines.saturating_sub(2) }
    }
}

/// In and out.
pub(super) fn both((rate_in, rate_out): Rate) -> f64 {
    rate_in + rate_out
}
