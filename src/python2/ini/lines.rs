//! Before the `configparser` crate: Python's rules for headers, options, continuation lines and comments.
//!
//! The output has the same content in a form that the crate cannot misread. Names and values are in quotes, so that the
//! crate sees no meaning in their whitespace, brackets and comment characters. Each value begins with the number of its
//! line:
//!
//! ```text
//! [My App]  ; text           ["My App"]
//!                            line=1
//! Include = a;b ; comment    "include"=2"a;b"
//! rem comment
//!   # not a comment          <tab>"# not a comment"
//! ```

use std::collections::HashMap;

use super::{Diagnostic, Diagnostics, quoted};

/// The most bytes of a line.
const LONGEST_LINE: usize = 64 * 1024;
/// The most sections of a file.
const MOST_SECTIONS: usize = 5_000;
/// The most keys of a file.
const MOST_KEYS: usize = 20_000;

/// Whitespace in a byte string of Python 2; a no-break space does not belong to it.
fn is_whitespace(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// `text` in the form for the crate. A line that is neither header, option, continuation nor comment is an error, and a
/// section or key that the file has already is a warning.
pub(super) fn canonical(file: &str, text: &str, diagnostics: &mut Diagnostics) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 4);
    let mut section: Option<&str> = None;
    let mut has_lines_before_header = false;
    // Whether an indented line would continue a value.
    let mut open = false;
    let mut known = Known::default();
    for (number, line) in (1..).zip(text.split('\n')) {
        let text = line.trim_matches(is_whitespace);
        if text.is_empty() || is_comment(line) {
            continue;
        }
        if line.len() > LONGEST_LINE {
            let message = format!("this line has {} bytes; the most are {LONGEST_LINE}", line.len());
            diagnostics.add(Diagnostic::error(file, Some(number), message));
        } else if open && line.starts_with(is_whitespace) {
            out.extend(["\t\"", text, "\"\n"]);
        } else if let Some(name) = header(line) {
            out.extend(["[\"", name, "\"]\nline=", &number.to_string(), "\n"]);
            section = Some(name);
            open = false;
            if let Some(first) = known.section(name, number) {
                let message = format!(
                    "continues the section of line {first}: together they are one, in which the last of equal keys counts"
                );
                diagnostics.add(warning(file, number, name, None, message));
            }
        } else if section.is_none() {
            // Report only the first of these lines: a header before it makes the others right, too.
            if !has_lines_before_header {
                diagnostics.add(error(file, number, None, "no section header such as [Name] before", line));
            }
            has_lines_before_header = true;
        } else if let Some((key, value)) = option(line) {
            out.extend(["\"", &key, "\"=", &number.to_string(), "\"", value, "\"\n"]);
            open = true;
            let name = section.unwrap_or_default();
            if let Some(earlier) = known.key(name, &key, number) {
                let message = format!("this replaces the same key in line {earlier}; remove one of the two");
                diagnostics.add(warning(file, number, name, Some(key), message));
            }
        } else {
            diagnostics.add(error(file, number, section, why_not_an_option(line), line));
        }
        if let Some(message) = known.too_many() {
            diagnostics.add(Diagnostic::error(file, Some(number), message));
            break;
        }
    }
    out
}

/// The sections and keys that a file has so far, with their lines.
#[derive(Default)]
struct Known<'t> {
    /// By name: the line of the first header, and the line of each key.
    sections: HashMap<&'t str, (usize, HashMap<String, usize>)>,
    keys: usize,
}

impl<'t> Known<'t> {
    /// Adds a header. Returns the line of the first one with this name, if there was one.
    fn section(&mut self, name: &'t str, line: usize) -> Option<usize> {
        let (first, _) = self.sections.entry(name).or_insert_with(|| (line, HashMap::new()));
        (*first != line).then_some(*first)
    }

    /// Adds a key to a section. Returns the line of the same key, if there was one.
    fn key(&mut self, section: &'t str, key: &str, line: usize) -> Option<usize> {
        self.keys += 1;
        self.sections.get_mut(section)?.1.insert(key.to_owned(), line)
    }

    fn too_many(&self) -> Option<String> {
        let all = [(self.sections.len(), MOST_SECTIONS, "sections"), (self.keys, MOST_KEYS, "keys")];
        let (_, most, what) = all.into_iter().find(|(count, most, _)| count > most)?;
        Some(format!("the file has more than {most} {what}; what follows is not read"))
    }
}

/// The name without its quotes; `None` if it has no quotes.
pub(super) fn unquote(name: &str) -> Option<&str> {
    name.strip_prefix('"')?.strip_suffix('"')
}

/// The line number and the text of a stored value. The crate joins continuation lines with newlines.
pub(super) fn value(stored: &str) -> (usize, String) {
    let (line, text) = stored.split_at(stored.find('"').unwrap_or(stored.len()));
    let lines: Vec<&str> = text.split('\n').filter_map(unquote).collect();
    (line.parse().unwrap_or(0), lines.join("\n"))
}

/// Whether the line begins with `#`, `;` or the word `rem`.
fn is_comment(line: &str) -> bool {
    let word = line.split(is_whitespace).next().unwrap_or_default();
    line.starts_with(['#', ';']) || word.eq_ignore_ascii_case("rem")
}

/// The name in `[name]`. Python ignores all that follows the bracket; `[]` is not a header.
fn header(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix('[')?.split_once(']')?;
    Some(name).filter(|name| !name.is_empty())
}

/// Key and value of an option, without the comment that may follow it.
fn option(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.split_once(['=', ':'])?;
    if key.is_empty() || key.starts_with(is_whitespace) {
        return None;
    }
    let value = value.trim_start_matches(is_whitespace);
    let value = match uncommented(value).trim_end_matches(is_whitespace) {
        r#""""# => "",
        value => value,
    };
    Some((key.trim_end_matches(is_whitespace).to_ascii_lowercase(), value))
}

/// The value without its comment. Only the first `;` can begin a comment, and only after whitespace. If it is the
/// first character, Python's index of the character before it is -1, the value's last: a `\r` in files with CRLF.
fn uncommented(value: &str) -> &str {
    match value.split_once(';') {
        Some(("", _)) if value.ends_with(is_whitespace) => "",
        Some((before, _)) if before.ends_with(is_whitespace) => before,
        _ => value,
    }
}

fn why_not_an_option(line: &str) -> &'static str {
    if line.starts_with(is_whitespace) {
        "a line that begins with a blank continues the value above, and there is none; remove the blank before"
    } else if line.starts_with('[') && !line.contains(['=', ':']) {
        "a section header is [Name], with at least one character in the brackets, not"
    } else if line.starts_with(['=', ':']) {
        "no key; write key=value, not"
    } else {
        "neither '=' nor ':'; write key=value, not"
    }
}

fn error(file: &str, line: usize, section: Option<&str>, message: &str, text: &str) -> Diagnostic {
    let quoted = quoted(text.trim_matches(is_whitespace));
    let section = section.map(str::to_owned);
    Diagnostic { section, ..Diagnostic::error(file, Some(line), format!("{message} {quoted}")) }
}

fn warning(file: &str, line: usize, section: &str, key: Option<String>, message: String) -> Diagnostic {
    let section = Some(section.to_owned());
    Diagnostic { is_warning: true, section, key, ..Diagnostic::error(file, Some(line), message) }
}
