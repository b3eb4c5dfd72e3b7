//! What a program records in its history, tick by tick.

use std::sync::Arc;

use anyhow::Result;

use super::Signals;
use crate::history::{History, HistorySettings, Moved};
use crate::output::Moment;
use crate::traffic::rates::{Rates, Row};
use crate::traffic::source::{Reading, Source};
use crate::traffic::subject::Subject;

/// A history, and the figures at the last tick: a history has what moved in each tick, whatever is shown.
#[derive(Debug)]
pub struct Recording {
    history: History,
    rates: Rates,
    /// Of the bytes without an owner; `None` unless they are recorded.
    unowned: Option<Rates>,
    /// Whether a tick has been recorded: what had moved before is not.
    has_begun: bool,
}

impl Recording {
    /// Opens the history; `None` if a signal ends the program first.
    ///
    /// # Errors
    /// Those of [`History::open`].
    pub fn open(settings: HistorySettings, unowned: bool, signals: &mut Signals) -> Result<Option<Self>> {
        let Some(history) = signals.unless_ended(move || History::open(settings))? else { return Ok(None) };
        let unowned = unowned.then(Rates::new);
        Ok(Some(Self { history: history?, rates: Rates::new(), unowned, has_begun: false }))
    }

    /// Records what has moved since the last tick. `readings` are those of `source` in this tick.
    pub fn tick(&mut self, at: Moment, source: &dyn Source, readings: &[Reading]) {
        let mut moved: Vec<(Arc<Subject>, Option<u32>, [u64; 2])> = Vec::new();
        let groups = source.each_moved(&mut |subject, group, bytes| {
            moved.push((Arc::clone(group), subject.uid(), bytes));
        });
        let row = |row: Row| {
            let uid = row.subject.uid();
            (row.subject, uid, [row.moved_in, row.moved_out])
        };
        if !groups {
            let (_, rows) = self.rates.rows(at.monotonic, readings.to_vec());
            moved.extend(rows.into_iter().map(row));
        }
        if let Some(unowned) = &mut self.unowned {
            let (_, rows) = unowned.rows(at.monotonic, source.unowned());
            moved.extend(rows.into_iter().map(row));
        }
        if !std::mem::replace(&mut self.has_begun, true) {
            moved.clear();
        }
        let moved = moved.iter().map(|(group, uid, bytes)| Moved { group, uid: *uid, bytes: *bytes });
        self.history.record(at.wall_clock, moved, &|visit| source.each_remotes(visit));
    }

    /// The history.
    pub fn history(&mut self) -> &mut History {
        &mut self.history
    }
}
