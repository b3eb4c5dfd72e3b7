//! The program runpipe: one pipe, and its totals once a second.

use anyhow::Result;

use super::one_source::OneSource;
use super::{Next, Program, Signals};
use crate::output::text::{Figures, Text};
use crate::output::{Announcement, Frame, Moment};
use crate::pipe::{Pipe, PipeSettings, raise_descriptor_limit};

/// Forwards as `settings` say and shows the totals, until SIGINT: the first one closes the port and lets open
/// connections finish, the second one resets them.
///
/// # Errors
/// When the port cannot be listened on, stdout cannot be written to, or the kernel refuses what every program needs.
pub fn run(settings: PipeSettings) -> Result<()> {
    let signals = Signals::take()?;
    // If this fails, fewer connections can be open at a time, and further clients wait.
    let _ = raise_descriptor_limit();
    let figures = OneSource::new(Pipe::bind(settings)?);
    let mut program = PipeProgram { figures, stopping: false, finished: false };
    super::run(&mut program, &mut Text::new(Figures::Totals), signals)
}

struct PipeProgram {
    figures: OneSource<Pipe>,
    stopping: bool,
    finished: bool,
}

impl Program for PipeProgram {
    fn tick(&mut self, at: Moment) -> Result<Frame> {
        // Before the totals are read: if the pipe has finished, they are final.
        self.finished = self.figures.source().is_finished();
        self.figures.tick(at)
    }

    fn interrupted(&mut self, announcements: &mut Vec<Announcement>) -> Next {
        if std::mem::replace(&mut self.stopping, true) {
            return Next::End;
        }
        announcements.push(Announcement::WaitingForConnections);
        let pipe = self.figures.source();
        pipe.stop_accepting();
        if pipe.connections() == 0 { Next::End } else { Next::Continue }
    }

    fn next(&self) -> Next {
        if self.finished { Next::End } else { Next::Continue }
    }
}
