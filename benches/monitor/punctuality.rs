//! How late a monitor's refreshes are, seen from the outside: by when its lines come.
//!
//! runmonitor's refreshes are a second apart from the first, however long one takes. So the schedule is that of the
//! refreshes while it has nothing to do, and how much later than that one comes is the work that it did.

use std::time::{Duration, Instant};

use crate::program::Chunk;

const SECOND: f64 = 1.0;
/// What comes so much later than the chunk before is another refresh.
const PAUSE: Duration = Duration::from_millis(20);
/// A refresh that is so much earlier than the schedule is on time: no clock is exact.
const SLACK: f64 = 0.01;

/// When refreshes were shown.
pub fn refreshes(chunks: &[Chunk]) -> Vec<Instant> {
    let mut shown = Vec::new();
    let mut before: Option<Instant> = None;
    for chunk in chunks {
        if before.is_none_or(|before| chunk.at - before > PAUSE) {
            shown.push(chunk.at);
        }
        before = Some(chunk.at);
    }
    shown
}

/// How late each of the `shown` refreshes is, in seconds. Those up to `calm_until` had nothing to do. One that was left
/// out since the one before it took so long adds to the lateness of that.
pub fn lateness(shown: &[Instant], calm_until: Instant) -> Vec<f64> {
    let Some(&first) = shown.first() else { return Vec::new() };
    let offset = |at: &Instant| (*at - first).as_secs_f64();
    let calm = shown.iter().take_while(|at| **at <= calm_until).map(offset);
    // The earliest in its second, as a number between -0.5 and 0.5.
    let phase = calm.map(|at| at - at.round()).fold(0.0, f64::min);
    let mut seconds_before = -1.0;
    let late = |at: &Instant| {
        let since = offset(at) - phase;
        let second = ((since + SLACK) / SECOND).floor();
        let left_out = second - seconds_before - 1.0;
        seconds_before = second;
        (since - second).max(0.0) + left_out
    };
    shown.iter().map(late).collect()
}
