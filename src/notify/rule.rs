//! A rule: the applications that it watches, and what it does when their rate exceeds a threshold.

use std::ffi::OsString;
use std::time::Duration;

use super::{Account, Quota};
use crate::python2::pattern::Pattern;

/// One section of a notification file.
#[derive(Debug, PartialEq)]
pub struct Rule {
    /// The section's name, for the message when a command fails.
    pub section: String,
    /// Matches the names of the applications that it watches.
    pub process_filter: Pattern,
    /// The limit for received kB (1024 bytes) per second. Every rate exceeds a negative limit.
    pub in_threshold_kb_per_s: Option<i64>,
    /// The limit for sent kB (1024 bytes) per second.
    pub out_threshold_kb_per_s: Option<i64>,
    /// The time over which it averages the rate.
    pub interval: Interval,
    /// How much an application may move in a day, week or month.
    pub quota: Option<Quota>,
    /// The program, with its arguments, that it runs when the average exceeds a threshold.
    pub notification_command: Option<Vec<OsString>>,
    /// The least time between two notifications for one application and direction; zero means every tick.
    pub repeat: Duration,
    /// The program, with its arguments, that it runs once when the average no longer exceeds the threshold.
    pub recovery_command: Option<Vec<OsString>>,
    /// Whose the commands are; `None` for the user who started this program.
    pub user: Option<Account>,
    /// How long a command may run before it is killed; `None` is for ever.
    pub command_timeout: Option<Duration>,
}

/// The time over which a rule averages a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    /// This number of seconds, at least one.
    Seconds(u32),
    /// The time since the program started.
    WholeRun,
}
