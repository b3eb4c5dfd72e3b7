//! From the bytes of a terminal to keys and clicks (ctlseqs of xterm: function keys, SGR mouse reports, OSC replies).
//!
//! ```text
//! q        ESC [ A        ESC [ 5 ~       ESC [ < 0 ; 7 ; 2 M          ESC ] 11 ; rgb:ffff/ffff/ffff ESC \
//! q        Up             Page up         button 0, column 7, line 2   the background is white
//! ```

/// The most bytes of a sequence; what is longer is none.
const MOST_BYTES: usize = 64;
const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;

/// What a terminal reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Char(char),
    Ctrl(char),
    Enter,
    Tab,
    Backspace,
    Escape,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Function(u8),
    /// A click of the left button; the first column and line are 0.
    Click {
        column: u16,
        line: u16,
    },
    WheelUp,
    WheelDown,
    /// Whether the background is light.
    Background {
        light: bool,
    },
}

/// Takes bytes as they come, in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Parser {
    pending: Vec<u8>,
}

/// What the bytes so far are the beginning of.
enum Step {
    /// The first bytes, of which this is the number, are an input, or a sequence that is not known.
    Done(usize, Option<Input>),
    /// It has not ended yet.
    Incomplete,
}

impl Parser {
    /// The inputs that these bytes complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Input> {
        self.pending.extend_from_slice(bytes);
        let mut inputs = Vec::new();
        let mut at = 0;
        while at < self.pending.len() {
            match step(&self.pending[at..]) {
                Step::Done(length, input) => {
                    inputs.extend(input);
                    at += length;
                }
                Step::Incomplete if self.pending.len() - at > MOST_BYTES => at += 1,
                Step::Incomplete => break,
            }
        }
        self.pending.drain(..at);
        inputs
    }

    /// Whether there are bytes of which only time tells whether they are keys by themselves.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Nothing more has come for a while: an ESC is the key.
    pub fn expire(&mut self) -> Option<Input> {
        let is_key = self.pending == [ESC];
        self.pending.clear();
        is_key.then_some(Input::Escape)
    }
}

fn step(bytes: &[u8]) -> Step {
    match *bytes {
        [ESC] | [] => Step::Incomplete,
        [ESC, b'[', ..] => control_sequence(bytes),
        [ESC, b'O'] => Step::Incomplete,
        [ESC, b'O', byte, ..] => Step::Done(3, letter(byte)),
        [ESC, b']', ..] => operating_system_command(bytes),
        // Typed fast. Alt and a key looks the same, and is nothing that we know.
        [ESC, ..] => Step::Done(1, Some(Input::Escape)),
        [b'\r' | b'\n', ..] => Step::Done(1, Some(Input::Enter)),
        [b'\t', ..] => Step::Done(1, Some(Input::Tab)),
        [0x7f | 0x08, ..] => Step::Done(1, Some(Input::Backspace)),
        [byte @ 1..=26, ..] => Step::Done(1, Some(Input::Ctrl((b'a' + byte - 1).into()))),
        [byte, ..] if byte < b' ' => Step::Done(1, None),
        _ => character(bytes),
    }
}

/// A character of UTF-8.
fn character(bytes: &[u8]) -> Step {
    let length = match bytes[0] {
        0..0x80 => 1,
        0xc2..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0..0xf5 => 4,
        _ => return Step::Done(1, None),
    };
    let piece = &bytes[..length.min(bytes.len())];
    match std::str::from_utf8(piece) {
        Ok(text) => Step::Done(length, text.chars().next().map(Input::Char)),
        Err(error) if error.error_len().is_none() && piece.len() < length => Step::Incomplete,
        Err(_) => Step::Done(1, None),
    }
}

/// ESC [ parameters, and a final byte.
fn control_sequence(bytes: &[u8]) -> Step {
    // The keys F1 to F5 of the Linux console.
    if let [_, _, b'[', rest @ ..] = bytes {
        return match rest.first() {
            None => Step::Incomplete,
            Some(letter @ b'A'..=b'E') => Step::Done(4, Some(Input::Function(letter - b'A' + 1))),
            Some(_) => Step::Done(4, None),
        };
    }
    let Some(end) = bytes.iter().skip(2).position(|byte| !(0x20..0x40).contains(byte)).map(|at| at + 2) else {
        return Step::Incomplete;
    };
    let parameters = std::str::from_utf8(&bytes[2..end]).unwrap_or_default();
    let input = match (bytes[end], parameters.strip_prefix('<')) {
        (b'M', Some(report)) => mouse(report),
        (b'~', None) => match parameters.split(';').next().and_then(|number| number.parse().ok()) {
            Some(1 | 7) => Some(Input::Home),
            Some(4 | 8) => Some(Input::End),
            Some(5) => Some(Input::PageUp),
            Some(6) => Some(Input::PageDown),
            Some(number @ 11..=15) => Some(Input::Function(number - 10)),
            _ => None,
        },
        (final_byte, None) => letter(final_byte),
        _ => None,
    };
    // An ESC in the middle begins another sequence.
    Step::Done(if bytes[end] == ESC { end } else { end + 1 }, input)
}

/// The keys that end in a letter, with and without parameters for Shift and the like.
fn letter(byte: u8) -> Option<Input> {
    Some(match byte {
        b'A' => Input::Up,
        b'B' => Input::Down,
        b'H' => Input::Home,
        b'F' => Input::End,
        b'M' => Input::Enter,
        b'P'..=b'S' => Input::Function(byte - b'P' + 1),
        _ => return None,
    })
}

/// A pressed button, its column and line.
fn mouse(report: &str) -> Option<Input> {
    let mut numbers = report.split(';').map(|number| number.parse::<u16>().ok());
    let (button, column, line) = (numbers.next()??, numbers.next()??, numbers.next()??);
    match button {
        0 => Some(Input::Click { column: column.checked_sub(1)?, line: line.checked_sub(1)? }),
        64 => Some(Input::WheelUp),
        65 => Some(Input::WheelDown),
        _ => None,
    }
}

/// ESC ] text, ended by BEL or ESC \: the terminal says what its background is.
fn operating_system_command(bytes: &[u8]) -> Step {
    let Some(end) = bytes.iter().skip(2).position(|byte| [BEL, ESC].contains(byte)).map(|at| at + 2) else {
        return Step::Incomplete;
    };
    let length = match (bytes[end], bytes.get(end + 1)) {
        (BEL, _) => end + 1,
        (_, None) => return Step::Incomplete,
        (_, Some(b'\\')) => end + 2,
        (_, Some(_)) => end,
    };
    let text = std::str::from_utf8(&bytes[2..end]).unwrap_or_default();
    Step::Done(length, text.strip_prefix("11;").and_then(background))
}

/// `rgb:ffff/ffff/ffff`, with one to four digits each.
fn background(colour: &str) -> Option<Input> {
    let mut parts = colour.strip_prefix("rgb:")?.split('/').map(|digits| {
        let highest =
            16_u32.checked_pow(u32::try_from(digits.len()).ok()?).filter(|_| (1..=4).contains(&digits.len()))? - 1;
        Some(f64::from(u32::from_str_radix(digits, 16).ok()?) / f64::from(highest))
    });
    let (red, green, blue) = (parts.next()??, parts.next()??, parts.next()??);
    // The weights of ITU-R BT.601.
    Some(Input::Background { light: 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: &[u8] = b"q\x1b[A\x1bOB\x1b[5~\x1b[1;2H\x1b[<0;7;2M\x1b[<0;7;2m\x1b[<65;1;1M\x1b]11;rgb:ffff/ffff/ffff\x1b\\\xc3\xa4\x1bx\x1b[[A\x0c\r\x7f";

    fn expected() -> Vec<Input> {
        vec![
            Input::Char('q'),
            Input::Up,
            Input::Down,
            Input::PageUp,
            Input::Home,
            Input::Click { column: 6, line: 1 },
            Input::WheelDown,
            Input::Background { light: true },
            Input::Char('ä'),
            Input::Escape,
            Input::Char('x'),
            Input::Function(1),
            Input::Ctrl('l'),
            Input::Enter,
            Input::Backspace,
        ]
    }

    #[test]
    fn sequences_are_keys() {
        assert_eq!(Parser::default().feed(ALL), expected());
    }

    #[test]
    fn pieces_make_no_difference() {
        let mut parser = Parser::default();
        let inputs: Vec<Input> = ALL.iter().flat_map(|byte| parser.feed(&[*byte])).collect();
        assert_eq!(inputs, expected());
        assert!(!parser.is_waiting());
    }

    #[test]
    fn an_escape_by_itself_is_the_key() {
        let mut parser = Parser::default();
        assert_eq!(parser.feed(b"\x1b"), []);
        assert_eq!(parser.expire(), Some(Input::Escape));
        assert_eq!(parser.feed(b"\x1b]11;rgb:0/0/0"), []);
        assert_eq!(parser.expire(), None);
        assert_eq!(parser.feed(b"\x1b]11;rgb:0/0/0\x07"), [Input::Background { light: false }]);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_keep_much(pieces: Vec<Vec<u8>>) {
            let mut parser = Parser::default();
            for piece in pieces {
                parser.feed(&piece);
                prop_assert!(parser.pending.len() <= MOST_BYTES);
            }
        }
    }
}
