//! How late a monitor's refreshes are, measured from outside by when its lines arrive.
//!
//! runmonitor refreshes whole seconds after its first refresh, however long one takes. Refreshes while it has nothing
//! to do give the schedule; a later one is late by the time that its work took.

use std::time::{Duration, Instant};

use crate::program::Chunk;

const SECOND: f64 = 1.0;
/// A chunk that comes this much later than the last one belongs to another refresh.
const PAUSE: Duration = Duration::from_millis(20);
/// A refresh that is earlier than the schedule by at most this is on time: no clock is exact.
const SLACK: f64 = 0.01;

/// The times of the refreshes.
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

/// How late each of the `shown` refreshes is, in seconds. Until `calm_until` the monitor had nothing to do. A skipped
/// refresh adds a second to the lateness of the next one.
pub fn lateness(shown: &[Instant], calm_until: Instant) -> Vec<f64> {
    let Some(&first) = shown.first() else { return Vec::new() };
    let offset = |at: &Instant| (*at - first).as_secs_f64();
    let calm = shown.iter().take_while(|at| **at <= calm_until).map(offset);
    // The earliest offset within a second, between -0.5 and 0.5.
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
