//! From totals to rates: the bytes that each subject moved since the last tick.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::detail::{Detail, Remotes};
use super::host_names::HostNames;
use super::interest::{Interest, Wanted};
use super::source::{Reading, Source};
use super::subject::Subject;

/// A kB of configuration files, command lines and messages, in bytes: 1024, as in the original.
pub const BYTES_PER_KB: u64 = 1024;

/// The bytes of one subject: in all, and since the last tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose bytes these are.
    pub subject: Arc<Subject>,
    /// Bytes that came in since the subject first appeared.
    pub bytes_in: u64,
    /// Bytes that went out since then.
    pub bytes_out: u64,
    /// Bytes that came in since the last tick.
    pub moved_in: u64,
    /// Bytes that went out since the last tick.
    pub moved_out: u64,
    /// What else is known; `None` where it was not asked for.
    pub detail: Option<Arc<Detail>>,
}

impl Row {
    /// Whether a byte has moved since the last tick.
    pub fn has_moved(&self) -> bool {
        self.moved_in + self.moved_out > 0
    }

    /// Its bytes alone.
    pub fn without_detail(&self) -> Self {
        Self { subject: Arc::clone(&self.subject), detail: None, ..*self }
    }

    /// The same without its remote ends.
    pub fn without_remotes(&self) -> Self {
        let detail = self.detail.as_ref().map(|detail| Arc::new(detail.without_remotes()));
        Self { detail, ..self.without_detail() }
    }
}

/// What else is known of the subjects of rows, from one frame to the next.
#[derive(Debug)]
pub struct Details {
    /// The number of remote ends of each row.
    remotes: usize,
    /// Whether these are the ones that have moved the most since the last frame.
    by_rate: bool,
    /// The names of their addresses; `None` unless they are looked up.
    names: Option<HostNames>,
    before: HashMap<Arc<Subject>, Remotes>,
    /// Who wants them; `None` if all rows always have them.
    interest: Option<Arc<Interest>>,
}

impl Details {
    /// With this number of remote ends for each row: those with the most bytes.
    pub fn new(remotes: usize) -> Self {
        Self { remotes, by_rate: false, names: None, before: HashMap::new(), interest: None }
    }

    /// With those that move the most bytes instead.
    pub fn by_rate(self) -> Self {
        Self { by_rate: true, ..self }
    }

    /// With the names of their addresses.
    pub fn with_names(self, names: HostNames) -> Self {
        Self { names: Some(names), ..self }
    }

    /// Enters only what somebody wants.
    pub fn for_interest(self, interest: Arc<Interest>) -> Self {
        Self { interest: Some(interest), ..self }
    }

    /// Enters into each row what `source` knows of its subject, in the frame of `now`.
    pub fn enter(&mut self, rows: &mut [Row], source: &dyn Source, now: Instant) {
        let wanted = self.interest.as_ref().map_or(Wanted::All, |interest| interest.of_this_frame());
        if wanted == Wanted::Nothing {
            self.before.clear();
            return;
        }
        if let Some(names) = &mut self.names {
            names.begin_frame(now);
        }
        let mut before = std::mem::take(&mut self.before);
        let mut rows: HashMap<Arc<Subject>, &mut Row> = rows
            .iter_mut()
            .filter(|row| wanted == Wanted::All || row.has_moved())
            .map(|row| (Arc::clone(&row.subject), row))
            .collect();
        source.each_detail(&mut |subject, mut detail, ends| {
            let Some(row) = rows.get_mut(subject) else { return };
            if let Some(ends) = ends {
                let known = before.remove(subject);
                ends.enter(self.remotes, self.by_rate, known.as_ref(), &mut detail);
                let kept = known.filter(|known| ends.is_unchanged(known)).unwrap_or_else(|| ends.clone());
                self.before.insert(Arc::clone(subject), kept);
            }
            if let Some(names) = &mut self.names {
                detail.remotes.iter_mut().for_each(|end| end.name = names.name(end.remote.address, now));
            }
            row.detail = Some(Arc::new(detail));
        });
        if wanted == Wanted::Moved {
            // The others are as they were.
            before.extend(self.before.drain());
            self.before = before;
        }
        if let Some(names) = &mut self.names {
            names.end_frame(now);
        }
    }
}

/// Takes the differences between the readings of one tick and those of the last one.
#[derive(Debug, Default)]
pub struct Rates {
    before: HashMap<Arc<Subject>, (u64, u64)>,
    at: Option<Instant>,
}

impl Rates {
    /// Without readings yet; the first ones become the baseline.
    pub fn new() -> Self {
        Self::default()
    }

    /// A row for every subject in `readings`, and the time since the last call, in which its bytes moved.
    ///
    /// The first call has nothing to compare with: it returns no time, and nothing has moved. A subject that is new
    /// began from zero, so the bytes of a new process count from its first tick; so did a subject whose total fell. A
    /// second call at the same instant returns no time either, and its readings do not become the baseline.
    pub fn rows(&mut self, now: Instant, readings: Vec<Reading>) -> (Option<Duration>, Vec<Row>) {
        let interval = self.at.map(|at| now.saturating_duration_since(at));
        if interval == Some(Duration::ZERO) {
            return (None, readings.into_iter().map(|reading| row(reading, (0, 0))).collect());
        }
        self.at = Some(now);
        let before = std::mem::take(&mut self.before);
        self.before.reserve(readings.len());
        let mut rows = Vec::with_capacity(readings.len());
        for reading in readings {
            let total = (reading.bytes_in, reading.bytes_out);
            let moved = match interval {
                None => (0, 0),
                Some(_) => {
                    let known = before.get(&reading.subject).copied().unwrap_or_default();
                    (moved(total.0, known.0), moved(total.1, known.1))
                }
            };
            self.before.insert(Arc::clone(&reading.subject), total);
            rows.push(row(reading, moved));
        }
        (interval, rows)
    }
}

fn row(Reading { subject, bytes_in, bytes_out }: Reading, (moved_in, moved_out): (u64, u64)) -> Row {
    Row { subject, bytes_in, bytes_out, moved_in, moved_out, detail: None }
}

/// The bytes between two totals. A total that fell was forgotten in between, and began again from zero.
pub(crate) fn moved(total: u64, before: u64) -> u64 {
    total.checked_sub(before).unwrap_or(total)
}

/// Bytes per second.
pub(crate) fn per_second(bytes: u64, interval: Duration) -> f64 {
    bytes as f64 / interval.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(name: &str, bytes_in: u64, bytes_out: u64) -> Reading {
        Reading { subject: Arc::new(Subject::Named(name.as_bytes().into())), bytes_in, bytes_out }
    }

    fn moved(rows: &[Row]) -> Vec<(u64, u64)> {
        rows.iter().map(|row| (row.moved_in, row.moved_out)).collect()
    }

    #[test]
    fn the_first_reading_is_the_baseline() {
        let start = Instant::now();
        let mut rates = Rates::new();
        let (interval, rows) = rates.rows(start, vec![reading("a", 7000, 10)]);
        assert_eq!((interval, moved(&rows)), (None, vec![(0, 0)]));
        assert_eq!((rows[0].bytes_in, rows[0].bytes_out), (7000, 10));
        let (interval, rows) = rates.rows(start + Duration::from_millis(500), vec![reading("a", 7100, 10)]);
        assert_eq!((interval, moved(&rows)), (Some(Duration::from_millis(500)), vec![(100, 0)]));
        assert_eq!(per_second(100, interval.unwrap()), 200.0);
    }

    #[test]
    fn a_subject_that_is_new_began_from_zero() {
        let start = Instant::now();
        let mut rates = Rates::new();
        rates.rows(start, Vec::new());
        let (_, rows) = rates.rows(start + Duration::from_secs(2), vec![reading("a", 300, 4)]);
        assert_eq!(moved(&rows), [(300, 4)]);
    }

    #[test]
    fn a_total_that_fell_began_again() {
        let start = Instant::now();
        let mut rates = Rates::new();
        rates.rows(start, vec![reading("a", 5000, 5000)]);
        let (_, rows) = rates.rows(start + Duration::from_secs(1), vec![reading("a", 20, 6000)]);
        assert_eq!(moved(&rows), [(20, 1000)]);
    }

    #[test]
    fn the_same_instant_twice_divides_by_nothing_and_loses_nothing() {
        let start = Instant::now();
        let mut rates = Rates::new();
        rates.rows(start, vec![reading("a", 0, 0)]);
        assert_eq!(rates.rows(start, vec![reading("a", 10, 10)]).0, None);
        let (_, rows) = rates.rows(start + Duration::from_secs(1), vec![reading("a", 10, 10)]);
        assert_eq!(moved(&rows), [(10, 10)]);
    }
}
