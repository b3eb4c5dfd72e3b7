//! A rule: whom it watches, and what happens above which rate.

use std::ffi::OsString;
use std::time::Duration;

use crate::python2::pattern::Pattern;

/// A section: whom it watches, and what happens above which rate.
#[derive(Debug)]
pub struct NotificationSettings {
    /// The section's name, for what goes wrong with a command.
    pub section: String,
    /// The applications it watches, by their names.
    pub process_filter: Pattern,
    /// Incoming kB (1024 bytes) per second that may not be exceeded. A negative one always is.
    pub in_threshold_kb_per_s: Option<i64>,
    /// The same of what goes out.
    pub out_threshold_kb_per_s: Option<i64>,
    /// The time that the rate is averaged over.
    pub interval: Interval,
    /// What is run when a threshold is exceeded: a program and its arguments.
    pub notification_command: Option<Vec<OsString>>,
    /// The least time between two notifications of one application and direction; zero is each tick.
    pub repeat: Duration,
    /// What is run once when the average is back.
    pub recovery_command: Option<Vec<OsString>>,
}

/// The time that a rate is averaged over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    /// The last so many seconds, at least one.
    Seconds(u32),
    /// Everything since the program's start.
    WholeRun,
}
