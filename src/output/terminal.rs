//! Figures on stdout and messages on stderr, on a terminal and in a pipe.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::tty::{self, Silenced, Size};
use super::writer::{Loss, Stream, Writer};

/// The most messages that stay below the figures on a terminal: enough for the warnings at the start and recent events.
const NOTES_KEPT: usize = 8;

/// How long the end of the program waits for a reader who takes nothing, and for one who takes something.
const LAST_PATIENCE: Duration = Duration::from_millis(30);
const LAST_TIME: Duration = Duration::from_secs(1);

/// How long an error that ends the program waits for its reader.
const ERROR_PATIENCE: Duration = Duration::from_secs(1);
const ERROR_TIME: Duration = Duration::from_secs(60);

/// stdout and stderr of this process.
#[derive(Debug)]
pub(super) struct Terminal {
    kind: Kind,
    /// Whether the messages are on the screen of the figures, so that they have to be shown again below each view.
    notes_on_screen: bool,
    /// Whether the cursor is at the end of a view.
    in_view: bool,
    mode: Silenced,
    kept: VecDeque<String>,
    figures: Arc<Writer>,
    messages: Arc<Writer>,
    /// The tables that were dropped since the user was told; `None` while none is.
    dropped: Option<u64>,
}

/// What stdout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A terminal on which a view is drawn over the last one.
    Screen,
    /// A terminal that can only append.
    Dumb,
    /// A pipe or a file.
    Pipe,
}

impl Terminal {
    pub fn of_this_process() -> Self {
        let kind = match io::stdout().is_terminal() {
            false => Kind::Pipe,
            true if tty::is_dumb(&std::env::var("TERM").unwrap_or_default()) => Kind::Dumb,
            true => Kind::Screen,
        };
        let one_terminal = kind != Kind::Pipe && io::stderr().is_terminal();
        let figures = Arc::new(Writer::new());
        // On one terminal the messages come below the figures, so one thread writes both. Otherwise neither stream waits
        // for the other's reader.
        let messages = if one_terminal { Arc::clone(&figures) } else { Arc::new(Writer::new()) };
        Self {
            kind,
            notes_on_screen: one_terminal,
            in_view: false,
            mode: Silenced::default(),
            kept: VecDeque::new(),
            figures,
            messages,
            dropped: None,
        }
    }

    /// Whether it shows views, one over the other.
    pub fn is_screen(&self) -> bool {
        self.kind == Kind::Screen
    }

    /// Replaces the screen by the view that `draw` makes of the messages for it, the newest last, and of its size.
    pub fn redraw(&mut self, draw: impl FnOnce(&[&str], Size) -> Vec<u8>, notes: Vec<String>) -> io::Result<()> {
        self.mode.silence();
        let below = if self.notes_on_screen {
            self.kept.extend(notes);
            self.kept.drain(..self.kept.len().saturating_sub(NOTES_KEPT));
            self.kept.iter().map(String::as_str).collect()
        } else {
            self.write_notes(notes, false);
            Vec::new()
        };
        self.figures.table(draw(&below, tty::size()), true);
        self.in_view = true;
        gone(self.figures.loss())
    }

    /// Writes a table, after those before it, and the messages.
    pub fn table(&mut self, mut table: Vec<u8>, mut notes: Vec<String>) -> io::Result<()> {
        if self.kind == Kind::Dumb {
            table.insert(0, b'\n');
        }
        self.figures.table(table, self.kind == Kind::Dumb);
        let loss = self.figures.loss();
        notes.extend(self.note_about(loss));
        self.write_notes(notes, self.notes_on_screen);
        gone(loss)
    }

    /// Writes a table below the present contents of the screen.
    pub fn table_below(&mut self, table: Vec<u8>, mut notes: Vec<String>) -> io::Result<()> {
        self.figures.table(table, false);
        let loss = self.figures.loss();
        notes.extend(self.note_about(loss));
        self.write_notes(notes, false);
        gone(loss)
    }

    /// Gives the terminal back while the program stands still.
    pub fn suspend(&mut self) {
        self.leave_view();
        self.figures.finish(Instant::now(), LAST_PATIENCE, LAST_TIME);
        self.mode.restore();
    }

    /// Moves the cursor below the view.
    fn leave_view(&mut self) {
        if std::mem::take(&mut self.in_view) {
            self.figures.lines(Stream::Stdout, b"\n".to_vec());
        }
    }

    /// Writes below the present contents of the screen.
    pub fn append(&mut self, lines: &[u8], notes: Vec<String>) -> io::Result<()> {
        if !lines.is_empty() || (self.notes_on_screen && !notes.is_empty()) {
            self.leave_view();
        }
        self.figures.lines(Stream::Stdout, lines.to_vec());
        self.write_notes(notes, false);
        Ok(())
    }

    /// Whether all figures are written, or never will be.
    pub fn is_written(&self) -> bool {
        self.figures.is_idle()
    }

    /// The message that tables are dropped, or that they no longer are.
    fn note_about(&mut self, Loss { tables, error, is_idle }: Loss) -> Option<String> {
        // On a terminal only the latest table matters, and the user sees that it stands still.
        if self.kind != Kind::Pipe || error == Some(Errno::EPIPE) {
            return None;
        }
        match &mut self.dropped {
            None if tables == 0 => None,
            dropped @ None => {
                *dropped = Some(tables);
                Some(match error {
                    Some(error) => format!("cannot write to stdout: {}; figures are dropped", error.desc()),
                    None => "nobody reads stdout; figures are dropped".into(),
                })
            }
            Some(dropped) => {
                *dropped += tables;
                let dropped = *dropped;
                (tables == 0 && error.is_none() && is_idle).then(|| {
                    self.dropped = None;
                    format!("stdout takes figures again; {dropped} tables were dropped")
                })
            }
        }
    }

    /// Writes messages, and with `again` also those of earlier screens.
    fn write_notes(&mut self, notes: Vec<String>, again: bool) {
        let new = notes.len();
        self.kept.extend(notes);
        let shown = if again { NOTES_KEPT.max(new) } else { new };
        let from = self.kept.len().saturating_sub(shown);
        let lines: String = self.kept.range(from..).flat_map(|note| [note, "\n"]).collect();
        self.messages.lines(Stream::Stderr, lines.into_bytes());
        self.kept.drain(..self.kept.len().saturating_sub(NOTES_KEPT));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.leave_view();
        let start = Instant::now();
        self.figures.finish(start, LAST_PATIENCE, LAST_TIME);
        self.messages.finish(start, LAST_PATIENCE, LAST_TIME);
    }
}

/// An error if the reader of stdout is gone.
fn gone(loss: Loss) -> io::Result<()> {
    if loss.error == Some(Errno::EPIPE) { Err(Errno::EPIPE.into()) } else { Ok(()) }
}

/// Writes the error that ends a program to stderr, unless nobody reads it.
pub(super) fn write_error(line: String) {
    let writer = Writer::new();
    writer.lines(Stream::Stderr, (line + "\n").into_bytes());
    writer.finish(Instant::now(), ERROR_PATIENCE, ERROR_TIME);
}
