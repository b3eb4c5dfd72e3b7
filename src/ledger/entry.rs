//! One flow in the books.

use crate::flow::{Counters, Flow, Protocol, Tuple};
use crate::owner::{Question, Reason};

/// What tells a flow from all others at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub original: Tuple,
    pub zone: u32,
}

/// Which of the two ends of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The source of the original tuple: it sends along the original and receives along the reply.
    Original,
    /// The source of the reply tuple: the other way round.
    Reply,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Original, Self::Reply];

    /// Bytes in and out, as this end sees them.
    pub fn in_and_out(self, counters: Counters) -> (u64, u64) {
        match self {
            Self::Original => (counters.reply, counters.original),
            Self::Reply => (counters.original, counters.reply),
        }
    }
}

/// Who is at an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Not asked yet.
    Unknown,
    /// The process at this index. Not `sure` is a listener's process, which may hand the connection on.
    Owned {
        at: u32,
        sure: bool,
    },
    Nobody(Reason),
    /// No address of this host, or a socket that is a row of its own.
    Elsewhere,
}

/// What the reply tuple is, without the 40 bytes that it mostly does not need.
#[derive(Debug)]
enum Reply {
    Reversed,
    Translated(Box<Tuple>),
    /// The row is a socket with this inode, and has one end only.
    Socket(u64),
}

/// A flow, its counters and its owners.
#[derive(Debug)]
pub(super) struct Entry {
    id: u64,
    reply: Reply,
    /// The counters from which on bytes count.
    base: Counters,
    /// The counters up to which they were credited to the owners.
    counted: Counters,
    ends: [End; 2],
    /// The last tick at which the row was there.
    pub seen: u32,
    pub open: bool,
    /// Whether both ends are local in the sense of `--ignore-local`.
    pub local: bool,
}

impl Entry {
    /// A flow that was met at `tick`, of which nothing below `base` counts.
    pub fn new(flow: &Flow, base: Counters, tick: u32) -> Self {
        Self {
            id: flow.id,
            reply: match flow.socket {
                Some(inode) => Reply::Socket(inode),
                None if flow.reply == flow.original.reversed() => Reply::Reversed,
                None => Reply::Translated(Box::new(flow.reply)),
            },
            base,
            counted: base,
            ends: [End::Unknown, if flow.socket.is_some() { End::Elsewhere } else { End::Unknown }],
            seen: tick,
            open: flow.open,
            local: flow.is_local(),
        }
    }

    /// Whether a row is this flow's: the same id, and no counter went down.
    pub fn is(&self, flow: &Flow, counters: Counters) -> bool {
        self.id == flow.id && counters.since(self.counted).is_some()
    }

    /// Whether `counters` say more than was credited so far.
    pub fn has_moved(&self, counters: Counters) -> bool {
        self.counted != counters
    }

    /// Takes over what else a later row says. Whether the flow is to be asked about anew: a connection in a listener's
    /// queue has no inode of its own yet.
    pub fn renew(&mut self, flow: &Flow, tick: u32) -> bool {
        self.seen = tick;
        self.open = flow.open;
        match (&mut self.reply, flow.socket) {
            (Reply::Socket(before), Some(now)) if *before == 0 && now != 0 => {
                *before = now;
                true
            }
            _ => false,
        }
    }

    /// Advances to `counters`; what was added since, `None` if they are behind.
    pub fn count(&mut self, counters: Counters) -> Option<Counters> {
        let moved = counters.since(self.counted)?;
        self.counted = counters;
        Some(moved)
    }

    /// What the flow carried that counts.
    pub fn carried(&self) -> Counters {
        self.counted.since(self.base).unwrap_or_default()
    }

    pub fn end(&self, side: Side) -> End {
        self.ends[side as usize]
    }

    pub fn set_end(&mut self, side: Side, end: End) {
        self.ends[side as usize] = end;
    }

    pub fn is_owned(&self) -> bool {
        self.ends.iter().any(|end| matches!(end, End::Owned { .. }))
    }

    /// Why nobody owns the flow.
    pub fn reason(&self) -> Reason {
        let reasons = self.ends.iter().filter_map(|end| match end {
            End::Nobody(reason) => Some(*reason),
            _ => None,
        });
        reasons.max().unwrap_or(Reason::NoSocket)
    }

    /// Whether an end is still to be found out. Another host's is not, unless nobody owns the flow at all: the address
    /// may be a container's that was not known yet.
    pub fn is_unclear(&self, end: End) -> bool {
        match end {
            End::Unknown | End::Nobody(_) | End::Owned { sure: false, .. } => true,
            End::Owned { sure: true, .. } => false,
            End::Elsewhere => !self.is_owned() && !matches!(self.reply, Reply::Socket(_)),
        }
    }

    /// How to find out who is at an end. A socket's row has only the one of the socket.
    pub fn question(&self, key: &Key, side: Side) -> Option<Question> {
        match (side, &self.reply) {
            // A socket that was closed before it was first seen may have been accepted from one that still listens.
            (Side::Original, Reply::Socket(0)) => Some(Question::Tuple(key.original)),
            (Side::Original, Reply::Socket(inode)) => Some(Question::Inode(*inode)),
            (Side::Reply, Reply::Socket(_)) => None,
            (Side::Original, _) => Some(Question::Tuple(key.original)),
            (Side::Reply, Reply::Reversed) => Some(Question::Tuple(key.original.reversed())),
            (Side::Reply, Reply::Translated(reply)) => Some(Question::Tuple(**reply)),
        }
    }

    /// Whether a socket that `process` holds for this end could still hand it on; a UDP socket without a peer has no
    /// other that it could.
    pub fn is_sure(key: &Key, connected: bool) -> bool {
        connected || key.original.protocol == Protocol::Udp
    }
}
