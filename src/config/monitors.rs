//! The monitors file: what is watched, and which pipes are opened.
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

use std::num::NonZeroU64;

use super::{Finding, Findings, Keys, sections};
use crate::ledger::Selection;
use crate::ledger::selection::Filter;
use crate::pipe;
use crate::python2::pattern::Pattern;

const MONITOR_KEYS: [&str; 4] = ["type", "include", "exclude", "ignorelocal"];
const PIPE_KEYS: [&str; 5] = ["type", "port", "newhost", "newport", "shape_threshold"];

/// What a monitors file asks for, each in file order.
#[derive(Debug, Default)]
pub struct Monitors {
    /// What the sections with `type=monitor` select. Traffic that several of them take counts once.
    pub selections: Vec<Selection>,
    /// The sections with `type=pipe`.
    pub pipes: Vec<PipeSettings>,
}

/// A section with `type=pipe`: a port that is forwarded.
#[derive(Debug, Clone)]
pub struct PipeSettings {
    /// The file, for what goes wrong later; so are the next two.
    pub file: String,
    /// The section's name.
    pub section: String,
    /// The line of the port.
    pub line: usize,
    /// What the pipe is to do.
    pub pipe: pipe::PipeSettings,
}

impl PipeSettings {
    /// What the user is told when the port cannot be listened on.
    pub fn cannot_bind(&self, error: &anyhow::Error) -> Finding {
        Finding {
            file: self.file.clone(),
            line: Some(self.line),
            is_warning: false,
            section: Some(self.section.clone()),
            key: Some("port".to_owned()),
            what: format!("{error:#}"),
        }
    }
}

/// Reads a monitors file; `file` is how messages call it.
pub fn monitors(file: &str, text: &[u8], findings: &mut Findings) -> Monitors {
    let mut read = Monitors::default();
    for section in &sections(file, text, findings) {
        let mut keys = Keys { file, section, findings };
        match keys.required("type", "monitor") {
            Some("monitor") => read.selections.push(selection(&mut keys)),
            Some("pipe") => {
                if let Some(pipe) = pipe(&mut keys, &read.pipes) {
                    read.pipes.push(pipe);
                }
            }
            // As the original does: it says so and goes on with the other sections.
            Some(other) => {
                keys.warn("type", format!("unknown monitor type {other:?}, section left out; it is monitor or pipe"));
            }
            None => {}
        }
    }
    read
}

fn selection(keys: &mut Keys) -> Selection {
    keys.warn_of_unknown(&MONITOR_KEYS, &PIPE_KEYS);
    let filter = Filter::new(patterns(keys, "include"), patterns(keys, "exclude"));
    Selection { filter, ignore_local: switch(keys, "ignorelocal") }
}

/// The key's pattern, if it is there. An empty one matches every process: to include them all is what happens anyway,
/// and to exclude them all was never meant.
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
            keys.error(key, format!("{text:?} is neither true nor false"));
            false
        }
    }
}

/// A pipe, if everything it needs is there and right.
fn pipe(keys: &mut Keys, others: &[PipeSettings]) -> Option<PipeSettings> {
    keys.warn_of_unknown(&PIPE_KEYS, &MONITOR_KEYS);
    let port = port(keys, "port", 0, "8080");
    let newhost = keys.required("newhost", "example.org");
    let newport = self::port(keys, "newport", 1, "80");
    let shape = keys.number("shape_threshold", 0..=i64::from(u32::MAX), "100");
    match newhost {
        Some("") => keys.error("newhost", "names no host; this one is localhost".to_owned()),
        Some(host) if host.contains('\\') => {
            keys.warn("newhost", "a host name has no backslash, and this is no pattern".to_owned());
        }
        _ => {}
    }
    let (port, newhost, newport) = (port?, newhost?, newport?);
    if let Some(other) = others.iter().find(|other| other.pipe.port == port && port != 0) {
        keys.error("port", format!("{port} is the port of [{}] in line {} already", other.section, other.line));
        return None;
    }
    let line = keys.entry("port").map_or(keys.section.line, |entry| entry.line);
    let mut pipe = pipe::PipeSettings::new(port, newhost, newport);
    pipe.limit_bytes_per_s = shape.and_then(|kb| NonZeroU64::new(1024 * kb.unsigned_abs()));
    Some(PipeSettings { file: keys.file.to_owned(), section: keys.section.name.clone(), line, pipe })
}

fn port(keys: &mut Keys, key: &str, lowest: u16, example: &str) -> Option<u16> {
    keys.required(key, example);
    let number = keys.number(key, lowest.into()..=u16::MAX.into(), example)?;
    u16::try_from(number).ok()
}
