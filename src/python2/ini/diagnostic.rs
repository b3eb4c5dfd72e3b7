//! What is wrong with a configuration file, and where.

use std::fmt;

use crate::printable::printable;

/// One thing that is wrong with a configuration file. It shows as one line:
///
/// ```text
/// monitors.cfg:9: warning: [Web] exlude: unknown key, did you mean exclude?
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, as the user named it.
    pub(crate) file: String,
    /// The line, counted from 1; `None` if the whole file is wrong.
    pub(crate) line: Option<usize>,
    /// Whether the program can run in spite of it.
    pub(crate) is_warning: bool,
    /// The section, if one is concerned.
    pub(crate) section: Option<String>,
    /// The key, if one is concerned.
    pub(crate) key: Option<String>,
    /// What is wrong, and what would be right.
    pub(crate) message: String,
}

impl Diagnostic {
    /// An error that concerns no section and no key.
    pub(crate) fn error(file: &str, line: Option<usize>, message: String) -> Self {
        Self { file: file.to_owned(), line, is_warning: false, section: None, key: None, message }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name may contain any character, and these lines go to a terminal.
        let printable = |name: &str| printable(name.as_bytes(), usize::MAX);
        write!(f, "{}:", printable(&self.file))?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        f.write_str(if self.is_warning { " warning: " } else { " " })?;
        if let Some(section) = &self.section {
            write!(f, "[{}] ", printable(section))?;
        }
        if let Some(key) = &self.key {
            write!(f, "{}: ", printable(key))?;
        }
        f.write_str(&self.message)
    }
}

/// The most diagnostics that are kept; of the others, only the number is.
const MOST_KEPT: usize = 200;

/// Everything that is wrong with the files read so far.
#[derive(Debug, Default)]
pub struct Diagnostics {
    kept: Vec<Diagnostic>,
    /// The number of errors, and of warnings, that were not kept.
    more: (usize, usize),
}

impl Diagnostics {
    /// Whether at least one of them is more than a warning.
    pub fn has_errors(&self) -> bool {
        self.more.0 > 0 || self.kept.iter().any(|diagnostic| !diagnostic.is_warning)
    }

    /// Adds a diagnostic, unless it is already there.
    pub(crate) fn add(&mut self, diagnostic: Diagnostic) {
        // Every section repeats what is wrong with a key of [DEFAULT].
        if self.kept.contains(&diagnostic) {
            return;
        }
        if self.kept.len() < MOST_KEPT {
            self.kept.push(diagnostic);
        } else if diagnostic.is_warning {
            self.more.1 += 1;
        } else {
            self.more.0 += 1;
        }
    }

    /// The number of errors and of warnings that are beyond the limit, so that [`sorted`](Self::sorted) lacks them.
    pub fn more(&self) -> (usize, usize) {
        self.more
    }

    /// File by file, each from the first line to the last.
    pub fn sorted(mut self) -> Vec<Diagnostic> {
        self.kept.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        self.kept
    }
}

/// The beginning of a text in quotes, for a message.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 100;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
