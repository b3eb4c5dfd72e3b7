//! Configuration files in the dialect of Python 2's `ConfigParser`, which the original read its files with.
//!
//! ```text
//! [DEFAULT]
//! newhost = example.org      ; every section has these, before its own
//! [SSH Pipe]
//! type = pipe
//! Port : 2222
//! ```
//!
//! The `configparser` crate keeps sections and options in file order and merges repeated ones, but splits lines by other
//! rules. So `lines` stands in front of it and writes each file out in a form that leaves nothing to interpret, and
//! `interpolate` stands behind it, with what `[DEFAULT]` gives to every section.
//!
//! Source: <https://docs.python.org/2.7/library/configparser.html>.

mod interpolate;
mod lines;

use std::collections::HashSet;

use configparser::ini::Ini;

/// A file as it was read: what could be understood, and what could not.
#[derive(Debug, Default)]
pub struct Document {
    /// The sections in file order, without `[DEFAULT]`.
    pub sections: Vec<Section>,
    /// What is wrong with the text itself. Where there is any, sections or options may be missing.
    pub mistakes: Vec<Mistake>,
}

/// One `[section]`, with what `[DEFAULT]` adds to it.
#[derive(Debug)]
pub struct Section {
    /// What stands between the brackets, blanks included.
    pub name: String,
    /// The line of its header; of the last one where it is repeated.
    pub line: usize,
    /// Those of `[DEFAULT]` first, then its own, each in file order.
    pub options: Vec<Entry>,
}

/// One `key=value`.
#[derive(Debug)]
pub struct Entry {
    /// The key, its ASCII letters in lower case.
    pub key: String,
    /// The value with every `%(key)s` filled in; `None` where that failed, which is then one of the mistakes.
    pub value: Option<String>,
    /// The line where the value begins.
    pub line: usize,
    /// Whether it is `[DEFAULT]`'s and not the section's own.
    pub inherited: bool,
    /// Whether another value of the section names it in `%(key)s`, or, if it is inherited, of any section.
    pub referenced: bool,
}

/// One thing that is wrong with a file's text.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line it is in, counted from 1.
    pub line: usize,
    /// The section, where that is known.
    pub section: Option<String>,
    /// The key, where it is about one.
    pub key: Option<String>,
    /// What is wrong and what would be right.
    pub what: String,
}

/// Reads a whole file. Never fails: what is wrong is in the document's list, all of it.
pub fn parse(text: &[u8]) -> Document {
    let text = match std::str::from_utf8(text) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => return Document { mistakes: vec![not_utf8(text, error.valid_up_to())], ..Document::default() },
    };
    let (canonical, mut mistakes) = lines::canonical(text);
    let stored = match store().read(canonical) {
        Ok(stored) => stored,
        Err(what) => {
            mistakes.push(Mistake { line: 1, section: None, key: None, what });
            return Document { mistakes, ..Document::default() };
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
                Some(key) => own.push(RawEntry::new(key, &value, false)),
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
    let mut sections: Vec<Section> = sections
        .into_iter()
        .map(|(name, line, own)| Section { options: fill_in(&name, &defaults, own, &mut mistakes), name, line })
        .collect();
    // A default that one section refers to is in the others, too.
    let mut inherited: Vec<&mut Entry> =
        sections.iter_mut().flat_map(|section| &mut section.options).filter(|entry| entry.inherited).collect();
    let referenced: HashSet<String> =
        inherited.iter().filter(|entry| entry.referenced).map(|entry| entry.key.clone()).collect();
    for entry in &mut inherited {
        entry.referenced = referenced.contains(&entry.key);
    }
    Document { sections, mistakes }
}

/// The crate, told to interpret nothing beyond what `lines::canonical` writes.
fn store() -> Ini {
    let mut ini = Ini::new_cs();
    ini.set_multiline(true);
    ini.set_inline_comment_symbols(Some(&[]));
    ini
}

fn not_utf8(text: &[u8], valid: usize) -> Mistake {
    let line = 1 + text[..valid].iter().filter(|&&byte| byte == b'\n').count();
    let what = format!("byte 0x{:02x} is not UTF-8; save the file as UTF-8", text[valid]);
    Mistake { line, section: None, key: None, what }
}

/// An option before its value is filled in.
#[derive(Clone)]
struct RawEntry {
    key: String,
    raw: String,
    line: usize,
    inherited: bool,
}

impl RawEntry {
    fn new(key: &str, stored: &str, inherited: bool) -> Self {
        let (line, raw) = lines::value(stored);
        Self { key: key.to_owned(), raw, line, inherited }
    }
}

/// What a section consists of in the end: the defaults, its own options over and after them, every value filled in.
fn fill_in(name: &str, defaults: &[RawEntry], own: Vec<RawEntry>, mistakes: &mut Vec<Mistake>) -> Vec<Entry> {
    let mut all = defaults.to_vec();
    for entry in own {
        // Its own keys are all different, so that only the defaults are to be searched.
        match all.iter_mut().take(defaults.len()).find(|default| default.key == entry.key) {
            Some(default) => *default = entry,
            None => all.push(entry),
        }
    }
    let mut referenced = HashSet::new();
    let mut values = Vec::with_capacity(all.len());
    for entry in &all {
        let value = interpolate::interpolate(&entry.raw, &mut |key| {
            let found = all.iter().find(|other| other.key == key);
            referenced.extend(found.map(|found| found.key.as_str()));
            // The section's own name goes by this key, unless the file has an option of that name.
            found.map(|found| found.raw.as_str()).or((key == SECTION_NAME).then_some(name))
        });
        values.push(match value {
            Ok(value) => Some(value),
            Err(what) => {
                let (section, key) = (Some(name.to_owned()), Some(entry.key.clone()));
                mistakes.push(Mistake { line: entry.line, section, key, what });
                None
            }
        });
    }
    let referenced: Vec<bool> = all.iter().map(|entry| referenced.contains(entry.key.as_str())).collect();
    all.into_iter()
        .zip(values)
        .zip(referenced)
        .map(|((RawEntry { key, line, inherited, .. }, value), referenced)| Entry {
            key,
            value,
            line,
            inherited,
            referenced,
        })
        // Python keeps the section's name under this key and hides it, even where the file has one.
        .filter(|entry| entry.key != SECTION_NAME)
        .collect()
}

const SECTION_NAME: &str = "__name__";

#[cfg(test)]
mod tests;
