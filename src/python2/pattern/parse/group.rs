//! The syntax that begins with a parenthesis: `(...)`, `(?:...)`, `(?P<name>...)`, `(?=...)`, `(?i)` and so on; and
//! references to groups.

use super::{Parser, Result, decimal, error};
use crate::python2::pattern::tree::Node;

/// Python's own limit.
const MAX_GROUPS: usize = 99;
/// Python failed at a few hundred. `fancy-regex` fails at 64, and `emit` may write one group as two.
const MAX_NESTING: usize = 30;

/// The groups that the parser has seen so far.
#[derive(Default)]
pub(super) struct Groups<'p> {
    /// By number; group 1 is the first.
    captures: Vec<Capture>,
    names: Vec<(&'p [u8], usize)>,
    /// How many groups are open, including those that do not capture.
    nesting: usize,
    /// How many look-behinds are open.
    lookbehinds: usize,
}

/// Whether a group can be referenced.
#[derive(Clone, Copy)]
enum Capture {
    /// Not yet: its `)` has not come.
    Open,
    Usable,
    /// No: it stands in a negative look-around, where it captures nothing.
    Negated,
}

impl Groups<'_> {
    fn by_name(&self, name: &[u8]) -> Option<usize> {
        let mut names = self.names.iter();
        names.find(|(known, _)| *known == name).map(|&(_, n)| n)
    }

    /// Rejects the references that Python rejected, and those that it accepted but could not match sensibly.
    fn check_reference(&self, group: usize, at: usize) -> Result<()> {
        let index = group.checked_sub(1);
        let problem = match index.and_then(|index| self.captures.get(index)) {
            None => "has not begun here",
            Some(Capture::Open) => "is still open here",
            Some(Capture::Negated) => "stands in a negative look-around, where it captures nothing",
            Some(Capture::Usable) if self.lookbehinds > 0 => "cannot be referred to from a look-behind",
            Some(Capture::Usable) => return Ok(()),
        };
        error(at, format!("group {group} {problem}"))
    }
}

impl<'p> Parser<'p> {
    /// The group after the `(` at `start`. A comment or flags give no node.
    pub(super) fn group(&mut self, start: usize) -> Result<Option<Node>> {
        if self.eat(b"?#") {
            return match self.skip_past(b')')? {
                true => Ok(None),
                false => unclosed(start),
            };
        }
        self.groups.nesting += 1;
        if self.groups.nesting > MAX_NESTING {
            return error(start, format!("groups nested more than {MAX_NESTING} deep"));
        }
        let node = if !self.eat(b"?") {
            self.capturing(start, None)?
        } else if self.eat(b":") {
            Node::Group { captures: false, body: self.body(start)? }
        } else if self.eat(b"P<") {
            self.named(start)?
        } else if self.eat(b"P=") {
            self.named_reference()?
        } else if self.eat(b"=") {
            self.look(start, false, false)?
        } else if self.eat(b"!") {
            self.look(start, false, true)?
        } else if self.eat(b"<=") {
            self.look(start, true, false)?
        } else if self.eat(b"<!") {
            self.look(start, true, true)?
        } else if self.eat(b"(") {
            self.conditional(start)?
        } else {
            self.groups.nesting -= 1;
            self.set_flags(start)?;
            return Ok(None);
        };
        self.groups.nesting -= 1;
        Ok(Some(node))
    }

    /// The alternatives up to the `)` that closes the `(` at `start`. Reads that `)`, too.
    fn body(&mut self, start: usize) -> Result<Box<Node>> {
        let body = self.alternatives()?;
        if !self.eat(b")") {
            return unclosed(start);
        }
        Ok(Box::new(body))
    }

    fn capturing(&mut self, start: usize, name: Option<&'p [u8]>) -> Result<Node> {
        let index = self.groups.captures.len();
        if index == MAX_GROUPS {
            return error(
                start,
                format!("more than {MAX_GROUPS} groups; write (?:...) for those that nothing refers to"),
            );
        }
        self.groups.captures.push(Capture::Open);
        self.groups.names.extend(name.map(|name| (name, index + 1)));
        let body = self.body(start)?;
        self.groups.captures[index] = Capture::Usable;
        Ok(Node::Group { captures: true, body })
    }

    /// `(?P<name>...)`, from the name on.
    fn named(&mut self, start: usize) -> Result<Node> {
        let at = self.at;
        let name = self.name(b'>')?;
        if !is_identifier(name) {
            return error(at, "a group's name consists of letters, digits and `_`, and does not begin with a digit");
        }
        if let Some(group) = self.groups.by_name(name) {
            return error(at, format!("group {group} already has this name"));
        }
        self.capturing(start, Some(name))
    }

    /// `(?P=name)`, from the name on.
    fn named_reference(&mut self) -> Result<Node> {
        let at = self.at;
        let name = self.name(b')')?;
        match self.groups.by_name(name) {
            Some(group) => self.back_reference(group, at),
            None => error(at, "no group has this name; (?P<name>...) defines one"),
        }
    }

    fn name(&mut self, end: u8) -> Result<&'p [u8]> {
        let start = self.at;
        let name = self.take_while(|byte| byte != end);
        if self.next().is_none() {
            return error(start, format!("no `{}` ends the name", char::from(end)));
        }
        Ok(name)
    }

    pub(super) fn back_reference(&self, group: usize, at: usize) -> Result<Node> {
        self.groups.check_reference(group, at)?;
        Ok(Node::BackReference { group, ignore_case: self.flags.ignore_case.then(|| self.flags.alphabet()) })
    }

    fn look(&mut self, start: usize, behind: bool, negative: bool) -> Result<Node> {
        let first_within = self.groups.captures.len();
        self.groups.lookbehinds += usize::from(behind);
        let body = self.body(start)?;
        self.groups.lookbehinds -= usize::from(behind);
        if negative {
            self.groups.captures[first_within..].fill(Capture::Negated);
        }
        let (least, most) = body.width();
        if behind && least != most {
            return error(
                start,
                "a look-behind must have one length; write one for each length, as in (?:(?<=a)|(?<=bc))",
            );
        }
        Ok(Node::Look { behind, negative, body })
    }

    /// `(?(1)yes|no)`, from the number or name on.
    fn conditional(&mut self, start: usize) -> Result<Node> {
        let at = self.at;
        let name = self.name(b')')?;
        let Some(group) = self.groups.by_name(name).or_else(|| decimal(name)) else {
            return error(at, "`(?(` must be followed by the number or name of a group");
        };
        self.groups.check_reference(group, at)?;
        let yes = Box::new(self.sequence()?);
        let no = Box::new(if self.eat(b"|") { self.sequence()? } else { Node::Sequence(Vec::new()) });
        if self.peek() == Some(b'|') {
            return error(
                self.at,
                "a condition has at most two branches; write alternatives in one of them as (?:a|b)",
            );
        }
        if !self.eat(b")") {
            return unclosed(start);
        }
        Ok(Node::Conditional { group, yes, no })
    }

    /// `(?i)` and the like, from the first letter on.
    fn set_flags(&mut self, start: usize) -> Result<()> {
        let first = self.at;
        while let Some(byte) = self.next() {
            match self.flags.by_letter(byte) {
                Some(flag) => *flag = true,
                None if byte == b')' && self.at - 1 > first => return Ok(()),
                None => break,
            }
        }
        error(
            start,
            "`(?` must be followed by one of : = ! <= <! # P< P= ( or by flags, which apply to the whole pattern, \
             as in (?i)",
        )
    }
}

fn is_identifier(name: &[u8]) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    name.iter().all(is_word) && name.first().is_some_and(|byte| !byte.is_ascii_digit())
}

fn unclosed<T>(start: usize) -> Result<T> {
    error(start, r"no `)` closes this; write `\(` for the character")
}
