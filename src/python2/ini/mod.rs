//! Configuration files in the dialect of Python 2's `ConfigParser`, which the original used.
//!
//! ```text
//! [DEFAULT]
//! newhost = example.org      ; every section inherits these
//! [SSH Pipe]
//! type = pipe
//! Port : 2222
//! ```
//!
//! The `configparser` crate keeps sections and options in file order and merges repeated ones, but it splits lines by
//! other rules. So two modules of ours surround it:
//!
//! ```text
//! bytes ──► lines ──────────────► configparser ──► interpolate ──────► sections
//!           Python's rules,       order,           %(key)s, [DEFAULT]
//!           nothing ambiguous     merging
//! ```
//!
//! Each mistake in a file becomes a [`Diagnostic`]; the rest of the file stays readable.
//!
//! Source: <https://docs.python.org/2.7/library/configparser.html>.

mod diagnostic;
mod interpolate;
mod lines;

use std::collections::{HashMap, HashSet};

use configparser::ini::Ini;

pub(crate) use diagnostic::quoted;
pub use diagnostic::{Diagnostic, Diagnostics};
use interpolate::Room;

/// One `[section]`, with the options that it inherits from `[DEFAULT]`.
#[derive(Debug)]
pub struct Section {
    /// The text between the brackets, with its whitespace.
    pub name: String,
    /// The line of its header; of the last one if the file repeats it.
    pub line: usize,
    /// The options of `[DEFAULT]`, then those that only the section has, both in file order.
    pub options: Vec<KeyValue>,
}

/// One option, `key=value`.
#[derive(Debug)]
pub struct KeyValue {
    /// The key, its ASCII letters in lower case.
    pub key: String,
    /// The value with every `%(key)s` replaced; `None` if that failed, for which there is a diagnostic.
    pub value: Option<String>,
    /// The line where the value begins.
    pub line: usize,
    /// Whether it stands in `[DEFAULT]` and not in the section itself.
    pub inherited: bool,
    /// Whether another value of the section refers to it with `%(key)s`; if it is inherited, a value of any section.
    pub referenced: bool,
}

/// The sections of a file in file order, without `[DEFAULT]`. `file` is its name in diagnostics.
///
/// All that is wrong with the text goes to `diagnostics`; then sections or options may be missing from the result.
pub fn parse(file: &str, text: &[u8], diagnostics: &mut Diagnostics) -> Vec<Section> {
    let text = match std::str::from_utf8(text) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            diagnostics.add(not_utf8(file, text, error.valid_up_to()));
            return Vec::new();
        }
    };
    let stored = match store().read(lines::canonical(file, text, diagnostics)) {
        Ok(stored) => stored,
        Err(message) => {
            diagnostics.add(Diagnostic::error(file, Some(1), message));
            return Vec::new();
        }
    };
    let mut sections = Vec::with_capacity(stored.len());
    let mut defaults = Vec::new();
    for (name, options) in stored {
        let mut line = 0;
        let mut own = Vec::with_capacity(options.len());
        for (key, value) in options {
            let value = value.unwrap_or_default();
            match lines::unquote(&key) {
                Some(key) => own.push(RawKeyValue::new(key, &value, false)),
                None => line = value.parse().unwrap_or(0),
            }
        }
        match lines::unquote(&name).unwrap_or_default() {
            "DEFAULT" => defaults = own,
            name => sections.push((name.to_owned(), line, own)),
        }
    }
    for default in &mut defaults {
        default.inherited = true;
    }
    let mut room = Room::of_a_file();
    let mut complete = Vec::with_capacity(sections.len());
    for (name, line, own) in sections {
        if let Err(message) = room.take(defaults.iter().chain(&own).map(RawKeyValue::memory).sum()) {
            diagnostics.add(Diagnostic::error(file, Some(line), message));
            break;
        }
        let options = interpolated(file, &name, &defaults, own, &mut room, diagnostics);
        complete.push(Section { name, line, options });
    }
    let mut sections = complete;
    // Every section inherits a default, also the sections that do not refer to it.
    let mut inherited: Vec<&mut KeyValue> =
        sections.iter_mut().flat_map(|section| &mut section.options).filter(|option| option.inherited).collect();
    let referenced: HashSet<String> =
        inherited.iter().filter(|option| option.referenced).map(|option| option.key.clone()).collect();
    for option in &mut inherited {
        option.referenced = referenced.contains(&option.key);
    }
    sections
}

/// The crate, configured to interpret only what `lines::canonical` writes.
fn store() -> Ini {
    let mut ini = Ini::new_cs();
    ini.set_multiline(true);
    ini.set_inline_comment_symbols(Some(&[]));
    ini
}

fn not_utf8(file: &str, text: &[u8], valid: usize) -> Diagnostic {
    let line = 1 + text[..valid].iter().filter(|&&byte| byte == b'\n').count();
    let message = format!("byte 0x{:02x} is not UTF-8; save the file as UTF-8", text[valid]);
    Diagnostic::error(file, Some(line), message)
}

/// An option before interpolation.
#[derive(Clone)]
struct RawKeyValue {
    key: String,
    raw: String,
    line: usize,
    inherited: bool,
}

impl RawKeyValue {
    fn new(key: &str, stored: &str, inherited: bool) -> Self {
        let (line, raw) = lines::value(stored);
        Self { key: key.to_owned(), raw, line, inherited }
    }

    /// The bytes that it takes, roughly.
    fn memory(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.raw.len()
    }
}

/// The options of the section `name`: the defaults, overridden and followed by its own options, all interpolated.
fn interpolated(
    file: &str,
    name: &str,
    defaults: &[RawKeyValue],
    own: Vec<RawKeyValue>,
    room: &mut Room,
    diagnostics: &mut Diagnostics,
) -> Vec<KeyValue> {
    let mut all = defaults.to_vec();
    let by_key: HashMap<&str, usize> = (0..).zip(defaults).map(|(at, default)| (default.key.as_str(), at)).collect();
    for option in own {
        // A section's own keys are all different, so only a default can have the same key.
        match by_key.get(option.key.as_str()) {
            Some(&at) => all[at] = option,
            None => all.push(option),
        }
    }
    let by_key: HashMap<&str, &RawKeyValue> = all.iter().map(|option| (option.key.as_str(), option)).collect();
    let mut referenced = HashSet::new();
    let mut values = Vec::with_capacity(all.len());
    for option in &all {
        let value = interpolate::interpolate(&option.raw, room, &mut |key| {
            let found = by_key.get(key);
            referenced.extend(found.map(|found| found.key.as_str()));
            // This key stands for the section's own name, unless the file has an option with this key.
            found.map(|found| found.raw.as_str()).or((key == SECTION_NAME).then_some(name))
        });
        values.push(match value {
            Ok(value) => Some(value),
            Err(message) => {
                let (section, key) = (Some(name.to_owned()), Some(option.key.clone()));
                diagnostics.add(Diagnostic { section, key, ..Diagnostic::error(file, Some(option.line), message) });
                None
            }
        });
    }
    let referenced: Vec<bool> = all.iter().map(|option| referenced.contains(option.key.as_str())).collect();
    all.into_iter()
        .zip(values)
        .zip(referenced)
        .map(|((RawKeyValue { key, line, inherited, .. }, value), referenced)| KeyValue {
            key,
            value,
            line,
            inherited,
            referenced,
        })
        // Python keeps the section's name under this key and hides it, even if the file has an option with this key.
        .filter(|option| option.key != SECTION_NAME)
        .collect()
}

const SECTION_NAME: &str = "__name__";

#[cfg(test)]
mod tests;
