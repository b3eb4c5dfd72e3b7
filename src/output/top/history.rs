//! The rates of the last minute of each subject, and the little diagrams of them.

use std::collections::VecDeque;

/// How many ticks a diagram shows.
pub(super) const SHOWN_TICKS: u64 = 60;
/// The ticks that are remembered: the first cell of a diagram may begin before those that it shows.
const KEPT_TICKS: u64 = SHOWN_TICKS + 6;
/// Rows are sorted by the mean of this number of ticks.
const MEAN_TICKS: u64 = 3;
/// The levels of a cell. None fills it, so that the diagrams of two rows do not grow together.
const LEVELS: [&str; 7] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇"];
const LEVELS_ASCII: [&str; 7] = [".", ":", "-", "=", "+", "*", "#"];
/// The top of a diagram is at least this part of the top of the biggest: small rows lie flat.
const LEAST_TOP: f64 = 1.0 / 50.0;

/// Bytes per second in and out.
pub(super) type Rate = (f64, f64);

/// The rates of the ticks in which something moved. A tick is known by its number.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    samples: VecDeque<(u64, Rate)>,
}

impl History {
    /// Remembers the rate of a tick, which is not earlier than those before.
    pub fn add(&mut self, tick: u64, rate: Rate) {
        match self.samples.back_mut() {
            Some((last, sum)) if *last == tick => *sum = (sum.0 + rate.0, sum.1 + rate.1),
            _ if rate != (0.0, 0.0) => self.samples.push_back((tick, rate)),
            _ => {}
        }
        self.forget(tick);
    }

    /// Forgets what is older than any diagram at `tick`. Returns whether anything is left.
    pub fn forget(&mut self, tick: u64) -> bool {
        while self.samples.front().is_some_and(|(first, _)| first + KEPT_TICKS <= tick) {
            self.samples.pop_front();
        }
        !self.samples.is_empty()
    }

    /// Adds all of another history.
    pub fn extend(&mut self, other: &Self) {
        if self.samples.is_empty() {
            self.samples.clone_from(&other.samples);
            return;
        }
        for &(tick, rate) in &other.samples {
            match self.samples.binary_search_by_key(&tick, |(tick, _)| *tick) {
                Ok(at) => {
                    let sum = &mut self.samples[at].1;
                    *sum = (sum.0 + rate.0, sum.1 + rate.1);
                }
                Err(at) => self.samples.insert(at, (tick, rate)),
            }
        }
    }

    /// The mean rate of the last few ticks up to `tick`, by which rows are sorted.
    pub fn mean(&self, tick: u64) -> Rate {
        let last = self.samples.iter().rev().take_while(|(at, _)| at + MEAN_TICKS > tick);
        let sum = last.fold((0.0, 0.0), |sum, (_, rate)| (sum.0 + rate.0, sum.1 + rate.1));
        let ticks = MEAN_TICKS.min(tick.max(1)) as f64;
        (sum.0 / ticks, sum.1 / ticks)
    }

    /// The mean rates of the last `cells` parts of the minute up to `tick`. Where a part begins does not depend on `tick`, so that
    /// only the last one changes.
    pub fn cells(&self, tick: u64, cells: usize, of: fn(Rate) -> f64) -> Vec<f64> {
        let ticks_per_cell = (SHOWN_TICKS / cells.max(1) as u64).max(1);
        let last = tick / ticks_per_cell;
        let mut means = vec![0.0; cells];
        for &(at, rate) in &self.samples {
            if let Ok(back) = usize::try_from(last.saturating_sub(at / ticks_per_cell))
                && back < cells
            {
                let ticks = if back == 0 { tick % ticks_per_cell + 1 } else { ticks_per_cell };
                means[cells - 1 - back] += of(rate) / ticks as f64;
            }
        }
        means
    }
}

/// The diagram of cells, of which the biggest of all rows is `most`.
pub(super) fn diagram(cells: &[f64], most: f64, utf8: bool) -> String {
    let top = cells.iter().copied().fold(most * LEAST_TOP, f64::max);
    let levels = if utf8 { LEVELS } else { LEVELS_ASCII };
    let level = |&cell: &f64| match cell {
        _ if cell <= 0.0 || top <= 0.0 => " ",
        _ => levels[((cell / top * levels.len() as f64).ceil() as usize).clamp(1, levels.len()) - 1],
    };
    cells.iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both((rate_in, rate_out): Rate) -> f64 {
        rate_in + rate_out
    }

    #[test]
    fn only_the_last_cell_changes_until_its_time_is_over() {
        let mut history = History::default();
        let mut before: Vec<f64> = Vec::new();
        for tick in 0..200 {
            history.add(tick, (tick as f64, 1.0));
            let cells = history.cells(tick, 10, both);
            if tick % 6 != 0 {
                assert_eq!(cells[..9], before[..9], "tick {tick}");
            } else if tick > 0 {
                assert_eq!(cells[..9], before[1..], "tick {tick}");
            }
            before = cells;
        }
        assert!(history.samples.len() <= KEPT_TICKS as usize);
    }

    #[test]
    fn a_small_row_lies_flat_and_silence_is_blank() {
        assert_eq!(diagram(&[0.0, 1.0, 4.0, 7.0], 7.0, true), " ▁▄▇");
        assert_eq!(diagram(&[1.0, 1.0], 700.0, true), "▁▁");
        assert_eq!(diagram(&[1.0, 7.0], 7.0, false), ".#");
        assert_eq!(diagram(&[0.0], 0.0, true), " ");
    }

    #[test]
    fn what_moved_long_ago_is_forgotten_and_sums_are_by_tick() {
        let (mut one, mut other) = (History::default(), History::default());
        one.add(5, (1.0, 0.0));
        one.add(6, (3.0, 0.0));
        other.add(4, (0.0, 2.0));
        other.add(6, (0.0, 6.0));
        one.extend(&other);
        assert_eq!(one.mean(6), (4.0 / 3.0, 8.0 / 3.0));
        assert!(one.forget(6 + KEPT_TICKS - 1));
        assert!(!one.forget(6 + KEPT_TICKS));
    }
}
