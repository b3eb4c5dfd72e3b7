//! What goes wrong, said in few lines: each kind of failure has one line at most in ten seconds, and says how often.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The time from one line of a kind to the next.
const QUIET: Duration = Duration::from_secs(10);

/// Lines that nobody has asked for yet, at most.
const UNREAD: usize = 100;

/// What can go wrong without being the end of the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No way to the target: no address, or none that answered.
    Connect,
    /// No descriptor or no memory for a connection.
    Shortage,
    /// A connection was lost: reset, or its peer vanished.
    Lost,
    /// Nothing moved for longer than the idle timeout.
    Idle,
    /// More connections than allowed.
    Full,
}

#[derive(Debug, Default)]
struct Kind {
    last: Option<(Instant, String)>,
    more: u64,
}

impl Kind {
    fn is_quiet(&self, now: Instant) -> bool {
        self.last.as_ref().is_some_and(|(at, _)| now.saturating_duration_since(*at) < QUIET)
    }

    /// The line about those that had none, if there were any.
    fn summary(&mut self) -> Option<String> {
        let more = std::mem::take(&mut self.more);
        let (_, text) = self.last.take()?;
        (more > 0).then(|| format!("{text} (and {more} more like it)"))
    }
}

/// The lines of one pipe, written by its thread and read by the display.
#[derive(Debug)]
pub struct Notes {
    pipe: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kinds: [Kind; 5],
    lines: Vec<String>,
}

impl Notes {
    /// No lines yet; each will begin with the pipe's name.
    pub fn new(pipe: String) -> Self {
        Self { pipe, state: Mutex::default() }
    }

    /// Says something once.
    pub fn say(&self, text: &str) {
        self.with(|state| state.lines.push(format!("{}: {text}", self.pipe)));
    }

    /// Notes a failure; `text` is only made when it will be a line.
    pub fn add(&self, trouble: Trouble, now: Instant, text: impl FnOnce() -> String) {
        self.with(|state| {
            let kind = &mut state.kinds[trouble as usize];
            if kind.is_quiet(now) {
                kind.more += 1;
                return;
            }
            let text = format!("{}: {}", self.pipe, text());
            let summary = kind.summary();
            kind.last = Some((now, text.clone()));
            if state.lines.len() < UNREAD {
                state.lines.extend(summary);
                state.lines.push(text);
            }
        });
    }

    /// The lines since the last call.
    pub fn take(&self, now: Instant) -> Vec<String> {
        self.with(|state| {
            let over = state.kinds.iter_mut().filter(|kind| !kind.is_quiet(now));
            let summaries: Vec<String> = over.filter_map(Kind::summary).collect();
            let mut lines = std::mem::take(&mut state.lines);
            lines.extend(summaries);
            lines
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // A line cut short by a panic elsewhere is still a line.
        change(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_is_one_line_and_a_count() {
        let notes = Notes::new("pipe-1:host:2".into());
        let now = Instant::now();
        for port in 0..1000 {
            notes.add(Trouble::Connect, now, || format!("port {port}"));
        }
        notes.add(Trouble::Full, now, || "full".into());
        assert_eq!(notes.take(now), ["pipe-1:host:2: port 0", "pipe-1:host:2: full"]);
        assert!(notes.take(now).is_empty());
        assert_eq!(notes.take(now + QUIET), ["pipe-1:host:2: port 0 (and 999 more like it)"]);
        assert!(notes.take(now + 3 * QUIET).is_empty());
    }

    #[test]
    fn the_count_comes_before_the_next_line() {
        let notes = Notes::new("p".into());
        let now = Instant::now();
        for text in ["a", "b"] {
            notes.add(Trouble::Lost, now, || text.into());
        }
        notes.add(Trouble::Lost, now + QUIET, || "c".into());
        assert_eq!(notes.take(now + QUIET), ["p: a", "p: a (and 1 more like it)", "p: c"]);
    }
}
