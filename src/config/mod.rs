//! The three configuration files: what their keys mean, and what is wrong with them.
//!
//! Each reader takes a file's text and gives the settings it could make out. What it could not goes to [`Findings`], so
//! that all mistakes of all files are reported in one run, each with what would be right:
//!
//! ```text
//! monitors.cfg:7: [SSH Pipe] port: "22x" is not a whole number such as 8080
//! monitors.cfg:9: warning: [Web] exlude: unknown key, did you mean exclude?
//! ```

mod applications;
mod files;
mod monitors;
mod notifications;

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStringExt;

use crate::python2::ini::{self, Entry, Section};
use crate::python2::int as number;
use crate::python2::pattern::Pattern;
use crate::python2::shlex;

pub use applications::applications;
pub use files::{Configuration, Files};
pub use monitors::{Monitors, PipeSettings, monitors};
pub use notifications::notifications;

/// Something wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, as the user named it.
    pub file: String,
    /// The line, counted from 1; `None` where it is about the whole file.
    pub line: Option<usize>,
    /// Whether the program can go on as if it were not there.
    pub is_warning: bool,
    /// The section, where it is about one.
    pub section: Option<String>,
    /// The key, where it is about one.
    pub key: Option<String>,
    /// What is wrong and what would be right.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names may hold anything, and these lines go to a terminal.
        let printable = |name: &str| crate::printable::printable(name.as_bytes(), usize::MAX);
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
        f.write_str(&self.what)
    }
}

/// Everything that is wrong with the files read so far.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Whether one of them is more than a warning.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| !finding.is_warning)
    }

    /// File by file, each from the first line to the last.
    pub fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        self.0
    }

    /// The warnings, if there is nothing worse.
    ///
    /// # Errors
    /// All of them, if there is.
    pub fn warnings(self) -> Result<Vec<Finding>, Mistakes> {
        if self.has_errors() { Err(Mistakes(self.sorted())) } else { Ok(self.sorted()) }
    }

    /// Adds one more; the same one twice counts once.
    pub fn add(&mut self, finding: Finding) {
        // What is wrong in [DEFAULT] would be found once for each section.
        if !self.0.contains(&finding) {
            self.0.push(finding);
        }
    }
}

/// Why a configuration is not used: all that is wrong with it, the warnings too, one line each below a first one.
#[derive(Debug)]
pub struct Mistakes(Vec<Finding>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.iter().filter(|finding| !finding.is_warning).count() {
            1 => f.write_str("a mistake in the configuration:")?,
            count => write!(f, "{count} mistakes in the configuration:")?,
        }
        self.0.iter().try_for_each(|finding| write!(f, "\n{finding}"))
    }
}

impl Error for Mistakes {}

/// The sections of a file; what is wrong with its text goes to `findings`.
fn sections(file: &str, text: &[u8], findings: &mut Findings) -> Vec<Section> {
    let document = ini::parse(text);
    for ini::Mistake { line, section, key, what } in document.mistakes {
        let line = Some(line);
        findings.add(Finding { file: file.to_owned(), line, is_warning: false, section, key, what });
    }
    document.sections
}

/// One section being read.
struct Keys<'a> {
    file: &'a str,
    section: &'a Section,
    findings: &'a mut Findings,
}

impl<'a> Keys<'a> {
    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.section.options.iter().find(|entry| entry.key == key)
    }

    /// The key's value. `None` if the section does not have the key, or its text has a mistake already reported.
    fn text(&self, key: &str) -> Option<&'a str> {
        self.entry(key)?.value.as_deref()
    }

    /// As [`text`](Self::text), but that the key is not there is an error.
    fn required(&mut self, key: &str, example: &str) -> Option<&'a str> {
        if self.entry(key).is_none() {
            self.missing(key, example);
        }
        self.text(key)
    }

    fn missing(&mut self, key: &str, example: &str) {
        self.add(false, key, format!("missing; add a line such as {key}={example}"));
    }

    /// The key's value as a whole number within `range`.
    fn number(&mut self, key: &str, range: RangeInclusive<i64>, example: &str) -> Option<i64> {
        let text = self.text(key)?;
        let Ok(number) = number::int(text) else {
            self.error(key, format!("{text:?} is not a whole number such as {example}"));
            return None;
        };
        // A threshold may be beyond 64 bits: no traffic is.
        let number = i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX });
        if !range.contains(&number) {
            self.error(key, format!("{text:?} is not between {} and {}", range.start(), range.end()));
            return None;
        }
        Some(number)
    }

    /// The key's value as a pattern.
    fn pattern(&mut self, key: &str) -> Option<Pattern> {
        let text = self.text(key)?;
        match Pattern::new(text.as_bytes()) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                self.error(key, format!("{text:?} is no pattern: {error}"));
                None
            }
        }
    }

    /// The key's value as a command and its arguments; an empty value is none.
    fn command(&mut self, key: &str) -> Option<Vec<OsString>> {
        let text = self.text(key)?;
        match shlex::split(text.as_bytes()) {
            Ok(words) if words.is_empty() => None,
            Ok(words) if words[0].is_empty() => {
                self.error(key, format!("{text:?} names no program"));
                None
            }
            Ok(words) => Some(words.into_iter().map(OsString::from_vec).collect()),
            Err(error) => {
                // The commonest way to get there: sh -c "a ; b".
                let hint = "a ; after a blank begins a comment; write it without the blank";
                self.error(key, format!("{text:?} is no command: {error} ({hint})"));
                None
            }
        }
    }

    /// Warns of keys that are not in `known`. Those of `elsewhere` may still come from `[DEFAULT]`, for other sections.
    fn warn_of_unknown(&mut self, known: &[&str], elsewhere: &[&str]) {
        for entry in &self.section.options {
            let key = entry.key.as_str();
            if known.contains(&key) || entry.referenced || (entry.inherited && elsewhere.contains(&key)) {
                continue;
            }
            let what = match nearest(key, known) {
                Some(nearest) => format!("unknown key, did you mean {nearest}?"),
                None => format!("unknown key, known here are {}", known.join(", ")),
            };
            self.warn(key, what);
        }
    }

    fn error(&mut self, key: &str, what: String) {
        self.add(false, key, what);
    }

    fn warn(&mut self, key: &str, what: String) {
        self.add(true, key, what);
    }

    /// A finding about `key`, or about the whole section where it does not have that key.
    fn add(&mut self, is_warning: bool, key: &str, what: String) {
        let (line, section) = match self.entry(key) {
            Some(entry) if entry.inherited => (entry.line, "DEFAULT"),
            Some(entry) => (entry.line, self.section.name.as_str()),
            None => (self.section.line, self.section.name.as_str()),
        };
        let (line, section, key) = (Some(line), Some(section.to_owned()), Some(key.to_owned()));
        self.findings.add(Finding { file: self.file.to_owned(), line, is_warning, section, key, what });
    }
}

/// The known key that `key` was probably meant to be.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let (distance, nearest) = known.iter().map(|known| (distance(key, known), *known)).min()?;
    (distance <= 1 + nearest.len() / 4).then_some(nearest)
}

/// How many bytes have to be put in, taken out or replaced to make `b` of `a` (Levenshtein's distance).
fn distance(a: &str, b: &str) -> usize {
    // Row by row of the usual table: `row[j]` is the distance from what of `a` was looked at to the first `j` of `b`.
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, byte) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(byte != other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
