//! The patterns of `--include`, `--exclude` and the configuration files: regular expressions of Python 2.7.
//!
//! Patterns and subjects are bytes; `\w` and `(?i)` are ASCII: `firefox|chrom(e|ium)`, `^(?!.*ssh)`,
//! `(?i)SSH .*\.example\.com`.
//!
//! ```text
//! pattern ──► parse ──► tree ──► emit ──► regex, in linear time for any subject
//!                                     └─► fancy-regex, if the pattern has a look-around or a back-reference
//! ```
//!
//! `parse` reads a pattern as Python did, and rejects one that would have another meaning here. `emit` writes it in the
//! syntax of the engines. `fancy-regex` backtracks, and other users choose the subjects, so its work has a limit;
//! `budget` limits the time of all searches of a tick.
//!
//! This module does not imitate a bug in Python's own engine, which sometimes kept a capture from a failed attempt.
//! If a repetition repeats an expression that may be empty, as in `(?:|a)+`, the engines may differ in where a match
//! ends, not in whether there is one.
//!
//! Where to read on: `parse` for the syntax, `tree` for its result, `emit` for the engines' syntax, `byte_set` for
//! `[...]`, `\w` and case.

mod budget;
mod byte_set;
mod emit;
mod parse;
mod tree;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use budget::MatchBudget;
use byte_set::Alphabet;
use emit::{Emitted, Subjects, emit};

use crate::printable::printable;

/// The most memory for one compiled expression.
const MAX_COMPILED_BYTES: usize = 16 << 20;
/// The most backtracking steps in one search, some 30 ms.
const MAX_BACKTRACKS: usize = 1_000_000;
/// The longest subject for the engine that backtracks, since each step may read the whole subject again: an eighth of a
/// second for `(?!.*ssh).*curl`.
const MAX_BACKTRACKED_BYTES: usize = 8 << 10;

/// A compiled pattern; a copy shares it.
#[derive(Debug, Clone)]
pub struct Pattern(Arc<Compiled>);

#[derive(Debug)]
struct Compiled {
    text: Vec<u8>,
    size: u64,
    usual: Engine,
    /// For subjects that are empty or end in a newline, if they need a different engine.
    unusual: Option<Engine>,
    exceeded_limit: AtomicBool,
    /// Whether [`limit_message_once`](Self::limit_message_once) has returned the message.
    reported: AtomicBool,
}

/// Why a pattern was rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternError {
    /// The byte of the pattern where the error is, counted from 0.
    pub position: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.position, self.message)
    }
}

impl Error for PatternError {}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// If Python rejected the pattern, if the pattern would have another meaning here, or if its compiled form would be
    /// too large.
    pub fn new(pattern: &[u8]) -> Result<Self, PatternError> {
        let tree = parse::parse(pattern)?;
        let for_usual = emit(&tree, Subjects::Usual);
        let for_all = emit(&tree, Subjects::All);
        let (usual, unusual) = if for_usual.text == for_all.text || for_usual.backtracks {
            (Engine::new(&for_all)?, None)
        } else {
            (Engine::new(&for_usual)?, Some(Engine::new(&for_all)?))
        };
        let (exceeded_limit, reported) = (AtomicBool::default(), AtomicBool::default());
        let (text, size) = (pattern.to_vec(), tree.size());
        Ok(Pattern(Arc::new(Compiled { text, size, usual, unusual, exceeded_limit, reported })))
    }

    /// The pattern as it was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.text
    }

    /// The number of characters to match, with all repetitions written out.
    pub(crate) fn size(&self) -> u64 {
        self.0.size
    }

    /// Whether some subject needs the engine that backtracks.
    fn may_backtrack(&self) -> bool {
        let engines = [Some(&self.0.usual), self.0.unusual.as_ref()];
        engines.into_iter().flatten().any(|engine| matches!(engine, Engine::Backtracking { .. }))
    }

    /// The first match of the pattern in the subject.
    ///
    /// `None` also if the search [exceeded its limit](Self::exceeded_limit).
    pub fn find(&self, subject: &[u8]) -> Option<Range<usize>> {
        let engine = match &self.0.unusual {
            Some(engine) if subject.is_empty() || subject.ends_with(b"\n") => engine,
            _ => &self.0.usual,
        };
        engine.find(subject).unwrap_or_else(|LimitExceeded| {
            self.0.exceeded_limit.store(true, Ordering::Relaxed);
            None
        })
    }

    /// Whether the pattern matches anywhere in the subject.
    pub fn is_match(&self, subject: &[u8]) -> bool {
        self.find(subject).is_some()
    }

    /// Whether the pattern matches a command line, either as it is or without the blank at its end. A command line has
    /// that blank because a blank follows each argument.
    ///
    /// The original saw the blank, so `curl $` matched there and `curl$` did not. A title that a process gave itself
    /// may lack the blank; this function does not add one.
    pub fn matches_command_line(&self, command_line: &[u8]) -> bool {
        self.is_match(command_line) || command_line.strip_suffix(b" ").is_some_and(|joined| self.is_match(joined))
    }

    /// Whether any search exceeded its limit of work. The subject of such a search counts as not matching.
    ///
    /// Only the engine that backtracks has a limit. A pattern needs it if it has a look-around or a back-reference, or
    /// if it has `$` or `\B` and the subject ends in a newline. The search exceeds the limit if the subject is longer
    /// than 8 KiB, or if it makes the engine backtrack too often.
    pub fn exceeded_limit(&self) -> bool {
        self.0.exceeded_limit.load(Ordering::Relaxed)
    }

    /// A line for the user, once, after a search has [exceeded its limit](Self::exceeded_limit).
    pub(crate) fn limit_message_once(&self) -> Option<String> {
        (self.exceeded_limit() && !self.0.reported.swap(true, Ordering::Relaxed)).then(|| {
            let pattern = printable(self.as_bytes(), 60);
            format!("the pattern {pattern} takes too long on some command lines; they count as not matching")
        })
    }
}

/// Two patterns are equal if they were written in the same way.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

/// The pattern as it was written.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

#[derive(Debug)]
enum Engine {
    Linear(regex::bytes::Regex),
    Backtracking { regex: fancy_regex::Regex, lower_case: Option<Alphabet> },
}

struct LimitExceeded;

impl Engine {
    fn new(emitted: &Emitted) -> Result<Self, PatternError> {
        if !emitted.backtracks {
            return regex::bytes::RegexBuilder::new(&emitted.text)
                .unicode(false)
                .size_limit(MAX_COMPILED_BYTES)
                .build()
                .map(Engine::Linear)
                .map_err(|_| too_much());
        }
        let regex = fancy_regex::RegexBuilder::new(&emitted.text)
            .bytes_mode(fancy_regex::BytesMode::Ascii)
            .backtrack_limit(MAX_BACKTRACKS)
            .delegate_size_limit(MAX_COMPILED_BYTES)
            .build()
            .map_err(|_| too_much())?;
        Ok(Engine::Backtracking { regex, lower_case: emitted.lower_case })
    }

    fn find(&self, subject: &[u8]) -> Result<Option<Range<usize>>, LimitExceeded> {
        let (regex, lower_case) = match self {
            Engine::Linear(regex) => return Ok(regex.find(subject).map(|found| found.range())),
            Engine::Backtracking { regex, lower_case } => (regex, lower_case),
        };
        if subject.len() > MAX_BACKTRACKED_BYTES {
            return Err(LimitExceeded);
        }
        let subject = match lower_case {
            None => Cow::from(subject),
            Some(alphabet) => subject.iter().map(|&byte| alphabet.lower(byte)).collect(),
        };
        match regex.find(&*subject) {
            Ok(found) => Ok(found.map(|found| found.range())),
            Err(_) => Err(LimitExceeded),
        }
    }
}

fn too_much() -> PatternError {
    let mib = MAX_COMPILED_BYTES >> 20;
    let message = format!("this is too large: compiled, it takes more than {mib} MiB; use smaller repetitions or sets");
    PatternError { position: 0, message }
}
