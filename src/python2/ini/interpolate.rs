//! After the `configparser` crate: replaces `%(key)s` in a value with the value of another key.
//!
//! A value without `%(` stays as it is, such as `100%` or `date +%F`. A value with `%(` is, as a whole, a format of
//! Python's `%` operator: `%%` is one percent sign and `%(key)10s` has a width.
//!
//! Source: <https://docs.python.org/2.7/library/stdtypes.html#string-formatting-operations>.

use super::quoted;

/// Python's `MAX_INTERPOLATION_DEPTH`: the passes over a value, since a replacement may refer to further keys.
const MAX_PASSES: usize = 10;

/// The most bytes of a value. Without this limit, ten passes over a file of a few lines could fill the memory.
const MAX_LENGTH: usize = 64 * 1024;

/// The most bytes that the values of all sections of a file may have together, each pass over a value included: a
/// section has a copy of each value in `[DEFAULT]`.
const MAX_TOTAL: usize = 16 << 20;

/// What is left of the bytes that the values of a file may have together.
pub(super) struct Room(usize);

impl Room {
    pub(super) fn of_a_file() -> Self {
        Self(MAX_TOTAL)
    }

    /// Takes this many.
    ///
    /// # Errors
    /// A message, if fewer are left.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), String> {
        self.0 = self.0.checked_sub(bytes).ok_or_else(|| {
            let mib = MAX_TOTAL >> 20;
            format!("the values of all sections, with [DEFAULT] and %(key)s filled in, exceed {mib} MiB; use fewer")
        })?;
        Ok(())
    }
}

/// `raw` with every reference replaced; `lookup` returns the raw value of a key.
///
/// # Errors
/// A message: what is wrong, and what would be right.
pub(super) fn interpolate<'a>(
    raw: &str,
    room: &mut Room,
    lookup: &mut dyn FnMut(&str) -> Option<&'a str>,
) -> Result<String, String> {
    let mut value = raw.to_owned();
    for _ in 0..MAX_PASSES {
        if !value.contains("%(") {
            return Ok(value);
        }
        value = format_once(&value, lookup)?;
        room.take(value.len())?;
    }
    if value.contains("%(") {
        let raw = quoted(raw);
        return Err(format!("{raw} names keys that name further keys, more than {MAX_PASSES} deep or in a circle"));
    }
    Ok(value)
}

/// One pass of the `%` operator.
fn format_once<'a>(format: &str, lookup: &mut dyn FnMut(&str) -> Option<&'a str>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let (spec, remaining) = Spec::parse(after).ok_or_else(|| incomplete(format))?;
        rest = remaining;
        let value = match &spec.key {
            Some(key) => Some(lookup(key).ok_or_else(|| no_such_key(key))?),
            None => None,
        };
        match (spec.conversion, value) {
            ('%', _) => out.push('%'),
            ('s', Some(value)) => spec.pad(value, &mut out),
            ('r', Some(value)) => spec.pad(&repr(value), &mut out),
            (other, Some(_)) => {
                return Err(format!("%(...){other} in {}; write %(key)s, a key's text", quoted(format)));
            }
            (other, None) => {
                let format = quoted(format);
                return Err(format!("%{other} in {format}, which also has %(; write %% for a per cent sign"));
            }
        }
        if out.len() > MAX_LENGTH {
            return Err(format!("the value grows beyond {MAX_LENGTH} bytes when its keys are filled in"));
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn incomplete(format: &str) -> String {
    format!("{} has a % that is not complete; write %(key)s, or %% for a per cent sign", quoted(format))
}

fn no_such_key(key: &str) -> String {
    let key: String = key.chars().take(100).collect();
    format!(
        "%({key}) names a key that is neither in this section nor in [DEFAULT]; in a pattern, write [%]( for %( itself"
    )
}

/// One conversion such as `%(key)-10.3s`, without its percent sign.
struct Spec {
    key: Option<String>,
    left: bool,
    width: usize,
    precision: usize,
    conversion: char,
}

impl Spec {
    /// The spec at the start of `text`, and the text after it; `None` if the spec is incomplete.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let (key, text) = match text.strip_prefix('(') {
            None => (None, text),
            Some(text) => {
                let (key, text) = text.split_at(closing(text)?);
                let text = &text[1..];
                // As in Python: only a key before a plain s may be written in upper case.
                let key = if text.starts_with('s') { key.to_ascii_lowercase() } else { key.to_owned() };
                (Some(key), text)
            }
        };
        let unflagged = text.trim_start_matches(['-', '+', ' ', '#', '0']);
        let left = text[..text.len() - unflagged.len()].contains('-');
        let (width, text) = leading_number(unflagged);
        let (precision, text) = match text.strip_prefix('.') {
            None => (usize::MAX, text),
            Some(text) => leading_number(text),
        };
        let text = text.strip_prefix(['h', 'l', 'L']).unwrap_or(text);
        let mut rest = text.chars();
        let conversion = rest.next()?;
        Some((Self { key, left, width: width.min(MAX_LENGTH), precision, conversion }, rest.as_str()))
    }

    fn pad(&self, value: &str, out: &mut String) {
        let value: String = value.chars().take(self.precision).collect();
        let fill = " ".repeat(self.width.saturating_sub(value.chars().count()));
        out.extend(if self.left { [value, fill] } else { [fill, value] });
    }
}

/// The position of the parenthesis that closes the one before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The number at the start of `text`, 0 if there is none, and the text after it. A number that is too large for `usize`
/// becomes [`MAX_LENGTH`].
fn leading_number(text: &str) -> (usize, &str) {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &text[..text.len() - rest.len()];
    (if digits.is_empty() { 0 } else { digits.parse().unwrap_or(MAX_LENGTH) }, rest)
}

/// Python's `repr()` of a byte string.
fn repr(value: &str) -> String {
    let quote = if value.contains('\'') && !value.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for byte in value.bytes() {
        match byte {
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b'\\' => out.push_str("\\\\"),
            _ if char::from(byte) == quote => out.extend(['\\', quote]),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out.push(quote);
    out
}
