//! The time that matching may take in a tick: other users choose the command lines, and one search may take 100 ms.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::Pattern;
use crate::printable::printable;

/// The searches of the linear engine between two looks at the clock; each takes some 100 ns.
const SEARCHES_PER_LOOK: u32 = 64;
/// A note that would be given in each tick is given once in this many.
const TICKS_PER_NOTE: u32 = 60;

/// What one part of the program may spend on matching in a tick, as CPU time of its thread.
#[derive(Debug)]
pub(crate) struct MatchBudget {
    per_tick: Duration,
    /// What is left of it in this tick.
    left: Duration,
    /// Up to when the time spent has been taken off.
    charged: Duration,
    searches: u32,
    /// Whether the present command line has had the time of a whole tick.
    is_first: bool,
    /// The command lines of this tick that wait, and those that did not get all their searches.
    waiting: u32,
    cut_short: u32,
    /// The longest search of this tick.
    slowest: Option<(Duration, String)>,
    ticks_without_note: u32,
}

impl MatchBudget {
    pub(crate) fn new(per_tick: Duration) -> Self {
        Self {
            per_tick,
            left: per_tick,
            charged: Duration::ZERO,
            searches: 0,
            is_first: true,
            waiting: 0,
            cut_short: 0,
            slowest: None,
            ticks_without_note: TICKS_PER_NOTE,
        }
    }

    /// Begins a tick. Returns a note for the user if time was short in the last one.
    pub(crate) fn begin_tick(&mut self) -> Option<String> {
        self.left = self.per_tick;
        self.is_first = true;
        self.ticks_without_note = self.ticks_without_note.saturating_add(1);
        let (waiting, cut_short) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.cut_short));
        let slowest = self.slowest.take();
        if (waiting, cut_short) == (0, 0) || self.ticks_without_note < TICKS_PER_NOTE {
            return None;
        }
        self.ticks_without_note = 0;
        let pattern = slowest.map_or(String::new(), |(_, pattern)| format!(", most of all {pattern},"));
        let mut note = format!("the patterns{pattern} take too long:");
        if waiting > 0 {
            note += &format!(" {waiting} command lines wait to be matched");
        }
        if cut_short > 0 {
            note += if waiting > 0 { ", and" } else { "" };
            note += &format!(" {cut_short} count as not matching");
        }
        Some(note)
    }

    /// What `decide` finds out about one command line by [`matches`](Self::matches); `None` if no time is left for it in
    /// this tick.
    pub(crate) fn decide<T>(&mut self, decide: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let decided = if self.left.is_zero() {
            None
        } else {
            self.charged = cpu_time();
            let decided = decide(self);
            self.charge();
            self.is_first = false;
            decided
        };
        self.waiting += u32::from(decided.is_none());
        decided
    }

    /// Whether the pattern matches the command line, as by [`Pattern::matches_command_line`]; `None` if no time is left in
    /// this tick. A command line that has had the time of a whole tick would wait for ever, so it counts as not matching the
    /// patterns that are left, except those that take linear time.
    pub(crate) fn matches(&mut self, pattern: &Pattern, command_line: &[u8]) -> Option<bool> {
        if self.left.is_zero() {
            let is_linear = !pattern.may_backtrack();
            self.cut_short += u32::from(self.is_first && !is_linear);
            return self.is_first.then(|| is_linear && pattern.matches_command_line(command_line));
        }
        self.searches = self.searches.wrapping_add(1);
        if pattern.may_backtrack() {
            self.charge();
            let matches = pattern.matches_command_line(command_line);
            let spent = self.charge();
            if self.slowest.as_ref().is_none_or(|(slowest, _)| *slowest < spent) {
                self.slowest = Some((spent, printable(pattern.as_bytes(), 60)));
            }
            return Some(matches);
        }
        if self.searches.is_multiple_of(SEARCHES_PER_LOOK) {
            self.charge();
        }
        Some(pattern.matches_command_line(command_line))
    }

    /// Takes off, and returns, the time since the last call.
    fn charge(&mut self) -> Duration {
        let now = cpu_time();
        let spent = now.saturating_sub(std::mem::replace(&mut self.charged, now));
        self.left = self.left.saturating_sub(spent);
        spent
    }
}

/// The CPU time that the calling thread has used: waiting for a CPU costs no budget.
fn cpu_time() -> Duration {
    // The clock of the calling thread is always there (clock_gettime(2)).
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command line on which the pattern takes as long as its limit lets it.
    fn slow() -> (Pattern, Vec<u8>) {
        (Pattern::new(b"(?=x)(?=(a+)+b)|(?=(a|aa)+c)").unwrap(), vec![b'a'; 4000])
    }

    #[test]
    fn what_does_not_fit_into_a_tick_waits_for_the_next() {
        let (pattern, line) = slow();
        let mut budget = MatchBudget::new(Duration::from_millis(1));
        assert_eq!(budget.begin_tick(), None);
        let decide = |budget: &mut MatchBudget| budget.decide(|budget| budget.matches(&pattern, &line));
        // The first uses all of it.
        assert_eq!(decide(&mut budget), Some(false));
        assert_eq!(decide(&mut budget), None);
        assert_eq!(decide(&mut budget), None);
        let note =
            "the patterns, most of all (?=x)(?=(a+)+b)|(?=(a|aa)+c), take too long: 2 command lines wait to be matched";
        assert_eq!(budget.begin_tick().as_deref(), Some(note));
        assert_eq!(decide(&mut budget), Some(false));
        assert_eq!(decide(&mut budget), None);
        assert_eq!(budget.begin_tick(), None);
    }

    #[test]
    fn a_command_line_that_takes_a_whole_tick_is_decided_all_the_same() {
        let (pattern, line) = slow();
        let mut budget = MatchBudget::new(Duration::from_millis(1));
        let decided = budget.decide(|budget| {
            let first = budget.matches(&pattern, &line)?;
            let second = budget.matches(&Pattern::new(b"(?=a)a").unwrap(), &line)?;
            let linear = budget.matches(&Pattern::new(b"a").unwrap(), &line)?;
            Some((first, second, linear))
        });
        assert_eq!(decided, Some((false, false, true)));
        assert!(budget.begin_tick().is_some_and(|note| note.ends_with(" 1 count as not matching")));
    }
}
