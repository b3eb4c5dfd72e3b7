//! Writes a pattern in the syntax that `regex` and `fancy-regex` share.
//!
//! The text does not depend on how they read flags, classes or case: it has bytes as `\xHH` or as sets of them, and
//! only those anchors that mean the same to both.

use std::fmt::{Arguments, Write};

use super::byte_set::{Alphabet, ByteSet};
use super::tree::{Node, Place};

/// The subjects for which the text is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subjects {
    All,
    /// Subjects that are not empty and do not end in a newline, so nearly all. For these, `$` is the end and `\B` is
    /// the engine's own, so neither needs a look-around.
    Usual,
}

/// A pattern in the engines' syntax.
#[derive(Debug)]
pub(super) struct Emitted {
    subjects: Subjects,
    pub(super) text: String,
    /// Whether it needs the engine with look-arounds and back-references.
    pub(super) backtracks: bool,
    /// Convert subjects to lower case of this alphabet, because a back-reference ignores case.
    pub(super) lower_case: Option<Alphabet>,
}

pub(super) fn emit(tree: &Node, subjects: Subjects) -> Emitted {
    let mut emitted = Emitted { subjects, text: String::new(), backtracks: false, lower_case: None };
    emitted.node(tree);
    emitted
}

impl Emitted {
    fn push(&mut self, text: Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.text.write_fmt(text);
    }

    fn node(&mut self, node: &Node) {
        match node {
            Node::Bytes(set) => self.set(*set),
            Node::At(place) => self.place(*place),
            Node::Sequence(nodes) => nodes.iter().for_each(|node| self.node(node)),
            Node::Alternatives(branches) => {
                for (index, branch) in branches.iter().enumerate() {
                    self.text.push_str(if index == 0 { "" } else { "|" });
                    self.node(branch);
                }
            }
            Node::Group { captures, body } => {
                self.enclosed(if *captures { "(" } else { "(?:" }, body);
            }
            Node::Repeat { body, min, max, lazy } => self.repeat(body, *min, *max, *lazy),
            Node::Look { behind, negative, body } => {
                self.backtracks = true;
                let opening = match (behind, negative) {
                    (false, false) => "(?=",
                    (false, true) => "(?!",
                    (true, false) => "(?<=",
                    (true, true) => "(?<!",
                };
                self.enclosed(opening, body);
            }
            Node::BackReference { group, ignore_case } => {
                self.backtracks = true;
                self.lower_case = self.lower_case.or(*ignore_case);
                // In a group, so that the engine does not read a digit after it as part of the number.
                self.push(format_args!("(?:\\{group})"));
            }
            Node::Conditional { group, yes, no } => self.conditional(*group, yes, no),
        }
    }

    fn enclosed(&mut self, opening: &str, body: &Node) {
        self.text.push_str(opening);
        self.node(body);
        self.text.push(')');
    }

    fn set(&mut self, set: ByteSet) {
        match set.ranges()[..] {
            // Both engines reject `[]`.
            [] => self.text.push_str(r"[^\x00-\xff]"),
            [(byte, last)] if byte == last && byte.is_ascii_alphanumeric() => {
                self.text.push(char::from(byte));
            }
            ref ranges => {
                self.text.push('[');
                for (first, last) in ranges {
                    self.push(format_args!("\\x{first:02x}-\\x{last:02x}"));
                }
                self.text.push(']');
            }
        }
    }

    fn place(&mut self, place: Place) {
        let usual = self.subjects == Subjects::Usual;
        match place {
            Place::Start => self.text.push_str(r"\A"),
            Place::LineStart => self.text.push_str("(?m:^)"),
            Place::LineEnd => self.text.push_str("(?m:$)"),
            Place::End => self.text.push_str(r"\z"),
            Place::LastLineEnd if usual => self.text.push_str(r"\z"),
            Place::LastLineEnd => self.look_around(r"(?=\n?\z)"),
            Place::WordEdge(Alphabet::Ascii) => self.text.push_str(r"\b"),
            Place::NoWordEdge(Alphabet::Ascii) if usual => self.text.push_str(r"\B"),
            Place::NoWordEdge(Alphabet::Ascii) => self.look_around(r"(?!\A\z)\B"),
            Place::WordEdge(Alphabet::Latin1) => self.latin1_word_edge("(?!", "(?="),
            Place::NoWordEdge(Alphabet::Latin1) => {
                self.look_around(r"(?!\A\z)");
                self.latin1_word_edge("(?=", "(?!");
            }
        }
    }

    fn look_around(&mut self, text: &str) {
        self.backtracks = true;
        self.text.push_str(text);
    }

    /// After a word character, the first look-ahead must match; elsewhere, the second.
    fn latin1_word_edge(&mut self, after_word: &str, elsewhere: &str) {
        let word = Node::Bytes(Alphabet::Latin1.words());
        self.look_around("(?:");
        self.enclosed("(?<=", &word);
        self.enclosed(after_word, &word);
        self.text.push('|');
        self.enclosed("(?<!", &word);
        self.enclosed(elsewhere, &word);
        self.text.push(')');
    }

    fn repeat(&mut self, body: &Node, min: u32, max: Option<u32>, lazy: bool) {
        let (_, most) = body.width();
        if most == 0 {
            return self.repeat_empty(body, min, max, lazy);
        }
        self.node(body);
        match (min, max) {
            (0, None) => self.text.push('*'),
            (1, None) => self.text.push('+'),
            (0, Some(1)) => self.text.push('?'),
            (_, None) => self.push(format_args!("{{{min},}}")),
            (_, Some(max)) => self.push(format_args!("{{{min},{max}}}")),
        }
        if lazy {
            self.text.push('?');
        }
    }

    /// Repeats an expression that matches no byte. It matches the second time as it did the first, so once is enough.
    /// The engines reject the repetition of a bare condition.
    fn repeat_empty(&mut self, body: &Node, min: u32, max: Option<u32>, lazy: bool) {
        let (opening, closing) = match (min, max) {
            (_, Some(0)) => ("(?:", "|){0}"),
            (0, _) if lazy => ("(?:|", ")"),
            (0, _) => ("(?:", "|)"),
            _ => ("(?:", ")"),
        };
        self.text.push_str(opening);
        self.node(body);
        self.text.push_str(closing);
    }

    fn conditional(&mut self, group: usize, yes: &Node, no: &Node) {
        self.backtracks = true;
        // The engine never tries this back-reference. It makes fancy-regex 0.20 treat the group's capture as
        // significant and try more than the first way to reach this point: `(?:(a)|a)(?(1)b|c)` must match `ac`. Also,
        // with two empty branches fancy-regex would see a bare test of the group, which can fail.
        self.push(format_args!("(?({group})(?:\\{group}){{0}}"));
        self.node(yes);
        self.text.push('|');
        self.node(no);
        self.text.push(')');
    }
}
