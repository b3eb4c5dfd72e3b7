//! Makes text from outside safe to print.

/// `name` in at most `width` characters, safe to print: a longer one ends in `...`.
///
/// Another user may have chosen the name. So a character that could move the cursor, end the line or change the reading
/// direction becomes an escape (`\n`, `\x1b`, `\u{202e}`), on a terminal and in a pipe: one line is always one name. An
/// escape is never cut in two.
pub fn printable(name: &[u8], width: usize) -> String {
    let mut text = String::new();
    let mut used = 0;
    // Where to cut if the whole name does not fit.
    let mut cut = 0;
    for piece in name.utf8_chunks() {
        let valid = piece.valid().chars().map(Unit::Char);
        for unit in valid.chain(piece.invalid().iter().map(|&byte| Unit::Byte(byte))) {
            let start = text.len();
            match unit {
                Unit::Char(c) if unsafe_to_print(c) => text.extend(c.escape_default()),
                Unit::Char(c) => text.push(c),
                Unit::Byte(byte) => text.push_str(&format!("\\x{byte:02x}")),
            }
            used += text[start..].chars().count();
            if used <= width.saturating_sub(3) {
                cut = text.len();
            }
            if used > width {
                text.truncate(cut);
                text.push_str("...");
                return text;
            }
        }
    }
    text
}

enum Unit {
    Char(char),
    Byte(u8),
}

/// Control characters, and those that change the reading direction of the text after them (Unicode's Bidi_Control).
fn unsafe_to_print(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
