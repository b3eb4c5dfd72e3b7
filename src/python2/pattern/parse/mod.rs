//! Reads a pattern as Python 2.7 read it.
//!
//! Syntax: <https://docs.python.org/2.7/library/re.html>. `tests/vectors/regex.json` records how Python 2.7.18 itself
//! answers the questions that this page leaves open. It differs from other dialects: a flag applies to the whole
//! pattern wherever it stands; a brace that begins no repetition stands for itself, and so does a letter without a
//! meaning after a backslash; `[` and `&&` have no meaning inside a set.

mod escape;
mod group;

use std::str::FromStr;

use super::PatternError;
use super::byte_set::{Alphabet, ByteSet};
use super::tree::{Node, Place};

/// The largest [`Node::size`]: the engines write repetitions out. It suffices for any count that makes sense for a
/// command line.
const MAX_SIZE: u64 = 100_000;

type Result<T> = std::result::Result<T, PatternError>;

/// The tree of the pattern, or why and where the pattern cannot keep the meaning that it had in Python.
pub(super) fn parse(pattern: &[u8]) -> Result<Node> {
    // A flag may stand after the part that it changes, so parse again until a pass finds no new flag.
    let mut flags = Flags::default();
    loop {
        let mut parser = Parser::new(pattern, flags);
        let tree = parser.whole()?;
        if parser.flags == flags {
            return Ok(tree);
        }
        flags = parser.flags;
    }
}

/// The letters of `(?iLmstux)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Flags {
    ignore_case: bool,
    locale: bool,
    multi_line: bool,
    dot_all: bool,
    template: bool,
    unicode: bool,
    verbose: bool,
}

impl Flags {
    fn by_letter(&mut self, letter: u8) -> Option<&mut bool> {
        Some(match letter {
            b'i' => &mut self.ignore_case,
            b'L' => &mut self.locale,
            b'm' => &mut self.multi_line,
            b's' => &mut self.dot_all,
            b't' => &mut self.template,
            b'u' => &mut self.unicode,
            b'x' => &mut self.verbose,
            _ => return None,
        })
    }

    /// `(?L)` overrides `(?u)`. The original stayed in the C locale, in which `(?L)` is ASCII.
    fn alphabet(self) -> Alphabet {
        if self.unicode && !self.locale { Alphabet::Latin1 } else { Alphabet::Ascii }
    }
}

struct Parser<'p> {
    pattern: &'p [u8],
    at: usize,
    flags: Flags,
    groups: group::Groups<'p>,
}

impl<'p> Parser<'p> {
    fn new(pattern: &'p [u8], flags: Flags) -> Self {
        Parser { pattern, at: 0, flags, groups: group::Groups::default() }
    }

    fn peek(&self) -> Option<u8> {
        self.pattern.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn eat(&mut self, text: &[u8]) -> bool {
        let found = self.pattern[self.at..].starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    fn take_while(&mut self, belongs: impl Fn(u8) -> bool) -> &'p [u8] {
        let rest = &self.pattern[self.at..];
        let length = rest.iter().take_while(|&&byte| belongs(byte)).count();
        self.at += length;
        &rest[..length]
    }

    fn whole(&mut self) -> Result<Node> {
        let tree = self.alternatives()?;
        if self.peek().is_some() {
            return error(self.at, r"`)` closes nothing; write `\)` for the character");
        }
        check_size(&tree, 0)?;
        Ok(tree)
    }

    /// Up to a `)` or the end.
    fn alternatives(&mut self) -> Result<Node> {
        let first = self.sequence()?;
        if self.peek() != Some(b'|') {
            return Ok(first);
        }
        let mut branches = vec![first];
        while self.eat(b"|") {
            branches.push(self.sequence()?);
        }
        Ok(Node::Alternatives(branches))
    }

    /// Up to a `|`, a `)` or the end.
    fn sequence(&mut self) -> Result<Node> {
        let mut nodes = Vec::new();
        loop {
            let start = self.at;
            let byte = match self.peek() {
                None | Some(b'|' | b')') => return Ok(Node::Sequence(nodes)),
                Some(byte) => byte,
            };
            self.at += 1;
            match byte {
                b' ' | b'\t'..=b'\r' if self.flags.verbose => {}
                b'#' if self.flags.verbose => {
                    self.skip_past(b'\n')?;
                }
                b'*' => self.repeat(&mut nodes, start, 0, None)?,
                b'+' => self.repeat(&mut nodes, start, 1, None)?,
                b'?' => self.repeat(&mut nodes, start, 0, Some(1))?,
                b'{' => match self.interval(start)? {
                    Some((min, max)) => self.repeat(&mut nodes, start, min, max)?,
                    None => nodes.push(self.literal(byte)),
                },
                b'(' => nodes.extend(self.group(start)?),
                b'[' => nodes.push(Node::Bytes(self.set(start)?)),
                b'\\' => nodes.push(self.escape(start)?),
                b'.' => nodes.push(Node::Bytes(self.any())),
                b'^' if self.flags.multi_line => nodes.push(Node::At(Place::LineStart)),
                b'^' => nodes.push(Node::At(Place::Start)),
                b'$' if self.flags.multi_line => nodes.push(Node::At(Place::LineEnd)),
                b'$' => nodes.push(Node::At(Place::LastLineEnd)),
                _ => nodes.push(self.literal(byte)),
            }
        }
    }

    fn any(&self) -> ByteSet {
        ByteSet::from_fn(|byte| byte != b'\n' || self.flags.dot_all)
    }

    fn literal(&self, byte: u8) -> Node {
        Node::Bytes(self.in_any_case(ByteSet::range(byte, byte)))
    }

    /// The set, with both cases if the pattern ignores case.
    fn in_any_case(&self, set: ByteSet) -> ByteSet {
        if self.flags.ignore_case { set.ignoring_case(self.flags.alphabet()) } else { set }
    }

    /// Skips a comment; `false` if the pattern ends first. Here, too, a backslash escapes the next byte.
    fn skip_past(&mut self, end: u8) -> Result<bool> {
        while let Some(byte) = self.next() {
            if byte == end {
                return Ok(true);
            }
            if byte == b'\\' && self.next().is_none() {
                return lone_backslash(self.at - 1);
            }
        }
        Ok(false)
    }

    /// The counts after the `{` at `start`; `None`, and nothing is read, if it begins no repetition.
    fn interval(&mut self, start: usize) -> Result<Option<(u32, Option<u32>)>> {
        let is_digit = |byte: u8| byte.is_ascii_digit();
        let after_brace = self.at;
        let least = self.take_while(is_digit);
        let most = if self.eat(b",") { self.take_while(is_digit) } else { least };
        if self.at == after_brace || !self.eat(b"}") {
            self.at = after_brace;
            return Ok(None);
        }
        let min = count(least, start)?.unwrap_or(0);
        let max = count(most, start)?;
        if max.is_some_and(|max| max < min) {
            return error(start, "the first count of {least,most} is greater than the second");
        }
        Ok(Some((min, max)))
    }

    /// Repeats the last of the nodes; the repetition stands at `start`.
    fn repeat(&mut self, nodes: &mut Vec<Node>, start: usize, min: u32, max: Option<u32>) -> Result<()> {
        let sign = char::from(self.pattern[start]);
        let lazy = self.eat(b"?");
        let body = match nodes.pop() {
            None | Some(Node::At(_)) => {
                return error(start, format!(r"`{sign}` has nothing to repeat; write `\{sign}` for the character"));
            }
            Some(Node::Repeat { .. }) => {
                return error(
                    start,
                    format!("`{sign}` follows a repetition; to repeat that, make it a group: (?:...)"),
                );
            }
            Some(_) if self.flags.template => {
                return error(start, "the flag (?t) rules out repetitions; leave it out");
            }
            Some(node) => Box::new(node),
        };
        let node = Node::Repeat { body, min, max, lazy };
        check_size(&node, start)?;
        nodes.push(node);
        Ok(())
    }
}

fn check_size(node: &Node, at: usize) -> Result<()> {
    if node.size() > MAX_SIZE {
        return error(at, format!("with its repetitions written out, this is over {MAX_SIZE} characters long"));
    }
    Ok(())
}

/// The count that the digits stand for; `None` if there are no digits.
fn count(digits: &[u8], at: usize) -> Result<Option<u32>> {
    if digits.is_empty() {
        return Ok(None);
    }
    // Python's own value for "no limit" is the highest of these numbers.
    match decimal(digits).filter(|&count: &u32| count < u32::MAX) {
        Some(count) => Ok(Some(count)),
        None => error(at, format!("a count must be less than {}", u32::MAX)),
    }
}

fn decimal<T: FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn error<T>(position: usize, message: impl Into<String>) -> Result<T> {
    Err(PatternError { position, message: message.into() })
}

fn lone_backslash<T>(at: usize) -> Result<T> {
    error(at, r"nothing follows the backslash; write `\\` for the character")
}
