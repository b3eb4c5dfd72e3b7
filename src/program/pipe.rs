//! The program runpipe: one pipe, and its totals once a second.

use std::time::Instant;

use anyhow::Result;

use crate::pipe::{Pipe, PipeSettings, raise_descriptor_limit};
use crate::program::one_source::Figures;
use crate::program::{self as run, Next, Program, Screen, Signals};

/// Forwards as `settings` say and shows the totals, until SIGINT: the first one closes the port and lets open
/// connections finish, the second one resets them.
///
/// # Errors
/// When the port cannot be listened on, stdout cannot be written to, or the kernel refuses what every program needs.
pub fn run(settings: PipeSettings) -> Result<()> {
    let signals = Signals::take()?;
    // If this fails, fewer connections can be open at a time, and further clients wait.
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
        // Before the totals are read: if the pipe has finished, they are final.
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
