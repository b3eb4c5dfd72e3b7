//! The lines that a pipe reports: at most one in ten seconds for each kind of failure, and then the number of the rest.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The least time between two lines about the same kind of failure.
const QUIET: Duration = Duration::from_secs(10);

/// The most lines that may wait for [`PipeLog::take_lines`] when a failure adds one.
const MAX_UNREAD: usize = 100;

/// The kinds of failure that a pipe survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The target has no address, or none of its addresses accepted a connection.
    Connect,
    /// There was no descriptor or no memory for a connection.
    Shortage,
    /// A peer reset its connection, or vanished.
    Lost,
    /// Nothing moved in a connection for the idle timeout.
    Idle,
    /// The number of open connections has reached `max_connections`.
    Full,
    /// The number of open connections of one client has reached `max_per_client`.
    FullForClient,
}

/// The last line about one kind of failure, and the number of failures since then that got no line.
#[derive(Debug, Default)]
struct Repeats {
    last: Option<(Instant, String)>,
    more: u64,
}

impl Repeats {
    fn is_quiet(&self, now: Instant) -> bool {
        self.last.as_ref().is_some_and(|(at, _)| now.saturating_duration_since(*at) < QUIET)
    }

    /// The line about the failures that got none, if there were any.
    fn summary(&mut self) -> Option<String> {
        let more = std::mem::take(&mut self.more);
        let (_, text) = self.last.take()?;
        (more > 0).then(|| format!("{text} (and {more} more like it)"))
    }
}

/// The lines of one pipe: its thread adds them, the display takes them.
#[derive(Debug)]
pub struct PipeLog {
    content: Mutex<LogLines>,
}

#[derive(Debug, Default)]
struct LogLines {
    /// The pipe's name, with which each line begins.
    pipe: String,
    repeats: [Repeats; 6],
    lines: Vec<String>,
}

impl PipeLog {
    /// A log without lines; each will begin with `pipe`, the pipe's name.
    pub fn new(pipe: String) -> Self {
        Self { content: Mutex::new(LogLines { pipe, ..LogLines::default() }) }
    }

    /// From now on, lines begin with this name.
    pub fn rename(&self, pipe: String) {
        self.with(|content| content.pipe = pipe);
    }

    /// Adds the line `text`.
    pub fn line(&self, text: &str) {
        self.with(|content| content.lines.push(format!("{}: {text}", content.pipe)));
    }

    /// Adds a line about a failure, or only counts it if the last line is too recent. Calls `text` only for a line.
    pub fn failure(&self, failure: Failure, now: Instant, text: impl FnOnce() -> String) {
        self.with(|content| {
            let repeats = &mut content.repeats[failure as usize];
            if repeats.is_quiet(now) {
                repeats.more += 1;
                return;
            }
            let text = format!("{}: {}", content.pipe, text());
            let summary = repeats.summary();
            repeats.last = Some((now, text.clone()));
            if content.lines.len() < MAX_UNREAD {
                content.lines.extend(summary);
                content.lines.push(text);
            }
        });
    }

    /// Takes the lines that were added since the last call.
    pub fn take_lines(&self, now: Instant) -> Vec<String> {
        self.with(|content| {
            let over = content.repeats.iter_mut().filter(|repeats| !repeats.is_quiet(now));
            let summaries: Vec<String> = over.filter_map(Repeats::summary).collect();
            let mut lines = std::mem::take(&mut content.lines);
            lines.extend(summaries);
            lines
        })
    }

    /// Like [`take_lines`](Self::take_lines), for the last time: also takes the numbers of the failures whose time to be
    /// reported has not come yet.
    pub fn take_last_lines(&self) -> Vec<String> {
        self.with(|content| {
            let summaries: Vec<String> = content.repeats.iter_mut().filter_map(Repeats::summary).collect();
            let mut lines = std::mem::take(&mut content.lines);
            lines.extend(summaries);
            lines
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut LogLines) -> T) -> T {
        // A panic elsewhere leaves at worst a line that is cut short, so a poisoned mutex is no reason to stop.
        change(&mut self.content.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_is_one_line_and_later_a_count() {
        let log = PipeLog::new("pipe-1:host:2".into());
        let now = Instant::now();
        for port in 0..1000 {
            log.failure(Failure::Connect, now, || format!("port {port}"));
        }
        log.failure(Failure::Full, now, || "full".into());
        assert_eq!(log.take_lines(now), ["pipe-1:host:2: port 0", "pipe-1:host:2: full"]);
        assert!(log.take_lines(now).is_empty());
        assert_eq!(log.take_lines(now + QUIET), ["pipe-1:host:2: port 0 (and 999 more like it)"]);
        assert!(log.take_lines(now + 3 * QUIET).is_empty());
    }

    #[test]
    fn the_last_lines_include_the_count_that_is_not_due_yet() {
        let log = PipeLog::new("p".into());
        let now = Instant::now();
        for text in ["a", "b", "c"] {
            log.failure(Failure::Lost, now, || text.into());
        }
        assert_eq!(log.take_lines(now), ["p: a"]);
        assert_eq!(log.take_last_lines(), ["p: a (and 2 more like it)"]);
        assert!(log.take_last_lines().is_empty());
    }

    #[test]
    fn the_count_comes_before_the_next_line_of_its_kind() {
        let log = PipeLog::new("p".into());
        let now = Instant::now();
        for text in ["a", "b"] {
            log.failure(Failure::Lost, now, || text.into());
        }
        log.failure(Failure::Lost, now + QUIET, || "c".into());
        assert_eq!(log.take_lines(now + QUIET), ["p: a", "p: a (and 1 more like it)", "p: c"]);
    }
}
