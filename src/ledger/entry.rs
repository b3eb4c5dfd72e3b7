//! One flow in the ledger.

use std::hash::{Hash, Hasher};

use crate::attribution::{Answer, Query};
use crate::kernel::flow::{Counters, Flow, Protocol, Tuple};
use crate::kernel::process::Handle;
use crate::traffic::detail::Remote;
use crate::traffic::subject::Reason;

/// Identifies a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlowKey {
    /// A row of a table.
    Row {
        original: Tuple,
        zone: u32,
        /// 0, except for a flow that another with the same key has replaced.
        predecessor: u32,
        id: u64,
    },
    /// The packets of a socket, those of the loopback interface apart from the others.
    Socket { cookie: u64, loopback: bool },
}

impl Hash for FlowKey {
    /// Usually hashes the id alone, which the kernel derives from all the rest and makes unpredictable
    /// (`nf_ct_get_id`).
    fn hash<H: Hasher>(&self, state: &mut H) {
        match *self {
            Self::Row { original, zone, predecessor, id } => {
                (id ^ u64::from(predecessor) << 32).hash(state);
                if id == 0 {
                    (original, zone).hash(state);
                }
            }
            Self::Socket { cookie, .. } => cookie.hash(state),
        }
    }
}

impl FlowKey {
    pub fn of(flow: &Flow) -> Self {
        Self::of_predecessor(flow, 0)
    }

    /// The key of the `n`th flow that was replaced by one with the same key: a flow like `flow`.
    pub fn of_predecessor(flow: &Flow, n: u32) -> Self {
        Self::Row { original: flow.original, zone: flow.zone, predecessor: n, id: flow.id }
    }

    /// The tuple, if it alone identifies the flow: there is no zone, and no other flow has replaced it.
    pub fn tuple(&self) -> Option<Tuple> {
        match *self {
            Self::Row { original, zone: 0, predecessor: 0, .. } => Some(original),
            Self::Row { .. } | Self::Socket { .. } => None,
        }
    }

    pub fn is_socket(&self) -> bool {
        matches!(self, Self::Socket { .. })
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

/// The owner of an end, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndOwner {
    /// Not looked up yet.
    Unknown,
    /// The process at this index of the registry.
    Owned { process: u32, socket: SocketState },
    /// No process, for this reason.
    Unowned(Reason),
    /// The address is not on this host, or the end is a row of its own.
    Elsewhere,
}

impl EndOwner {
    /// The process that owns it, by its index in the registry.
    pub fn process(self) -> Option<u32> {
        match self {
            Self::Owned { process, .. } => Some(process),
            _ => None,
        }
    }
}

/// What is known of the socket through which a process owns an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketState {
    /// We have not read any descriptor: the kernel recorded that the process made the connection.
    Unread,
    /// The socket is a listener, whose process may hand the connection over to another.
    Listening(Handle),
    /// The connection's own socket, at this descriptor.
    Own(Handle),
    /// The socket is closed: the last bytes belong to its last owner.
    Closed,
}

/// The reply tuple, in less than the 40 bytes of a [`Tuple`]: few flows need those.
#[derive(Debug)]
enum ReplyTuple {
    Reversed,
    Translated(Box<Tuple>),
    /// The row is a socket with this inode; its flow has only one end.
    Socket(u32),
    /// The packets of a socket, of which this is known. `made`: the kernel recorded the process that made it.
    Packets {
        tuple: Option<Box<Tuple>>,
        inode: u32,
        made: bool,
    },
}

/// A flow, its counters and its owners.
#[derive(Debug)]
pub(super) struct FlowEntry {
    reply: ReplyTuple,
    /// Bytes beyond these counters count.
    base: Counters,
    /// Bytes up to these counters have been credited to the owners.
    counted: Counters,
    owners: [EndOwner; 2],
    /// The last tick that saw the flow.
    pub seen: u32,
    /// Whether more bytes may come; false in TIME_WAIT and similar states.
    pub open: bool,
    /// Whether the kernel has reported its end.
    pub over: bool,
    /// For the packets of a socket: whether they go from this host to itself, so that `--ignore-local` leaves them out.
    pub local: bool,
}

impl FlowEntry {
    /// A flow that `tick` is the first to see. Its bytes count from `base` on.
    pub fn new(flow: &Flow, base: Counters, tick: u32) -> Self {
        Self {
            reply: match flow.socket {
                Some(inode) => ReplyTuple::Socket(inode),
                None if flow.reply == flow.original.reversed() => ReplyTuple::Reversed,
                None => ReplyTuple::Translated(Box::new(flow.reply)),
            },
            base,
            counted: base,
            owners: [EndOwner::Unknown, if flow.socket.is_some() { EndOwner::Elsewhere } else { EndOwner::Unknown }],
            seen: tick,
            open: flow.open,
            over: false,
            local: false,
        }
    }

    /// The packets of a socket that was met at `tick`.
    pub fn of_socket(tuple: Option<Tuple>, inode: u32, made: bool, local: bool, tick: u32) -> Self {
        Self {
            reply: ReplyTuple::Packets { tuple: tuple.map(Box::new), inode, made },
            base: Counters::default(),
            counted: Counters::default(),
            owners: [EndOwner::Unknown, EndOwner::Elsewhere],
            seen: tick,
            open: true,
            over: false,
            local,
        }
    }

    /// Whether it is the row of a socket, whose zone is its network namespace.
    pub fn is_socket(&self) -> bool {
        matches!(self.reply, ReplyTuple::Socket(_))
    }

    /// What is known of the socket whose packets these are.
    pub fn socket(&self) -> Option<(Option<Tuple>, u32)> {
        match &self.reply {
            ReplyTuple::Packets { tuple, inode, .. } => Some((tuple.as_deref().copied(), *inode)),
            _ => None,
        }
    }

    /// Whether the kernel recorded the process that made the socket.
    pub fn is_made(&self) -> bool {
        matches!(self.reply, ReplyTuple::Packets { made: true, .. })
    }

    /// Adds what has become known of the socket: a socket of UDP may be connected again and again, to others.
    pub fn know(&mut self, newer: Option<Tuple>) {
        if let (ReplyTuple::Packets { tuple, .. }, Some(newer)) = (&mut self.reply, newer) {
            match tuple {
                Some(tuple) if tuple.protocol == Protocol::Tcp => {}
                Some(tuple) => **tuple = newer,
                None => *tuple = Some(Box::new(newer)),
            }
        }
    }

    /// Counts from these counters on, as if the bytes before had been no one's.
    pub fn start_from(&mut self, base: Counters, counted: Counters) {
        (self.base, self.counted) = (base, counted);
    }

    /// Whether `counters` are beyond what was credited so far; `None` if one went down.
    pub fn has_moved(&self, counters: Counters) -> Option<bool> {
        counters.since(self.counted).map(|moved| moved != Counters::default())
    }

    /// Updates the entry from a later row. Returns whether its owner has to be looked up again: the socket of a
    /// connection has no inode until accept(2) takes it from the listener's queue.
    pub fn update(&mut self, flow: &Flow, tick: u32) -> bool {
        self.seen = tick;
        self.open = flow.open;
        match (&mut self.reply, flow.socket) {
            (ReplyTuple::Socket(before), Some(now)) if *before == 0 && now != 0 => {
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

    /// Advances to `counters`, and returns the bytes added since; `None` if a counter went down.
    pub fn count(&mut self, counters: Counters) -> Option<Counters> {
        let moved = counters.since(self.counted)?;
        self.counted = counters;
        Some(moved)
    }

    /// Adds to the counters what was counted since.
    pub fn add(&mut self, moved: Counters) {
        self.counted.original += moved.original;
        self.counted.reply += moved.reply;
    }

    /// The bytes that the flow carried and that count.
    pub fn carried(&self) -> Counters {
        self.counted.since(self.base).unwrap_or_default()
    }

    pub fn owner(&self, side: Side) -> EndOwner {
        self.owners[side as usize]
    }

    pub fn set_owner(&mut self, side: Side, owner: EndOwner) {
        self.owners[side as usize] = owner;
    }

    pub fn is_owned(&self) -> bool {
        self.owners.iter().any(|owner| matches!(owner, EndOwner::Owned { .. }))
    }

    /// What the flow carried, in and out, at each of its ends on this host that has no owner, with the reason. A flow that
    /// has no end on this host, or ended before its owners were looked up, counts once, as its original end sees it.
    pub fn unowned(&self) -> Vec<(Reason, (u64, u64))> {
        let carried = self.carried();
        if carried == Counters::default() {
            return Vec::new();
        }
        let reason = |side: Side| match self.owner(side) {
            EndOwner::Unowned(reason) => Some((reason, side.in_and_out(carried))),
            EndOwner::Unknown | EndOwner::Elsewhere | EndOwner::Owned { .. } => None,
        };
        let ends: Vec<_> = Side::BOTH.into_iter().filter_map(reason).collect();
        if !ends.is_empty() || self.is_owned() {
            return ends;
        }
        let not_looked_up = self.owners.contains(&EndOwner::Unknown);
        let reason = if not_looked_up { Reason::Gone } else { Reason::Forwarded };
        vec![(reason, Side::Original.in_and_out(carried))]
    }

    /// Whether the owner of an end still has to be found. The owner of an end on another host does not; but if neither
    /// end has an owner, the address may be that of a container that is not known yet.
    pub fn is_unclear(&self, side: Side) -> bool {
        match self.owner(side) {
            EndOwner::Unknown | EndOwner::Unowned(_) => true,
            EndOwner::Owned { socket, .. } => matches!(socket, SocketState::Unread | SocketState::Listening(_)),
            EndOwner::Elsewhere => !self.is_owned() && self.is_elsewhere(side),
        }
    }

    /// Whether an end has an address that is not on this host as far as we know. The row of a socket has no second end.
    pub fn is_elsewhere(&self, side: Side) -> bool {
        self.owner(side) == EndOwner::Elsewhere
            && !matches!(self.reply, ReplyTuple::Socket(_) | ReplyTuple::Packets { .. })
    }

    /// Whether a process other than the known owner may have the end now, or may have had it last.
    pub fn may_be_handed_over(&self, side: Side) -> bool {
        !matches!(self.owner(side), EndOwner::Owned { socket: SocketState::Closed, .. } | EndOwner::Elsewhere)
    }

    /// How to find the owner of an end.
    pub fn query(&self, key: &FlowKey, side: Side) -> Query {
        let original = match *key {
            FlowKey::Row { original, .. } => original,
            FlowKey::Socket { cookie, .. } => {
                return match &self.reply {
                    &ReplyTuple::Packets { inode, .. } if inode != 0 && self.open => Query::Inode(inode),
                    ReplyTuple::Packets { tuple: Some(tuple), .. } => {
                        Query::Socket { cookie, tuple: **tuple, open: self.open }
                    }
                    _ => Query::Inode(0),
                };
            }
        };
        let tuple = match (side, &self.reply) {
            (_, &ReplyTuple::Socket(inode)) if inode != 0 => return Query::Inode(inode),
            // A socket that was closed before the first dump may have been accepted from a listener that is still there.
            (_, ReplyTuple::Socket(_)) | (Side::Original, _) => original,
            (Side::Reply, ReplyTuple::Reversed | ReplyTuple::Packets { .. }) => original.reversed(),
            (Side::Reply, ReplyTuple::Translated(reply)) => **reply,
        };
        match self.owner(side) {
            // A connection that conntrack has closed no longer has a socket.
            EndOwner::Owned { .. } if !self.open && !matches!(self.reply, ReplyTuple::Socket(_)) => {
                Query::Closed(tuple)
            }
            _ => Query::Tuple(tuple),
        }
    }

    /// The end with which this one exchanges bytes; `None` where that is not known, as for a socket without a peer.
    pub fn remote(&self, key: &FlowKey, side: Side) -> Option<Remote> {
        let tuple = match (*key, side, &self.reply) {
            (FlowKey::Socket { .. }, _, ReplyTuple::Packets { tuple, .. }) => **tuple.as_ref()?,
            (FlowKey::Socket { .. }, _, _) => return None,
            (FlowKey::Row { original, .. }, Side::Reply, ReplyTuple::Reversed) => original.reversed(),
            (_, Side::Reply, ReplyTuple::Translated(reply)) => **reply,
            (FlowKey::Row { original, .. }, _, _) => original,
        };
        let remote = tuple.destination;
        (!remote.address().is_unspecified()).then(|| Remote {
            address: remote.address(),
            port: remote.port,
            protocol: tuple.protocol.number(),
        })
    }

    /// The process of a side whose remote end is known.
    pub fn process_with_remote(&self, key: &FlowKey, side: Side) -> Option<u32> {
        self.owner(side).process().filter(|_| self.remote(key, side).is_some())
    }

    /// Whether another lookup, after this number of `lookups`, would find nothing new. One lookup is worth while for a
    /// connection that conntrack has closed: it may find the process that closed it, or the listener that it was
    /// accepted from.
    pub fn is_final(&self, looks: u8) -> bool {
        match self.reply {
            ReplyTuple::Socket(_) => false,
            // A socket that is older than the monitor, and that no process held when all were searched.
            ReplyTuple::Packets { inode: 1.., .. } => looks > 0,
            _ => !self.open && looks > 0,
        }
    }
}

impl SocketState {
    /// The state of the socket that was found for a flow. An unconnected UDP socket counts as the flow's own, since it
    /// does not hand flows over to other sockets as a listener does.
    pub fn of(key: &FlowKey, answer: Answer) -> Self {
        let is_udp = matches!(key, FlowKey::Row { original, .. } if original.protocol == Protocol::Udp);
        match answer {
            Answer::Held { handle: None, .. } => Self::Unread,
            Answer::Held { handle: Some(handle), connected, .. } if connected || is_udp => Self::Own(handle),
            Answer::Held { handle: Some(handle), .. } => Self::Listening(handle),
            Answer::Closed { .. } | Answer::Elsewhere | Answer::Unowned(_) => Self::Closed,
        }
    }

    pub fn handle(self) -> Option<Handle> {
        match self {
            Self::Listening(handle) | Self::Own(handle) => Some(handle),
            Self::Unread | Self::Closed => None,
        }
    }
}
