//! Figures on stdout and messages on stderr, on a terminal and in a pipe.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

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
    /// The sequence that clears the terminal before each table; `None` if stdout is not a terminal.
    clear: Option<&'static str>,
    /// Whether clearing also erases the messages, so that they have to be written again below each table.
    notes_erased: bool,
    kept: VecDeque<String>,
    figures: Arc<Writer>,
    messages: Arc<Writer>,
    /// The tables that were dropped since the user was told; `None` while none is.
    dropped: Option<u64>,
}

impl Terminal {
    pub fn of_this_process() -> Self {
        let terminal = io::stdout().is_terminal();
        let notes_erased = terminal && io::stderr().is_terminal();
        let term = std::env::var("TERM").unwrap_or_default();
        let figures = Arc::new(Writer::new());
        // On one terminal the messages come below the figures, so one thread writes both. Otherwise neither stream waits
        // for the other's reader.
        let messages = if notes_erased { Arc::clone(&figures) } else { Arc::new(Writer::new()) };
        Self {
            clear: terminal.then(|| clear_sequence(&term)),
            notes_erased,
            kept: VecDeque::new(),
            figures,
            messages,
            dropped: None,
        }
    }

    /// Replaces the screen: writes the clear sequence and the table in one write, so that nothing flickers, then the
    /// messages.
    pub fn replace(&mut self, table: &[u8], mut notes: Vec<String>) -> io::Result<()> {
        let mut text = Vec::from(self.clear.unwrap_or_default());
        text.extend_from_slice(table);
        self.figures.table(text, self.clear.is_some());
        let loss = self.figures.loss();
        notes.extend(self.note_about(loss));
        self.write_notes(notes, self.notes_erased);
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

    /// Writes below the present contents of the screen.
    pub fn append(&mut self, lines: &[u8], notes: Vec<String>) -> io::Result<()> {
        self.figures.lines(Stream::Stdout, lines.to_vec());
        self.write_notes(notes, false);
        Ok(())
    }

    /// The message that tables are dropped, or that they no longer are.
    fn note_about(&mut self, Loss { tables, error, is_idle }: Loss) -> Option<String> {
        // On a terminal only the latest table matters, and the user sees that it stands still.
        if self.clear.is_some() || error == Some(Errno::EPIPE) {
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

/// The sequence that clears a terminal of type `term`, as in terminfo(5); a newline for a terminal that has none.
fn clear_sequence(term: &str) -> &'static str {
    const TO_THE_END: [&str; 6] = ["linux", "screen", "tmux", "ansi", "vt", "cygwin"];
    match term {
        "" | "dumb" | "unknown" => "\n",
        _ if TO_THE_END.iter().any(|known| term.starts_with(known)) => "\x1b[H\x1b[J",
        _ => "\x1b[H\x1b[2J",
    }
}

#[cfg(test)]
mod tests {
    use super::clear_sequence;

    #[test]
    fn the_clear_sequence_is_that_of_terminfo() {
        let vectors = include_str!("../../tests/vectors/terminfo.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        for (term, clear) in vectors["clear"].as_object().unwrap() {
            // The original printed the padding of a vt100 as text, and exited on a terminal without a clear sequence.
            let expected = clear.as_str().unwrap_or("\n").trim_end_matches("$<50>");
            assert_eq!(clear_sequence(term), expected, "TERM={term}");
        }
        assert_eq!(clear_sequence(""), "\n");
    }
}
