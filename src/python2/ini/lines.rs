//! What stands in front of the crate: Python's rules for headers, options, continuations and comments.
//!
//! The output says the same in a form that the crate cannot misread. Names and values are in quotes, which keep blanks,
//! brackets and comment signs from meaning anything, and each value begins with the number of its line:
//!
//! ```text
//! [My App]  ; text           ["My App"]
//!                            line=1
//! Include = a;b ; comment    "include"=2"a;b"
//! rem comment
//!   # no comment             <tab>"# no comment"
//! ```

use super::Mistake;

/// What Python 2 takes for a blank, in bytes; a no-break space is none.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// `text` for the crate, and the lines that are neither header, option, continuation nor comment.
pub(super) fn canonical(text: &str) -> (String, Vec<Mistake>) {
    let mut out = String::with_capacity(text.len() + text.len() / 4);
    let mut mistakes = Vec::new();
    let mut section: Option<&str> = None;
    // Whether there is a value that an indented line would continue.
    let mut open = false;
    for (number, line) in (1..).zip(text.split('\n')) {
        let text = line.trim_matches(is_blank);
        if text.is_empty() || is_comment(line) {
            continue;
        }
        if open && line.starts_with(is_blank) {
            out.push_str(&format!("\t\"{text}\"\n"));
        } else if let Some(name) = header(line) {
            out.push_str(&format!("[\"{name}\"]\nline={number}\n"));
            section = Some(name);
            open = false;
        } else if section.is_none() {
            // Only the first of them: once a header stands before it, the others are right.
            if mistakes.is_empty() {
                mistakes.push(mistake(number, None, "no section header such as [Name] before", line));
            }
        } else if let Some((key, value)) = option(line) {
            out.push_str(&format!("\"{key}\"={number}\"{value}\"\n"));
            open = true;
        } else {
            mistakes.push(mistake(number, section, why_no_option(line), line));
        }
    }
    (out, mistakes)
}

/// Takes the quotes off a name; `None` if it has none.
pub(super) fn unquote(name: &str) -> Option<&str> {
    name.strip_prefix('"')?.strip_suffix('"')
}

/// The line and the text of a stored value. The crate has put the lines of a continued one below each other.
pub(super) fn value(stored: &str) -> (usize, String) {
    let (line, text) = stored.split_at(stored.find('"').unwrap_or(stored.len()));
    let lines: Vec<&str> = text.split('\n').filter_map(unquote).collect();
    (line.parse().unwrap_or(0), lines.join("\n"))
}

/// `#` or `;` in the first column, or the word `rem` there.
fn is_comment(line: &str) -> bool {
    let word = line.split(is_blank).next().unwrap_or_default();
    line.starts_with(['#', ';']) || word.eq_ignore_ascii_case("rem")
}

/// The name in `[name]`; whatever follows the bracket is ignored, and `[]` is no header.
fn header(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix('[')?.split_once(']')?;
    Some(name).filter(|name| !name.is_empty())
}

/// Key and value of an option, without the comment that may stand behind it.
fn option(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.split_once(['=', ':'])?;
    if key.is_empty() || key.starts_with(is_blank) {
        return None;
    }
    let value = value.trim_start_matches(is_blank);
    let value = match uncommented(value).trim_end_matches(is_blank) {
        r#""""# => "",
        value => value,
    };
    Some((key.trim_end_matches(is_blank).to_ascii_lowercase(), value))
}

/// Only the first `;` can begin a comment, and only after a blank. Where it is the first character, Python looks at the
/// character before it from the end: the last one, a `\r` in files with CRLF.
fn uncommented(value: &str) -> &str {
    match value.split_once(';') {
        Some(("", _)) if value.ends_with(is_blank) => "",
        Some((before, _)) if before.ends_with(is_blank) => before,
        _ => value,
    }
}

fn why_no_option(line: &str) -> &'static str {
    if line.starts_with(is_blank) {
        "a line that begins with a blank continues the value above, and there is none; remove the blank before"
    } else if line.starts_with('[') && !line.contains(['=', ':']) {
        "a section header is [Name], with at least one character in the brackets, not"
    } else if line.starts_with(['=', ':']) {
        "no key; write key=value, not"
    } else {
        "neither '=' nor ':'; write key=value, not"
    }
}

fn mistake(line: usize, section: Option<&str>, what: &str, text: &str) -> Mistake {
    let quoted: String = text.trim_matches(is_blank).chars().take(60).collect();
    Mistake { line, section: section.map(str::to_owned), key: None, what: format!("{what} {quoted:?}") }
}
