//! The TCP pipe: listens on a port, forwards every connection to a target, and counts the bytes that it delivers.
//!
//! A few threads serve all connections of a pipe with epoll(7), each its own; a process can run many pipes.
//! [`Pipe::bind`] starts one.
//! As a [`Source`] it reports the bytes delivered each way: *in* is from the clients to the target, *out* is from the
//! target to the clients, as in the original program. They are payload bytes; the monitor's figures contain headers
//! too.
//!
//! The life of one connection, and the file of each part:
//!
//! ```text
//!  client                     one of the pipe's threads (event_loop.rs)                          target
//!
//!  connect(2) ──▶ listener (socket.rs) ──▶ accept(2) ──▶ Connection (connection.rs), in the slab (slab.rs)
//!                                           ├─ looks up the target's addresses (resolve.rs)
//!                                           └─ connects to them, the next after 250 ms (socket.rs) ▶ accept(2)
//!
//!  socket ══ Way::In ═══▶ read and write, or splice(2) ▶ kernel pipe ▶ splice(2) ═══════════════▶ socket
//!         ◀══ Way::Out ══ the same, the other way  (transfer.rs, kernel_pipe.rs)  ═══════════════
//!                         one turn at a time, within the limit (shaping.rs)
//!
//!  end of stream (FIN) ──▶ is forwarded; the other way stays open (half-close)
//!  reset (RST) ──────────▶ the bytes before it are forwarded, then the other socket is reset
//! ```
//!
//! # Where to read on
//!
//! Begin with `connection.rs`, the states of a connection, then `transfer.rs`, how its bytes move, and `event_loop.rs`,
//! the thread that calls both. `shaping.rs` has the order of the turns and the limit, `mailbox.rs` the messages of
//! other threads to that thread, `log.rs` the lines that it reports.
//!
//! # Several threads
//!
//! A connection stays in the thread that accepted it. All threads watch one listener, and the kernel wakes one that
//! waits: a client never waits for a busy thread while another is free, and none is lost when a thread ends. They share
//! `places.rs`, the number of connections in all and of each client, `shaping.rs`, the tokens of the limit, and the log.

mod connection;
mod crowd;
mod event_loop;
mod kernel_pipe;
mod log;
mod mailbox;
mod places;
mod resolve;
mod shaping;
mod slab;
mod socket;
mod transfer;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::traffic::source::{Reading, Source};
use crate::traffic::subject::Subject;
use connection::Way;
#[cfg(any(test, fuzzing))]
pub(crate) use event_loop::simulation::simulate;
use event_loop::{PipeThread, Shared};
use log::PipeLog;
use mailbox::{Inbox, Mailbox, PipeMessage};
use places::Places;
use resolve::Target;
use shaping::Limit;

/// The most threads that a pipe has by default: they carry more than any network does.
pub const MAX_DEFAULT_THREADS: usize = 8;

/// The most threads that a pipe may have.
pub const MAX_THREADS: usize = 256;

/// Where a pipe listens, where it forwards to, and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeSettings {
    /// The address to listen on; `None` is all of them, IPv4 and IPv6.
    pub bind: Option<IpAddr>,
    /// The port to listen on; 0 lets the kernel choose a free one.
    pub port: u16,
    /// The host to forward to: a name, an IPv4 or an IPv6 address.
    pub target_host: String,
    /// The port to forward to.
    pub target_port: u16,
    /// The number of threads; `None` is [`default_threads`]. It stays when the settings of a running pipe change.
    pub threads: Option<NonZeroUsize>,
    /// The most bytes per second that all connections together may move in each direction; `None` is no limit.
    pub limit_bytes_per_s: Option<NonZeroU64>,
    /// With this many connections open, further ones wait in the kernel's accept queue until one closes.
    pub max_connections: Option<NonZeroUsize>,
    /// With this many connections of one client open, further ones of that client are reset. A client is an IPv4 address,
    /// or the IPv6 addresses with the same first 64 bits, which one host may use all.
    pub max_per_client: Option<NonZeroUsize>,
    /// How long the lookup of the target's name may take, and each attempt to connect to one of its addresses.
    pub connect_timeout: Duration,
    /// Connections in which nothing moves for this long are closed; `None` keeps them.
    pub idle_timeout: Option<Duration>,
}

impl PipeSettings {
    /// From `port` of all addresses to `target_port` of `target_host`, without limits, with 10 s to connect.
    pub fn new(port: u16, target_host: impl Into<String>, target_port: u16) -> Self {
        Self {
            bind: None,
            port,
            target_host: target_host.into(),
            target_port,
            threads: None,
            limit_bytes_per_s: None,
            max_connections: None,
            max_per_client: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: None,
        }
    }

    /// The name under which the pipe's traffic is shown: `pipe-8080:example.com:80`.
    pub fn name(&self) -> String {
        format!("pipe-{}:{}:{}", self.port, self.target_host, self.target_port)
    }

    fn has_target_of(&self, other: &Self) -> bool {
        (&self.target_host, self.target_port) == (&other.target_host, other.target_port)
    }
}

/// The number of threads that a pipe has by default: half the number of CPUs that this process may use (its affinity, and
/// the quota of its cgroup), at least two and at most [`MAX_DEFAULT_THREADS`]; one on a single CPU. The kernel's work for
/// clients and targets needs CPUs, too.
pub fn default_threads() -> NonZeroUsize {
    let threads = match std::thread::available_parallelism().map_or(1, NonZeroUsize::get) {
        1 => 1,
        cpus => (cpus / 2).clamp(2, MAX_DEFAULT_THREADS),
    };
    NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN)
}

fn threads(settings: &PipeSettings) -> usize {
    settings.threads.unwrap_or_else(default_threads).get().min(MAX_THREADS)
}

/// One name of a pipe, its target, and the bytes that the connections under this name have delivered, each way. The pipe's threads
/// write them, other threads read them. When a pipe gets another target, new connections take a new route, and those
/// that are open keep theirs.
#[derive(Debug)]
struct Route {
    subject: Arc<Subject>,
    bytes: [AtomicU64; 2],
    target: Mutex<Target>,
}

impl Route {
    fn new(settings: &PipeSettings) -> Self {
        let subject = Arc::new(Subject::Named(settings.name().into_bytes().into()));
        let target = Mutex::new(Target::new(&settings.target_host, settings.target_port, Instant::now()));
        Self { subject, bytes: Default::default(), target }
    }

    fn delivered(&self, way: Way) -> &AtomicU64 {
        &self.bytes[way as usize]
    }

    /// The target, which all threads share. Hold the lock for no longer than a statement.
    fn target(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self) -> Reading {
        Reading {
            subject: Arc::clone(&self.subject),
            bytes_in: self.delivered(Way::In).load(Ordering::Relaxed),
            bytes_out: self.delivered(Way::Out).load(Ordering::Relaxed),
        }
    }
}

/// A running pipe. Dropping it resets its connections.
#[derive(Debug)]
pub struct Pipe {
    settings: PipeSettings,
    route: Arc<Route>,
    /// The routes of connections that were open when the pipe got another one.
    earlier_routes: Vec<Arc<Route>>,
    local_address: SocketAddr,
    shared: Shared,
    /// One per thread.
    mailboxes: Arc<[Mailbox]>,
    /// Those that have not been found to have ended.
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Pipe {
    /// Opens the port and starts the threads that forward its connections.
    ///
    /// # Errors
    /// When the port is in use or not permitted, with the address in the message, or when the kernel gives no thread. A
    /// failure of a running thread is an error of [`Source::read`].
    pub fn bind(settings: PipeSettings) -> Result<Self> {
        let name = settings.name();
        ensure!(!settings.target_host.is_empty(), "{name}: no host to forward to");
        let listener = socket::listener(settings.bind, settings.port)?;
        let local_address = listener.local_addr().context("cannot read the listener's address")?;
        let threads = threads(&settings);
        let now = Instant::now();
        let shared = Shared {
            threads,
            places: Arc::new(Places::default()),
            limits: Way::ALL.map(|_| Arc::new(Limit::new(settings.limit_bytes_per_s, threads, now))),
            log: Arc::new(PipeLog::new(name.escape_debug().to_string())),
        };
        let route = Arc::new(Route::new(&settings));
        let ends: Vec<(Mailbox, Inbox)> = (0..threads).map(|_| Mailbox::new()).collect::<Result<_>>()?;
        let (mailboxes, inboxes): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
        let mut pipe = Self {
            settings,
            route,
            earlier_routes: Vec::new(),
            local_address,
            shared,
            mailboxes: mailboxes.into(),
            threads: Vec::new(),
        };
        let listener = Arc::new(listener);
        for (index, inbox) in inboxes.into_iter().enumerate() {
            // If one does not start, dropping the pipe ends the others.
            pipe.start_thread(index, Arc::clone(&listener), inbox)?;
        }
        pipe.report_listening();
        Ok(pipe)
    }

    fn start_thread(&mut self, index: usize, listener: Arc<TcpListener>, inbox: Inbox) -> Result<()> {
        let thread = PipeThread {
            index,
            listener,
            settings: self.settings.clone(),
            route: Arc::clone(&self.route),
            shared: self.shared.clone(),
            mailboxes: Arc::clone(&self.mailboxes),
            inbox,
        };
        let thread = std::thread::Builder::new()
            .name(format!("pipe-{}", self.local_address.port()))
            .spawn(move || thread.run())
            .context("cannot start a thread of the pipe")?;
        self.threads.push(thread);
        Ok(())
    }

    fn report_listening(&self) {
        let PipeSettings { target_host, target_port, .. } = &self.settings;
        let (address, host) = (self.local_address, target_host.escape_debug());
        self.shared.log.line(&format!("listening on {address}, forwarding to {host}:{target_port}"));
    }

    /// The settings of the connections that begin now.
    pub fn settings(&self) -> &PipeSettings {
        &self.settings
    }

    /// Whether the pipe listens where these settings say, so that it can [take them on](Self::reconfigure).
    pub fn listens_as(&self, settings: &PipeSettings) -> bool {
        self.settings.bind == settings.bind
            && (settings.port == self.settings.port || settings.port == self.local_address.port())
    }

    /// Goes on with other settings, without closing the port. Limits and timeouts are at once those of all connections;
    /// another target is that of the connections that begin now. The settings must be for the port that the pipe
    /// [listens on](Self::listens_as).
    pub fn reconfigure(&mut self, settings: PipeSettings) {
        if settings == self.settings {
            return;
        }
        let before = std::mem::replace(&mut self.settings, settings);
        if threads(&self.settings) != self.shared.threads {
            let now = self.shared.threads;
            self.shared.log.line(&format!("goes on with {now} threads; another number holds from the next start on"));
        }
        let route = Route::new(&self.settings);
        if route.subject != self.route.subject {
            // If an earlier route has this name, it is the same one: a name has one count.
            let known = self.earlier_routes.iter().position(|earlier| earlier.subject == route.subject);
            let route = known.map_or_else(|| Arc::new(route), |at| self.earlier_routes.swap_remove(at));
            self.earlier_routes.push(std::mem::replace(&mut self.route, route));
            self.shared.log.rename(self.settings.name().escape_debug().to_string());
        }
        if !before.has_target_of(&self.settings) {
            self.report_listening();
        }
        for limit in &self.shared.limits {
            limit.set(self.settings.limit_bytes_per_s, Instant::now());
        }
        self.send_all(|| PipeMessage::Reconfigure(Box::new(self.settings.clone()), Arc::clone(&self.route)));
    }

    /// The address that the pipe listens on, with the port that the kernel chose where the settings say 0.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        self.shared.places.taken()
    }

    /// Takes the clients that have connected already, and closes the port; it is closed when this returns. Open
    /// connections go on; when the last of them ends, the pipe is [finished](Pipe::is_finished).
    pub fn stop_accepting(&self) {
        let (done, wait) = mpsc::channel();
        self.send_all(|| PipeMessage::StopAccepting(done.clone()));
        drop(done);
        // An error means that each thread has dropped its end: it has closed its listener, or has ended.
        let _ = wait.recv();
    }

    /// Closes the port and resets all connections.
    pub fn close(&self) {
        self.send_all(|| PipeMessage::Close);
    }

    fn send_all(&self, message: impl Fn() -> PipeMessage) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.send(message()));
    }

    /// Whether the pipe has stopped accepting and its last connection has ended.
    pub fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Source for Pipe {
    fn read(&mut self, _now: Instant) -> Result<Vec<Reading>> {
        for thread in self.threads.extract_if(.., |thread| thread.is_finished()) {
            thread.join().map_err(|_| anyhow!("{}: its thread panicked", self.settings.name().escape_debug()))??;
        }
        let mut readings = vec![self.route.reading()];
        self.earlier_routes.retain_mut(|route| {
            // Each connection holds its route. If nobody else does, the totals are final, and this is their last reading.
            let is_in_use = Arc::get_mut(route).is_none();
            readings.push(route.reading());
            is_in_use
        });
        Ok(readings)
    }

    fn notes(&mut self) -> Vec<String> {
        self.shared.log.take_lines(Instant::now())
    }

    fn last_notes(&mut self) -> Vec<String> {
        self.shared.log.take_last_lines()
    }
}
