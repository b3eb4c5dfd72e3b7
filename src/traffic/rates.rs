//! From totals to rates: what every name moved per second since the reading before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::traffic::source::Reading;

/// What one name moves per second.
#[derive(Debug, Clone, PartialEq)]
pub struct Rate {
    /// The name, as in the [`Reading`] it was taken from.
    pub name: Arc<[u8]>,
    /// Bytes per second that come in.
    pub in_bytes_per_s: f64,
    /// Bytes per second that go out.
    pub out_bytes_per_s: f64,
}

/// Remembers one reading, to take the next one's difference from.
#[derive(Debug, Default)]
pub struct Usage {
    before: HashMap<Arc<[u8]>, (u64, u64)>,
    at: Option<Instant>,
}

impl Usage {
    /// A usage that has seen nothing: every name's first reading is its baseline.
    pub fn new() -> Self {
        Self::default()
    }

    /// The rate of every name in `readings` since the call before.
    ///
    /// The first call has nothing to compare with and gives no rates. A name that was not there before began from
    /// zero, so a new process shows from its first tick; so did one whose total is smaller than it was. Two calls at the
    /// same instant give no rates, and the later reading does not count as read.
    pub fn rates(&mut self, now: Instant, readings: &[Reading]) -> Vec<Rate> {
        let seconds = match self.at {
            None => 0.0,
            Some(at) => {
                let seconds = now.saturating_duration_since(at).as_secs_f64();
                if seconds == 0.0 {
                    return Vec::new();
                }
                seconds
            }
        };
        let first = self.at.is_none();
        self.at = Some(now);
        let before = std::mem::take(&mut self.before);
        let mut rates = Vec::with_capacity(if first { 0 } else { readings.len() });
        self.before.reserve(readings.len());
        for reading in readings {
            if !first {
                let (bytes_in, bytes_out) = before.get(&reading.name).copied().unwrap_or_default();
                rates.push(Rate {
                    name: Arc::clone(&reading.name),
                    in_bytes_per_s: moved(reading.bytes_in, bytes_in) as f64 / seconds,
                    out_bytes_per_s: moved(reading.bytes_out, bytes_out) as f64 / seconds,
                });
            }
            self.before.insert(Arc::clone(&reading.name), (reading.bytes_in, reading.bytes_out));
        }
        rates
    }
}

/// The bytes between two totals; a total that fell was forgotten in between and began again from zero.
pub(crate) fn moved(total: u64, before: u64) -> u64 {
    total.checked_sub(before).unwrap_or(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn reading(name: &str, bytes_in: u64, bytes_out: u64) -> Reading {
        Reading { name: Arc::from(name.as_bytes()), bytes_in, bytes_out }
    }

    fn pairs(rates: &[Rate]) -> Vec<(f64, f64)> {
        rates.iter().map(|r| (r.in_bytes_per_s, r.out_bytes_per_s)).collect()
    }

    #[test]
    fn the_first_reading_is_the_baseline() {
        let start = Instant::now();
        let mut usage = Usage::new();
        assert_eq!(usage.rates(start, &[reading("a", 7000, 10)]), []);
        let later = usage.rates(start + Duration::from_millis(500), &[reading("a", 7100, 10)]);
        assert_eq!(pairs(&later), [(200.0, 0.0)]);
    }

    #[test]
    fn a_name_that_is_new_began_from_zero() {
        let start = Instant::now();
        let mut usage = Usage::new();
        usage.rates(start, &[]);
        let rates = usage.rates(start + Duration::from_secs(2), &[reading("a", 300, 4)]);
        assert_eq!(pairs(&rates), [(150.0, 2.0)]);
    }

    #[test]
    fn a_total_that_fell_began_again() {
        let start = Instant::now();
        let mut usage = Usage::new();
        usage.rates(start, &[reading("a", 5000, 5000)]);
        let rates = usage.rates(start + Duration::from_secs(1), &[reading("a", 20, 6000)]);
        assert_eq!(pairs(&rates), [(20.0, 1000.0)]);
    }

    #[test]
    fn the_same_instant_twice_divides_by_nothing_and_loses_nothing() {
        let start = Instant::now();
        let mut usage = Usage::new();
        usage.rates(start, &[reading("a", 0, 0)]);
        assert_eq!(usage.rates(start, &[reading("a", 10, 10)]), []);
        let rates = usage.rates(start + Duration::from_secs(1), &[reading("a", 10, 10)]);
        assert_eq!(pairs(&rates), [(10.0, 10.0)]);
    }
}
