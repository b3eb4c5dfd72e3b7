//! One flow in the books.

use std::hash::{Hash, Hasher};

use crate::attribution::{Answer, Question, Reason};
use crate::kernel::flow::{Counters, Flow, Protocol, Tuple};
use crate::kernel::process::Handle;

/// What tells a flow from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    original: Tuple,
    zone: u32,
    /// 0, but for a flow that another with the same key has succeeded.
    predecessor: u32,
    id: u64,
}

impl Hash for Key {
    /// Mostly of the id alone, which the kernel makes unpredictable from all the rest (`nf_ct_get_id`).
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.id ^ u64::from(self.predecessor) << 32).hash(state);
        if self.id == 0 {
            (self.original, self.zone).hash(state);
        }
    }
}

impl Key {
    pub fn of(flow: &Flow) -> Self {
        Self::of_predecessor(flow, 0)
    }

    /// Whether its tuple tells a flow from all others of its time: there are no zones and no predecessors.
    pub fn is_tuple(&self) -> bool {
        self.zone == 0 && self.predecessor == 0
    }

    pub fn tuple(&self) -> Tuple {
        self.original
    }

    /// That of the `n`th flow of all that were succeeded by one with the same key: a `flow` like this.
    pub fn of_predecessor(flow: &Flow, n: u32) -> Self {
        Self { original: flow.original, zone: flow.zone, predecessor: n, id: flow.id }
    }
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
    /// The process at this index of the registry.
    Owned {
        process: u32,
        hold: Hold,
    },
    Nobody(Reason),
    /// No address of this host, or a socket that is a row of its own.
    Elsewhere,
}

/// What is known of the socket by which a process owns an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Not looked at: the process made the connection.
    Unseen,
    /// It is a listener's, which may hand the connection on.
    Listening(Handle),
    /// It was found here, and is the connection's own.
    Here(Handle),
    /// It was found no more: the last bytes belong to its last owner.
    Closed,
}

/// What the reply tuple is, without the 40 bytes that it mostly does not need.
#[derive(Debug)]
enum Reply {
    Reversed,
    Translated(Box<Tuple>),
    /// The row is a socket with this inode, and has one end only.
    Socket(u32),
}

/// A flow, its counters and its owners.
#[derive(Debug)]
pub(super) struct Entry {
    reply: Reply,
    /// The counters from which on bytes count.
    base: Counters,
    /// The counters up to which they were credited to the owners.
    counted: Counters,
    ends: [End; 2],
    /// The last tick at which the table had the row.
    pub seen: u32,
    /// Whether more may come; false in TIME_WAIT and its like.
    pub open: bool,
    /// Whether the kernel has said that it is over.
    pub over: bool,
    /// Whether both ends are local in the sense of `--ignore-local`.
    pub local: bool,
}

impl Entry {
    /// A flow that was met at `tick`, of which nothing below `base` counts.
    pub fn new(flow: &Flow, base: Counters, tick: u32) -> Self {
        Self {
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
            over: false,
            local: flow.is_local(),
        }
    }

    /// Whether `counters` say more than was credited so far; `None` if one went down.
    pub fn has_moved(&self, counters: Counters) -> Option<bool> {
        counters.since(self.counted).map(|moved| moved != Counters::default())
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

    /// Takes in that the flow is over.
    pub fn end_now(&mut self) {
        self.over = true;
        self.open = false;
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
            // Over before it was asked about.
            End::Unknown => Some(Reason::Gone),
            End::Elsewhere | End::Owned { .. } => None,
        });
        reasons.max().unwrap_or(Reason::Forwarded)
    }

    /// Whether it is still to be found out who is at an end. Of another host's it is not, unless nobody owns the flow at
    /// all: the address may be a container's that was not known yet.
    pub fn is_unclear(&self, side: Side) -> bool {
        match self.end(side) {
            End::Unknown | End::Nobody(_) => true,
            End::Owned { hold, .. } => matches!(hold, Hold::Unseen | Hold::Listening(_)),
            End::Elsewhere => !self.is_owned() && self.is_elsewhere(side),
        }
    }

    /// Whether an end is not on this host as far as is known, if there is an end at all: a socket's row has one.
    pub fn is_elsewhere(&self, side: Side) -> bool {
        self.end(side) == End::Elsewhere && !matches!(self.reply, Reply::Socket(_))
    }

    /// Whether another process than the one that is known, if any, may have an end, or have had it last.
    pub fn may_change_hands(&self, side: Side) -> bool {
        !matches!(self.end(side), End::Owned { hold: Hold::Closed, .. } | End::Elsewhere)
    }

    /// How to find out who is at an end.
    pub fn question(&self, key: &Key, side: Side) -> Question {
        let tuple = match (side, &self.reply) {
            (_, &Reply::Socket(inode)) if inode != 0 => return Question::Inode(inode),
            // A socket that was closed before it was first seen may have been accepted from one that still listens.
            (_, Reply::Socket(_)) | (Side::Original, _) => key.original,
            (Side::Reply, Reply::Reversed) => key.original.reversed(),
            (Side::Reply, Reply::Translated(reply)) => **reply,
        };
        match self.end(side) {
            // What conntrack has closed has no socket any more.
            End::Owned { .. } if !self.open && !matches!(self.reply, Reply::Socket(_)) => Question::Closer(tuple),
            _ => Question::Tuple(tuple),
        }
    }

    /// Whether there is nothing left to find out about a flow that is ending or over. What conntrack has closed is worth one
    /// look: for who closed it, or for the listener that it may have been accepted from.
    pub fn is_past(&self, looks: u8) -> bool {
        !self.open && looks > 0 && !matches!(self.reply, Reply::Socket(_))
    }
}

impl Hold {
    /// How a process holds the socket that was found for a flow. A UDP socket that talks to anybody has no other that it
    /// could hand a flow on to.
    pub fn of(key: &Key, answer: Answer) -> Self {
        match answer {
            Answer::Held { handle: None, .. } => Self::Unseen,
            Answer::Held { handle: Some(handle), connected, .. }
                if connected || key.original.protocol == Protocol::Udp =>
            {
                Self::Here(handle)
            }
            Answer::Held { handle: Some(handle), .. } => Self::Listening(handle),
            Answer::Closed { .. } | Answer::Elsewhere | Answer::Nobody(_) => Self::Closed,
        }
    }

    pub fn handle(self) -> Option<Handle> {
        match self {
            Self::Listening(handle) | Self::Here(handle) => Some(handle),
            Self::Unseen | Self::Closed => None,
        }
    }
}
