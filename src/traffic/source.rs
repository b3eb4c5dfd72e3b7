//! The joint between what counts bytes and what shows them.
//!
//! A monitor counts per process, a pipe counts what it carries; both hand out the same thing, a list of readings.

use std::sync::Arc;
use std::time::Instant;

/// What one name has received and sent since it first appeared.
///
/// Cumulative: a reader takes the difference of two readings of one name to get what moved in between. A name that is
/// missing from a later reading was forgotten, and starts from zero when it comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// A process' command line with blanks between its arguments, or a pipe's name. Bytes, since a command line need
    /// not be UTF-8; shared, since most names are the same from one tick to the next.
    pub name: Arc<[u8]>,
    /// Bytes that came in.
    pub bytes_in: u64,
    /// Bytes that went out.
    pub bytes_out: u64,
}

/// Something that counts bytes per name: a monitor or a pipe.
pub trait Source {
    /// The totals of every name as of `now`.
    ///
    /// `now` is the tick's time, the same for every source of that tick, and never earlier than at the call before.
    ///
    /// # Errors
    /// What can no longer be read at all. What is merely incomplete is a [note](Source::notes), not an error.
    fn read(&mut self, now: Instant) -> anyhow::Result<Vec<Reading>>;

    /// What was counted as of the last reading and is nobody's, under names in parentheses that say why.
    fn unowned(&self) -> Vec<Reading> {
        Vec::new()
    }

    /// What the user should know and was not told yet, one line each; belongs on stderr. Empties the list.
    fn notes(&mut self) -> Vec<String> {
        Vec::new()
    }
}
