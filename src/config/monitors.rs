//! The monitors file: which traffic the program counts, and which pipes it opens.
//!
//! ```text
//! [General]
//! type=monitor
//! exclude=ssh
//! [SSH Pipe]
//! type=pipe
//! port=2222
//! newhost=example.org
//! newport=22
//! ```

use std::num::{NonZeroU64, NonZeroUsize};

use super::keys::{Keys, Patterns, sections};
use super::{Diagnostic, Diagnostics};
use crate::ledger::Selection;
use crate::ledger::selection::Filter;
use crate::pipe;
use crate::printable::printable;
use crate::python2::ini::quoted;
use crate::python2::pattern::Pattern;
use crate::traffic::rates::BYTES_PER_KB;

pub(super) const MONITOR_KEYS: [&str; 4] = ["type", "include", "exclude", "ignorelocal"];
pub(super) const PIPE_KEYS: [&str; 7] =
    ["type", "port", "newhost", "newport", "shape_threshold", "max_per_client", "threads"];

/// The sections of a monitors file, in file order.
#[derive(Debug, Default)]
pub(crate) struct Monitors {
    /// The sections with `type=monitor`. Traffic that several of them select counts once.
    pub(crate) selections: Vec<Selection>,
    /// The sections with `type=pipe`.
    pub(crate) pipes: Vec<PipeSection>,
}

/// A section with `type=pipe`: a port to forward. Its place in the file is for later messages about that port.
#[derive(Debug, Clone)]
pub(crate) struct PipeSection {
    file: String,
    section: String,
    /// The line of the key `port`.
    line: usize,
    /// What the pipe does.
    pub(crate) pipe: pipe::PipeSettings,
}

impl PipeSection {
    /// Whether both have the same name in the same file, before and after a change of the file.
    pub(crate) fn is_same_section(&self, other: &Self) -> bool {
        (&self.file, &self.section) == (&other.file, &other.section)
    }

    /// The diagnostic for a pipe that cannot listen on its port.
    pub(crate) fn cannot_bind(&self, error: &anyhow::Error) -> Diagnostic {
        let (section, key) = (Some(self.section.clone()), Some("port".to_owned()));
        Diagnostic { section, key, ..Diagnostic::error(&self.file, Some(self.line), format!("{error:#}")) }
    }
}

/// Reads a monitors file; `file` is its name in messages.
pub(crate) fn monitors(file: &str, text: &[u8], diagnostics: &mut Diagnostics) -> Monitors {
    let mut monitors = Monitors::default();
    let mut patterns = Patterns::default();
    for section in &sections(file, text, diagnostics) {
        let mut keys = Keys { file, section, patterns: &mut patterns, diagnostics };
        match keys.required("type", "monitor") {
            Some("monitor") => monitors.selections.push(selection(&mut keys)),
            Some("pipe") => {
                if let Some(pipe) = pipe(&mut keys, &monitors.pipes) {
                    monitors.pipes.push(pipe);
                }
            }
            // The original also printed a message and went on with the other sections.
            Some(other) => {
                keys.warn(
                    "type",
                    format!("unknown monitor type {}, section ignored; the type is monitor or pipe", quoted(other)),
                );
            }
            None => {}
        }
    }
    monitors
}

fn selection(keys: &mut Keys) -> Selection {
    keys.warn_about_unknown(&MONITOR_KEYS, &PIPE_KEYS);
    let filter = Filter::new(patterns(keys, "include"), patterns(keys, "exclude"));
    Selection { filter, ignore_local: switch(keys, "ignorelocal") }
}

/// The key's pattern; none if the key is missing or its value is empty. An empty pattern would match every process: a
/// filter includes them all anyway, and no user means to exclude them all.
fn patterns(keys: &mut Keys, key: &str) -> Vec<Pattern> {
    if keys.text(key).is_some_and(str::is_empty) {
        return Vec::new();
    }
    keys.pattern(key).into_iter().collect()
}

fn switch(keys: &mut Keys, key: &str) -> bool {
    let Some(text) = keys.text(key) else { return false };
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => true,
        "false" | "no" | "off" | "0" => false,
        _ => {
            keys.error(key, format!("{} is neither true nor false", quoted(text)));
            false
        }
    }
}

/// The section's pipe, if all keys that it needs are there and valid.
fn pipe(keys: &mut Keys, others: &[PipeSection]) -> Option<PipeSection> {
    keys.warn_about_unknown(&PIPE_KEYS, &MONITOR_KEYS);
    let port = port(keys, "port", 0, "8080");
    let newhost = keys.required("newhost", "example.org");
    let newport = self::port(keys, "newport", 1, "80");
    let shape = keys.integer("shape_threshold", 0..=i64::from(u32::MAX), "100");
    let max_per_client = keys.integer("max_per_client", 0..=i64::from(u32::MAX), "100");
    let threads = keys.integer("threads", 1..=pipe::MAX_THREADS as i64, "2");
    match newhost {
        Some("") => keys.error("newhost", "names no host; for this host, write localhost".to_owned()),
        Some(host) if host.contains('\0') => {
            keys.error("newhost", "a host name has no NUL byte".to_owned());
        }
        Some(host) if host.contains('\\') => {
            keys.warn("newhost", "a host name has no backslash, and this is not a pattern".to_owned());
        }
        _ => {}
    }
    let (port, newhost, newport) = (port?, newhost?, newport?);
    if let Some(other) = others.iter().find(|other| other.pipe.port == port && port != 0) {
        keys.error(
            "port",
            format!(
                "{port} is already the port of [{}] in line {}",
                printable(other.section.as_bytes(), 60),
                other.line
            ),
        );
        return None;
    }
    let line = keys.find("port").map_or(keys.section.line, |option| option.line);
    let mut pipe = pipe::PipeSettings::new(port, newhost, newport);
    pipe.max_per_client = max_per_client.and_then(|most| NonZeroUsize::new(usize::try_from(most).ok()?));
    pipe.limit_bytes_per_s = shape.and_then(|kb| NonZeroU64::new(BYTES_PER_KB * kb.unsigned_abs()));
    pipe.threads = threads.and_then(|count| NonZeroUsize::new(usize::try_from(count).ok()?));
    if let Some(other) = others.iter().find(|other| other.pipe == pipe) {
        let (section, line) = (printable(other.section.as_bytes(), 60), other.line);
        keys.warn(
            "port",
            format!("the same pipe as [{section}] in line {line}, on another free port; give each a port"),
        );
    }
    Some(PipeSection { file: keys.file.to_owned(), section: keys.section.name.clone(), line, pipe })
}

fn port(keys: &mut Keys, key: &str, lowest: u16, example: &str) -> Option<u16> {
    keys.required(key, example);
    let number = keys.integer(key, lowest.into()..=u16::MAX.into(), example)?;
    u16::try_from(number).ok()
}
