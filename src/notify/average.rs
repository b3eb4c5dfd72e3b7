//! A moving average in bounded memory.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Interval;
use super::TICK_TOLERANCE;

/// The number of pieces into which an interval is divided: one per second up to ten minutes; longer ones above that,
/// which change an average by at most 0.2 %.
const PIECES: u32 = 600;

/// The bytes that moved within the last interval, in and out. Time without traffic takes no memory.
#[derive(Debug)]
pub(super) struct Average {
    /// `None`: everything since the start.
    interval: Option<Duration>,
    /// The time before which it knows nothing, if that is later than the start.
    since: Option<Instant>,
    pieces: VecDeque<Piece>,
    bytes: [u64; 2],
}

#[derive(Debug)]
struct Piece {
    from: Instant,
    bytes: [u64; 2],
}

impl Average {
    pub(super) fn over(interval: Interval) -> Self {
        Self { interval: duration(interval), since: None, pieces: VecDeque::new(), bytes: [0, 0] }
    }

    /// From now on, averages over another interval: of a longer one, over the part that it knows.
    pub(super) fn change(&mut self, interval: Interval, started: Instant, now: Instant) {
        let before = std::mem::replace(&mut self.interval, duration(interval));
        let since = self.since.unwrap_or(started);
        match (before, self.interval) {
            (before, after) if before == after => {}
            (Some(before), after) => {
                self.since = now.checked_sub(before).filter(|&known| known > since).or(self.since);
                if after.is_none() {
                    self.pieces.clear();
                }
            }
            // When within the whole run the bytes moved is not known: evenly.
            (None, after) => {
                let whole = now.saturating_duration_since(since);
                let kept = after.unwrap_or(whole).min(whole);
                let Some(from) = now.checked_sub(kept).filter(|_| !kept.is_zero()) else { return };
                let share = kept.as_secs_f64() / whole.as_secs_f64() / f64::from(PIECES);
                let bytes = self.bytes.map(|bytes| (bytes as f64 * share) as u64);
                self.pieces = (0..PIECES).map(|n| Piece { from: from + kept * n / PIECES, bytes }).collect();
                self.bytes = bytes.map(|bytes| bytes * u64::from(PIECES));
            }
        }
    }

    /// Whether nothing moved within the interval.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == [0, 0]
    }

    pub(super) fn is_over_the_whole_run(&self) -> bool {
        self.interval.is_none()
    }

    /// Adds the bytes that moved between two instants, and drops those that are older than the interval.
    pub(super) fn add(&mut self, from: Instant, now: Instant, bytes: [u64; 2]) {
        self.bytes = [self.bytes[0] + bytes[0], self.bytes[1] + bytes[1]];
        let Some(interval) = self.interval else { return };
        if bytes != [0, 0] {
            match self.pieces.back_mut() {
                Some(last) if from.duration_since(last.from) < interval / PIECES => {
                    last.bytes = [last.bytes[0] + bytes[0], last.bytes[1] + bytes[1]];
                }
                _ => self.pieces.push_back(Piece { from, bytes }),
            }
        }
        // The latest piece stays, however old: after a long tick there is no other.
        while let Some(first) = self.pieces.front() {
            if first.from >= from || now.duration_since(first.from) <= interval + TICK_TOLERANCE {
                break;
            }
            self.bytes = [self.bytes[0] - first.bytes[0], self.bytes[1] - first.bytes[1]];
            self.pieces.pop_front();
        }
    }

    /// The averages in and out, over the interval or since `started`, whichever is shorter.
    pub(super) fn bytes_per_s(&self, started: Instant, now: Instant) -> [f64; 2] {
        let whole = now.duration_since(self.since.unwrap_or(started));
        // Ticks are not exactly a second apart: the first piece may have begun a little before the interval.
        let kept = self.pieces.front().map_or(Duration::ZERO, |first| now.duration_since(first.from));
        let seconds = self.interval.map_or(whole, |interval| whole.min(interval).max(kept)).as_secs_f64();
        self.bytes.map(|bytes| bytes as f64 / seconds)
    }
}

fn duration(interval: Interval) -> Option<Duration> {
    match interval {
        Interval::Seconds(seconds) => Some(Duration::from_secs(seconds.into())),
        Interval::WholeRun => None,
    }
}

#[cfg(test)]
impl Average {
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }
}
