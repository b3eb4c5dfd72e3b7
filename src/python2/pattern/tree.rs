//! The syntax tree of a pattern. The parser has applied all flags, so that no node depends on them.

use super::byte_set::{Alphabet, ByteSet};

/// One part of a pattern.
#[derive(Debug)]
pub(super) enum Node {
    /// One byte of the subject that is in the set.
    Bytes(ByteSet),
    /// A condition on a position in the subject.
    At(Place),
    /// One after the other; no node is the empty match.
    Sequence(Vec<Node>),
    /// The first that leads to a match.
    Alternatives(Vec<Node>),
    Group {
        captures: bool,
        body: Box<Node>,
    },
    Repeat {
        body: Box<Node>,
        min: u32,
        /// `None` is no limit.
        max: Option<u32>,
        lazy: bool,
    },
    Look {
        behind: bool,
        negative: bool,
        body: Box<Node>,
    },
    /// The text that the group matched, once more.
    BackReference {
        group: usize,
        /// The alphabet in which it ignores case.
        ignore_case: Option<Alphabet>,
    },
    /// `(?(1)yes|no)`: `yes` if the group has matched, otherwise `no`.
    Conditional {
        group: usize,
        yes: Box<Node>,
        no: Box<Node>,
    },
}

/// A position between two bytes of the subject, or at one of its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Start,
    LineStart,
    End,
    /// The end, or before the newline that ends the subject: `$`.
    LastLineEnd,
    LineEnd,
    WordEdge(Alphabet),
    /// Not a word edge, in a subject that is not empty.
    NoWordEdge(Alphabet),
}

impl Node {
    /// The lowest and the highest number of bytes that it can match.
    pub(super) fn width(&self) -> (u64, u64) {
        match self {
            Node::Bytes(_) => (1, 1),
            Node::At(_) | Node::Look { .. } => (0, 0),
            Node::Sequence(nodes) => {
                nodes.iter().map(Node::width).fold((0, 0), |a, b| (a.0.saturating_add(b.0), a.1.saturating_add(b.1)))
            }
            Node::Alternatives(nodes) => nodes.iter().map(Node::width).reduce(either).unwrap_or_default(),
            Node::Group { body, .. } => body.width(),
            Node::Repeat { body, min, max, .. } => {
                let (least, most) = body.width();
                let max = max.map_or(u64::MAX, u64::from);
                (least.saturating_mul((*min).into()), most.saturating_mul(max))
            }
            Node::BackReference { .. } => (0, u64::MAX),
            Node::Conditional { yes, no, .. } => either(yes.width(), no.width()),
        }
    }

    /// The number of single conditions with all repetitions written out.
    pub(super) fn size(&self) -> u64 {
        match self {
            Node::Bytes(_) | Node::At(_) | Node::BackReference { .. } => 1,
            Node::Sequence(nodes) | Node::Alternatives(nodes) => {
                nodes.iter().map(Node::size).fold(0, u64::saturating_add)
            }
            Node::Group { body, .. } | Node::Look { body, .. } => body.size(),
            Node::Repeat { body, min, max, .. } => body.size().saturating_mul(max.unwrap_or(*min).max(1).into()),
            Node::Conditional { yes, no, .. } => yes.size().saturating_add(no.size()),
        }
    }
}

fn either(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    (a.0.min(b.0), a.1.max(b.1))
}
