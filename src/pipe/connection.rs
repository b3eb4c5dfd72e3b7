//! One connection's life: from the client that was accepted, over the target that is looked for, to the two flows
//! between them and their end.
//!
//! ```text
//! Resolving ──▶ Connecting ──▶ Relaying ──▶ ended: both flows have, or one socket failed and the other was reset
//!     │              ▲
//!     └──▶ Starved ──┘   while there is no descriptor for the target's socket
//! ```
//!
//! A failure never ends in a plain close: the sockets are reset (SO_LINGER of 0, socket(7)), so that nobody takes half a
//! stream for a whole one.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc::linger;
use nix::sys::epoll::{Epoll, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt::Linger};

use super::flow::{Broken, Ends, Flow, Mover};
use super::notes::{Notes, Trouble};
use super::resolve::{Answer, Target};
use super::shaping::Turns;
use super::slab::{Id, Side};
use super::socket::{Canonical, READABLE, Watched, connecting, is_shortage, local_incoming_processor};
use super::{Counters, Settings};

/// What the connections of a pipe share.
pub struct Shared {
    pub epoll: Epoll,
    pub settings: Settings,
    /// Where our own listener is.
    pub listening: SocketAddr,
    pub target: Target,
    pub mover: Mover,
    pub turns: [Turns; 2],
    /// The flows whose sources collect.
    pub collecting: Vec<(Id, Direction)>,
    pub counters: Arc<Counters>,
    pub notes: Arc<Notes>,
    /// When the events at hand were got.
    pub now: Instant,
}

/// What becomes of a connection that was dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// It goes on.
    Lives,
    /// It goes on when there is a descriptor: [`Connection::retry`].
    Starved(Errno),
    /// It is over, and closed by dropping it.
    Ended,
}

/// Which way bytes go, and the index of what exists once for each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the target.
    In,
    /// From the target to the client.
    Out,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::In, Self::Out];

    fn source(self) -> Side {
        match self {
            Self::In => Side::Client,
            Self::Out => Side::Target,
        }
    }

    fn destination(self) -> Side {
        match self {
            Self::In => Side::Target,
            Self::Out => Side::Client,
        }
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Target,
            Self::Target => Self::Client,
        }
    }

    /// The direction whose source it is.
    fn sends(self) -> Direction {
        match self {
            Self::Client => Direction::In,
            Self::Target => Direction::Out,
        }
    }

    /// The direction whose destination it is.
    fn receives(self) -> Direction {
        match self {
            Self::Client => Direction::Out,
            Self::Target => Direction::In,
        }
    }
}

enum State {
    /// Waits for the target's addresses.
    Resolving,
    /// Waits for a descriptor.
    Starved(Candidates),
    /// Waits for an address to answer.
    Connecting { target: Watched, candidates: Candidates },
    /// Both sides are there.
    Relaying(Relay),
}

/// The target's addresses, and the number of the one whose turn it is.
struct Candidates {
    addresses: Arc<[SocketAddr]>,
    index: usize,
}

impl Candidates {
    fn current(&self) -> Option<SocketAddr> {
        self.addresses.get(self.index).copied()
    }
}

/// The target, and what flows between it and the client.
struct Relay {
    target: Watched,
    flows: [Flow; 2],
}

impl Relay {
    fn flow(&mut self, direction: Direction) -> &mut Flow {
        &mut self.flows[direction as usize]
    }
}

/// A client and what it is connected to.
pub struct Connection {
    id: Id,
    client: Watched,
    client_address: SocketAddr,
    state: State,
    /// When the state began or, while relaying, when something last happened.
    since: Instant,
}

impl Connection {
    /// A client that was just accepted. Until the target is there, nothing is read from it and it has no events.
    pub fn new(id: Id, client: TcpStream, client_address: SocketAddr, now: Instant) -> Self {
        let client = Watched::new(client, id.token(Side::Client));
        Self { id, client, client_address, state: State::Resolving, since: now }
    }

    /// The target's addresses are known, or known not to be.
    pub fn resolved(&mut self, answer: &Answer, shared: &mut Shared) -> Fate {
        match answer {
            Ok(addresses) => self.connect(Candidates { addresses: Arc::clone(addresses), index: 0 }, None, shared),
            Err(error) => {
                shared.notes.add(Trouble::Connect, shared.now, || format!("cannot resolve the target: {error}"));
                self.reset()
            }
        }
    }

    /// There may be a descriptor now.
    pub fn retry(&mut self, shared: &mut Shared) -> Fate {
        match self.take_state() {
            State::Starved(candidates) => self.connect(candidates, None, shared),
            state => {
                self.state = state;
                Fate::Lives
            }
        }
    }

    /// Connects to the first candidate that does not fail at once; `failure` is why the one before did.
    fn connect(&mut self, mut candidates: Candidates, mut failure: Option<io::Error>, shared: &mut Shared) -> Fate {
        while let Some(address) = candidates.current() {
            match connecting(address, shared.listening) {
                Ok(target) => {
                    return self.begin(Watched::new(target, self.id.token(Side::Target)), candidates, shared);
                }
                Err(errno) if is_shortage(errno) => {
                    self.state = State::Starved(candidates);
                    return Fate::Starved(errno);
                }
                Err(errno) => failure = Some(errno.into()),
            }
            candidates.index += 1;
        }
        shared.target.failed();
        shared.notes.add(Trouble::Connect, shared.now, || {
            let tried: Vec<String> = candidates.addresses.iter().map(SocketAddr::to_string).collect();
            let failure = failure.map_or_else(String::new, |error| format!(": {error}"));
            format!("cannot connect to {}{failure}", tried.join(", "))
        });
        self.reset()
    }

    fn begin(&mut self, mut target: Watched, candidates: Candidates, shared: &mut Shared) -> Fate {
        // Within one machine the handshake is over although connect(2) said EINPROGRESS: no need to wait for an event.
        if target.stream.peer_addr().is_ok() {
            return self.relay(target, &candidates, shared);
        }
        self.since = shared.now;
        let watched = target.watch(&shared.epoll, READABLE | EpollFlags::EPOLLOUT);
        self.state = State::Connecting { target, candidates };
        match watched {
            Ok(()) => Fate::Lives,
            Err(errno) => self.lost(Side::Target, &errno.into(), shared),
        }
    }

    /// Both sides are there: what the client has sent meanwhile goes at once, for the rest there are events.
    fn relay(&mut self, target: Watched, candidates: &Candidates, shared: &mut Shared) -> Fate {
        if let Some(address) = candidates.current() {
            shared.target.worked(address);
        }
        self.since = shared.now;
        self.state = State::Relaying(Relay { target, flows: [Flow::ready(), Flow::waiting()] });
        match self.turn_at_once(Direction::In, shared) {
            Fate::Lives => self.watch_both(shared),
            fate => fate,
        }
    }

    fn watch_both(&mut self, shared: &mut Shared) -> Fate {
        let State::Relaying(relay) = &mut self.state else { return Fate::Lives };
        let watched =
            self.client.watch(&shared.epoll, READABLE).and_then(|()| relay.target.watch(&shared.epoll, READABLE));
        match watched {
            Ok(()) => Fate::Lives,
            Err(errno) => self.lost(Side::Client, &errno.into(), shared),
        }
    }

    /// Something happened to one of the sockets.
    pub fn on_event(&mut self, side: Side, events: EpollFlags, shared: &mut Shared) -> Fate {
        match self.take_state() {
            State::Connecting { target, candidates } => match self.decided(target, candidates, shared) {
                // The target's first bytes may have come with its answer.
                Fate::Lives => self.relay_event(side, events, shared),
                fate => fate,
            },
            state => {
                self.state = state;
                self.relay_event(side, events, shared)
            }
        }
    }

    /// The candidate has answered or failed.
    fn decided(&mut self, target: Watched, mut candidates: Candidates, shared: &mut Shared) -> Fate {
        match target.stream.take_error() {
            Ok(None) => self.relay(target, &candidates, shared),
            // A refusal is ECONNREFUSED; this one had answered, and may have said something before it reset.
            Ok(Some(error)) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                self.state = State::Relaying(Relay { target, flows: [Flow::waiting(), Flow::waiting()] });
                self.lost(Side::Target, &error, shared)
            }
            Ok(Some(error)) | Err(error) => {
                candidates.index += 1;
                self.connect(candidates, Some(error), shared)
            }
        }
    }

    /// Something happened while both sides are there: first room is used, then what came is moved.
    fn relay_event(&mut self, side: Side, events: EpollFlags, shared: &mut Shared) -> Fate {
        let State::Relaying(relay) = &mut self.state else { return Fate::Lives };
        self.since = shared.now;
        let blocked = relay.flow(side.receives()).is_blocked();
        let woken = relay.flow(side.sends()).source_event(events);
        if events.contains(EpollFlags::EPOLLIN) && relay.flow(side.sends()).is_blocked() {
            // More of what cannot be passed on: not to be woken by each packet of it.
            let socket = if side == Side::Client { &mut self.client } else { &mut relay.target };
            // If that fails the events keep coming, and do no harm.
            let _ = socket.ignore(&shared.epoll, READABLE);
        }
        let mut fate = Fate::Lives;
        if blocked && events != EpollFlags::EPOLLIN {
            fate = self.turn_at_once(side.receives(), shared);
        }
        if woken && fate == Fate::Lives {
            fate = self.turn_at_once(side.sends(), shared);
        }
        if fate == Fate::Lives && self.is_broken(side, events) {
            fate = self.lost(side, &Errno::ECONNRESET.into(), shared);
        }
        fate
    }

    /// Whether an event tells that a socket failed. EPOLLHUP also comes when both its ways were ended in order, and then
    /// the bytes before the end are still to be read.
    fn is_broken(&mut self, side: Side, events: EpollFlags) -> bool {
        let State::Relaying(relay) = &mut self.state else { return false };
        events.contains(EpollFlags::EPOLLERR)
            || events.contains(EpollFlags::EPOLLHUP) && relay.flow(side.sends()).has_ended()
    }

    /// Gives a flow what it may have without queueing.
    fn turn_at_once(&mut self, direction: Direction, shared: &mut Shared) -> Fate {
        let allowance = shared.turns[direction as usize].at_once();
        self.turn(direction, allowance, shared)
    }

    /// Gives a flow its turn, and puts it into the queue if it has more.
    pub fn turn(&mut self, direction: Direction, allowance: usize, shared: &mut Shared) -> Fate {
        self.since = shared.now;
        match self.pass(direction, allowance, shared) {
            Ok(()) => {}
            // Told behind all that came before it: there is nothing left to read.
            Err(Broken::Source(error)) if error.kind() == ErrorKind::ConnectionReset => {
                return self.gone(direction.source(), &error, shared);
            }
            Err(Broken::Source(error)) => return self.lost(direction.source(), &error, shared),
            Err(Broken::Destination(error)) => return self.lost(direction.destination(), &error, shared),
        }
        let State::Relaying(relay) = &mut self.state else { return Fate::Lives };
        if relay.flow(direction).is_ready() {
            shared.turns[direction as usize].push(self.id);
        }
        if relay.flows.iter().all(Flow::has_ended) { Fate::Ended } else { Fate::Lives }
    }

    /// Moves bytes one way, and has epoll tell when there is more to do.
    fn pass(&mut self, direction: Direction, allowance: usize, shared: &mut Shared) -> Result<(), Broken> {
        let State::Relaying(Relay { target, flows }) = &mut self.state else { return Ok(()) };
        let (source, destination) = match direction {
            Direction::In => (&mut self.client, target),
            Direction::Out => (target, &mut self.client),
        };
        let flow = &mut flows[direction as usize];
        let collected = flow.collects();
        let ends = Ends {
            source: &source.stream,
            destination: &destination.stream,
            delivered: shared.counters.delivered(direction),
        };
        let taken = flow.turn(ends, allowance, shared.now, &mut shared.mover)?;
        if flow.collects() && !collected {
            shared.collecting.push((self.id, direction));
        }
        shared.turns[direction as usize].charge(taken);
        let watched = if flow.is_blocked() {
            destination.watch(&shared.epoll, EpollFlags::EPOLLOUT)
        } else {
            source.watch(&shared.epoll, READABLE)
        };
        watched.map_err(|errno| Broken::Source(errno.into()))
    }

    /// The processor on which the bytes of a source come in, if they come from this machine.
    pub fn incoming_processor(&self, direction: Direction) -> Option<usize> {
        let State::Relaying(Relay { target, .. }) = &self.state else { return None };
        let source = if direction == Direction::In { &self.client } else { target };
        local_incoming_processor(&source.stream)
    }

    /// Looks whether a source pauses that collects. Returns whether it still collects.
    pub fn ends_pause(&mut self, direction: Direction, now: Instant) -> bool {
        let State::Relaying(Relay { target, flows }) = &mut self.state else { return false };
        let source = if direction == Direction::In { &self.client } else { target };
        flows[direction as usize].ends_pause(&source.stream, now)
    }

    /// One side is no more. What it said before still goes to the other side, as far as there is room, as it would have
    /// without us between them; then the other side is reset too.
    fn lost(&mut self, side: Side, error: &io::Error, shared: &mut Shared) -> Fate {
        if let State::Relaying(relay) = &mut self.state {
            relay.flow(side.sends()).source_is_lost();
        }
        // Its queue is finite, since nobody fills it any more. Another error on the way there changes nothing.
        let _ = self.pass(side.sends(), usize::MAX, shared);
        self.gone(side, error, shared)
    }

    /// One side is no more, and what it said was passed on.
    fn gone(&self, side: Side, error: &io::Error, shared: &Shared) -> Fate {
        shared.notes.add(Trouble::Lost, shared.now, || match side {
            Side::Client => format!("lost the client {}: {error}", Canonical(self.client_address)),
            Side::Target => format!("lost the target: {error}"),
        });
        if error.kind() == ErrorKind::ConnectionReset {
            // That socket is closed already.
            self.reset_side(side.other());
            Fate::Ended
        } else {
            self.reset()
        }
    }

    /// Looks at the clock: tries the next address, or gives up, when it took too long.
    pub fn on_time(&mut self, shared: &mut Shared) -> Fate {
        let elapsed = shared.now.saturating_duration_since(self.since);
        let patience = shared.settings.connect_timeout;
        match &self.state {
            State::Relaying(_) => {
                if shared.settings.idle_timeout.is_some_and(|limit| elapsed >= limit) {
                    let client = Canonical(self.client_address);
                    shared.notes.add(Trouble::Idle, shared.now, || format!("closed the idle connection of {client}"));
                    return self.reset();
                }
            }
            _ if elapsed < patience => {}
            State::Connecting { .. } => {
                let State::Connecting { mut candidates, .. } = self.take_state() else { return Fate::Lives };
                candidates.index += 1;
                return self.connect(candidates, Some(ErrorKind::TimedOut.into()), shared);
            }
            State::Resolving => return self.gave_up("resolving the target takes too long", shared),
            State::Starved(_) => return self.gave_up("no descriptor for a connection to the target", shared),
        }
        Fate::Lives
    }

    fn gave_up(&self, text: &str, shared: &Shared) -> Fate {
        shared.notes.add(Trouble::Connect, shared.now, || text.into());
        self.reset()
    }

    /// Whether it may run into a timeout.
    pub fn needs_clock(&self, shared: &Shared) -> bool {
        !matches!(self.state, State::Relaying(_)) || shared.settings.idle_timeout.is_some()
    }

    /// Has both sockets tell their peers, when they are closed, that the stream is not whole.
    pub fn reset(&self) -> Fate {
        self.reset_side(Side::Client);
        self.reset_side(Side::Target);
        Fate::Ended
    }

    fn reset_side(&self, side: Side) {
        let stream = match (side, &self.state) {
            (Side::Client, _) => &self.client.stream,
            (Side::Target, State::Relaying(relay)) => &relay.target.stream,
            (Side::Target, _) => return,
        };
        // The peer may be gone already; then there is nobody to tell.
        let _ = setsockopt(stream, Linger, &linger { l_onoff: 1, l_linger: 0 });
    }

    /// The state by value; the caller puts the next one in its place, or ends the connection.
    fn take_state(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Resolving)
    }
}
