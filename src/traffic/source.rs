//! The joint between what counts bytes and what shows them.
//!
//! A monitor counts per process, a pipe counts what it carries; both hand out the same thing, a list of readings.

use std::sync::Arc;
use std::time::Instant;

use super::subject::Subject;

/// What one subject has received and sent since it first appeared.
///
/// Cumulative: a reader takes the difference of two readings of one subject to get what moved in between. A subject that
/// is missing from a later reading was forgotten, and starts from zero when it comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Whose bytes these are; shared, since most subjects are the same from one tick to the next.
    pub subject: Arc<Subject>,
    /// Bytes that came in.
    pub bytes_in: u64,
    /// Bytes that went out.
    pub bytes_out: u64,
}

/// Something that counts bytes per subject: a monitor or a pipe.
pub trait Source {
    /// The totals of every subject as of `now`.
    ///
    /// `now` is the tick's time: the same for every source of that tick, and never earlier than at the call before.
    ///
    /// # Errors
    /// What can no longer be read at all. What is merely incomplete is a [note](Source::notes), not an error.
    fn read(&mut self, now: Instant) -> anyhow::Result<Vec<Reading>>;

    /// What was counted as of the last reading and has no owner: one reading per [`Subject::Unowned`].
    fn unowned(&self) -> Vec<Reading> {
        Vec::new()
    }

    /// The messages for the user since the call before, one line each; they belong on stderr. Empties the list.
    fn notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// How the figures of the last reading came about.
    fn facts(&self) -> Facts {
        Facts::default()
    }
}

/// How figures came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where the kernel's counters come from, by the name that `--source` has for it; `None` where nothing is monitored.
    pub counters: Option<&'static str>,
    /// The number of ticks in which events of the kernel were lost, so that figures may be incomplete.
    pub ticks_with_lost_events: u64,
}
