//! How a program's figures are shown.
//!
//! ```text
//! Program::tick ──▶ Frame ──▶ Output::show          one tick as data, and the ways to show it
//!                             text                  the original's lines, on stdout and stderr
//! ```
//! Read on in [`text`] for the lines, in `terminal` for how they reach a terminal or a pipe. A new way to show figures is
//! another implementation of [`Output`] in a file of its own.

mod terminal;
pub mod text;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

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

/// Everything that one tick has found out.
#[derive(Debug)]
pub struct Frame {
    /// When the tick was.
    pub at: Moment,
    /// The time in which the rows' moved bytes moved; `None` at the first tick, which has no rates.
    pub interval: Option<Duration>,
    /// What each subject has moved, in no particular order.
    pub rows: Vec<Row>,
    /// What has no owner, one row per reason; empty where nobody asked for it.
    pub unowned: Vec<Row>,
    /// The applications that exceed a threshold, and those that no longer do.
    pub notifications: Vec<Notification>,
    /// Messages for the user, one line each, that were not in an earlier frame.
    pub notes: Vec<String>,
    /// How the figures came about.
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
            notes: Vec::new(),
            facts: Facts::default(),
            took: Duration::ZERO,
        }
    }
}

/// The direction of traffic, as the application sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// The index of the rule that it comes from, in file order.
    pub rule: usize,
    /// The application.
    pub application: Arc<Subject>,
    /// Which of its rates it is about.
    pub direction: Direction,
    /// The threshold, in kB (1024 bytes) per second.
    pub threshold_kb_per_s: i64,
    /// The average, in the same unit.
    pub value_kb_per_s: f64,
    /// Whether the average is back below the threshold.
    pub recovered: bool,
    /// Why the command that belongs to it could not be started, as one line; `None` where nothing failed.
    pub command_failure: Option<String>,
}

/// What a program says between two frames, in answer to a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announcement {
    /// It ends as soon as it has tidied up.
    Ending,
    /// It ends when the connections that are open have ended.
    WaitingForConnections,
    /// A message for the user, one line.
    Note(String),
}

/// A way to show figures. Only the loop calls it.
pub trait Output {
    /// Shows one tick.
    ///
    /// # Errors
    /// When the figures cannot be written: [`BrokenPipe`](io::ErrorKind::BrokenPipe) if their reader is gone.
    fn show(&mut self, frame: &Frame) -> io::Result<()>;

    /// Shows what the program says between two ticks, at once.
    ///
    /// # Errors
    /// As for [`show`](Output::show).
    fn announce(&mut self, announcements: &[Announcement]) -> io::Result<()>;
}
