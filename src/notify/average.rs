//! A moving average in bounded memory.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Interval;
use super::TICK_TOLERANCE;

/// The number of pieces that an interval is divided into: one per second up to ten minutes, longer ones above, which
/// changes an average by at most 0.2 %.
const PIECES: u32 = 600;

/// The bytes that moved within an interval, in and out. Time without traffic takes no memory.
#[derive(Debug)]
pub(super) struct Average {
    /// `None`: everything since the start.
    interval: Option<Duration>,
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
        let interval = match interval {
            Interval::Seconds(seconds) => Some(Duration::from_secs(seconds.into())),
            Interval::WholeRun => None,
        };
        Self { interval, pieces: VecDeque::new(), bytes: [0, 0] }
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
        // The latest piece stays however old it is: after a long tick there is no younger one.
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
        let whole = now.duration_since(started);
        // A tick is not a second to the microsecond: the first piece may have begun a little before the interval.
        let kept = self.pieces.front().map_or(Duration::ZERO, |first| now.duration_since(first.from));
        let seconds = self.interval.map_or(whole, |interval| whole.min(interval).max(kept)).as_secs_f64();
        self.bytes.map(|bytes| bytes as f64 / seconds)
    }
}

#[cfg(test)]
impl Average {
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }
}
