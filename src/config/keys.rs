//! The keys of one section: their texts as numbers, patterns and commands.

use std::collections::HashMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::unistd::{AccessFlags, access};

use super::{Diagnostic, Diagnostics};
use crate::printable::printable;
use crate::python2::ini::{self, KeyValue, Section, quoted};
use crate::python2::int::int;
use crate::python2::pattern::Pattern;
use crate::python2::shlex;
use crate::traffic::rates::BYTES_PER_KB;

/// The most memory of all patterns of a file: 8,000 short ones.
const MOST_MEMORY: u64 = 128 << 20;
/// What a compiled pattern takes, and each of its characters when its repetitions are written out, as measured.
const PATTERN_MEMORY: u64 = 16 << 10;
const CHARACTER_MEMORY: u64 = 600;

/// The sections of a file, in file order.
pub(super) fn sections(file: &str, text: &[u8], diagnostics: &mut Diagnostics) -> Vec<Section> {
    let sections = ini::parse(file, text, diagnostics);
    for section in &sections {
        if section.name.contains('\0') {
            let message = "a name has no NUL byte".to_owned();
            let error = Diagnostic::error(file, Some(section.line), message);
            diagnostics.add(Diagnostic { section: Some(section.name.clone()), ..error });
        }
    }
    sections
}

/// The patterns of a file. Each text is compiled once: every section repeats those of `[DEFAULT]`.
#[derive(Default)]
pub(super) struct Patterns {
    compiled: HashMap<String, Result<Pattern, String>>,
    memory: u64,
}

impl Patterns {
    fn compile(&mut self, text: &str) -> Result<Pattern, String> {
        if let Some(known) = self.compiled.get(text) {
            return known.clone();
        }
        let compiled = if self.memory > MOST_MEMORY {
            Err(format!("the patterns of this file take more than {} MiB together; use fewer", MOST_MEMORY >> 20))
        } else {
            let invalid = |error| format!("{} is not a valid pattern: {error}", quoted(text));
            Pattern::new(text.as_bytes()).map_err(invalid)
        };
        let size = compiled.as_ref().map_or(0, Pattern::size);
        self.memory += PATTERN_MEMORY + CHARACTER_MEMORY * size;
        self.compiled.insert(text.to_owned(), compiled.clone());
        compiled
    }
}

/// One section while its file is read. A value that is wrong becomes a diagnostic and reads as `None`.
pub(super) struct Keys<'a> {
    pub(super) file: &'a str,
    pub(super) section: &'a Section,
    pub(super) patterns: &'a mut Patterns,
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
            self.error(key, format!("{} is not a whole number such as {example}", quoted(text)));
            return None;
        };
        // A threshold may exceed 64 bits; no traffic does, so the highest number means the same.
        let number = i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX });
        if !range.contains(&number) {
            self.error(key, format!("{} is not between {} and {}", quoted(text), range.start(), range.end()));
            return None;
        }
        Some(number)
    }

    /// The key's value as a number of bytes, such as `50 GB`. A kB is 1024 bytes, a MB is 1024 kB, and so on.
    pub(super) fn bytes(&mut self, key: &str, example: &str) -> Option<u64> {
        let text = self.text(key)?;
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
        let exponent = match unit.trim().to_ascii_lowercase().as_str() {
            "b" => Some(0),
            "kb" | "kib" => Some(1),
            "mb" | "mib" => Some(2),
            "gb" | "gib" => Some(3),
            "tb" | "tib" => Some(4),
            "" if number == "0" => Some(0),
            _ => None,
        };
        let bytes = exponent.zip(number.parse::<f64>().ok()).map(|(n, number)| number * (BYTES_PER_KB as f64).powi(n));
        // Up to here, each whole number has a floating-point number of its own.
        if !bytes.is_some_and(|bytes| (0.0..=9e15).contains(&bytes)) {
            self.error(key, format!("{} is not a number of B, kB, MB, GB or TB such as {example}", quoted(text)));
        }
        bytes.filter(|bytes| (0.0..=9e15).contains(bytes)).map(|bytes| bytes as u64)
    }

    /// The key's value as a pattern.
    pub(super) fn pattern(&mut self, key: &str) -> Option<Pattern> {
        let option = self.find(key)?;
        self.pattern_of(option)
    }

    /// The value of this key as a pattern.
    pub(super) fn pattern_of(&mut self, option: &KeyValue) -> Option<Pattern> {
        let compiled = self.patterns.compile(option.value.as_deref()?);
        compiled.map_err(|message| self.add(false, Some(option), &option.key, message)).ok()
    }

    /// The key's value as a command and its arguments; `None` also if the value is empty.
    pub(super) fn command(&mut self, key: &str) -> Option<Vec<OsString>> {
        let text = self.text(key)?;
        let quoted = quoted(text);
        if text.contains('\0') {
            self.error(key, format!("{quoted} has a NUL byte, which no command can have"));
            return None;
        }
        match shlex::split(text.as_bytes()) {
            Ok(words) if words.is_empty() => None,
            Ok(words) if words[0].is_empty() => {
                self.error(key, format!("{quoted} names no program"));
                None
            }
            Ok(words) => {
                let words: Vec<_> = words.into_iter().map(OsString::from_vec).collect();
                if let Some(problem) = why_not_a_program(&words[0]) {
                    let program = printable(words[0].as_bytes(), 60);
                    self.warn(key, format!("{program} {problem}, so this command cannot run now"));
                }
                Some(words)
            }
            Err(error) => {
                // The most common cause is sh -c "a ; b".
                let hint = "a ; after a blank begins a comment; write it without the blank";
                self.error(key, format!("{quoted} is not a valid command: {error} ({hint})"));
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
            self.add(true, Some(option), key, message);
        }
    }

    pub(super) fn error(&mut self, key: &str, message: String) {
        self.add(false, self.find(key), key, message);
    }

    pub(super) fn warn(&mut self, key: &str, message: String) {
        self.add(true, self.find(key), key, message);
    }

    /// Adds a diagnostic at the line of `key`, or at the section's header if the section does not have that key.
    fn add(&mut self, is_warning: bool, option: Option<&KeyValue>, key: &str, message: String) {
        let (line, section) = match option {
            Some(option) if option.inherited => (option.line, "DEFAULT"),
            Some(option) => (option.line, self.section.name.as_str()),
            None => (self.section.line, self.section.name.as_str()),
        };
        let (section, key) = (Some(section.to_owned()), Some(key.to_owned()));
        let error = Diagnostic::error(self.file, Some(line), message);
        self.diagnostics.add(Diagnostic { is_warning, section, key, ..error });
    }
}

/// Why the first word of a command starts no program; `None` if it does.
fn why_not_a_program(word: &OsStr) -> Option<&'static str> {
    let may_run = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    if word.as_bytes().contains(&b'/') {
        let path = Path::new(word);
        return match path.exists() {
            _ if may_run(path) => None,
            true => Some("is not a program that this user may run"),
            false => Some("does not exist"),
        };
    }
    let path = env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let found = env::split_paths(&path).any(|directory| may_run(&directory.join(word)));
    (!found).then_some("is no program in any directory of PATH")
}

/// The known name that the user probably meant by `name`.
pub(crate) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    // The distance of longer ones is their length, which takes its time to find out.
    const LONGEST: usize = 100;
    let key = name.get(..LONGEST).unwrap_or(name);
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
