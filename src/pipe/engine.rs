//! The thread of a pipe: waits for events and gives each to the connection it belongs to.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;

use super::connection::{Connection, Direction, Fate, Shared};
use super::flow::{Mover, PAUSE};
use super::notes::{Notes, Trouble};
use super::processor::Processor;
use super::resolve::{Answer, Target};
use super::shaping::Turns;
use super::slab::{Id, Slab};
use super::socket::accept;
use super::{Counters, Settings};

/// Tokens that are no connection's.
const LISTENER: u64 = u64::MAX;
const MAILBOX: u64 = u64::MAX - 1;

/// Events that are asked for at once.
const EVENTS: usize = 256;

/// Connections that are accepted before others have their events.
const ACCEPTS: usize = 16;

/// How long a shortage of descriptors or memory is waited out, unless a connection ends before.
const SHORTAGE: Duration = Duration::from_millis(200);

/// How often the connections that have a timeout are looked at, at most and at least.
const SWEEP: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What others tell the thread.
#[derive(Debug)]
pub enum Message {
    /// Close the listener, and then the sender.
    StopAccepting(Sender<()>),
    /// Reset everything.
    Close,
    /// The target's name was looked up.
    Resolved(Answer),
}

/// Sends to a pipe's thread and wakes it.
#[derive(Debug, Clone)]
pub struct Mailbox {
    sender: Sender<Message>,
    bell: Arc<EventFd>,
}

/// The thread's end of the mailbox.
#[derive(Debug)]
pub struct Letters {
    receiver: Receiver<Message>,
    bell: Arc<EventFd>,
}

impl Mailbox {
    /// Both ends.
    ///
    /// # Errors
    /// When the kernel gives no eventfd(2).
    pub fn new() -> Result<(Self, Letters)> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_flags(flags).context("cannot make an eventfd")?);
        let (sender, receiver) = mpsc::channel();
        Ok((Self { sender, bell: Arc::clone(&bell) }, Letters { receiver, bell }))
    }

    /// Sends; a thread that has ended needs no messages.
    pub fn send(&self, message: Message) {
        if self.sender.send(message).is_ok() {
            let _ = self.bell.write(1);
        }
    }
}

/// What the thread is started with.
pub struct Engine {
    pub listener: TcpListener,
    pub settings: Settings,
    pub counters: Arc<Counters>,
    pub notes: Arc<Notes>,
    pub mailbox: Mailbox,
    pub letters: Letters,
}

impl Engine {
    /// Serves until nothing is left to serve.
    ///
    /// # Errors
    /// When epoll fails.
    pub fn run(self) -> Result<()> {
        // Signals are for the thread that shows the figures. SIGPIPE too: splice(2) has no MSG_NOSIGNAL.
        SigSet::all().thread_block().context("cannot block signals")?;
        Serving::start(self)?.run()
    }
}

/// Whether clients are accepted.
enum Accepting {
    /// They are.
    Open(TcpListener),
    /// Not until then, or until a connection ends: descriptors or memory ran out.
    Short { listener: TcpListener, until: Instant },
    /// Not until a connection ends: there are as many as are allowed.
    Full(TcpListener),
    /// No more.
    Closed,
}

/// The thread at work.
struct Serving {
    shared: Shared,
    accepting: Accepting,
    connections: Slab<Connection>,
    /// Connections that wait for the target's addresses.
    unresolved: Vec<Id>,
    /// Connections that wait for a descriptor; clients have to wait behind them.
    starved: VecDeque<Id>,
    /// A connection has ended and left its descriptors to others.
    freed: bool,
    /// When to look for timeouts next, if there may be any.
    sweep_at: Option<Instant>,
    processor: Processor,
    mailbox: Mailbox,
    letters: Letters,
}

impl Serving {
    fn start(engine: Engine) -> Result<Self> {
        let Engine { listener, settings, counters, notes, mailbox, letters } = engine;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
        epoll.add(&*letters.bell, EpollEvent::new(EpollFlags::EPOLLIN, MAILBOX)).context("cannot watch an eventfd")?;
        let now = Instant::now();
        let mut serving = Self {
            shared: Shared {
                epoll,
                listening: listener.local_addr().context("cannot tell the listener's address")?,
                target: Target::new(&settings.target_host, settings.target_port),
                mover: Mover::new(),
                turns: Direction::ALL.map(|_| Turns::new(settings.limit_bytes_per_s, now)),
                collecting: Vec::new(),
                settings,
                counters,
                notes,
                now,
            },
            accepting: Accepting::Full(listener),
            connections: Slab::new(),
            unresolved: Vec::new(),
            starved: VecDeque::new(),
            freed: false,
            sweep_at: None,
            processor: Processor::default(),
            mailbox,
            letters,
        };
        serving.accept_again().context("cannot watch the listener")?;
        Ok(serving)
    }

    fn run(mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        while !(matches!(self.accepting, Accepting::Closed) && self.connections.len() == 0) {
            let timeout = self.timeout();
            let got = match self.shared.epoll.wait(&mut events, timeout) {
                Ok(got) => got,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno).context("cannot wait for events"),
            };
            self.shared.now = Instant::now();
            for event in &events[..got] {
                match event.data() {
                    LISTENER => self.accept(),
                    MAILBOX => self.read_letters(),
                    token => {
                        let (id, side) = Id::from_token(token);
                        self.with(id, |connection, shared| connection.on_event(side, event.events(), shared));
                    }
                }
            }
            self.give_turns();
            self.end_pauses();
            self.look_at_clock();
            self.use_freed();
        }
        Ok(())
    }

    /// Until when there is nothing to do without an event.
    fn timeout(&mut self) -> EpollTimeout {
        let Shared { turns, collecting, now, .. } = &mut self.shared;
        let now = *now;
        let short_until = match self.accepting {
            Accepting::Short { until, .. } => Some(until),
            _ => None,
        };
        let times = [self.sweep_at, short_until].into_iter().flatten();
        let waits =
            turns.iter_mut().filter_map(|turns| turns.wait(now)).chain((!collecting.is_empty()).then_some(PAUSE));
        let wait = times.map(|time| time.saturating_duration_since(now)).chain(waits).min();
        // Rounded up, so as not to spin through the last millisecond.
        wait.map_or(EpollTimeout::NONE, |wait| {
            EpollTimeout::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(EpollTimeout::MAX)
        })
    }

    /// Does something with a connection, and what follows from it.
    fn with(&mut self, id: Id, action: impl FnOnce(&mut Connection, &mut Shared) -> Fate) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        match action(connection, &mut self.shared) {
            Fate::Lives => {
                if self.sweep_at.is_none() && connection.needs_clock(&self.shared) {
                    self.sweep_at = Some(self.shared.now + self.sweep_interval());
                }
            }
            Fate::Starved(errno) => {
                self.starved.push_back(id);
                self.run_short(errno);
            }
            Fate::Ended => {
                self.connections.remove(id);
                self.shared.counters.connections.store(self.connections.len(), Ordering::Relaxed);
                self.freed = true;
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let Accepting::Open(listener) = &self.accepting else { return };
            match accept(listener) {
                Ok((client, address)) => self.admit(client, address),
                Err(Errno::EAGAIN) => return,
                // The client has gone already.
                Err(Errno::ECONNABORTED) => {}
                Err(errno) => self.run_short(errno),
            }
        }
    }

    fn admit(&mut self, client: TcpStream, address: SocketAddr) {
        let now = self.shared.now;
        let id = self.connections.insert(|id| Connection::new(id, client, address, now));
        self.shared.counters.connections.store(self.connections.len(), Ordering::Relaxed);
        if let Some(addresses) = self.shared.target.known(now) {
            self.with(id, |connection, shared| connection.resolved(&Ok(addresses), shared));
        } else {
            self.unresolved.push(id);
            let mailbox = self.mailbox.clone();
            self.shared.target.ask(move |answer| mailbox.send(Message::Resolved(answer)));
            self.with(id, |_, _| Fate::Lives);
        }
        if self.is_full() {
            let most = self.connections.len();
            self.shared.notes.add(Trouble::Full, now, || format!("{most} connections are open, others have to wait"));
            self.pause(Accepting::Full);
        }
    }

    fn is_full(&self) -> bool {
        self.shared.settings.max_connections.is_some_and(|most| self.connections.len() >= most.get())
    }

    /// Accepts nobody for a while: descriptors or memory ran out.
    fn run_short(&mut self, errno: Errno) {
        let now = self.shared.now;
        let until = now + SHORTAGE;
        self.shared.mover.pool.let_go();
        self.shared.notes.add(Trouble::Shortage, now, || {
            format!("cannot accept connections for the moment: {}", io::Error::from(errno))
        });
        self.pause(|listener| Accepting::Short { listener, until });
    }

    fn pause(&mut self, state: impl FnOnce(TcpListener) -> Accepting) {
        self.accepting = match std::mem::replace(&mut self.accepting, Accepting::Closed) {
            Accepting::Open(listener) => {
                // What epoll watches can be taken from it.
                let _ = self.shared.epoll.delete(&listener);
                state(listener)
            }
            Accepting::Short { listener, .. } | Accepting::Full(listener) => state(listener),
            Accepting::Closed => Accepting::Closed,
        };
    }

    fn accept_again(&mut self) -> Result<(), Errno> {
        self.accepting = match std::mem::replace(&mut self.accepting, Accepting::Closed) {
            Accepting::Short { listener, .. } | Accepting::Full(listener) if self.is_full() => {
                Accepting::Full(listener)
            }
            Accepting::Short { listener, .. } | Accepting::Full(listener) => {
                let watched = self.shared.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER));
                if let Err(errno) = watched {
                    self.accepting = Accepting::Short { listener, until: self.shared.now + SHORTAGE };
                    return Err(errno);
                }
                Accepting::Open(listener)
            }
            state => state,
        };
        Ok(())
    }

    fn read_letters(&mut self) {
        // Only to silence it; how often it rang does not matter.
        let _ = self.letters.bell.read();
        while let Ok(message) = self.letters.receiver.try_recv() {
            match message {
                Message::StopAccepting(done) => {
                    self.accepting = Accepting::Closed;
                    drop(done);
                }
                Message::Close => {
                    self.accepting = Accepting::Closed;
                    for id in self.connections.ids() {
                        self.with(id, |connection, _| connection.reset());
                    }
                }
                Message::Resolved(answer) => {
                    let answer = self.shared.target.answered(answer, self.shared.now);
                    for id in std::mem::take(&mut self.unresolved) {
                        self.with(id, |connection, shared| connection.resolved(&answer, shared));
                    }
                }
            }
        }
    }

    /// Gives those who have more to move a turn each, as far as the limit allows.
    fn give_turns(&mut self) {
        for direction in Direction::ALL {
            for _ in 0..self.shared.turns[direction as usize].waiting() {
                let turn = self.shared.turns[direction as usize].next(self.shared.now);
                let Some((id, allowance)) = turn else { break };
                self.with(id, |connection, shared| connection.turn(direction, allowance, shared));
            }
        }
    }

    /// Has the sources that collect, and have brought nothing for a while, hand over what they have.
    fn end_pauses(&mut self) {
        let Shared { collecting, now, .. } = &mut self.shared;
        collecting.retain(|&(id, direction)| {
            self.connections.get_mut(id).is_some_and(|connection| connection.ends_pause(direction, *now))
        });
        self.choose_processor();
    }

    /// Keeps out of the way of who sends through the loopback interface as fast as they can.
    fn choose_processor(&mut self) {
        let Shared { collecting, now, .. } = &mut self.shared;
        if collecting.is_empty() {
            self.processor.go_anywhere();
        } else if self.processor.is_due(*now) {
            // One at a time, in turn.
            collecting.rotate_left(1);
            let (id, direction) = collecting[0];
            if let Some(connection) = self.connections.get_mut(id)
                && let Some(incoming) = connection.incoming_processor(direction)
            {
                self.processor.leave(incoming);
            }
        }
    }

    fn look_at_clock(&mut self) {
        let now = self.shared.now;
        if matches!(self.accepting, Accepting::Short { until, .. } if until <= now) {
            self.freed = true;
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep_at = None;
            for id in self.connections.ids() {
                self.with(id, Connection::on_time);
            }
        }
    }

    fn sweep_interval(&self) -> Duration {
        let settings = &self.shared.settings;
        let shortest =
            settings.idle_timeout.map_or(settings.connect_timeout, |idle| idle.min(settings.connect_timeout));
        (shortest / 4).clamp(SWEEP.0, SWEEP.1)
    }

    /// Gives descriptors that became free to those who wait for one, and then to new clients.
    fn use_freed(&mut self) {
        while std::mem::take(&mut self.freed) {
            let waiting = self.starved.len();
            if let Some(id) = self.starved.pop_front() {
                self.with(id, Connection::retry);
                self.freed |= self.starved.len() < waiting;
            } else if let Err(errno) = self.accept_again() {
                self.run_short(errno);
            }
        }
    }
}
