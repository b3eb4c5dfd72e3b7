//! A thread of a pipe: waits for events with epoll(7) and hands each to the connection it belongs to.

#[cfg(any(test, fuzzing))]
pub mod simulation;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::SigSet;

use super::connection::{Connection, Outcome, PipeContext, Way};
use super::log::{Failure, PipeLog};
use super::mailbox::{Inbox, Mailbox, PipeMessage};
use super::places::{NoClient, Places};
use super::shaping::{Limit, Turns};
use super::slab::{ConnectionId, EpollSource, Slab};
use super::socket::{Canonical, DescriptorReserve, SocketContext, reset};
use super::transfer::{Coalescing, HEAVY_BYTES, HEAVY_WITHIN, Mover, PAUSE};
use super::{PipeSettings, Route};
use crate::kernel::scheduling::{Policy, set_policy};
use crate::privileges::{Duty, keep_for};

/// The epoll tokens of the descriptors that belong to no connection.
const LISTENER: u64 = u64::MAX;
const MAILBOX: u64 = u64::MAX - 1;

/// The most events that one epoll_wait(2) returns.
const EVENTS_PER_WAIT: usize = 256;

/// The most connections that are accepted before the events of open connections are handled. Several threads accept
/// one at a time, so that each gets its part of clients that come at once.
const ACCEPTS_PER_EVENT: usize = 16;

/// The most clients that are accepted before the port is closed: as many as the kernel's queue can hold by default
/// (net.core.somaxconn).
const LAST_ACCEPTS: usize = 4096;

/// How long a shortage of descriptors or memory stops accepting, unless a connection ends earlier.
const SHORTAGE_WAIT: Duration = Duration::from_millis(200);

/// The shortest and the longest time between two checks of the connections' timeouts.
const SWEEP: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What the threads of a pipe share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The number of threads.
    pub threads: usize,
    pub places: Arc<Places>,
    pub limits: [Arc<Limit>; 2],
    pub log: Arc<PipeLog>,
}

/// The parts that a thread of a pipe needs to start.
pub struct PipeThread {
    /// Which of the threads it is.
    pub index: usize,
    pub listener: Arc<TcpListener>,
    pub settings: PipeSettings,
    pub route: Arc<Route>,
    pub shared: Shared,
    /// The mailboxes of all threads.
    pub mailboxes: Arc<[Mailbox]>,
    pub inbox: Inbox,
}

impl PipeThread {
    /// Serves until the listener is closed and the last connection has ended.
    ///
    /// # Errors
    /// When epoll fails.
    pub fn run(self) -> Result<()> {
        keep_for(Duty::Forwarding);
        // The thread that shows the figures takes the signals. SIGPIPE is blocked too, since splice(2) has no
        // MSG_NOSIGNAL.
        SigSet::all().thread_block().context("cannot block signals")?;
        EventLoop::start(self)?.run()
    }
}

/// Whether the pipe accepts clients.
enum Accepting {
    /// It does.
    Open(Arc<TcpListener>),
    /// Not before `until`, or before a connection ends: descriptors or memory ran out.
    Shortage { listener: Arc<TcpListener>, until: Instant },
    /// Not before a connection ends: as many are open as the settings allow, or one of another thread waits for a
    /// descriptor.
    Full(Arc<TcpListener>),
    /// Never again.
    Closed,
}

/// The state of a running thread.
struct EventLoop {
    context: PipeContext,
    accepting: Accepting,
    /// Dropped when the clients that came before the port was closed are all admitted: its receiver waits for that.
    closing: Option<Sender<()>>,
    /// Whether all connections have been reset, because the pipe is closed.
    is_closed: bool,
    connections: Slab<Connection>,
    /// The number of threads of the pipe.
    threads: usize,
    /// The places for connections, of all threads.
    places: Arc<Places>,
    /// Connections that wait for the target's addresses.
    unresolved: Vec<ConnectionId>,
    /// Connections that wait for a descriptor. They get it before new clients do.
    starved: VecDeque<ConnectionId>,
    /// Whether a connection has ended, so that others can use its descriptors.
    freed: bool,
    /// Whether a source may have paused whose SO_RCVLOWAT is above 1.
    may_pause: bool,
    /// The scheduling policy of this thread.
    policy: Policy,
    /// Since when the context's `moved` counts.
    moved_since: Instant,
    /// When to check for timeouts next, if any connection can run into one.
    sweep_at: Option<Instant>,
    mailbox: Mailbox,
    /// Those of all threads.
    mailboxes: Arc<[Mailbox]>,
    inbox: Inbox,
}

impl EventLoop {
    fn start(thread: PipeThread) -> Result<Self> {
        let PipeThread { index, listener, settings, route, shared, mailboxes, inbox } = thread;
        let mailbox = mailboxes[index].clone();
        let Shared { threads, places, limits, log } = shared;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
        epoll.add(inbox.wakeup(), EpollEvent::new(EpollFlags::EPOLLIN, MAILBOX)).context("cannot watch an eventfd")?;
        let now = Instant::now();
        let reserve = DescriptorReserve::of_this_process();
        let mut event_loop = Self {
            context: PipeContext {
                epoll,
                listening: listener.local_addr().context("cannot read the listener's address")?,
                sockets: SocketContext::new(reserve),
                mover: Mover::new(reserve, threads),
                turns: limits.map(|limit| Turns::new(limit, index)),
                coalescing: Vec::new(),
                moved: 0,
                next_attempts: VecDeque::new(),
                settings,
                route,
                log,
                now,
            },
            accepting: Accepting::Full(listener),
            closing: None,
            is_closed: false,
            connections: Slab::new(),
            threads,
            places,
            unresolved: Vec::new(),
            starved: VecDeque::new(),
            freed: false,
            may_pause: false,
            policy: Policy::Normal,
            moved_since: now,
            sweep_at: None,
            mailbox,
            mailboxes,
            inbox,
        };
        event_loop.accept_again().context("cannot watch the listener")?;
        Ok(event_loop)
    }

    fn run(mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS_PER_WAIT];
        while !(matches!(self.accepting, Accepting::Closed) && self.connections.len() == 0) {
            let timeout = self.timeout();
            let got = match self.context.epoll.wait(&mut events, timeout) {
                Ok(got) => got,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno).context("cannot wait for events"),
            };
            self.handle(&events[..got], Instant::now());
        }
        Ok(())
    }

    /// Handles the events that epoll has returned `now`, and does what is due.
    fn handle(&mut self, events: &[EpollEvent], now: Instant) {
        self.context.now = now;
        for event in events {
            match event.data() {
                LISTENER => self.accept_some(),
                MAILBOX => {
                    self.inbox.clear_wakeup();
                    self.read_inbox();
                }
                token => {
                    let (id, socket) = ConnectionId::from_token(token);
                    self.with_connection(id, |connection, context| match socket {
                        EpollSource::Leg(leg) => connection.on_event(leg, event.events(), context),
                        EpollSource::Attempt => connection.on_attempt_event(context),
                    });
                }
            }
        }
        self.closing = None;
        self.give_turns();
        self.check_pauses();
        self.check_timers();
        self.use_freed();
    }

    /// How long epoll may wait: until the earliest time at which there is something to do without an event.
    fn timeout(&mut self) -> EpollTimeout {
        let next_attempt = self.next_attempt();
        let PipeContext { turns, now, .. } = &mut self.context;
        let now = *now;
        let shortage_until = match self.accepting {
            Accepting::Shortage { until, .. } => Some(until),
            _ => None,
        };
        let times = [self.sweep_at, shortage_until, next_attempt].into_iter().flatten();
        let waits = turns.iter_mut().filter_map(|turns| turns.wait(now)).chain(self.may_pause.then_some(PAUSE));
        let waits = waits.chain((self.policy == Policy::Batch).then_some(HEAVY_WITHIN));
        let wait = times.map(|time| time.saturating_duration_since(now)).chain(waits).min();
        // Rounded up: rounded down, the loop would spin through the last millisecond.
        wait.map_or(EpollTimeout::NONE, |wait| {
            EpollTimeout::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(EpollTimeout::MAX)
        })
    }

    /// When the next connection is to try its next address, if one still is.
    fn next_attempt(&mut self) -> Option<Instant> {
        while let Some(&(at, id)) = self.context.next_attempts.front() {
            if self.connections.get_mut(id).is_some_and(|connection| connection.is_next_attempt(at)) {
                return Some(at);
            }
            self.context.next_attempts.pop_front();
        }
        None
    }

    /// Runs `action` on a connection, unless it has ended, and acts on the outcome.
    fn with_connection(&mut self, id: ConnectionId, action: impl FnOnce(&mut Connection, &mut PipeContext) -> Outcome) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        match action(connection, &mut self.context) {
            Outcome::Continues => self.sweep_later(id),
            Outcome::Unresolved => {
                self.unresolved.push(id);
                self.sweep_later(id);
                self.refresh_target();
            }
            Outcome::Starved(errno) => {
                self.starved.push_back(id);
                self.places.starve(&self.mailbox);
                self.sweep_later(id);
                self.wait_out_shortage(errno);
            }
            Outcome::Ended => {
                if let Some(connection) = self.connections.remove(id) {
                    self.places.leave(connection.client_address().ip());
                }
                self.freed = true;
            }
        }
    }

    /// Makes sure that the timeouts are checked, if the connection can run into one.
    fn sweep_later(&mut self, id: ConnectionId) {
        if self.sweep_at.is_none()
            && self.connections.get_mut(id).is_some_and(|connection| connection.may_time_out(&self.context))
        {
            self.sweep_at = Some(self.context.now + self.sweep_interval());
        }
    }

    /// Starts to look up the target's addresses if they are old or missing. Nothing waits for that.
    fn refresh_target(&mut self) {
        let mut target = self.context.route.target();
        if target.is_stale(self.context.now) {
            // A lookup may hang: it does not keep the route in use.
            let route = Arc::downgrade(&self.context.route);
            let mailboxes = Arc::clone(&self.mailboxes);
            target.look_up_if_stale(self.context.now, move |id, result| {
                if let Some(route) = route.upgrade()
                    && let Some(resolution) = route.target().store(id, result, Instant::now())
                {
                    let message = || PipeMessage::Resolved(Arc::clone(&route), resolution.clone());
                    mailboxes.iter().for_each(|mailbox| mailbox.send(message()));
                }
            });
        }
    }

    /// The listener is readable.
    fn accept_some(&mut self) {
        if self.threads == 1 {
            return self.accept(ACCEPTS_PER_EVENT);
        }
        self.accept(1);
        // The kernel wakes the waiting thread that has watched the listener for the longest time. Those that have more than
        // one connection above their share let the others go first; a short connection after the other stays in a thread
        // whose CPU is awake.
        if self.connections.len() * self.threads > self.places.taken() + self.threads
            && let Accepting::Open(listener) = &self.accepting
            && let Err(errno) = self.context.epoll.delete(listener).and_then(|()| self.watch(listener))
        {
            self.wait_out_shortage(errno);
        }
    }

    /// Lets epoll report the clients that wait.
    fn watch(&self, listener: &TcpListener) -> Result<(), Errno> {
        // One client wakes one thread.
        let exclusive = if self.threads > 1 { EpollFlags::EPOLLEXCLUSIVE } else { EpollFlags::empty() };
        self.context.epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN | exclusive, LISTENER))
    }

    fn accept(&mut self, most: usize) {
        for _ in 0..most {
            let Accepting::Open(listener) = &self.accepting else { return };
            match self.places.accept(listener, self.context.settings.max_connections) {
                Ok((client, address)) => self.admit(client, address),
                Err(NoClient::Failed(Errno::EAGAIN)) => return,
                // The client has already closed its connection.
                Err(NoClient::Failed(Errno::ECONNABORTED)) => {}
                Err(NoClient::Failed(errno)) => self.wait_out_shortage(errno),
                Err(NoClient::Full) => self.stop_accepting_if_full(),
            }
        }
    }

    fn admit(&mut self, client: TcpStream, address: SocketAddr) {
        // What was sent before the client came is for it, too, though the event of the mailbox may be behind this one.
        self.read_inbox();
        let now = self.context.now;
        let most = self.context.settings.max_per_client;
        if !self.places.assign(address.ip(), most) {
            let most = most.map_or(0, NonZeroUsize::get);
            self.context.log.failure(Failure::FullForClient, now, || {
                format!("refused the client {}: {most} of its connections are open", Canonical(address))
            });
            reset(&client);
            return;
        }
        if self.is_closed {
            self.places.leave(address.ip());
            reset(&client);
            return;
        }
        let is_last = self.context.sockets.reserve.includes(&client);
        let route = Arc::clone(&self.context.route);
        let id = self.connections.insert(|id| Connection::new(id, client, address, route, now));
        self.refresh_target();
        self.with_connection(id, Connection::start);
        if is_last {
            self.wait_out_shortage(Errno::EMFILE);
        }
        self.stop_accepting_if_full();
    }

    fn stop_accepting_if_full(&mut self) {
        if matches!(self.accepting, Accepting::Open(_)) && self.is_full() {
            // Else connections wait for descriptors, and the shortage has a line of its own.
            if let Some(most) = self.context.settings.max_connections.filter(|most| self.places.taken() >= most.get()) {
                self.context.log.failure(Failure::Full, self.context.now, || {
                    format!("{most} connections are open, others have to wait")
                });
            }
            self.stop_accepting(Accepting::Full);
        }
    }

    /// Whether there is no place for a client. Then a message comes when one is free.
    fn is_full(&self) -> bool {
        self.places.are_taken(self.context.settings.max_connections, &self.mailbox)
    }

    /// Descriptors or memory ran out: accepts no client for a while.
    fn wait_out_shortage(&mut self, errno: Errno) {
        let now = self.context.now;
        let until = now + SHORTAGE_WAIT;
        self.context.mover.pool.close_spare();
        self.context.log.failure(Failure::Shortage, now, || {
            format!("cannot accept connections for the moment: {}", io::Error::from(errno))
        });
        self.stop_accepting(|listener| Accepting::Shortage { listener, until });
    }

    fn stop_accepting(&mut self, state: impl FnOnce(Arc<TcpListener>) -> Accepting) {
        self.accepting = match std::mem::replace(&mut self.accepting, Accepting::Closed) {
            Accepting::Open(listener) => {
                // EPOLL_CTL_DEL does not fail on a descriptor that epoll watches.
                let _ = self.context.epoll.delete(&listener);
                state(listener)
            }
            Accepting::Shortage { listener, .. } | Accepting::Full(listener) => state(listener),
            Accepting::Closed => Accepting::Closed,
        };
    }

    fn accept_again(&mut self) -> Result<(), Errno> {
        self.accepting = match std::mem::replace(&mut self.accepting, Accepting::Closed) {
            Accepting::Shortage { listener, .. } | Accepting::Full(listener) if self.is_full() => {
                Accepting::Full(listener)
            }
            Accepting::Shortage { listener, .. } | Accepting::Full(listener) => {
                if let Err(errno) = self.watch(&listener) {
                    self.accepting = Accepting::Shortage { listener, until: self.context.now + SHORTAGE_WAIT };
                    return Err(errno);
                }
                Accepting::Open(listener)
            }
            state => state,
        };
        Ok(())
    }

    fn read_inbox(&mut self) {
        while let Some(message) = self.inbox.receive() {
            match message {
                PipeMessage::Reconfigure(settings, route) => self.reconfigure(*settings, route),
                PipeMessage::StopAccepting(done) => {
                    self.accept(LAST_ACCEPTS);
                    self.stop_accepting(|_| Accepting::Closed);
                    self.closing = Some(done);
                }
                PipeMessage::PlaceFree => self.freed = true,
                PipeMessage::Close => {
                    self.stop_accepting(|_| Accepting::Closed);
                    self.is_closed = true;
                    for id in self.connections.ids() {
                        self.with_connection(id, |connection, _| connection.reset());
                    }
                }
                PipeMessage::Resolved(route, resolution) => {
                    // Those that wait are of the present route.
                    if Arc::ptr_eq(&route, &self.context.route) {
                        for id in std::mem::take(&mut self.unresolved) {
                            self.with_connection(id, |connection, context| connection.resolved(&resolution, context));
                        }
                    }
                }
            }
        }
    }

    fn reconfigure(&mut self, settings: PipeSettings, route: Arc<Route>) {
        let now = self.context.now;
        self.context.settings = settings;
        if !Arc::ptr_eq(&route, &self.context.route) {
            self.context.route = route;
            // These connections have not begun, so they take the new target, too.
            let route = Arc::clone(&self.context.route);
            for id in std::mem::take(&mut self.unresolved) {
                self.with_connection(id, |connection, context| {
                    connection.reroute(&route);
                    connection.start(context)
                });
            }
        }
        // The new settings may have an earlier timeout, or room for more connections.
        self.sweep_at = Some(now);
        self.freed = true;
        self.stop_accepting_if_full();
    }

    /// Gives each transfer that has more to move a turn, as far as the limit allows.
    fn give_turns(&mut self) {
        for way in Way::ALL {
            for _ in 0..self.context.turns[way as usize].waiting() {
                let turn = self.context.turns[way as usize].next(self.context.now);
                let Some((id, allowance)) = turn else { break };
                self.with_connection(id, |connection, context| connection.turn(way, allowance, context));
            }
        }
    }

    /// Sets SO_RCVLOWAT back to 1 on sources that have paused: the bytes that wait there may be too few to wake the
    /// thread.
    fn check_pauses(&mut self) {
        let PipeContext { coalescing, now, .. } = &mut self.context;
        self.may_pause = false;
        coalescing.retain(|&(id, way)| {
            let coalescing =
                self.connections.get_mut(id).map_or(Coalescing::Over, |connection| connection.check_pause(way, *now));
            self.may_pause |= coalescing == Coalescing::Waiting;
            coalescing != Coalescing::Over
        });
        self.choose_policy();
    }

    /// Runs as a batch while many bytes move: then this thread does not interrupt the senders and the receivers that it
    /// wakes up for, if they are of this machine, and finds more bytes when its turn comes. Connections of few bytes that
    /// the thread has as well wait for a time slice at most.
    fn choose_policy(&mut self) {
        let PipeContext { moved, now, .. } = &mut self.context;
        let is_heavy = *moved >= HEAVY_BYTES;
        if !is_heavy && now.saturating_duration_since(self.moved_since) < HEAVY_WITHIN {
            return;
        }
        (*moved, self.moved_since) = (0, *now);
        let policy = if is_heavy { Policy::Batch } else { Policy::Normal };
        if std::mem::replace(&mut self.policy, policy) != policy {
            // If the kernel refuses, it costs only time.
            let _ = set_policy(policy);
        }
    }

    fn check_timers(&mut self) {
        let now = self.context.now;
        if matches!(self.accepting, Accepting::Shortage { until, .. } if until <= now) {
            self.freed = true;
        }
        while let Some(at) = self.next_attempt()
            && at <= now
        {
            if let Some((_, id)) = self.context.next_attempts.pop_front() {
                self.with_connection(id, Connection::next_attempt);
            }
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep_at = None;
            // The connections of other threads free descriptors, too.
            self.freed |= !self.starved.is_empty();
            if !self.unresolved.is_empty() {
                self.refresh_target();
            }
            for id in self.connections.ids() {
                self.with_connection(id, Connection::check_timeout);
            }
        }
    }

    fn sweep_interval(&self) -> Duration {
        let settings = &self.context.settings;
        let shortest =
            settings.idle_timeout.map_or(settings.connect_timeout, |idle| idle.min(settings.connect_timeout));
        (shortest / 4).clamp(SWEEP.0, SWEEP.1)
    }

    /// Gives freed descriptors to the connections that wait for one, and then to new clients.
    fn use_freed(&mut self) {
        while std::mem::take(&mut self.freed) {
            let waiting = self.starved.len();
            if let Some(id) = self.starved.pop_front() {
                self.with_connection(id, Connection::retry);
                self.places.end_starving();
                self.freed |= self.starved.len() < waiting;
            } else if let Err(errno) = self.accept_again() {
                self.wait_out_shortage(errno);
            }
        }
    }
}
