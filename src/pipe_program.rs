//! `runpipe`: one pipe, and its totals once a second.

use std::time::Instant;

use anyhow::Result;

use crate::pipe::{Pipe, Settings, raise_descriptor_limit};
use crate::report;
use crate::run::{self, Next, Program, Screen, Signals};
use crate::source::Source;

/// Forwards as `settings` say and shows the totals until it is interrupted: the first time it only stops to accept
/// connections, the second time it closes those that are open.
///
/// # Errors
/// When the port cannot be listened on, stdout cannot be written to, or the kernel refuses what every program needs.
pub fn run(settings: Settings) -> Result<()> {
    let signals = Signals::take()?;
    // Without it the pipe works, with fewer connections.
    let refused = raise_descriptor_limit().err();
    let pipe = Pipe::bind(settings)?;
    run::run(
        &mut PipeProgram { pipe, interrupted: false, notes: refused.iter().map(|e| format!("{e:#}")).collect() },
        signals,
    )
}

struct PipeProgram {
    pipe: Pipe,
    interrupted: bool,
    notes: Vec<String>,
}

impl Program for PipeProgram {
    fn tick(&mut self, now: Instant) -> Result<Screen> {
        let table = report::totals(&self.pipe.read(now)?);
        let mut notes = std::mem::take(&mut self.notes);
        notes.extend(self.pipe.notes());
        Ok(Screen { table, notes })
    }

    fn interrupted(&mut self, screen: &mut Screen) -> Next {
        if std::mem::replace(&mut self.interrupted, true) {
            return Next::End;
        }
        screen.table.extend_from_slice(b"Waiting for threads to finish...\n");
        self.pipe.stop_accepting();
        self.next()
    }

    fn next(&self) -> Next {
        if self.pipe.is_finished() { Next::End } else { Next::Continue }
    }
}
