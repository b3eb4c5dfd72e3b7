//! The terminal on stdout: its size, what it can show, and its mode (termios(3), ioctl_tty(2)).

use std::io;

use rustix::termios::{LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios};

/// The size of a terminal that does not tell it.
const USUAL: Size = Size { columns: 80, lines: 24 };

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub columns: usize,
    pub lines: usize,
}

/// The size of the terminal on stdout, or the usual one.
pub(super) fn size() -> Size {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: size.ws_col.into(), lines: size.ws_row.into() }
        }
        _ => USUAL,
    }
}

/// Whether a terminal of type `term` lacks the sequences of ECMA-48, by which all others move the cursor.
pub(super) fn is_dumb(term: &str) -> bool {
    matches!(term, "" | "dumb" | "unknown")
}

/// The terminal without echo: what is typed does not show between the figures. It has its mode of before when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Silenced {
    before: Option<Termios>,
}

impl Silenced {
    /// Turns the echo off, unless that is done, or another job has the terminal.
    pub fn silence(&mut self) {
        if self.before.is_some() || is_background() {
            return;
        }
        let Ok(before) = rustix::termios::tcgetattr(io::stdout()) else { return };
        let mut silent = before.clone();
        // Ctrl-C and Ctrl-Z go on to make signals.
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        if rustix::termios::tcsetattr(io::stdout(), OptionalActions::Now, &silent).is_ok() {
            self.before = Some(before);
        }
    }

    /// Gives the terminal its mode of before. What was typed meanwhile is discarded: it was not meant for the shell.
    pub fn restore(&mut self) {
        // A job in the background would be stopped for this, and who has the terminal has chosen its mode.
        if let Some(before) = self.before.take()
            && !is_background()
        {
            // Not TCSAFLUSH, which waits for a terminal that is held with Ctrl-S.
            let _ = rustix::termios::tcflush(io::stdout(), QueueSelector::IFlush);
            let _ = rustix::termios::tcsetattr(io::stdout(), OptionalActions::Now, &before);
        }
    }
}

impl Drop for Silenced {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Whether the terminal controls this process and is that of another job. Of a terminal that does not, nobody is stopped.
pub(super) fn is_background() -> bool {
    rustix::termios::tcgetpgrp(io::stdout()).is_ok_and(|foreground| foreground != rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use super::is_dumb;

    #[test]
    fn a_terminal_is_dumb_if_terminfo_has_no_sequence_that_clears_it() {
        let vectors = include_str!("../../tests/vectors/terminfo.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        for (term, clear) in vectors["clear"].as_object().unwrap() {
            assert_eq!(is_dumb(term), clear.is_null(), "TERM={term}");
        }
        assert!(is_dumb(""));
    }
}
