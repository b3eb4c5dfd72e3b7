//! The program runpipe: one pipe, and its totals once a second.

use anyhow::Result;

use super::one_source::OneSource;
use super::{Next, Program, Schedule, Signals};
use crate::kernel::process::raise_descriptor_limit;
use crate::output::{Announcement, Frame, Moment, Output};
use crate::pipe::{Pipe, PipeSettings};
use crate::privileges::{Needs, Opening};

/// How many ticks SIGTERM leaves to open connections.
const LAST_TICKS: u32 = 5;

/// Forwards as `settings` say and shows the totals by `output`, until SIGINT or SIGTERM: the first one closes the port and lets open
/// connections finish, the second one resets them. After SIGTERM they have five seconds.
///
/// # Errors
/// When the pipe cannot listen on the port, stdout cannot be written to, or the kernel refuses a descriptor or a
/// thread.
pub fn run(
    settings: PipeSettings,
    output: &mut dyn Output,
    schedule: Schedule,
    signals: Signals,
    opening: Opening,
) -> Result<()> {
    // If this fails, fewer connections can be open at a time, and further clients wait.
    let _ = raise_descriptor_limit();
    let figures = OneSource::new(Pipe::bind(settings)?);
    let mut program = PipeProgram { figures, stopping: false, ticks_left: None, finished: false };
    let working = opening.end(Needs::default())?;
    super::run(&mut program, output, schedule, signals, working)
}

struct PipeProgram {
    figures: OneSource<Pipe>,
    stopping: bool,
    /// The number of ticks until the program ends; `None` if it has no end yet.
    ticks_left: Option<u32>,
    finished: bool,
}

impl PipeProgram {
    /// Closes the port; the second time, ends.
    fn stop(&mut self) -> Next {
        if std::mem::replace(&mut self.stopping, true) {
            return Next::End;
        }
        let pipe = self.figures.source();
        pipe.stop_accepting();
        if pipe.connections() == 0 { Next::End } else { Next::Continue }
    }
}

impl Program for PipeProgram {
    fn tick(&mut self, at: Moment, shown: bool) -> Result<Frame> {
        // Before the totals are read: if the pipe has finished, they are final.
        self.finished = self.figures.source().is_finished() || self.ticks_left == Some(0);
        self.ticks_left = self.ticks_left.map(|left| left.saturating_sub(1));
        self.figures.tick(at, shown)
    }

    fn interrupted(&mut self, announcements: &mut Vec<Announcement>) -> Next {
        if !self.stopping {
            announcements.push(Announcement::WaitingForConnections);
        }
        self.stop()
    }

    fn terminated(&mut self, announcements: &mut Vec<Announcement>) -> Next {
        let next = self.stop();
        if next == Next::Continue {
            self.ticks_left = Some(LAST_TICKS);
            let connections = self.figures.source().connections();
            let text = format!("open connections: {connections}; they are reset in {LAST_TICKS} seconds");
            announcements.push(Announcement::Note(text));
        }
        next
    }

    fn last_notes(&mut self) -> Vec<String> {
        self.figures.last_notes()
    }

    fn works_unseen(&mut self) -> bool {
        true
    }

    fn next(&self) -> Next {
        if self.finished { Next::End } else { Next::Continue }
    }
}
