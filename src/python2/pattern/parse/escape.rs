//! The syntax of sets and of backslashes: `[^\w.-]`, `\x1b`, `\1`.

use super::{Parser, Result, error, lone_backslash};
use crate::python2::pattern::byte_set::ByteSet;
use crate::python2::pattern::tree::{Node, Place};

/// A member of a set, or one end of a range in it.
enum Item {
    Byte(u8),
    Class(ByteSet),
}

impl Item {
    fn set(self) -> ByteSet {
        match self {
            Item::Byte(byte) => ByteSet::range(byte, byte),
            Item::Class(set) => set,
        }
    }
}

impl Parser<'_> {
    /// The set after the `[` at `start`.
    pub(super) fn set(&mut self, start: usize) -> Result<ByteSet> {
        let negated = self.eat(b"^");
        let first = self.at;
        let mut set = ByteSet::empty();
        // As the first character, `]` stands for itself.
        while self.at == first || self.peek() != Some(b']') {
            let at = self.at;
            let item = self.set_item(start)?;
            let is_range = self.peek() == Some(b'-') && self.pattern.get(self.at + 1) != Some(&b']');
            let members = if is_range {
                self.at += 1;
                range(item, self.set_item(start)?, at)?
            } else {
                item.set()
            };
            set = set.union(members);
        }
        self.at += 1;
        let set = self.in_any_case(set);
        Ok(if negated { set.complement() } else { set })
    }

    /// One member of the set that began at `start`.
    fn set_item(&mut self, start: usize) -> Result<Item> {
        let at = self.at;
        let Some(byte) = self.next() else {
            return error(start, r"no `]` closes this set; write `\[` for the character");
        };
        if byte != b'\\' {
            return Ok(Item::Byte(byte));
        }
        match self.peek() {
            None => lone_backslash(at),
            Some(b'b') => {
                self.at += 1;
                Ok(Item::Byte(8))
            }
            Some(b'0'..=b'7') => Ok(Item::Byte(self.octal())),
            Some(b'8' | b'9') => error(at, r"in a set, `\` and digits are an octal number, with digits from 0 to 7"),
            Some(_) => self.byte_or_class(at),
        }
    }

    /// The meaning of the backslash at `start`, outside of a set.
    pub(super) fn escape(&mut self, start: usize) -> Result<Node> {
        let place = match self.peek() {
            None => return lone_backslash(start),
            Some(b'0'..=b'9') => return self.octal_or_reference(start),
            Some(b'A') => Place::Start,
            Some(b'Z') => Place::End,
            Some(b'b') => Place::WordEdge(self.flags.alphabet()),
            Some(b'B') => Place::NoWordEdge(self.flags.alphabet()),
            Some(_) => {
                let item = self.byte_or_class(start)?;
                return Ok(Node::Bytes(self.in_any_case(item.set())));
            }
        };
        self.at += 1;
        Ok(Node::At(place))
    }

    /// The escapes with the same meaning in a set and outside.
    fn byte_or_class(&mut self, start: usize) -> Result<Item> {
        let Some(letter) = self.next() else {
            return lone_backslash(start);
        };
        let alphabet = self.flags.alphabet();
        Ok(match letter {
            b'd' => Item::Class(alphabet.digits()),
            b'D' => Item::Class(alphabet.digits().complement()),
            b's' => Item::Class(alphabet.whitespace()),
            b'S' => Item::Class(alphabet.whitespace().complement()),
            b'w' => Item::Class(alphabet.words()),
            b'W' => Item::Class(alphabet.words().complement()),
            b'a' => Item::Byte(7),
            b'f' => Item::Byte(12),
            b'n' => Item::Byte(b'\n'),
            b'r' => Item::Byte(b'\r'),
            b't' => Item::Byte(b'\t'),
            b'v' => Item::Byte(11),
            b'x' => Item::Byte(self.hexadecimal(start)?),
            _ => Item::Byte(letter),
        })
    }

    fn hexadecimal(&mut self, start: usize) -> Result<u8> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (self.next().and_then(digit), self.next().and_then(digit));
        match (high, low) {
            (Some(high), Some(low)) => Ok((high * 16 + low) as u8),
            _ => error(start, r"`\x` must be followed by two hexadecimal digits, as in \x1b"),
        }
    }

    /// Up to three octal digits. Python kept only the low eight bits.
    fn octal(&mut self) -> u8 {
        let mut value = 0u8;
        for _ in 0..3 {
            let Some(digit @ b'0'..=b'7') = self.peek() else {
                break;
            };
            self.at += 1;
            value = value << 3 | (digit - b'0');
        }
        value
    }

    /// `\0` and `\101` are bytes, `\1` and `\10` are groups.
    fn octal_or_reference(&mut self, start: usize) -> Result<Node> {
        let rest = &self.pattern[self.at..];
        let is_octal = |digit: &u8| (b'0'..=b'7').contains(digit);
        if rest[0] == b'0' || rest.len() >= 3 && rest[..3].iter().all(is_octal) {
            let byte = self.octal();
            return Ok(self.literal(byte));
        }
        let two_digits = rest.get(1).is_some_and(u8::is_ascii_digit);
        let digits = &rest[..1 + usize::from(two_digits)];
        self.at += digits.len();
        let group = digits.iter().fold(0, |group, digit| group * 10 + usize::from(digit - b'0'));
        self.back_reference(group, start)
    }
}

fn range(first: Item, last: Item, at: usize) -> Result<ByteSet> {
    match (first, last) {
        (Item::Byte(first), Item::Byte(last)) if first <= last => Ok(ByteSet::range(first, last)),
        (Item::Byte(_), Item::Byte(_)) => error(at, "this range ends before it begins"),
        _ => error(at, r"a class such as \w cannot be the end of a range; write `\-` for the character"),
    }
}
