//! What runpipe runs: one pipe, and its totals once a second.

use std::time::Instant;

use anyhow::Result;

use crate::pipe::{Pipe, Settings, raise_descriptor_limit};
use crate::program::one_source::Figures;
use crate::program::{self as run, Next, Program, Screen, Signals};

/// Forwards as `settings` say and shows the totals until it is interrupted: the first time it only stops to accept
/// connections, the second time it ends those that are open.
///
/// # Errors
/// When the port cannot be listened on, stdout cannot be written to, or the kernel refuses what every program needs.
pub fn run(settings: Settings) -> Result<()> {
    let signals = Signals::take()?;
    // Should that be refused, there can be fewer connections, and clients have to wait.
    let _ = raise_descriptor_limit();
    let figures = Figures::totals(Pipe::bind(settings)?);
    run::run(&mut PipeProgram { figures, stopping: false, finished: false }, signals)
}

struct PipeProgram {
    figures: Figures<Pipe>,
    stopping: bool,
    finished: bool,
}

impl Program for PipeProgram {
    fn tick(&mut self, now: Instant) -> Result<Screen> {
        // Asked before the totals are read: then these are the last.
        self.finished = self.figures.source().is_finished();
        self.figures.tick(now)
    }

    fn interrupted(&mut self, screen: &mut Screen) -> Next {
        if std::mem::replace(&mut self.stopping, true) {
            return Next::End;
        }
        screen.table.extend_from_slice(b"Waiting for threads to finish...\n");
        let pipe = self.figures.source();
        pipe.stop_accepting();
        if pipe.connections() == 0 { Next::End } else { Next::Continue }
    }

    fn next(&self) -> Next {
        if self.finished { Next::End } else { Next::Continue }
    }
}
