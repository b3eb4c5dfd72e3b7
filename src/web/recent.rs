//! What moved in each second of the last ten minutes, for the chart of the page.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::traffic::rates::Row;
use crate::traffic::subject::Subject;

/// The seconds that are kept.
pub const SECONDS: usize = 600;
/// The most subjects that are told apart; the others are one sum.
const MOST_SUBJECTS: usize = 128;
/// The most subjects that are taken in at a tick, so that a flood of new ones costs little.
const MOST_NEW: usize = 16;

/// The bytes of one subject in each second, the latest last.
#[derive(Debug, Clone)]
pub struct Series {
    /// Bytes that came in.
    pub bytes_in: Box<[u64]>,
    /// Bytes that went out.
    pub bytes_out: Box<[u64]>,
    /// The bytes of all seconds, both ways.
    sum: u64,
}

impl Default for Series {
    fn default() -> Self {
        Self { bytes_in: vec![0; SECONDS].into(), bytes_out: vec![0; SECONDS].into(), sum: 0 }
    }
}

impl Series {
    /// Makes room for `seconds` at the end.
    fn shift(&mut self, seconds: usize) {
        for bytes in [&mut self.bytes_in, &mut self.bytes_out] {
            self.sum -= bytes[..seconds].iter().sum::<u64>();
            bytes.rotate_left(seconds);
            bytes[SECONDS - seconds..].fill(0);
        }
    }

    /// Adds bytes that moved in the last `seconds`, in equal parts.
    fn spread(&mut self, seconds: usize, moved: (u64, u64)) {
        self.sum += moved.0 + moved.1;
        for (bytes, moved) in [(&mut self.bytes_in, moved.0), (&mut self.bytes_out, moved.1)] {
            let parts = seconds as u64;
            bytes[SECONDS - seconds..].iter_mut().for_each(|bytes| *bytes += moved / parts);
            bytes[SECONDS - 1] += moved % parts;
        }
    }

    fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        for (bytes, more) in [(&mut self.bytes_in, &other.bytes_in), (&mut self.bytes_out, &other.bytes_out)] {
            bytes.iter_mut().zip(more).for_each(|(bytes, more)| *bytes += more);
        }
    }
}

/// The history of all subjects.
#[derive(Debug, Default)]
pub struct Recent {
    subjects: HashMap<Arc<Subject>, Series>,
    others: Series,
    /// When the last second began.
    at: Option<Instant>,
}

impl Recent {
    /// Adds what `rows` have moved until `now`.
    pub fn tick(&mut self, now: Instant, rows: &[Row]) {
        let at = *self.at.get_or_insert(now);
        // To the nearest: a tick is never quite on time.
        let seconds = (now.saturating_duration_since(at) + Duration::from_millis(500)).as_secs();
        self.at = Some(at + Duration::from_secs(seconds));
        let seconds = usize::try_from(seconds).unwrap_or(SECONDS).min(SECONDS);
        self.subjects.values_mut().chain([&mut self.others]).for_each(|series| series.shift(seconds));

        let spread = seconds.max(1);
        let mut new = Vec::new();
        for row in rows.iter().filter(|row| row.moved_in + row.moved_out > 0) {
            match self.subjects.get_mut(&row.subject) {
                Some(series) => series.spread(spread, (row.moved_in, row.moved_out)),
                None => new.push(row),
            }
        }
        new.sort_unstable_by_key(|row| std::cmp::Reverse(row.moved_in + row.moved_out));
        for (rank, row) in new.into_iter().enumerate() {
            let moved = (row.moved_in, row.moved_out);
            if rank < MOST_NEW && self.has_room(moved.0 + moved.1) {
                self.subjects.entry(Arc::clone(&row.subject)).or_default().spread(spread, moved);
            } else {
                self.others.spread(spread, moved);
            }
        }
    }

    /// Whether there is room for a subject that has moved so many bytes: another that has moved fewer makes it.
    fn has_room(&mut self, bytes: u64) -> bool {
        if self.subjects.len() < MOST_SUBJECTS {
            return true;
        }
        let least = self.subjects.iter().map(|(subject, series)| (series.sum, subject)).min();
        let Some((least, subject)) = least else { return false };
        if least >= bytes {
            return false;
        }
        let subject = Arc::clone(subject);
        if let Some(series) = self.subjects.remove(&subject) {
            self.others.add(&series);
        }
        true
    }

    /// The subjects that have moved anything, and their bytes.
    pub fn subjects(&self) -> impl Iterator<Item = (&Arc<Subject>, &Series)> {
        self.subjects.iter().filter(|(_, series)| series.sum != 0)
    }

    /// The bytes of all others.
    pub fn others(&self) -> &Series {
        &self.others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, moved_in: u64, moved_out: u64) -> Row {
        let subject = Arc::new(Subject::Named(name.as_bytes().into()));
        Row { subject, bytes_in: 0, bytes_out: 0, moved_in, moved_out, detail: None }
    }

    fn last(series: &Series, seconds: usize) -> &[u64] {
        &series.bytes_in[SECONDS - seconds..]
    }

    #[test]
    fn a_tick_that_is_late_or_long_fills_the_seconds_that_it_covers() {
        let (start, mut history) = (Instant::now(), Recent::default());
        for (millis, moved) in [(0, 1), (1010, 10), (1990, 20), (5000, 300), (5400, 7), (6010, 9)] {
            history.tick(start + Duration::from_millis(millis), &[row("a", moved, 0)]);
        }
        let (_, series) = history.subjects().next().unwrap();
        assert_eq!(last(series, 7), [1, 10, 20, 100, 100, 107, 9]);
    }

    #[test]
    fn what_is_older_than_ten_minutes_is_forgotten() {
        let (start, mut history) = (Instant::now(), Recent::default());
        history.tick(start, &[row("a", 1, 2)]);
        history.tick(start + Duration::from_secs(599), &[]);
        assert_eq!(history.subjects().count(), 1);
        history.tick(start + Duration::from_secs(600), &[]);
        assert_eq!(history.subjects().count(), 0);
        history.tick(start + Duration::from_secs(100_000), &[]);
    }

    #[test]
    fn ever_new_subjects_take_bounded_room_and_lose_no_byte() {
        let (start, mut history) = (Instant::now(), Recent::default());
        for second in 0..50 {
            let rows: Vec<Row> = (0..40).map(|n| row(&format!("{second}.{n}"), 100 * second + n, 1)).collect();
            history.tick(start + Duration::from_secs(second), &rows);
        }
        assert_eq!(history.subjects().count(), MOST_SUBJECTS);
        let all: Vec<_> = history.subjects().map(|(_, series)| series).chain([history.others()]).collect();
        let sum = |bytes: fn(&Series) -> &[u64]| all.iter().flat_map(|series| bytes(series)).sum::<u64>();
        let (bytes_in, bytes_out) = (sum(|series| &series.bytes_in), sum(|series| &series.bytes_out));
        assert_eq!((bytes_in, bytes_out), (40 * 100 * (49 * 50 / 2) + 50 * (39 * 40 / 2), 50 * 40));
        assert_eq!(all.iter().map(|series| series.sum).sum::<u64>(), bytes_in + bytes_out);
    }
}
