//! Sets of bytes, and the two alphabets of Python 2 for a byte string: ASCII, and with `(?u)` Latin-1.

use std::fmt;

/// The bytes that a pattern accepts at one position of the subject.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ByteSet([u64; 4]);

impl ByteSet {
    pub(super) fn from_fn(accepts: impl Fn(u8) -> bool) -> Self {
        let mut words = [0; 4];
        for byte in (0..=u8::MAX).filter(|&byte| accepts(byte)) {
            words[usize::from(byte / 64)] |= 1 << (byte % 64);
        }
        ByteSet(words)
    }

    pub(super) fn empty() -> Self {
        ByteSet([0; 4])
    }

    pub(super) fn range(first: u8, last: u8) -> Self {
        ByteSet::from_fn(|byte| (first..=last).contains(&byte))
    }

    pub(super) fn contains(self, byte: u8) -> bool {
        self.0[usize::from(byte / 64)] >> (byte % 64) & 1 == 1
    }

    pub(super) fn union(self, other: Self) -> Self {
        ByteSet::from_fn(|byte| self.contains(byte) || other.contains(byte))
    }

    pub(super) fn complement(self) -> Self {
        ByteSet::from_fn(|byte| !self.contains(byte))
    }

    /// The set, together with the bytes that differ from its members only in case.
    pub(super) fn ignoring_case(self, alphabet: Alphabet) -> Self {
        let mut lower_cased = [false; 256];
        for byte in (0..=u8::MAX).filter(|&byte| self.contains(byte)) {
            lower_cased[usize::from(alphabet.lower(byte))] = true;
        }
        ByteSet::from_fn(|byte| lower_cased[usize::from(alphabet.lower(byte))])
    }

    /// The members as ranges, first and last included, in ascending order.
    pub(super) fn ranges(self) -> Vec<(u8, u8)> {
        let mut ranges: Vec<(u8, u8)> = Vec::new();
        for byte in (0..=u8::MAX).filter(|&byte| self.contains(byte)) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == byte => *last = byte,
                _ => ranges.push((byte, byte)),
            }
        }
        ranges
    }
}

impl fmt::Debug for ByteSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

/// Decides which bytes are letters, digits and whitespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    Ascii,
    /// Each byte is the Unicode character with the same number, classified as in Unicode 5.2.
    Latin1,
}

impl Alphabet {
    pub(super) fn words(self) -> ByteSet {
        ByteSet::from_fn(|byte| match byte {
            b'_' => true,
            0..=0x7f => byte.is_ascii_alphanumeric(),
            _ if self == Alphabet::Ascii => false,
            // Of the signs in Latin-1, ª ² ³ µ ¹ º ¼ ½ ¾ are word characters; × and ÷ are not.
            0xaa | 0xb2 | 0xb3 | 0xb5 | 0xb9 | 0xba | 0xbc..=0xbe => true,
            _ => byte >= 0xc0 && byte != 0xd7 && byte != 0xf7,
        })
    }

    pub(super) fn digits(self) -> ByteSet {
        ByteSet::range(b'0', b'9')
    }

    pub(super) fn whitespace(self) -> ByteSet {
        ByteSet::from_fn(|byte| match byte {
            b' ' | b'\t'..=b'\r' => true,
            0x1c..=0x1f | 0x85 | 0xa0 => self == Alphabet::Latin1,
            _ => false,
        })
    }

    pub(super) fn lower(self, byte: u8) -> u8 {
        match byte {
            0xc0..=0xde if self == Alphabet::Latin1 && byte != 0xd7 => byte + 0x20,
            _ => byte.to_ascii_lowercase(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_adjacent_bytes_up_to_the_last() {
        let set = ByteSet::range(b'a', b'c').union(ByteSet::range(b'd', b'd')).union(ByteSet::range(0xfe, 0xff));
        assert_eq!(set.ranges(), [(b'a', b'd'), (0xfe, 0xff)]);
        assert_eq!(set.complement().ranges(), [(0, b'`'), (b'e', 0xfd)]);
        assert!(ByteSet::empty().ranges().is_empty());
    }

    #[test]
    fn case_is_ignored_only_within_the_alphabet() {
        let umlaut = ByteSet::range(0xd6, 0xd6);
        assert_eq!(umlaut.ignoring_case(Alphabet::Ascii), umlaut);
        assert!(umlaut.ignoring_case(Alphabet::Latin1).contains(0xf6));
        assert_eq!(ByteSet::range(b'k', b'k').ignoring_case(Alphabet::Latin1).ranges(), [(b'K', b'K'), (b'k', b'k')]);
    }
}
