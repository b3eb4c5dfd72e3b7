//! One flow in the books.

use std::hash::{Hash, Hasher};

use crate::attribution::{Answer, Query};
use crate::kernel::flow::{Counters, Flow, Protocol, Tuple};
use crate::kernel::process::Handle;
use crate::traffic::subject::Reason;

/// What identifies a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FlowKey {
    original: Tuple,
    zone: u32,
    /// 0, except for a flow that another with the same key has replaced.
    predecessor: u32,
    id: u64,
}

impl Hash for FlowKey {
    /// Hashes mostly the id alone, which the kernel makes unpredictable from all the rest (`nf_ct_get_id`).
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.id ^ u64::from(self.predecessor) << 32).hash(state);
        if self.id == 0 {
            (self.original, self.zone).hash(state);
        }
    }
}

impl FlowKey {
    pub fn of(flow: &Flow) -> Self {
        Self::of_predecessor(flow, 0)
    }

    /// Whether the tuple alone identifies the flow: there is no zone, and no other flow has replaced it.
    pub fn is_tuple(&self) -> bool {
        self.zone == 0 && self.predecessor == 0
    }

    pub fn tuple(&self) -> Tuple {
        self.original
    }

    /// The key of the `n`th flow that was replaced by one with the same key: a flow like `flow`.
    pub fn of_predecessor(flow: &Flow, n: u32) -> Self {
        Self { original: flow.original, zone: flow.zone, predecessor: n, id: flow.id }
    }
}

/// One of the two ends of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The source of the original tuple: it sends along the original and receives along the reply.
    Original,
    /// The source of the reply tuple: it sends along the reply and receives along the original.
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

/// What is known of the owner of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing yet.
    Unknown,
    /// The process at this index of the registry.
    Owned {
        process: u32,
        socket: SocketState,
    },
    Nobody(Reason),
    /// The address is not on this host, or the end is a row of its own.
    Elsewhere,
}

/// What is known of the socket through which a process owns an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketState {
    /// No descriptor was read: the kernel noted that the process made the connection.
    NotLooked,
    /// The socket is a listener, whose process may hand the connection over to another.
    Listening(Handle),
    /// The connection's own socket, at this descriptor.
    Own(Handle),
    /// The socket is closed: the last bytes belong to its last owner.
    Closed,
}

/// The reply tuple, in less than the 40 bytes that it mostly does not need.
#[derive(Debug)]
enum Reply {
    Reversed,
    Translated(Box<Tuple>),
    /// The row is a socket with this inode, which has one end only.
    Socket(u32),
}

/// A flow, its counters and its owners.
#[derive(Debug)]
pub(super) struct FlowEntry {
    reply: Reply,
    /// The counters from which on bytes count.
    base: Counters,
    /// The counters up to which bytes were credited to the owners.
    counted: Counters,
    ends: [End; 2],
    /// The last tick at which the table had the row.
    pub seen: u32,
    /// Whether more bytes may come; false in TIME_WAIT and similar states.
    pub open: bool,
    /// Whether the kernel has said that it is over.
    pub over: bool,
    /// Whether `--ignore-local` leaves it out: both ends are local.
    pub local: bool,
}

impl FlowEntry {
    /// A flow that was met at `tick`. Its bytes count from `base` on.
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

    /// Whether `counters` are beyond what was credited so far; `None` if one went down.
    pub fn has_moved(&self, counters: Counters) -> Option<bool> {
        counters.since(self.counted).map(|moved| moved != Counters::default())
    }

    /// Updates the entry from a later row. Returns whether the flow's owner has to be looked up again: a connection in a
    /// listener's queue has no inode of its own yet.
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

    /// Marks the flow as over.
    pub fn end_now(&mut self) {
        self.over = true;
        self.open = false;
    }

    /// Advances to `counters`, and returns what was added since; `None` if they are behind.
    pub fn count(&mut self, counters: Counters) -> Option<Counters> {
        let moved = counters.since(self.counted)?;
        self.counted = counters;
        Some(moved)
    }

    /// The bytes that the flow carried and that count.
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

    /// Why the flow has no owner.
    pub fn reason(&self) -> Reason {
        let reasons = self.ends.iter().filter_map(|end| match end {
            End::Nobody(reason) => Some(*reason),
            // The flow ended before it was looked up.
            End::Unknown => Some(Reason::Gone),
            End::Elsewhere | End::Owned { .. } => None,
        });
        reasons.max().unwrap_or(Reason::Forwarded)
    }

    /// Whether the owner of an end still has to be found. An end on another host has none, unless the flow has no owner at
    /// all: the address may be a container's that was not known yet.
    pub fn is_unclear(&self, side: Side) -> bool {
        match self.end(side) {
            End::Unknown | End::Nobody(_) => true,
            End::Owned { socket, .. } => matches!(socket, SocketState::NotLooked | SocketState::Listening(_)),
            End::Elsewhere => !self.is_owned() && self.is_elsewhere(side),
        }
    }

    /// Whether an end is not on this host as far as is known. The row of a socket has no second end.
    pub fn is_elsewhere(&self, side: Side) -> bool {
        self.end(side) == End::Elsewhere && !matches!(self.reply, Reply::Socket(_))
    }

    /// Whether a process other than the known owner may have the end now, or may have had it last.
    pub fn may_be_handed_over(&self, side: Side) -> bool {
        !matches!(self.end(side), End::Owned { socket: SocketState::Closed, .. } | End::Elsewhere)
    }

    /// How to find the owner of an end.
    pub fn query(&self, key: &FlowKey, side: Side) -> Query {
        let tuple = match (side, &self.reply) {
            (_, &Reply::Socket(inode)) if inode != 0 => return Query::Inode(inode),
            // A socket that was closed before the first dump may have been accepted from a listener that is still there.
            (_, Reply::Socket(_)) | (Side::Original, _) => key.original,
            (Side::Reply, Reply::Reversed) => key.original.reversed(),
            (Side::Reply, Reply::Translated(reply)) => **reply,
        };
        match self.end(side) {
            // A connection that conntrack has closed has no socket any more.
            End::Owned { .. } if !self.open && !matches!(self.reply, Reply::Socket(_)) => Query::Closed(tuple),
            _ => Query::Tuple(tuple),
        }
    }

    /// Whether no further look-up of a flow that is ending or over can find anything. A connection that conntrack has closed
    /// is worth one: for the process that closed it, or for the listener that it may have been accepted from.
    pub fn is_final(&self, looks: u8) -> bool {
        !self.open && looks > 0 && !matches!(self.reply, Reply::Socket(_))
    }
}

impl SocketState {
    /// The state of the socket that was found for a flow. An unconnected UDP socket has no other to which it could hand a
    /// flow over.
    pub fn of(key: &FlowKey, answer: Answer) -> Self {
        match answer {
            Answer::Held { handle: None, .. } => Self::NotLooked,
            Answer::Held { handle: Some(handle), connected, .. }
                if connected || key.original.protocol == Protocol::Udp =>
            {
                Self::Own(handle)
            }
            Answer::Held { handle: Some(handle), .. } => Self::Listening(handle),
            Answer::Closed { .. } | Answer::Elsewhere | Answer::Nobody(_) => Self::Closed,
        }
    }

    pub fn handle(self) -> Option<Handle> {
        match self {
            Self::Listening(handle) | Self::Own(handle) => Some(handle),
            Self::NotLooked | Self::Closed => None,
        }
    }
}
