//! The programs of the three binaries, and the loop that runs them.
//!
//! ```text
//! once a second:  Program::tick ──▶ Frame ──▶ Output::show
//! on a signal:    Program::interrupted … ──▶ announcements ──▶ Output::announce
//! ```
//! A tick is one pass of the loop, once a second. Only the loop reads the time of a tick, waits for the next one and
//! calls an output.
//!
//! Where to read on: [`one_source`] (runmonitor), [`pipe`] (runpipe) and [`aggregate`] (runaggregator) are the
//! programs; [`recording`] gives what moved to a history; `signals` waits from one tick to the next; `service` is
//! the service manager; [`top`] says what the rows of
//! --top are; [`cli`] and [`history`] parse the command lines.

pub mod aggregate;
pub mod cli;
pub mod history;
pub mod one_source;
pub mod pipe;
pub mod recording;
mod service;
mod signals;
pub mod top;

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::output::{self, Announcement, Frame, Moment, Output};
use crate::privileges::Working;
use service::ServiceManager;
pub use signals::Signals;
use signals::Waited;

/// The longest time from one tick to the next.
pub const TICK: Duration = Duration::from_secs(1);

/// How often the end of the program looks whether its last figures are written.
const LOOK_FOR_READER: Duration = Duration::from_millis(5);

/// When frames are shown, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// The time from one frame to the next.
    pub interval: Duration,
    /// How many frames are shown, each of which has an interval; `None` for as many as the time brings.
    pub count: Option<u64>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { interval: TICK, count: None }
    }
}

impl Schedule {
    /// The time from one tick to the next, and the number of ticks from one frame to the next: what the kernel counts has to be read
    /// each second.
    fn ticks(&self) -> (Duration, u32) {
        let ticks = u32::try_from(self.interval.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u32::MAX).max(1);
        (self.interval / ticks, ticks)
    }
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another tick.
    Continue,
    /// The program is done; it ends with success.
    End,
}

/// A program that the loop runs.
pub trait Program {
    /// Reads the figures as of `at`. A frame that is not `shown` has no rows, and the next one has what moved since the last that
    /// was.
    ///
    /// # Errors
    /// An error after which the program cannot go on.
    fn tick(&mut self, at: Moment, shown: bool) -> Result<Frame>;

    /// Handles SIGINT (Ctrl-C). By default, the program ends.
    fn interrupted(&mut self, _announcements: &mut Vec<Announcement>) -> Next {
        Next::End
    }

    /// Handles SIGTERM. By default, like SIGINT.
    fn terminated(&mut self, announcements: &mut Vec<Announcement>) -> Next {
        self.interrupted(announcements)
    }

    /// Handles SIGHUP. By default, the program ends, as it would without a handler.
    fn hung_up(&mut self, _announcements: &mut Vec<Announcement>) -> Next {
        Next::End
    }

    /// Whether it still reads the files that SIGHUP made it read again.
    fn is_reloading(&self) -> bool {
        false
    }

    /// The messages that no frame has had, when the program ends.
    fn last_notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Whether the program does more than show figures, so that it goes on when the reader of stdout is gone.
    fn works_unseen(&mut self) -> bool {
        false
    }

    /// Whether the program goes on if there is no signal. The loop calls this after every tick.
    fn next(&self) -> Next {
        Next::Continue
    }
}

/// Runs `program` until it ends by itself or by a signal, or, if it only shows figures, until the reader of stdout is
/// gone (`| head -1`), which is a success.
///
/// Ticks keep to the `schedule`, normally whole seconds after the first, however long each takes. If one takes longer, the
/// loop skips the ticks whose time has passed.
///
/// The program has given up the rights that it no longer needs ([`Working`]).
///
/// # Errors
/// The error of a tick.
pub fn run(
    program: &mut dyn Program,
    output: &mut dyn Output,
    schedule: Schedule,
    signals: Signals,
    _: Working,
) -> Result<()> {
    let mut manager = ServiceManager::of_environment();
    let result = tick_until_end(program, output, schedule, signals, &mut manager);
    manager.ends();
    let last_notes: Vec<_> = program.last_notes().into_iter().map(Announcement::Note).collect();
    closed(output.announce(&last_notes))?;
    result
}

fn tick_until_end(
    program: &mut dyn Program,
    output: &mut dyn Output,
    schedule: Schedule,
    mut signals: Signals,
    manager: &mut ServiceManager,
) -> Result<()> {
    let (tick, ticks_per_frame) = schedule.ticks();
    let mut has_reader = true;
    let mut next_tick = Instant::now();
    let (mut ticks, mut frames_left) = (0, schedule.count);
    loop {
        let at = Moment::now();
        let is_frame = ticks == 0;
        ticks = (ticks + 1) % ticks_per_frame;
        let mut frame = program.tick(at, is_frame)?;
        frame.took = at.monotonic.elapsed();
        // With a number of frames, the first one, from which the others count, is none of them.
        let is_shown = is_frame && (frames_left.is_none() || frame.interval.is_some());
        let is_gone = closed(if is_shown { output.show(&frame) } else { output.tell(&frame) })?;
        manager.ticked(program.is_reloading());
        if is_shown {
            frames_left = frames_left.map(|left| left.saturating_sub(1));
        }
        if program.next() == Next::End {
            return Ok(());
        }
        if frames_left == Some(0) {
            return wait_until_written(output, signals);
        }
        if is_gone && std::mem::replace(&mut has_reader, false) && reader_gone(program, output)? == Next::End {
            return Ok(());
        }
        next_tick += tick;
        let now = Instant::now();
        while next_tick <= now {
            next_tick += tick;
        }
        loop {
            let mut announcements = Vec::new();
            let next = match signals.wait(next_tick, has_reader)? {
                Waited::Passed => break,
                Waited::Closed => {
                    has_reader = false;
                    reader_gone(program, output)?
                }
                Waited::Signal(Signal::SIGTSTP) => {
                    output.suspend();
                    signals::stand_still()?;
                    output.refresh();
                    Next::Continue
                }
                Waited::Signal(Signal::SIGWINCH) => {
                    output.refresh();
                    Next::Continue
                }
                Waited::Signal(Signal::SIGHUP) => {
                    manager.reloads();
                    program.hung_up(&mut announcements)
                }
                Waited::Signal(Signal::SIGTERM) => program.terminated(&mut announcements),
                Waited::Signal(_) => program.interrupted(&mut announcements),
            };
            closed(output.announce(&announcements))?;
            if next == Next::End {
                return Ok(());
            }
        }
    }
}

/// Waits until the reader of stdout has taken the last frame, or is gone, or a signal comes: a number of frames that was asked for is
/// shown in full.
fn wait_until_written(output: &dyn Output, mut signals: Signals) -> Result<()> {
    while !output.is_written() {
        match signals.wait(Instant::now() + LOOK_FOR_READER, true)? {
            Waited::Passed => {}
            Waited::Closed | Waited::Signal(_) => break,
        }
    }
    Ok(())
}

/// The reader of stdout is gone: ends a program that only shows figures.
fn reader_gone(program: &mut dyn Program, output: &mut dyn Output) -> Result<Next> {
    if !program.works_unseen() {
        return Ok(Next::End);
    }
    let note = "the reader of stdout is gone; all but the figures goes on".to_owned();
    closed(output.announce(&[Announcement::Note(note)]))?;
    Ok(Next::Continue)
}

/// The exit code of a binary: success, or 1 after one line on stderr with the error and its causes.
pub fn exit_code(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::write_error(format!("{program}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether writing failed because the reader of stdout is gone; any other failure is an error.
fn closed(written: io::Result<()>) -> Result<bool> {
    match written {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_read_each_second_however_seldom_frames_are_shown() {
        let ticks = |interval| Schedule { interval: Duration::from_secs_f64(interval), count: None }.ticks();
        assert_eq!(ticks(1.0), (TICK, 1));
        assert_eq!(ticks(0.2), (Duration::from_millis(200), 1));
        assert_eq!(ticks(86_400.0), (TICK, 86_400));
        let (tick, per_frame) = ticks(2.5);
        assert_eq!((tick.as_millis(), per_frame), (833, 3));
    }
}
