//! One connection of a pipe whose two far ends, events and time are chosen step by step: for tests and fuzzing.
//!
//! ```text
//! far client ◀── TCP ──▶ the event loop of one thread ◀── TCP ──▶ far target
//!      └──────── one thread makes all steps, in the order that some bytes say ────────┘
//! ```
//! The sockets are real, so that short writes, EAGAIN, resets and half-closes are the kernel's. What the far ends see is compared
//! with what they sent: the bytes are complete and in order, an end of stream comes behind all of them or not at all, and who
//! gets no end of stream gets a reset. The counts are what the kernel has taken. A wake-up that is lost makes the connection
//! stand still, and one for nothing makes the loop spin: both are noticed.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use nix::sys::socket::sockopt::{RcvBuf, SndBuf};
use nix::sys::socket::{MsgFlags, send, setsockopt};

use super::super::kernel_pipe::KernelPipe;
use super::super::shaping::Limit;
use super::*;

/// How many bytes a step moves.
const AMOUNTS: [usize; 16] =
    [1, 2, 100, 1000, 4095, 4096, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 1 << 17, 1 << 18, 1 << 19, 1 << 20];
/// The most bytes that an end sends.
const MOST_SENT: u64 = 2 << 20;
/// The buffers of a connection that holds little.
const SMALL_BUFFER: usize = 4096;
/// The pools of kernel pipes that share all pipes, so that each has one.
const POOLS: usize = 32;
/// How long nothing may happen in a connection in which something is to happen. The kernel's own timers, such as the one that
/// probes a window, take some tenths of a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the loop may be woken for nothing before it counts as spinning.
const MOST_WAKEUPS_FOR_NOTHING: u32 = 1000;

/// The host part of the loopback address of the next simulation: a port in TIME_WAIT takes none from it.
static NEXT_ADDRESS: AtomicU32 = AtomicU32::new(1);

/// The byte at a position of the stream that goes this way.
fn byte_at(way: Way, position: u64) -> u8 {
    ((position + 7 * way as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// An end of the connection outside the pipe.
struct FarEnd {
    /// `None` before the target has accepted, and after this end has reset.
    stream: Option<TcpStream>,
    /// The way that it sends.
    sends: Way,
    sent: u64,
    received: u64,
    /// Whether it has ended its stream.
    has_ended: bool,
    has_reset: bool,
    /// What it has seen of the other end.
    saw_end: bool,
    saw_reset: bool,
}

impl FarEnd {
    fn new(sends: Way) -> Self {
        let (sent, received) = (0, 0);
        let (has_ended, has_reset, saw_end, saw_reset) = (false, false, false, false);
        Self { stream: None, sends, sent, received, has_ended, has_reset, saw_end, saw_reset }
    }

    fn send(&mut self, amount: usize, urgent: bool) {
        let Some(mut stream) = self.stream.as_ref().filter(|_| !self.has_ended && self.sent < MOST_SENT) else {
            return;
        };
        let bytes: Vec<u8> = (self.sent..).take(amount).map(|position| byte_at(self.sends, position)).collect();
        let sent = if urgent {
            send(stream.as_raw_fd(), &bytes[..1], MsgFlags::MSG_OOB | MsgFlags::MSG_NOSIGNAL).map_err(io::Error::from)
        } else {
            stream.write(&bytes)
        };
        match sent {
            Ok(sent) => self.sent += sent as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.saw_reset = true,
        }
    }

    /// Reads at most `amount` bytes, of what the other end has sent.
    fn receive(&mut self, amount: usize, other: &FarEnd) {
        let Some(mut stream) = self.stream.as_ref().filter(|_| !self.saw_end && !self.saw_reset) else { return };
        // The kernel tells of a reset once, and then only of an end.
        let mut bytes = vec![0; amount];
        match stream.read(&mut bytes) {
            Ok(0) => {
                self.saw_end = true;
                assert!(
                    other.has_ended && self.received == other.sent,
                    "an end after {} of {}",
                    self.received,
                    other.sent
                );
            }
            Ok(read) => {
                for (position, &byte) in (self.received..).zip(&bytes[..read]) {
                    assert_eq!(byte, byte_at(other.sends, position), "byte {position} {:?}", other.sends);
                }
                self.received += read as u64;
                assert!(self.received <= other.sent);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.saw_reset = true,
        }
    }

    fn end(&mut self) {
        if let Some(stream) = self.stream.as_ref().filter(|_| !self.has_ended) {
            self.has_ended = true;
            // This fails after a reset, which a read then shows.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    fn reset(&mut self) {
        if let Some(stream) = self.stream.take() {
            reset(&stream);
            self.has_reset = true;
        }
    }

    /// Whether it knows how its connection has ended.
    fn is_over(&self) -> bool {
        self.has_reset || self.saw_reset || self.saw_end && self.has_ended
    }
}

struct Simulation {
    event_loop: EventLoop,
    limits: [Arc<Limit>; 2],
    places: Arc<Places>,
    route: Arc<Route>,
    far: [FarEnd; 2],
    /// Where the pipe's target listens; `None` if nothing does.
    target: Option<TcpListener>,
    /// The only kernel pipe, while the transfers shall have none.
    taken: Option<KernelPipe>,
    now: Instant,
    /// Whether something else than a far end may reset the connection: a timeout, the end of the pipe, a target that refuses.
    may_be_reset: bool,
    wakeups_for_nothing: u32,
}

impl Simulation {
    fn new(options: u8) -> Result<Self> {
        let is_set = |bit: u8| options >> bit & 1 == 1;
        let host = NEXT_ADDRESS.fetch_add(1, Ordering::Relaxed) ^ std::process::id() << 12;
        let address = Ipv4Addr::from(0x7F00_0000 | host & 0x00FF_FFFE | 1 << 20);
        let target = TcpListener::bind((address, 0))?;
        target.set_nonblocking(true)?;
        let mut settings = PipeSettings::new(0, address.to_string(), target.local_addr()?.port());
        settings.idle_timeout = is_set(2).then_some(Duration::from_secs(1));
        settings.limit_bytes_per_s = if is_set(3) { 1_000_000.try_into().ok() } else { None };
        let listener = super::super::socket::listener(Some(address.into()), 0)?;
        listener.set_nonblocking(true)?;
        if is_set(1) {
            for listener in [&target, &listener] {
                setsockopt(listener, RcvBuf, &SMALL_BUFFER)?;
                setsockopt(listener, SndBuf, &SMALL_BUFFER)?;
            }
        }
        let now = Instant::now();
        let (mailbox, inbox) = Mailbox::new()?;
        let limits = Way::ALL.map(|_| Arc::new(Limit::new(settings.limit_bytes_per_s, 1, now)));
        let (places, route) = (Arc::new(Places::default()), Arc::new(Route::new(&settings)));
        let log = Arc::new(PipeLog::new(String::new()));
        let shared = Shared { threads: 1, places: Arc::clone(&places), limits: limits.clone(), log };
        let client = TcpStream::connect(listener.local_addr()?)?;
        client.set_nonblocking(true)?;
        let thread = PipeThread {
            index: 0,
            listener: Arc::new(listener),
            settings,
            route: Arc::clone(&route),
            shared,
            mailboxes: [mailbox].into(),
            inbox,
        };
        let mut event_loop = EventLoop::start(thread)?;
        event_loop.context.mover = Mover::new(DescriptorReserve::of_this_process(), POOLS);
        let mut far = Way::ALL.map(FarEnd::new);
        far[0].stream = Some(client);
        let refuses = options >> 4 == 15;
        let mut simulation = Self {
            event_loop,
            limits,
            places,
            route,
            far,
            target: Some(target).filter(|_| !refuses),
            taken: None,
            now,
            may_be_reset: is_set(2) || refuses,
            wakeups_for_nothing: 0,
        };
        if is_set(0) {
            simulation.take_pipe();
        }
        Ok(simulation)
    }

    /// Takes the kernel pipe from the pool, or gives it back.
    fn take_pipe(&mut self) {
        let pool = &mut self.event_loop.context.mover.pool;
        match self.taken.take() {
            Some(pipe) => pool.take_back(pipe),
            None => self.taken = pool.lend(),
        }
    }

    /// Lets the far target accept the connection of the pipe, if there is one.
    fn accept(&mut self) {
        if let Some(listener) = &self.target
            && let Ok((stream, _)) = listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            self.far[1].stream = Some(stream);
            self.target = None;
        }
    }

    /// What changes when something happens.
    fn progress(&self) -> [u64; 8] {
        let counts = self.far.each_ref().map(|end| end.sent + end.received);
        let seen = self.far.each_ref().map(|end| u64::from(end.saw_end) + u64::from(end.saw_reset));
        let delivered = Way::ALL.map(|way| self.route.delivered(way).load(Ordering::Relaxed));
        let places = self.places.taken() as u64;
        [counts[0], counts[1], seen[0], seen[1], delivered[0], delivered[1], places, self.target.is_some().into()]
    }

    /// Handles what epoll reports within this time, and what is due. Returns whether there was something to do.
    fn round(&mut self, wait: EpollTimeout) -> Result<bool> {
        let has_ended =
            matches!(self.event_loop.accepting, Accepting::Closed) && self.event_loop.connections.len() == 0;
        if has_ended {
            return Ok(false);
        }
        let is_due = self.event_loop.timeout() == EpollTimeout::ZERO;
        let mut events = [EpollEvent::empty(); EVENTS_PER_WAIT];
        let got = self.event_loop.context.epoll.wait(&mut events, wait)?;
        self.event_loop.handle(&events[..got], self.now);
        self.accept();
        Ok(got > 0 || is_due)
    }

    fn step(&mut self, step: u8) -> Result<()> {
        let amount = AMOUNTS[usize::from(step >> 4)];
        let [client, target] = &mut self.far;
        match step & 15 {
            0 => client.send(amount, false),
            1 => target.send(amount, false),
            2 => client.receive(amount, target),
            3 => target.receive(amount, client),
            // Not as often as the others: what comes behind them is less.
            4 if step < 0x80 => client.end(),
            5 if step < 0x80 => target.end(),
            6 if step < 0x40 => client.reset(),
            7 if step < 0x40 => target.reset(),
            8 if step >> 4 == 0 => self.take_pipe(),
            8 if step >> 4 == 1 => {
                self.may_be_reset = true;
                self.event_loop.mailbox.send(PipeMessage::Close);
            }
            8 if step >> 4 == 2 => {
                let (done, _) = mpsc::channel();
                self.event_loop.mailbox.send(PipeMessage::StopAccepting(done));
            }
            8 if step >> 4 == 3 => self.event_loop.context.sockets.reserve = DescriptorReserve::of_all(),
            8 if step >> 4 == 4 => self.event_loop.context.sockets.reserve = DescriptorReserve::of_this_process(),
            9 => {
                let limit = NonZeroU64::new(if step >> 4 == 15 { 0 } else { amount as u64 * 64 });
                self.limits.iter().for_each(|shared| shared.set(limit, self.now));
            }
            10 => [client, target][usize::from(step >> 4) % 2].send(1, true),
            11 => {
                self.now += Duration::from_micros(amount as u64);
                self.round(EpollTimeout::ZERO)?;
            }
            _ => {
                self.round(EpollTimeout::ZERO)?;
            }
        }
        Ok(())
    }

    /// Lets both ends read all, then end, until the connection is over; and looks at what they have got.
    fn finish(mut self) -> Result<()> {
        self.event_loop.context.sockets.reserve = DescriptorReserve::of_this_process();
        self.limits.iter().for_each(|limit| limit.set(None, self.now));
        let mut since = Instant::now();
        let mut before = self.progress();
        // A target that has not accepted yet does so in a round.
        while !self.is_over() {
            let [client, target] = &mut self.far;
            client.receive(1 << 20, target);
            target.receive(1 << 20, client);
            client.end();
            target.end();
            let woken = self.round(EpollTimeout::ZERO)?;
            let after = self.progress();
            if after != before {
                (since, before, self.wakeups_for_nothing) = (Instant::now(), after, 0);
                continue;
            }
            assert!(since.elapsed() < PATIENCE, "nothing happens: {before:?}");
            if woken {
                self.wakeups_for_nothing += 1;
                assert!(self.wakeups_for_nothing < MOST_WAKEUPS_FOR_NOTHING, "woken for nothing: {before:?}");
            } else {
                // The loop would wait: for what is due, which is then, or for the kernel.
                let due = self.event_loop.timeout();
                self.round(EpollTimeout::from(1_u8))?;
                if due != EpollTimeout::NONE {
                    self.now += Duration::from_millis(2);
                }
            }
        }
        self.judge();
        // No end is left in TIME_WAIT.
        self.far.iter_mut().for_each(FarEnd::reset);
        Ok(())
    }

    fn is_over(&self) -> bool {
        let [client, target] = &self.far;
        client.is_over() && (target.is_over() || target.stream.is_none()) && self.places.taken() == 0
    }

    fn judge(&self) {
        for (end, other) in [(&self.far[0], &self.far[1]), (&self.far[1], &self.far[0])] {
            let delivered = self.route.delivered(end.sends).load(Ordering::Relaxed);
            assert!(
                (other.received..=end.sent).contains(&delivered),
                "{delivered} of {}, {}",
                end.sent,
                other.received
            );
            let is_undisturbed = !self.may_be_reset && !end.has_reset && !other.has_reset;
            if is_undisturbed {
                assert!(!end.saw_reset, "a reset for no reason, {:?}", end.sends);
                assert_eq!((other.received, delivered), (end.sent, end.sent), "{:?}", end.sends);
            }
        }
    }
}

/// Makes the steps that the bytes say with one connection, and panics if it is not as it should be.
pub fn simulate(bytes: &[u8]) {
    let Some((&options, steps)) = bytes.split_first() else { return };
    // There may be no port or no descriptor left.
    let Ok(mut simulation) = Simulation::new(options) else { return };
    for &step in steps {
        if simulation.step(step).is_err() {
            return;
        }
    }
    let _ = simulation.finish();
}
