//! The patterns of `--include`, `--exclude` and the configuration files: regular expressions as Python 2.7 had them.
//!
//! Patterns and subjects are bytes, `\w` and `(?i)` are ASCII: `firefox|chrom(e|ium)`, `^(?!.*ssh)`,
//! `(?i)SSH .*\.example\.com`. `parse` reads a pattern as Python did and refuses what cannot be given the meaning that
//! it had there; `emit` writes it out for an engine. That is `regex`, which takes linear time whatever the subject, or
//! where a pattern looks around or refers back, `fancy-regex`, which tries and steps back. Since other users write the
//! subjects, it has a limit on that.
//!
//! What Python's own engine got wrong is not imitated: now and then it took for captured what a failed attempt had left
//! behind. And where a repetition repeats what may be empty, as in `(?:|a)+`, the engines may differ in how far a match
//! reaches, not in whether there is one.

mod byte_set;
mod emit;
mod parse;
mod tree;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use byte_set::Alphabet;
use emit::{Emitted, Subjects, emit};

use crate::printable::printable;

/// Memory for each expression that is compiled.
const MAX_COMPILED_BYTES: usize = 16 << 20;
/// Steps back in one search, some 30 ms.
const MAX_STEPS_BACK: usize = 1_000_000;
/// A step back may read the whole subject again, so there is a limit on that as well: half a second for
/// `(?!.*ssh).*curl`.
const MAX_BACKTRACKED_BYTES: usize = 16 << 10;

/// A compiled pattern.
#[derive(Debug)]
pub struct Pattern {
    text: Vec<u8>,
    usual: Engine,
    /// For subjects that are empty or end in a newline, if those need another.
    unusual: Option<Engine>,
    gave_up: AtomicBool,
    /// Whether the user knows.
    told: AtomicBool,
}

/// Why a pattern was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternError {
    /// The byte of the pattern at which it goes wrong; the first is 0.
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
    /// What Python refused, what cannot be given the meaning that it had there, and what would grow too large.
    pub fn new(pattern: &[u8]) -> Result<Self, PatternError> {
        let tree = parse::parse(pattern)?;
        let for_usual = emit(&tree, Subjects::Usual);
        let for_all = emit(&tree, Subjects::All);
        let (usual, unusual) = if for_usual.text == for_all.text || for_usual.backtracks {
            (Engine::new(&for_all)?, None)
        } else {
            (Engine::new(&for_usual)?, Some(Engine::new(&for_all)?))
        };
        Ok(Pattern {
            text: pattern.to_vec(),
            usual,
            unusual,
            gave_up: AtomicBool::default(),
            told: AtomicBool::default(),
        })
    }

    /// Where the pattern first matches in the subject.
    ///
    /// None also if the search was [given up](Self::gave_up).
    pub fn find(&self, subject: &[u8]) -> Option<Range<usize>> {
        let engine = match &self.unusual {
            Some(engine) if subject.is_empty() || subject.ends_with(b"\n") => engine,
            _ => &self.usual,
        };
        engine.find(subject).unwrap_or_else(|GaveUp| {
            self.gave_up.store(true, Ordering::Relaxed);
            None
        })
    }

    /// Whether the pattern matches anywhere in the subject.
    pub fn is_match(&self, subject: &[u8]) -> bool {
        self.find(subject).is_some()
    }

    /// Whether the pattern matches a command line that ends in a blank, as they do where each argument is followed by
    /// one, or the same without that blank.
    ///
    /// The original saw the blank, so `curl $` matched there and `curl$` did not. A title that a process gave itself
    /// need not end in a blank; none is added.
    pub fn matches_command_line(&self, command_line: &[u8]) -> bool {
        self.is_match(command_line) || command_line.strip_suffix(b" ").is_some_and(|joined| self.is_match(joined))
    }

    /// Whether a search was ever given up as too much work. Its subject then counts as not matching.
    ///
    /// That takes a pattern that looks around or refers back, or one with `$` or `\B` and a subject that ends in a
    /// newline; and a subject of more than 16 KiB, or one that leads the pattern astray.
    pub fn gave_up(&self) -> bool {
        self.gave_up.load(Ordering::Relaxed)
    }

    /// What to tell the user once a search was [given up](Self::gave_up): one line, the first time that it is asked for.
    pub fn note(&self) -> Option<String> {
        (self.gave_up() && !self.told.swap(true, Ordering::Relaxed)).then(|| {
            let pattern = printable(&self.text, 60);
            format!("the pattern {pattern} takes too long on some command lines; they count as not matching")
        })
    }
}

/// The pattern as it was written.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.text))
    }
}

#[derive(Debug)]
enum Engine {
    Linear(regex::bytes::Regex),
    Backtracking { regex: fancy_regex::Regex, lower_case: Option<Alphabet> },
}

struct GaveUp;

impl Engine {
    fn new(emitted: &Emitted) -> Result<Self, PatternError> {
        if !emitted.backtracks {
            return regex::bytes::RegexBuilder::new(&emitted.text)
                .unicode(false)
                .size_limit(MAX_COMPILED_BYTES)
                .build()
                .map(Engine::Linear)
                .map_err(too_much);
        }
        let regex = fancy_regex::RegexBuilder::new(&emitted.text)
            .bytes_mode(fancy_regex::BytesMode::Ascii)
            .backtrack_limit(MAX_STEPS_BACK)
            .delegate_size_limit(MAX_COMPILED_BYTES)
            .build()
            .map_err(too_much)?;
        Ok(Engine::Backtracking { regex, lower_case: emitted.lower_case })
    }

    fn find(&self, subject: &[u8]) -> Result<Option<Range<usize>>, GaveUp> {
        let (regex, lower_case) = match self {
            Engine::Linear(regex) => return Ok(regex.find(subject).map(|found| found.range())),
            Engine::Backtracking { regex, lower_case } => (regex, lower_case),
        };
        if subject.len() > MAX_BACKTRACKED_BYTES {
            return Err(GaveUp);
        }
        let subject = match lower_case {
            None => Cow::from(subject),
            Some(alphabet) => subject.iter().map(|&byte| alphabet.lower(byte)).collect(),
        };
        match regex.find(&*subject) {
            Ok(found) => Ok(found.map(|found| found.range())),
            Err(_) => Err(GaveUp),
        }
    }
}

fn too_much(error: impl Error) -> PatternError {
    PatternError { position: 0, message: format!("this is too large or too complex: {error}") }
}
