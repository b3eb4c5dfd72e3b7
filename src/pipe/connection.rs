//! The life of one connection: from accepting the client, through resolving and connecting to the target, to the two
//! transfers between them and their end.
//!
//! ```text
//! Resolving ──▶ Connecting ──▶ Relaying ──▶ ended: both transfers have, or one socket failed and we reset the other
//!     │              ▲
//!     └──▶ Starved ──┘   while there is no descriptor for the target's socket
//! ```
//!
//! After a failure we never close a socket in the ordinary way, we reset it (SO_LINGER of 0, socket(7)): the peer must
//! not mistake half a stream for a whole one.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc::linger;
use nix::sys::epoll::{Epoll, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt::Linger};

use super::log::{Failure, PipeLog};
use super::resolve::{Resolution, Target};
use super::shaping::Turns;
use super::slab::{ConnectionId, Leg};
use super::socket::{Canonical, EpollSocket, READABLE, is_shortage, local_incoming_cpu, start_connecting};
use super::transfer::{Mover, SocketPair, Transfer, TransferError};
use super::{PipeSettings, PipeStats};

/// The parts of a pipe that its connections share.
pub struct PipeContext {
    pub epoll: Epoll,
    pub settings: PipeSettings,
    /// The address of our own listener.
    pub listening: SocketAddr,
    pub target: Target,
    pub mover: Mover,
    pub turns: [Turns; 2],
    /// The transfers whose sources have an SO_RCVLOWAT above 1.
    pub coalescing: Vec<(ConnectionId, Way)>,
    pub stats: Arc<PipeStats>,
    pub log: Arc<PipeLog>,
    /// When epoll_wait(2) last returned.
    pub now: Instant,
}

/// The result that an event, a turn or a timeout has for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It goes on.
    Continues,
    /// It waits for a descriptor; then [`Connection::retry`] continues it.
    Starved(Errno),
    /// It is over; dropping it closes its sockets.
    Ended,
}

/// Which way bytes go through the pipe; also the index of whatever exists once for each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the target.
    In,
    /// From the target to the client.
    Out,
}

impl Way {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::In, Self::Out];

    fn source(self) -> Leg {
        match self {
            Self::In => Leg::Client,
            Self::Out => Leg::Target,
        }
    }

    fn destination(self) -> Leg {
        match self {
            Self::In => Leg::Target,
            Self::Out => Leg::Client,
        }
    }
}

impl Leg {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Target,
            Self::Target => Self::Client,
        }
    }

    /// The way whose source it is.
    fn sends(self) -> Way {
        match self {
            Self::Client => Way::In,
            Self::Target => Way::Out,
        }
    }

    /// The way whose destination it is.
    fn receives(self) -> Way {
        match self {
            Self::Client => Way::Out,
            Self::Target => Way::In,
        }
    }
}

enum ConnectionState {
    /// Waits for the target's addresses.
    Resolving,
    /// Waits for a descriptor.
    Starved(Candidates),
    /// Waits for an address to accept the connection.
    Connecting { target: EpollSocket, candidates: Candidates },
    /// Both sockets are connected.
    Relaying(Relay),
}

/// The target's addresses, and the index of the one that we are trying.
struct Candidates {
    addresses: Arc<[SocketAddr]>,
    index: usize,
}

impl Candidates {
    fn current(&self) -> Option<SocketAddr> {
        self.addresses.get(self.index).copied()
    }
}

/// The target's socket, and the transfers between it and the client's.
struct Relay {
    target: EpollSocket,
    transfers: [Transfer; 2],
}

impl Relay {
    fn transfer(&mut self, way: Way) -> &mut Transfer {
        &mut self.transfers[way as usize]
    }
}

/// A client, and the target that it is or will be connected to.
pub struct Connection {
    id: ConnectionId,
    client: EpollSocket,
    client_address: SocketAddr,
    state: ConnectionState,
    /// When the state began; while relaying, when something last happened.
    since: Instant,
}

impl Connection {
    /// The connection of a client that we have just accepted. Until the target is connected we read nothing from the
    /// client, and epoll does not watch it.
    pub fn new(id: ConnectionId, client: TcpStream, client_address: SocketAddr, now: Instant) -> Self {
        let client = EpollSocket::new(client, id.token(Leg::Client));
        Self { id, client, client_address, state: ConnectionState::Resolving, since: now }
    }

    /// Connects to the addresses that the lookup of the target found, or resets the client if it failed.
    pub fn resolved(&mut self, resolution: &Resolution, context: &mut PipeContext) -> Outcome {
        match resolution {
            Ok(addresses) => self.connect(Candidates { addresses: Arc::clone(addresses), index: 0 }, None, context),
            Err(error) => {
                context.log.failure(Failure::Connect, context.now, || format!("cannot resolve the target: {error}"));
                self.reset()
            }
        }
    }

    /// Connects again if the connection waits for a descriptor: one may be free now.
    pub fn retry(&mut self, context: &mut PipeContext) -> Outcome {
        match self.take_state() {
            ConnectionState::Starved(candidates) => self.connect(candidates, None, context),
            state => {
                self.state = state;
                Outcome::Continues
            }
        }
    }

    /// Connects to the first candidate that does not fail at once; `last_error` is why the one before failed.
    fn connect(
        &mut self,
        mut candidates: Candidates,
        mut last_error: Option<io::Error>,
        context: &mut PipeContext,
    ) -> Outcome {
        while let Some(address) = candidates.current() {
            match start_connecting(address, context.listening) {
                Ok(target) => {
                    return self.await_connect(
                        EpollSocket::new(target, self.id.token(Leg::Target)),
                        candidates,
                        context,
                    );
                }
                Err(errno) if is_shortage(errno) => {
                    self.state = ConnectionState::Starved(candidates);
                    return Outcome::Starved(errno);
                }
                Err(errno) => last_error = Some(errno.into()),
            }
            candidates.index += 1;
        }
        context.target.all_failed();
        context.log.failure(Failure::Connect, context.now, || {
            let tried: Vec<String> = candidates.addresses.iter().map(SocketAddr::to_string).collect();
            let reason = last_error.map_or_else(String::new, |error| format!(": {error}"));
            format!("cannot connect to {}{reason}", tried.join(", "))
        });
        self.reset()
    }

    fn await_connect(&mut self, mut target: EpollSocket, candidates: Candidates, context: &mut PipeContext) -> Outcome {
        // Within one machine the handshake is complete although connect(2) returned EINPROGRESS: we need not wait for
        // an event.
        if target.stream.peer_addr().is_ok() {
            return self.start_relay(target, &candidates, context);
        }
        self.since = context.now;
        let watched = target.watch(&context.epoll, READABLE | EpollFlags::EPOLLOUT);
        self.state = ConnectionState::Connecting { target, candidates };
        match watched {
            Ok(()) => Outcome::Continues,
            Err(errno) => self.lost(Leg::Target, &errno.into(), context),
        }
    }

    /// Both sockets are connected: forwards at once what the client has sent meanwhile, and lets epoll report the rest.
    fn start_relay(&mut self, target: EpollSocket, candidates: &Candidates, context: &mut PipeContext) -> Outcome {
        if let Some(address) = candidates.current() {
            context.target.prefer(address);
        }
        self.since = context.now;
        self.state = ConnectionState::Relaying(Relay { target, transfers: [Transfer::ready(), Transfer::waiting()] });
        match self.turn_now(Way::In, context) {
            Outcome::Continues => self.watch_both(context),
            outcome => outcome,
        }
    }

    fn watch_both(&mut self, context: &mut PipeContext) -> Outcome {
        let ConnectionState::Relaying(relay) = &mut self.state else { return Outcome::Continues };
        let watched =
            self.client.watch(&context.epoll, READABLE).and_then(|()| relay.target.watch(&context.epoll, READABLE));
        match watched {
            Ok(()) => Outcome::Continues,
            Err(errno) => self.lost(Leg::Client, &errno.into(), context),
        }
    }

    /// Handles an event of one of the sockets.
    pub fn on_event(&mut self, leg: Leg, events: EpollFlags, context: &mut PipeContext) -> Outcome {
        match self.take_state() {
            ConnectionState::Connecting { target, candidates } => {
                match self.connect_finished(target, candidates, context) {
                    // The event may also report the target's first bytes.
                    Outcome::Continues => self.on_relay_event(leg, events, context),
                    outcome => outcome,
                }
            }
            state => {
                self.state = state;
                self.on_relay_event(leg, events, context)
            }
        }
    }

    /// The candidate has accepted the connection, or failed.
    fn connect_finished(
        &mut self,
        target: EpollSocket,
        mut candidates: Candidates,
        context: &mut PipeContext,
    ) -> Outcome {
        match target.stream.take_error() {
            Ok(None) => self.start_relay(target, &candidates, context),
            // A refusal would be ECONNREFUSED: this target accepted, and may have sent bytes before it reset.
            Ok(Some(error)) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                self.state =
                    ConnectionState::Relaying(Relay { target, transfers: [Transfer::waiting(), Transfer::waiting()] });
                self.lost(Leg::Target, &error, context)
            }
            Ok(Some(error)) | Err(error) => {
                candidates.index += 1;
                self.connect(candidates, Some(error), context)
            }
        }
    }

    /// Handles an event of a connected socket: first sends what the socket now has room for, then forwards what came.
    fn on_relay_event(&mut self, leg: Leg, events: EpollFlags, context: &mut PipeContext) -> Outcome {
        let ConnectionState::Relaying(relay) = &mut self.state else { return Outcome::Continues };
        self.since = context.now;
        let blocked = relay.transfer(leg.receives()).is_blocked();
        let woken = relay.transfer(leg.sends()).source_event(events);
        if events.contains(EpollFlags::EPOLLIN) && relay.transfer(leg.sends()).is_blocked() {
            // We cannot forward what comes here now, so the packets need not wake us.
            let socket = if leg == Leg::Client { &mut self.client } else { &mut relay.target };
            // If this fails the events continue, and do no harm.
            let _ = socket.ignore(&context.epoll, READABLE);
        }
        let mut outcome = Outcome::Continues;
        if blocked && events != EpollFlags::EPOLLIN {
            outcome = self.turn_now(leg.receives(), context);
        }
        if woken && outcome == Outcome::Continues {
            outcome = self.turn_now(leg.sends(), context);
        }
        if outcome == Outcome::Continues && self.has_failed(leg, events) {
            outcome = self.lost(leg, &Errno::ECONNRESET.into(), context);
        }
        outcome
    }

    /// Whether an event means that the socket has failed. EPOLLHUP also comes when both its directions were shut down
    /// in order; then we still have to read the bytes before the end.
    fn has_failed(&mut self, leg: Leg, events: EpollFlags) -> bool {
        let ConnectionState::Relaying(relay) = &mut self.state else { return false };
        events.contains(EpollFlags::EPOLLERR)
            || events.contains(EpollFlags::EPOLLHUP) && relay.transfer(leg.sends()).has_ended()
    }

    /// Lets a transfer move what it may without queueing.
    fn turn_now(&mut self, way: Way, context: &mut PipeContext) -> Outcome {
        let allowance = context.turns[way as usize].immediate_allowance();
        self.turn(way, allowance, context)
    }

    /// Gives a transfer its turn, and queues it again if it has more to move.
    pub fn turn(&mut self, way: Way, allowance: usize, context: &mut PipeContext) -> Outcome {
        self.since = context.now;
        match self.transfer_bytes(way, allowance, context) {
            Ok(()) => {}
            // The kernel reports a reset after all bytes that came before it: there is nothing left to read.
            Err(TransferError::Source(error)) if error.kind() == ErrorKind::ConnectionReset => {
                return self.reset_after_loss(way.source(), &error, context);
            }
            Err(TransferError::Source(error)) => return self.lost(way.source(), &error, context),
            Err(TransferError::Destination(error)) => return self.lost(way.destination(), &error, context),
        }
        let ConnectionState::Relaying(relay) = &mut self.state else { return Outcome::Continues };
        if relay.transfer(way).is_ready() {
            context.turns[way as usize].push(self.id);
        }
        if relay.transfers.iter().all(Transfer::has_ended) { Outcome::Ended } else { Outcome::Continues }
    }

    /// Moves bytes one way, and makes epoll report when there is more to do.
    fn transfer_bytes(&mut self, way: Way, allowance: usize, context: &mut PipeContext) -> Result<(), TransferError> {
        let ConnectionState::Relaying(Relay { target, transfers }) = &mut self.state else { return Ok(()) };
        let (source, destination) = match way {
            Way::In => (&mut self.client, target),
            Way::Out => (target, &mut self.client),
        };
        let transfer = &mut transfers[way as usize];
        let was_coalescing = transfer.is_coalescing();
        let sockets = SocketPair {
            source: &source.stream,
            destination: &destination.stream,
            delivered: context.stats.delivered(way),
        };
        let taken = transfer.turn(sockets, allowance, context.now, &mut context.mover)?;
        if transfer.is_coalescing() && !was_coalescing {
            context.coalescing.push((self.id, way));
        }
        context.turns[way as usize].charge(taken);
        let watched = if transfer.is_blocked() {
            destination.watch(&context.epoll, EpollFlags::EPOLLOUT)
        } else {
            source.watch(&context.epoll, READABLE)
        };
        watched.map_err(|errno| TransferError::Source(errno.into()))
    }

    /// The CPU on which the kernel receives the bytes of the source, if they come from this machine.
    pub fn incoming_cpu(&self, way: Way) -> Option<usize> {
        let ConnectionState::Relaying(Relay { target, .. }) = &self.state else { return None };
        let source = if way == Way::In { &self.client } else { target };
        local_incoming_cpu(&source.stream)
    }

    /// Ends the coalescing of wake-ups if the source has paused. Returns whether it goes on.
    pub fn check_pause(&mut self, way: Way, now: Instant) -> bool {
        let ConnectionState::Relaying(Relay { target, transfers }) = &mut self.state else { return false };
        let source = if way == Way::In { &self.client } else { target };
        transfers[way as usize].check_pause(&source.stream, now)
    }

    /// One socket has failed. Forwards what came before that, as far as the other socket has room: without us in
    /// between it would have arrived too. Then resets the other socket.
    fn lost(&mut self, leg: Leg, error: &io::Error, context: &mut PipeContext) -> Outcome {
        if let ConnectionState::Relaying(relay) = &mut self.state {
            relay.transfer(leg.sends()).source_failed();
        }
        // Its receive queue is finite, since nothing fills it now. A second error here changes nothing.
        let _ = self.transfer_bytes(leg.sends(), usize::MAX, context);
        self.reset_after_loss(leg, error, context)
    }

    /// One socket has failed, and what came before that was forwarded.
    fn reset_after_loss(&self, leg: Leg, error: &io::Error, context: &PipeContext) -> Outcome {
        context.log.failure(Failure::Lost, context.now, || match leg {
            Leg::Client => format!("lost the client {}: {error}", Canonical(self.client_address)),
            Leg::Target => format!("lost the target: {error}"),
        });
        if error.kind() == ErrorKind::ConnectionReset {
            // The kernel has already closed the socket that was reset.
            self.reset_leg(leg.other());
            Outcome::Ended
        } else {
            self.reset()
        }
    }

    /// Tries the next address, gives up, or closes an idle connection, when its time is over.
    pub fn check_timeout(&mut self, context: &mut PipeContext) -> Outcome {
        let elapsed = context.now.saturating_duration_since(self.since);
        let limit = context.settings.connect_timeout;
        match &self.state {
            ConnectionState::Relaying(_) => {
                if context.settings.idle_timeout.is_some_and(|limit| elapsed >= limit) {
                    let client = Canonical(self.client_address);
                    context
                        .log
                        .failure(Failure::Idle, context.now, || format!("closed the idle connection of {client}"));
                    return self.reset();
                }
            }
            _ if elapsed < limit => {}
            ConnectionState::Connecting { .. } => {
                let ConnectionState::Connecting { mut candidates, .. } = self.take_state() else {
                    return Outcome::Continues;
                };
                candidates.index += 1;
                return self.connect(candidates, Some(ErrorKind::TimedOut.into()), context);
            }
            ConnectionState::Resolving => return self.give_up("resolving the target takes too long", context),
            ConnectionState::Starved(_) => {
                return self.give_up("no descriptor for a connection to the target", context);
            }
        }
        Outcome::Continues
    }

    fn give_up(&self, text: &str, context: &PipeContext) -> Outcome {
        context.log.failure(Failure::Connect, context.now, || text.into());
        self.reset()
    }

    /// Whether the connection can run into a timeout in its present state.
    pub fn may_time_out(&self, context: &PipeContext) -> bool {
        !matches!(self.state, ConnectionState::Relaying(_)) || context.settings.idle_timeout.is_some()
    }

    /// Makes both sockets send a reset when they are closed, which tells their peers that the stream is not whole.
    pub fn reset(&self) -> Outcome {
        self.reset_leg(Leg::Client);
        self.reset_leg(Leg::Target);
        Outcome::Ended
    }

    fn reset_leg(&self, leg: Leg) {
        let stream = match (leg, &self.state) {
            (Leg::Client, _) => &self.client.stream,
            (Leg::Target, ConnectionState::Relaying(relay)) => &relay.target.stream,
            (Leg::Target, _) => return,
        };
        // Fails when the peer is already gone; then there is no one to tell.
        let _ = setsockopt(stream, Linger, &linger { l_onoff: 1, l_linger: 0 });
    }

    /// Takes the state out; the caller puts the next one in its place, or ends the connection.
    fn take_state(&mut self) -> ConnectionState {
        std::mem::replace(&mut self.state, ConnectionState::Resolving)
    }
}
