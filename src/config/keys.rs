//! The keys of one section: their texts as numbers, patterns and commands.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStringExt;

use super::{Diagnostic, Diagnostics};
use crate::python2::ini::{KeyValue, Section};
use crate::python2::int::int;
use crate::python2::pattern::Pattern;
use crate::python2::shlex;

/// One section while its file is read. A value that is wrong becomes a diagnostic and reads as `None`.
pub(super) struct Keys<'a> {
    pub(super) file: &'a str,
    pub(super) section: &'a Section,
    pub(super) diagnostics: &'a mut Diagnostics,
}

impl<'a> Keys<'a> {
    pub(super) fn find(&self, key: &str) -> Option<&'a KeyValue> {
        self.section.options.iter().find(|option| option.key == key)
    }

    /// The key's value. `None` if the section does not have the key, or if `ini` has already reported its value.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.find(key)?.value.as_deref()
    }

    /// Like [`text`](Self::text), but a missing key is an error.
    pub(super) fn required(&mut self, key: &str, example: &str) -> Option<&'a str> {
        if self.find(key).is_none() {
            self.error(key, format!("missing; add a line such as {key}={example}"));
        }
        self.text(key)
    }

    /// The key's value as a whole number within `range`.
    pub(super) fn integer(&mut self, key: &str, range: RangeInclusive<i64>, example: &str) -> Option<i64> {
        let text = self.text(key)?;
        let Ok(number) = int(text) else {
            self.error(key, format!("{text:?} is not a whole number such as {example}"));
            return None;
        };
        // A threshold may exceed 64 bits; no traffic does, so the highest number means the same.
        let number = i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX });
        if !range.contains(&number) {
            self.error(key, format!("{text:?} is not between {} and {}", range.start(), range.end()));
            return None;
        }
        Some(number)
    }

    /// The key's value as a pattern.
    pub(super) fn pattern(&mut self, key: &str) -> Option<Pattern> {
        let text = self.text(key)?;
        match Pattern::new(text.as_bytes()) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                self.error(key, format!("{text:?} is not a valid pattern: {error}"));
                None
            }
        }
    }

    /// The key's value as a command and its arguments; `None` also if the value is empty.
    pub(super) fn command(&mut self, key: &str) -> Option<Vec<OsString>> {
        let text = self.text(key)?;
        match shlex::split(text.as_bytes()) {
            Ok(words) if words.is_empty() => None,
            Ok(words) if words[0].is_empty() => {
                self.error(key, format!("{text:?} names no program"));
                None
            }
            Ok(words) => Some(words.into_iter().map(OsString::from_vec).collect()),
            Err(error) => {
                // The most common cause is sh -c "a ; b".
                let hint = "a ; after a blank begins a comment; write it without the blank";
                self.error(key, format!("{text:?} is not a valid command: {error} ({hint})"));
                None
            }
        }
    }

    /// Warns about each key that is not in `known`. A key in `elsewhere` may still be inherited from `[DEFAULT]`, where
    /// it stands for sections of another type.
    pub(super) fn warn_about_unknown(&mut self, known: &[&str], elsewhere: &[&str]) {
        for option in &self.section.options {
            let key = option.key.as_str();
            if known.contains(&key) || option.referenced || (option.inherited && elsewhere.contains(&key)) {
                continue;
            }
            let message = match nearest(key, known) {
                Some(nearest) => format!("unknown key, did you mean {nearest}?"),
                None => format!("unknown key; the keys here are {}", known.join(", ")),
            };
            self.warn(key, message);
        }
    }

    pub(super) fn error(&mut self, key: &str, message: String) {
        self.add(false, key, message);
    }

    pub(super) fn warn(&mut self, key: &str, message: String) {
        self.add(true, key, message);
    }

    /// Adds a diagnostic at the line of `key`, or at the section's header if the section does not have that key.
    fn add(&mut self, is_warning: bool, key: &str, message: String) {
        let (line, section) = match self.find(key) {
            Some(option) if option.inherited => (option.line, "DEFAULT"),
            Some(option) => (option.line, self.section.name.as_str()),
            None => (self.section.line, self.section.name.as_str()),
        };
        let (section, key) = (Some(section.to_owned()), Some(key.to_owned()));
        let error = Diagnostic::error(self.file, Some(line), message);
        self.diagnostics.add(Diagnostic { is_warning, section, key, ..error });
    }
}

/// The known key that the user probably meant by `key`.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let (distance, nearest) = known.iter().map(|known| (distance(key, known), *known)).min()?;
    (distance <= 1 + nearest.len() / 4).then_some(nearest)
}

/// The Levenshtein distance: how many bytes must be inserted, deleted or replaced to turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    // The usual table, row by row: `row[j]` is the distance from the bytes of `a` so far to the first `j` of `b`.
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
