//! What the three binaries run: one loop, and the programs that it runs.
//!
//! ```text
//! once a second:  Program::tick ──▶ Frame ──▶ Output::show
//! on a signal:    Program::interrupted … ──▶ announcements ──▶ Output::announce
//! ```
//! Only the loop in this file has a clock, sleeps and calls an output. Read on in [`one_source`] (runmonitor), [`pipe`]
//! (runpipe) and [`aggregate`] (runaggregator) for the programs, in `signals` for the wait between two ticks, in [`cli`]
//! for what the command lines have in common.

pub mod aggregate;
pub mod cli;
pub mod one_source;
pub mod pipe;
mod signals;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::output::{Announcement, Frame, Moment, Output};
pub use signals::Signals;
use signals::Waited;

/// The time from one tick to the next.
pub const TICK: Duration = Duration::from_secs(1);

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another tick.
    Continue,
    /// The program is done; it ends with success.
    End,
}

/// What the loop runs.
pub trait Program {
    /// Reads everything as of `at`.
    ///
    /// # Errors
    /// What the program cannot go on after.
    fn tick(&mut self, at: Moment) -> Result<Frame>;

    /// Answers SIGINT (Ctrl-C). By default the program ends.
    fn interrupted(&mut self, _announcements: &mut Vec<Announcement>) -> Next {
        Next::End
    }

    /// Answers SIGTERM. By default as SIGINT.
    fn terminated(&mut self, announcements: &mut Vec<Announcement>) -> Next {
        self.interrupted(announcements)
    }

    /// Answers SIGHUP. By default the program ends, as any program does.
    fn hung_up(&mut self, _announcements: &mut Vec<Announcement>) -> Next {
        Next::End
    }

    /// Asked after every tick: whether the program ends without a signal.
    fn next(&self) -> Next {
        Next::Continue
    }
}

/// Runs `program` until it, a signal or a closed stdout ends it.
///
/// Ticks are on schedule: a second apart from the first, however long one took. A tick whose time passed while an earlier
/// one still ran is left out. A stdout whose reader is gone (`| head -1`) is a success.
///
/// # Errors
/// What the program's tick gives, or a stdout that cannot be written to.
pub fn run(program: &mut dyn Program, output: &mut dyn Output, mut signals: Signals) -> Result<()> {
    let mut next_tick = Instant::now();
    loop {
        let at = Moment::now();
        let mut frame = program.tick(at)?;
        frame.took = at.monotonic.elapsed();
        if closed(output.show(&frame))? || program.next() == Next::End {
            return Ok(());
        }
        next_tick += TICK;
        let now = Instant::now();
        while next_tick <= now {
            next_tick += TICK;
        }
        loop {
            let mut announcements = Vec::new();
            let next = match signals.wait(next_tick)? {
                Waited::Passed => break,
                Waited::Closed => return Ok(()),
                Waited::Signal(Signal::SIGHUP) => program.hung_up(&mut announcements),
                Waited::Signal(Signal::SIGTERM) => program.terminated(&mut announcements),
                Waited::Signal(_) => program.interrupted(&mut announcements),
            };
            if closed(output.announce(&announcements))? || next == Next::End {
                return Ok(());
            }
        }
    }
}

/// What main returns: success, or 1 after one line on stderr with the error and all that led to it.
pub fn exit_code(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of stdout has closed it; any other error is one.
fn closed(written: io::Result<()>) -> Result<bool> {
    match written {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}
