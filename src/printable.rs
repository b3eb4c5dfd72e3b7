//! Makes text from outside safe to print.

use unicode_width::UnicodeWidthChar;

/// Bytes as in `12.3 MiB`; a MiB is 1024 KiB.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `name` in at most `width` columns, safe to print: a longer one ends in `...`.
///
/// Another user may have chosen the name. So a character that could move the cursor, end the line, change the reading direction or
/// that is invisible becomes an escape (`\n`, `\x1b`, `\u{202e}`), on a terminal and in a pipe: one line is always one name, and
/// names that look the same are the same. A backslash before what reads like such an escape becomes two. An escape is never cut
/// in two.
pub fn printable(name: &[u8], width: usize) -> String {
    cut(name, width).0
}

/// The same for a command line: one that does not fit loses the directory of its program first, then its end.
pub fn printable_command(command_line: &[u8], width: usize) -> String {
    let (text, is_cut) = cut(command_line, width);
    if is_cut { printable(without_directory(command_line), width) } else { text }
}

/// A command line without the directory of its program, its first word.
fn without_directory(command_line: &[u8]) -> &[u8] {
    let program = command_line.split(|&byte| byte == b' ').next().unwrap_or_default();
    let directory = program.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    // A URL is no path, and a path that ends with a slash names no program.
    let is_path = directory < program.len() && !program[..directory].contains(&b':');
    if is_path { &command_line[directory..] } else { command_line }
}

/// The columns that printable text takes on a terminal.
pub(crate) fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// A combining character counts too, so that no name is endless.
fn columns_of(c: char) -> usize {
    c.width().unwrap_or_default().max(1)
}

/// The text of [`printable`], and whether the name did not fit.
fn cut(name: &[u8], width: usize) -> (String, bool) {
    let mut text = String::new();
    let mut used = 0;
    // Where to cut if the whole name does not fit.
    let mut cut = 0;
    for piece in name.utf8_chunks() {
        let mut rest = piece.valid().chars();
        let valid = std::iter::from_fn(|| {
            let c = rest.next()?;
            Some(if c == '\\' && reads_like_an_escape(rest.as_str()) { Unit::Backslash } else { Unit::Char(c) })
        });
        for unit in valid.chain(piece.invalid().iter().map(|&byte| Unit::Byte(byte))) {
            let start = text.len();
            match unit {
                Unit::Char(c) if is_unsafe_to_print(c) => text.extend(c.escape_default()),
                Unit::Char(c) => text.push(c),
                Unit::Backslash => text.push_str("\\\\"),
                Unit::Byte(byte) => text.push_str(&format!("\\x{byte:02x}")),
            }
            used += columns(&text[start..]);
            if used <= width.saturating_sub(3) {
                cut = text.len();
            }
            if used > width {
                text.truncate(cut);
                text.push_str("...");
                return (text, true);
            }
        }
    }
    (text, false)
}

enum Unit {
    Char(char),
    /// One that is not part of an escape of ours.
    Backslash,
    Byte(u8),
}

/// Whether a backslash and what follows it could be taken for an escape that [`printable`] has made.
fn reads_like_an_escape(rest: &str) -> bool {
    let hexadecimal = |digits: &str| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    rest.starts_with(['n', 'r', 't', '\\'])
        || rest.starts_with("u{")
        || rest.strip_prefix('x').and_then(|digits| digits.get(..2)).is_some_and(hexadecimal)
}

/// Control characters; those that end a line or change the reading direction of the text after them (Unicode's Bidi_Control); and
/// those without width, but for combining ones, and tags.
pub(crate) fn is_unsafe_to_print(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}')
        || matches!(c, '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}')
        || matches!(c, '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
        // Other blanks than that of ASCII look like it.
        || (c.is_whitespace() && c != ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str) -> String {
        printable(name.as_bytes(), 20)
    }

    #[test]
    fn bytes_are_shown_in_human_units() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_600_000_000, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human(bytes), expected);
        }
    }

    #[test]
    fn what_cannot_be_seen_or_moves_the_rest_is_escaped() {
        assert_eq!(shown("a\u{2028}b\u{200b}"), r"a\u{2028}b\u{200b}");
        assert_eq!(shown("a\u{2028}b\u{200b}\u{e0041}"), r"a\u{2028}b...");
        assert_eq!(shown("a\u{a0}b\x1b\n"), r"a\u{a0}b\u{1b}\n");
        assert_eq!(shown("déjà vu"), "déjà vu");
        assert_eq!(shown("e\u{301}"), "e\u{301}");
        assert_eq!(printable(b"a\xff", 20), r"a\xff");
    }

    #[test]
    fn no_name_reads_like_an_escape_of_another() {
        assert_eq!(shown(r"C:\new \x1b \u{b"), r"C:\\new \\x1b \\u{b");
        assert_eq!(shown(r"\d+ \( \x1 \"), r"\d+ \( \x1 \");
    }

    #[test]
    fn a_command_line_loses_its_directory_before_its_end() {
        let shown = |command_line: &str, width| printable_command(command_line.as_bytes(), width);
        assert_eq!(shown("/usr/bin/rclone sync b2:a", 25), "/usr/bin/rclone sync b2:a");
        assert_eq!(shown("/usr/bin/rclone sync b2:a", 24), "rclone sync b2:a");
        assert_eq!(shown("/usr/bin/rclone sync b2:a", 10), "rclone ...");
        assert_eq!(shown("postgres: 16/main: shop", 12), "postgres:...");
        assert_eq!(shown("http://x/y z", 8), "http:...");
    }

    #[test]
    fn a_wide_character_takes_two_columns_and_a_combining_one_is_not_free() {
        assert_eq!(shown("世界世界世界世界世界"), "世界世界世界世界世界");
        assert_eq!(shown("世界世界世界世界世界世"), "世界世界世界世界...");
        let stacked = "e".to_owned() + &"\u{301}".repeat(100);
        assert_eq!(shown(&stacked).chars().count(), 20);
    }
}
