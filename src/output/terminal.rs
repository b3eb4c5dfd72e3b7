//! Where text goes: figures to stdout, messages to stderr, and what differs where these are terminals.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};

/// Messages that stay below the figures on a terminal: enough for every warning at the start and the latest events.
const NOTES_KEPT: usize = 8;

/// stdout and stderr of this process.
#[derive(Debug)]
pub(super) struct Terminal {
    /// What clears the terminal before each table; `None` where stdout is no terminal.
    clear: Option<&'static str>,
    /// Whether each clear erases the messages too, so that they have to be written again below the table.
    notes_erased: bool,
    kept: VecDeque<String>,
}

impl Terminal {
    pub fn of_this_process() -> Self {
        let terminal = io::stdout().is_terminal();
        let term = std::env::var("TERM").unwrap_or_default();
        Self {
            clear: terminal.then(|| clear_sequence(&term)),
            notes_erased: terminal && io::stderr().is_terminal(),
            kept: VecDeque::new(),
        }
    }

    /// Replaces the screen: clear sequence and table in one write, so that nothing flickers, then the messages.
    pub fn replace(&mut self, table: &[u8], notes: Vec<String>) -> io::Result<()> {
        let mut text = Vec::from(self.clear.unwrap_or_default());
        text.extend_from_slice(table);
        write_stdout(&text)?;
        self.write_notes(notes, self.notes_erased);
        Ok(())
    }

    /// Writes below what is on the screen.
    pub fn append(&mut self, lines: &[u8], notes: Vec<String>) -> io::Result<()> {
        write_stdout(lines)?;
        self.write_notes(notes, false);
        Ok(())
    }

    /// Writes messages, and with `again` also those of earlier screens. A stderr that cannot be written to stops nothing.
    fn write_notes(&mut self, notes: Vec<String>, again: bool) {
        let new = notes.len();
        self.kept.extend(notes);
        let shown = if again { NOTES_KEPT.max(new) } else { new };
        let from = self.kept.len().saturating_sub(shown);
        let lines: String = self.kept.range(from..).flat_map(|note| [note, "\n"]).collect();
        let _ = io::stderr().lock().write_all(lines.as_bytes());
        self.kept.drain(..self.kept.len().saturating_sub(NOTES_KEPT));
    }
}

fn write_stdout(text: &[u8]) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    stdout.flush()
}

/// What clears a terminal of type `term`, as terminfo(5) has it; a blank line where nothing can.
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
            // The original printed the padding of a vt100 as text, and ended on a terminal that cannot clear.
            let expected = clear.as_str().unwrap_or("\n").trim_end_matches("$<50>");
            assert_eq!(clear_sequence(term), expected, "TERM={term}");
        }
        assert_eq!(clear_sequence(""), "\n");
    }
}
