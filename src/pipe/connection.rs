//! The life of one connection: from accepting the client, through resolving and connecting to the target, to the two
//! transfers between them and their end.
//!
//! ```text
//! Resolving ──▶ Connecting ──▶ Relaying ──▶ ended: both transfers have, or one socket failed and we reset the other
//!   ▲  │          │  ▲
//!   │  └▶ Starved ┼──┘   while there is no descriptor for the target's socket
//!   └─────────────┘      all addresses failed, and they were old
//! ```
//!
//! Connecting is RFC 8305, "Happy Eyeballs": while an address has not answered for [`ATTEMPT_DELAY`], the next one is
//! tried beside it, and the first to accept is the target.
//!
//! After a failure we never close a socket in the ordinary way, we reset it (SO_LINGER of 0, socket(7)): the peer must
//! not mistake half a stream for a whole one.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollFlags};

use super::log::{Failure, PipeLog};
use super::resolve::Resolution;
use super::shaping::Turns;
use super::slab::{ConnectionId, EpollSource, Leg};
use super::socket::{Canonical, ConnectError, EpollSocket, READABLE, SocketContext, reset, start_connecting};
use super::transfer::{Coalescing, Mover, SocketPair, Transfer, TransferError};
use super::{PipeSettings, Route};

/// How long one address is tried alone before the next one is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The most addresses that a connection tries at the same time.
const MAX_ATTEMPTS: usize = 8;

/// The parts of a pipe that its connections share.
pub struct PipeContext {
    pub epoll: Epoll,
    pub settings: PipeSettings,
    /// The route of new connections.
    pub route: Arc<Route>,
    /// The address of our own listener.
    pub listening: SocketAddr,
    pub sockets: SocketContext,
    pub mover: Mover,
    pub turns: [Turns; 2],
    /// The transfers whose sources have an SO_RCVLOWAT above 1.
    pub coalescing: Vec<(ConnectionId, Way)>,
    /// The bytes that the thread's transfers have read since it last chose its scheduling policy.
    pub moved: usize,
    /// When connections are to try their next address, in this order.
    pub next_attempts: VecDeque<(Instant, ConnectionId)>,
    pub log: Arc<PipeLog>,
    /// When epoll_wait(2) last returned.
    pub now: Instant,
}

/// What becomes of a connection after an event, a turn or a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It goes on.
    Continues,
    /// It waits for the target's addresses; then [`Connection::resolved`] continues it.
    Unresolved,
    /// It waits for a descriptor; then [`Connection::retry`] continues it.
    Starved(Errno),
    /// It is over; dropping it closes its sockets.
    Ended,
}

/// Which way bytes go through the pipe; also the index into arrays with one element for each way.
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
    /// Waits for the target's addresses; `failed` are those that were tried already.
    Resolving { failed: Option<Failed> },
    /// Waits for a descriptor.
    Starved(Candidates),
    /// Waits for one of the attempts to succeed.
    Connecting(Attempts),
    /// Both sockets are connected.
    Relaying(Relay),
}

/// The target's addresses, in the order in which to try them.
struct Candidates {
    addresses: Arc<[SocketAddr]>,
    /// The index of the next one.
    next: usize,
    /// Whether they were old, so that the target may have others by now.
    are_stale: bool,
    /// Why an address failed, of those that have.
    error: Option<ConnectError>,
}

/// Addresses none of which accepted a connection, and why one of them did not.
struct Failed {
    addresses: Arc<[SocketAddr]>,
    error: Option<ConnectError>,
}

impl Failed {
    fn report(&self, context: &PipeContext) {
        context.log.failure(Failure::Connect, context.now, || {
            let tried: Vec<String> = self.addresses.iter().map(SocketAddr::to_string).collect();
            let reason = self.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
            format!("cannot connect to {}{reason}", tried.join(", "))
        });
    }
}

/// The candidates that have been tried and have not answered yet, and the others.
struct Attempts {
    candidates: Candidates,
    open: Vec<Attempt>,
    /// When to try the next candidate; `None` if there is none, or too many are open.
    next_at: Option<Instant>,
}

struct Attempt {
    socket: EpollSocket,
    address: SocketAddr,
    since: Instant,
}

/// The target's socket, and the transfers between it and the client's.
struct Relay {
    target: EpollSocket,
    transfers: [Transfer; 2],
    /// The socket that has failed, and how, while the bytes that came before that are forwarded.
    failure: Option<(Leg, io::Error)>,
}

impl Relay {
    fn new(target: EpollSocket, transfers: [Transfer; 2]) -> Self {
        Self { target, transfers, failure: None }
    }

    fn transfer(&mut self, way: Way) -> &mut Transfer {
        &mut self.transfers[way as usize]
    }
}

/// A client, and the target that it is or will be connected to.
pub struct Connection {
    id: ConnectionId,
    client: EpollSocket,
    client_address: SocketAddr,
    route: Arc<Route>,
    state: ConnectionState,
    /// When the state began; while relaying, when something last happened.
    since: Instant,
}

impl Connection {
    /// The connection of a client that we have just accepted. Until the target is connected we read nothing from the
    /// client.
    pub fn new(
        id: ConnectionId,
        client: TcpStream,
        client_address: SocketAddr,
        route: Arc<Route>,
        now: Instant,
    ) -> Self {
        let client = EpollSocket::new(client, id.token(EpollSource::Leg(Leg::Client)));
        Self { id, client, client_address, route, state: ConnectionState::Resolving { failed: None }, since: now }
    }

    /// The client's address.
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Takes another route, if the connection still waits for the target's addresses: it has not begun.
    pub fn reroute(&mut self, route: &Arc<Route>) {
        if let ConnectionState::Resolving { failed } = &mut self.state {
            *failed = None;
            self.route = Arc::clone(route);
        }
    }

    /// Begins to connect, or to wait for the target's addresses.
    pub fn start(&mut self, context: &mut PipeContext) -> Outcome {
        let addresses = self.route.target().addresses();
        match addresses {
            Some(addresses) => self.connect_to(addresses, context),
            None => {
                self.watch_for_reset(context);
                Outcome::Unresolved
            }
        }
    }

    /// Connects to the addresses that a lookup of the target found, or resets the client if it failed.
    pub fn resolved(&mut self, resolution: &Resolution, context: &mut PipeContext) -> Outcome {
        let ConnectionState::Resolving { failed } = &mut self.state else { return Outcome::Continues };
        match (failed.take(), resolution) {
            (None, Ok(addresses)) => self.connect_to(Arc::clone(addresses), context),
            (None, Err(error)) => {
                context.log.failure(Failure::Connect, context.now, || format!("cannot resolve the target: {error}"));
                self.reset()
            }
            (Some(failed), resolution) => {
                let found = resolution.iter().flat_map(|addresses| addresses.iter()).copied();
                let new: Arc<[SocketAddr]> = found.filter(|address| !failed.addresses.contains(address)).collect();
                if new.is_empty() {
                    failed.report(context);
                    return self.reset();
                }
                self.connect_to(new, context)
            }
        }
    }

    fn connect_to(&mut self, addresses: Arc<[SocketAddr]>, context: &mut PipeContext) -> Outcome {
        let are_stale = self.route.target().is_stale(context.now);
        self.connect(Candidates { addresses, next: 0, are_stale, error: None }, context)
    }

    /// Connects again if the connection waits for a descriptor: one may be free now.
    pub fn retry(&mut self, context: &mut PipeContext) -> Outcome {
        match self.take_state() {
            ConnectionState::Starved(candidates) => self.connect(candidates, context),
            state => {
                self.state = state;
                Outcome::Continues
            }
        }
    }

    fn connect(&mut self, candidates: Candidates, context: &mut PipeContext) -> Outcome {
        self.attempt(Attempts { candidates, open: Vec::new(), next_at: None }, context)
    }

    /// Tries the next candidate that does not fail at once.
    fn attempt(&mut self, mut attempts: Attempts, context: &mut PipeContext) -> Outcome {
        attempts.next_at = None;
        let hops = context.sockets.hops_left(&self.client.stream, self.client_address);
        while let Some(&address) = attempts.candidates.addresses.get(attempts.candidates.next)
            && attempts.open.len() < MAX_ATTEMPTS
        {
            match start_connecting(address, context.listening, hops, &mut context.sockets) {
                Ok(socket) => {
                    attempts.candidates.next += 1;
                    return self.await_connect(socket, address, attempts, context);
                }
                Err(ConnectError::Shortage(errno)) if attempts.open.is_empty() => {
                    self.watch_for_reset(context);
                    self.state = ConnectionState::Starved(attempts.candidates);
                    return Outcome::Starved(errno);
                }
                // Those that are open may still succeed.
                Err(ConnectError::Shortage(_)) => break,
                Err(error) => attempts.candidates.error = Some(error),
            }
            attempts.candidates.next += 1;
        }
        if attempts.open.is_empty() {
            return self.all_failed(attempts.candidates, context);
        }
        self.state = ConnectionState::Connecting(attempts);
        Outcome::Continues
    }

    /// No candidate accepted the connection. If the addresses were old, waits for the answer of the next lookup.
    fn all_failed(&mut self, candidates: Candidates, context: &mut PipeContext) -> Outcome {
        let Candidates { addresses, are_stale, error, .. } = candidates;
        let failed = Failed { addresses, error };
        self.route.target().all_failed(context.now);
        if are_stale && Arc::ptr_eq(&self.route, &context.route) {
            self.since = context.now;
            self.state = ConnectionState::Resolving { failed: Some(failed) };
            self.watch_for_reset(context);
            return Outcome::Unresolved;
        }
        failed.report(context);
        self.reset()
    }

    fn await_connect(
        &mut self,
        socket: TcpStream,
        address: SocketAddr,
        mut attempts: Attempts,
        context: &mut PipeContext,
    ) -> Outcome {
        // Within one machine the handshake is complete although connect(2) returned EINPROGRESS: we need not wait for
        // an event.
        if socket.peer_addr().is_ok() {
            let target = EpollSocket::new(socket, self.id.token(EpollSource::Leg(Leg::Target)));
            return self.start_relay(target, address, context);
        }
        self.watch_for_reset(context);
        let mut socket = EpollSocket::new(socket, self.id.token(EpollSource::Attempt));
        let watched = socket.watch(&context.epoll, READABLE | EpollFlags::EPOLLOUT);
        attempts.open.push(Attempt { socket, address, since: context.now });
        if attempts.candidates.next < attempts.candidates.addresses.len() && attempts.open.len() < MAX_ATTEMPTS {
            let next_at = context.now + ATTEMPT_DELAY;
            attempts.next_at = Some(next_at);
            context.next_attempts.push_back((next_at, self.id));
        }
        self.state = ConnectionState::Connecting(attempts);
        match watched {
            Ok(()) => Outcome::Continues,
            Err(errno) => self.reset_after_loss(Leg::Target, &errno.into(), context),
        }
    }

    /// Whether the connection is to try its next candidate at this time.
    pub fn is_next_attempt(&self, at: Instant) -> bool {
        matches!(&self.state, ConnectionState::Connecting(attempts) if attempts.next_at == Some(at))
    }

    /// Tries the next candidate beside those that have not answered.
    pub fn next_attempt(&mut self, context: &mut PipeContext) -> Outcome {
        match self.take_state() {
            ConnectionState::Connecting(attempts) => self.attempt(attempts, context),
            state => {
                self.state = state;
                Outcome::Continues
            }
        }
    }

    /// Lets epoll report when the client resets its connection, so that it takes no place while we wait for the target.
    fn watch_for_reset(&mut self, context: &PipeContext) {
        // Without that, the timeout ends the connection.
        let _ = self.client.watch(&context.epoll, EpollFlags::empty());
    }

    /// Both sockets are connected: forwards the bytes that the client has already sent, and lets epoll report the rest.
    fn start_relay(&mut self, target: EpollSocket, address: SocketAddr, context: &mut PipeContext) -> Outcome {
        self.route.target().prefer(address);
        self.since = context.now;
        self.state = ConnectionState::Relaying(Relay::new(target, [Transfer::ready(), Transfer::waiting()]));
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
            Err(errno) => self.lost(Leg::Client, errno.into(), context),
        }
    }

    /// Handles an event of one of the attempts to connect.
    pub fn on_attempt_event(&mut self, context: &mut PipeContext) -> Outcome {
        let mut attempts = match self.take_state() {
            ConnectionState::Connecting(attempts) => attempts,
            // A late event of an attempt that did not win.
            state => {
                self.state = state;
                return Outcome::Continues;
            }
        };
        let mut have_failed = false;
        for index in (0..attempts.open.len()).rev() {
            match attempts.open[index].socket.stream.take_error() {
                Ok(None) if attempts.open[index].socket.stream.peer_addr().is_ok() => {
                    let Attempt { socket: mut target, address, .. } = attempts.open.swap_remove(index);
                    // Reports again what there is, such as the target's first bytes.
                    let renamed = target.rename(&context.epoll, self.id.token(EpollSource::Leg(Leg::Target)));
                    return match (self.start_relay(target, address, context), renamed) {
                        (Outcome::Continues, Err(errno)) => self.lost(Leg::Target, errno.into(), context),
                        (outcome, _) => outcome,
                    };
                }
                Ok(None) => {}
                // A refusal would be ECONNREFUSED: this target accepted, and may have sent bytes before it reset.
                Ok(Some(error)) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    let target = attempts.open.swap_remove(index).socket;
                    self.state =
                        ConnectionState::Relaying(Relay::new(target, [Transfer::waiting(), Transfer::waiting()]));
                    return self.lost(Leg::Target, error, context);
                }
                Ok(Some(error)) | Err(error) => {
                    attempts.open.swap_remove(index);
                    attempts.candidates.error = Some(ConnectError::Failed(error));
                    have_failed = true;
                }
            }
        }
        if have_failed {
            return self.attempt(attempts, context);
        }
        self.state = ConnectionState::Connecting(attempts);
        Outcome::Continues
    }

    /// Handles an event of one of the two sockets.
    pub fn on_event(&mut self, leg: Leg, events: EpollFlags, context: &mut PipeContext) -> Outcome {
        if matches!(self.state, ConnectionState::Relaying(_)) {
            return self.on_relay_event(leg, events, context);
        }
        if leg == Leg::Client && events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return self.reset_after_loss(leg, &Errno::ECONNRESET.into(), context);
        }
        Outcome::Continues
    }

    /// Handles an event of a connected socket: first sends bytes for which it now has room, then forwards those that
    /// came.
    fn on_relay_event(&mut self, leg: Leg, events: EpollFlags, context: &mut PipeContext) -> Outcome {
        let ConnectionState::Relaying(relay) = &mut self.state else { return Outcome::Continues };
        if let Some((failed, _)) = relay.failure {
            // Only the turns of the last bytes are left, unless their destination has failed too.
            let is_over = leg != failed && events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            return if is_over { self.reset() } else { Outcome::Continues };
        }
        self.since = context.now;
        let blocked = relay.transfer(leg.receives()).is_blocked();
        let woken = relay.transfer(leg.sends()).source_event(events);
        if events.contains(EpollFlags::EPOLLIN) && relay.transfer(leg.sends()).is_blocked() {
            // We cannot forward these bytes now, so further packets need not wake us.
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
            outcome = self.lost(leg, Errno::ECONNRESET.into(), context);
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

    /// Lets a transfer move the bytes that it may move without queueing.
    fn turn_now(&mut self, way: Way, context: &mut PipeContext) -> Outcome {
        let allowance = context.turns[way as usize].immediate_allowance();
        self.turn(way, allowance, context)
    }

    /// Gives a transfer its turn, and queues it again if it has more to move.
    pub fn turn(&mut self, way: Way, allowance: usize, context: &mut PipeContext) -> Outcome {
        let ConnectionState::Relaying(relay) = &self.state else { return Outcome::Continues };
        let failed = relay.failure.as_ref().map(|(leg, _)| *leg);
        if failed.is_some_and(|leg| leg.receives() == way) {
            return Outcome::Continues;
        }
        self.since = context.now;
        match self.transfer_bytes(way, allowance, context) {
            Ok(()) => {}
            Err(_) if failed.is_some() => return self.failed_leg_is_empty(context),
            // The kernel reports an error after all bytes that came before it: there is nothing left to read.
            Err(TransferError::Source(error)) => return self.reset_after_loss(way.source(), &error, context),
            Err(TransferError::Destination(error)) => return self.lost(way.destination(), error, context),
        }
        let ConnectionState::Relaying(relay) = &mut self.state else { return Outcome::Continues };
        if relay.transfer(way).is_ready() {
            context.turns[way as usize].push(self.id);
        } else if failed.is_some() {
            return self.failed_leg_is_empty(context);
        }
        if relay.transfers.iter().all(Transfer::has_ended) { Outcome::Ended } else { Outcome::Continues }
    }

    /// Moves bytes one way, and makes epoll report when there is more to do.
    fn transfer_bytes(&mut self, way: Way, allowance: usize, context: &mut PipeContext) -> Result<(), TransferError> {
        let delivered: &AtomicU64 = self.route.delivered(way);
        let ConnectionState::Relaying(Relay { target, transfers, .. }) = &mut self.state else { return Ok(()) };
        let (source, destination) = match way {
            Way::In => (&mut self.client, target),
            Way::Out => (target, &mut self.client),
        };
        let transfer = &mut transfers[way as usize];
        let was_coalescing = transfer.is_coalescing();
        let sockets = SocketPair { source: &source.stream, destination: &destination.stream, delivered };
        let taken = transfer.turn(sockets, allowance, context.now, &mut context.mover)?;
        if transfer.is_coalescing() && !was_coalescing {
            context.coalescing.push((self.id, way));
        }
        context.turns[way as usize].charge(taken);
        context.moved += taken;
        let watched = if transfer.is_blocked() {
            destination.watch(&context.epoll, EpollFlags::EPOLLOUT)
        } else {
            source.watch(&context.epoll, READABLE)
        };
        watched.map_err(|errno| TransferError::Source(errno.into()))
    }

    /// Ends the coalescing of wake-ups if the source has paused. Returns whether it goes on.
    pub fn check_pause(&mut self, way: Way, now: Instant) -> Coalescing {
        let ConnectionState::Relaying(Relay { target, transfers, .. }) = &mut self.state else {
            return Coalescing::Over;
        };
        let source = if way == Way::In { &self.client } else { target };
        transfers[way as usize].check_pause(&source.stream, now)
    }

    /// One socket has failed. Forwards the bytes that came before that, as far as the other socket has room: without us
    /// in between, they would have arrived too. They get their turns within the limit, as all bytes do. Then resets the
    /// other socket.
    fn lost(&mut self, leg: Leg, error: io::Error, context: &mut PipeContext) -> Outcome {
        let way = leg.sends();
        if let ConnectionState::Relaying(relay) = &mut self.state
            && relay.failure.is_none()
        {
            let is_queued = relay.transfer(way).is_ready();
            relay.transfer(way).source_failed();
            relay.failure = Some((leg, error));
            // The receive queue is finite, since nothing fills it now.
            return match relay.transfer(way).is_ready() {
                true if is_queued => Outcome::Continues,
                true => self.turn_now(way, context),
                false => self.failed_leg_is_empty(context),
            };
        }
        self.reset_after_loss(leg, &error, context)
    }

    /// The bytes that came before the failure of a socket were forwarded, or there is no room for them.
    fn failed_leg_is_empty(&mut self, context: &PipeContext) -> Outcome {
        let ConnectionState::Relaying(relay) = &mut self.state else { return Outcome::Continues };
        let Some((leg, error)) = relay.failure.take() else { return Outcome::Continues };
        self.reset_after_loss(leg, &error, context)
    }

    /// One socket has failed, and the bytes that came before that were forwarded.
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
        match &mut self.state {
            ConnectionState::Relaying(relay) => {
                // A transfer that waits for its turn is not idle: the limit makes it wait.
                let is_idle = context.settings.idle_timeout.is_some_and(|limit| elapsed >= limit)
                    && !relay.transfers.iter().any(Transfer::is_ready);
                if is_idle {
                    let client = Canonical(self.client_address);
                    context
                        .log
                        .failure(Failure::Idle, context.now, || format!("closed the idle connection of {client}"));
                    return self.reset();
                }
            }
            ConnectionState::Connecting(attempts) => {
                let before = attempts.open.len();
                attempts.open.retain(|attempt| context.now.saturating_duration_since(attempt.since) < limit);
                if attempts.open.len() < before {
                    attempts.candidates.error = Some(ConnectError::Failed(ErrorKind::TimedOut.into()));
                    return self.next_attempt(context);
                }
            }
            _ if elapsed < limit => {}
            ConnectionState::Resolving { failed: Some(failed) } => {
                failed.report(context);
                return self.reset();
            }
            ConnectionState::Resolving { failed: None } => {
                return self.give_up("resolving the target takes too long", context);
            }
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
        reset(stream);
    }

    /// Takes the state out. The caller must set the next one, or end the connection.
    fn take_state(&mut self) -> ConnectionState {
        std::mem::replace(&mut self.state, ConnectionState::Resolving { failed: None })
    }
}
