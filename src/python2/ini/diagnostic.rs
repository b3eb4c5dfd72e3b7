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

/// Everything that is wrong with the files read so far.
#[derive(Debug, Default)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Whether at least one of them is more than a warning.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|diagnostic| !diagnostic.is_warning)
    }

    /// Adds a diagnostic, unless it is already there.
    pub(crate) fn add(&mut self, diagnostic: Diagnostic) {
        // Every section repeats what is wrong with a key of [DEFAULT].
        if !self.0.contains(&diagnostic) {
            self.0.push(diagnostic);
        }
    }

    /// File by file, each from the first line to the last.
    pub(crate) fn sorted(mut self) -> Vec<Diagnostic> {
        self.0.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        self.0
    }
}
