//! The interface between counting bytes and showing them.
//!
//! A monitor counts per process, a pipe counts the bytes that it delivers; both return a list of readings.

use std::sync::Arc;
use std::time::Instant;

use super::detail::{Remotes, VisitDetail};
use super::subject::Subject;

/// The bytes that one subject has received and sent since it first appeared.
///
/// They are totals: the difference of two readings of one subject is what moved in between. A subject that is missing
/// from a later list was forgotten, and starts from zero when it comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Whose bytes these are; shared, since most subjects are the same from one tick to the next.
    pub subject: Arc<Subject>,
    /// Bytes that came in.
    pub bytes_in: u64,
    /// Bytes that went out.
    pub bytes_out: u64,
}

/// Takes a subject, its group, and the bytes in and out that it has moved.
pub type VisitMoved<'a> = dyn FnMut(&Arc<Subject>, &Arc<Subject>, [u64; 2]) + 'a;

/// Takes a subject, its group, and the bytes of each of its remote ends.
pub type VisitRemotes<'a> = dyn FnMut(&Arc<Subject>, &Arc<Subject>, &Remotes) + 'a;

/// Counts bytes per subject: a monitor or a pipe.
pub trait Source {
    /// The totals of every subject as of `now`.
    ///
    /// `now` is the time of the tick: the same for every source in that tick, and never earlier than at the last call.
    ///
    /// # Errors
    /// When the totals can no longer be read at all. If they are merely incomplete, that is a [note](Source::notes).
    fn read(&mut self, now: Instant) -> anyhow::Result<Vec<Reading>>;

    /// The bytes without an owner as of the last reading: one reading per [`Subject::Unowned`].
    fn unowned(&self) -> Vec<Reading> {
        Vec::new()
    }

    /// Calls `visit` with what is known of each subject of the last reading, without remote ends, and with its remote ends if they
    /// are counted.
    fn each_detail(&self, _visit: &mut VisitDetail<'_>) {}

    /// Calls `visit` with each subject of the last reading that has moved, with its group, and the bytes in and out since the reading
    /// before that. Returns false, without a call, if this source does not group: its readings are the subjects themselves.
    fn each_moved(&self, _visit: &mut VisitMoved<'_>) -> bool {
        false
    }

    /// Calls `visit` with each subject of the last reading, its group, and its remote ends, if they are counted.
    fn each_remotes(&self, visit: &mut VisitRemotes<'_>) {
        self.each_detail(&mut |subject, _, remotes| {
            if let Some(remotes) = remotes {
                visit(subject, subject, remotes);
            }
        });
    }

    /// The messages for the user since the last call, one line each; they belong on stderr.
    fn notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// The same for the last time, when the program ends: also what was held back to tell it together with more.
    fn last_notes(&mut self) -> Vec<String> {
        self.notes()
    }

    /// How the figures of the last reading were obtained.
    fn facts(&self) -> Facts {
        Facts::default()
    }
}

/// How figures were obtained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// The source of the kernel's counters, a value of `--source`; `None` without a monitor.
    pub counters: Option<&'static str>,
    /// The number of ticks in which the kernel's events were lost, so that figures may be incomplete.
    pub ticks_with_lost_events: u64,
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn read(&mut self, now: Instant) -> anyhow::Result<Vec<Reading>> {
        (**self).read(now)
    }

    fn unowned(&self) -> Vec<Reading> {
        (**self).unowned()
    }

    fn each_detail(&self, visit: &mut VisitDetail<'_>) {
        (**self).each_detail(visit);
    }

    fn each_moved(&self, visit: &mut VisitMoved<'_>) -> bool {
        (**self).each_moved(visit)
    }

    fn each_remotes(&self, visit: &mut VisitRemotes<'_>) {
        (**self).each_remotes(visit);
    }

    fn notes(&mut self) -> Vec<String> {
        (**self).notes()
    }

    fn last_notes(&mut self) -> Vec<String> {
        (**self).last_notes()
    }

    fn facts(&self) -> Facts {
        (**self).facts()
    }
}
