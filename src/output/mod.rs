//! The ways to show a program's figures.
//!
//! ```text
//! Program::tick ──▶ Frame: one tick as data ──▶ Output::show
//!                                                  └─ text: the original's lines, on stdout and stderr
//! ```
//! A new way to show figures is another implementation of [`Output`] in a file of its own.
//!
//! No output waits for its reader: the program does its work whatever becomes of stdout and stderr.
//!
//! Where to read on: [`text`] makes the lines; `terminal` is how they reach a terminal or a pipe, and `writer` the threads
//! that write them.

#[cfg(test)]
#[path = "../../tests/common/golden.rs"]
mod golden;
pub mod json;
mod plain;
mod terminal;
pub mod text;
pub mod top;
mod tty;
mod writer;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::calendar::Period;
use crate::traffic::rates::Row;
use crate::traffic::source::Facts;
use crate::traffic::subject::Subject;

/// The time of a tick, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// For intervals: never goes back.
    pub monotonic: Instant,
    /// For the calendar: the administrator may set it.
    pub wall_clock: SystemTime,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self { monotonic: Instant::now(), wall_clock: SystemTime::now() }
    }
}

/// The result of one tick.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When the tick was.
    pub at: Moment,
    /// The time since the last tick, for rates; `None` at the first tick, which has none.
    pub interval: Option<Duration>,
    /// The bytes of each subject, in no particular order.
    pub rows: Vec<Row>,
    /// The bytes without an owner, one row per reason; empty unless the program shows them.
    pub unowned: Vec<Row>,
    /// The applications that exceed a threshold, and those that no longer do.
    pub notifications: Vec<Notification>,
    /// The applications that have used too much of a quota.
    pub quotas: Vec<QuotaNotification>,
    /// Messages for the user, one line each, that were not in an earlier frame.
    pub notes: Vec<String>,
    /// How the figures were obtained.
    pub facts: Facts,
    /// How long the tick took; set by the loop.
    pub took: Duration,
}

impl Frame {
    /// A frame without figures.
    pub fn at(at: Moment) -> Self {
        Self {
            at,
            interval: None,
            rows: Vec::new(),
            unowned: Vec::new(),
            notifications: Vec::new(),
            quotas: Vec::new(),
            notes: Vec::new(),
            facts: Facts::default(),
            took: Duration::ZERO,
        }
    }

    /// The same without the bytes of subjects.
    pub fn without_figures(&self) -> Self {
        Self {
            notifications: self.notifications.clone(),
            quotas: self.quotas.clone(),
            notes: self.notes.clone(),
            facts: self.facts,
            took: self.took,
            ..Self::at(self.at)
        }
    }
}

/// The direction of traffic, as the application sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// What it receives.
    In,
    /// What it sends.
    Out,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in",
            Self::Out => "out",
        })
    }
}

/// An application's average exceeds its threshold, or no longer does.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// The number of its rule, which stays the same when the configuration is read again.
    pub rule: u64,
    /// The application.
    pub application: Arc<Subject>,
    /// The direction of the average.
    pub direction: Direction,
    /// The threshold, in kB (1024 bytes) per second.
    pub threshold_kb_per_s: i64,
    /// The average, in the same unit.
    pub value_kb_per_s: f64,
    /// Whether the average is back below the threshold.
    pub recovered: bool,
    /// Why its command could not be queued, as one line; `None` if nothing failed.
    pub command_failure: Option<String>,
}

/// An application has used too much of a quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaNotification {
    /// The number of its rule, as in [`Notification`].
    pub rule: u64,
    /// The application.
    pub application: Arc<Subject>,
    /// The bytes in and out together that it has moved in the period.
    pub used_bytes: u64,
    /// The bytes that it may move in the period.
    pub quota_bytes: u64,
    /// The length of the period.
    pub period: Period,
    /// When the period began, in seconds since 1970.
    pub period_start: i64,
    /// Whether the quota is used up; otherwise, this is a warning.
    pub exceeded: bool,
    /// Why its command could not be queued, as one line; `None` if nothing failed.
    pub command_failure: Option<String>,
}

impl QuotaNotification {
    /// What happened, in one word.
    pub fn event(&self) -> &'static str {
        if self.exceeded { "quota_exceeded" } else { "quota_warning" }
    }
}

/// A program's message between two ticks, after a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announcement {
    /// It ends after cleaning up.
    Ending,
    /// It ends when its open connections have ended.
    WaitingForConnections,
    /// A message for the user, one line.
    Note(String),
}

/// The name of this host.
pub fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Writes the error that ends a program to stderr, unless nobody reads it.
pub fn write_error(line: String) {
    terminal::write_error(line);
}

/// A way to show figures. Only the loop calls it. No method waits for a reader; dropping it gives the last lines a
/// moment.
pub trait Output {
    /// Shows one tick.
    ///
    /// # Errors
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the reader of the figures is gone. The messages are shown
    /// nevertheless.
    fn show(&mut self, frame: &Frame) -> io::Result<()>;

    /// Tells the messages and notifications of a tick that is not shown.
    ///
    /// # Errors
    /// As for [`show`](Output::show).
    fn tell(&mut self, frame: &Frame) -> io::Result<()>;

    /// Shows announcements at once.
    ///
    /// # Errors
    /// As for [`show`](Output::show).
    fn announce(&mut self, announcements: &[Announcement]) -> io::Result<()>;

    /// Whether everything is written, or never will be.
    fn is_written(&self) -> bool {
        true
    }

    /// Gives the terminal back, since the program is about to stand still (SIGTSTP).
    fn suspend(&mut self) {}

    /// The program goes on, or the terminal has another size (SIGWINCH).
    fn refresh(&mut self) {}
}
