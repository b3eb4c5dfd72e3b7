//! The TCP pipe: listens on a port, forwards every connection to a target, and counts the bytes that it delivers.
//!
//! One thread serves all connections of a pipe with epoll(7); a process can run many pipes. [`Pipe::bind`] starts one.
//! As a [`Source`] it reports the bytes delivered each way: *in* is from the clients to the target, *out* is from the
//! target to the clients, as in the original program. They are payload bytes; the monitor's figures contain headers
//! too.
//!
//! The life of one connection, and the file of each part:
//!
//! ```text
//!  client                         the pipe's thread (event_loop.rs)                              target
//!
//!  connect(2) ──▶ listener (socket.rs) ──▶ accept(2) ──▶ Connection (connection.rs), in the slab (slab.rs)
//!                                           ├─ looks up the target's addresses (resolve.rs)
//!                                           └─ connects to one after the other (socket.rs) ─────▶ accept(2)
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
//! other threads to that thread, `log.rs` the lines that it reports, `cpu.rs` the CPU that it runs on.

mod connection;
mod cpu;
mod event_loop;
mod kernel_pipe;
mod log;
mod mailbox;
mod resolve;
mod shaping;
mod slab;
mod socket;
mod transfer;

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::traffic::source::{Reading, Source};
use crate::traffic::subject::Subject;
use connection::Way;
use event_loop::PipeThread;
use log::PipeLog;
use mailbox::{Mailbox, PipeMessage};

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
    /// The most bytes per second that all connections together may move in each direction; `None` is no limit.
    pub limit_bytes_per_s: Option<NonZeroU64>,
    /// With this many connections open, further ones wait in the kernel's accept queue until one closes.
    pub max_connections: Option<NonZeroUsize>,
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
            limit_bytes_per_s: None,
            max_connections: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: None,
        }
    }

    /// The name under which the pipe's traffic is shown: `pipe-8080:example.com:80`.
    pub fn name(&self) -> String {
        format!("pipe-{}:{}:{}", self.port, self.target_host, self.target_port)
    }
}

/// The bytes that a pipe has delivered since it was bound, each way, and its open connections. The pipe's thread writes
/// them, other threads read them.
#[derive(Debug, Default)]
struct PipeStats {
    bytes: [AtomicU64; 2],
    connections: AtomicUsize,
}

impl PipeStats {
    fn delivered(&self, way: Way) -> &AtomicU64 {
        &self.bytes[way as usize]
    }
}

/// A running pipe. Dropping it resets its connections.
#[derive(Debug)]
pub struct Pipe {
    subject: Arc<Subject>,
    local_address: SocketAddr,
    stats: Arc<PipeStats>,
    log: Arc<PipeLog>,
    mailbox: Mailbox,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Pipe {
    /// Opens the port and starts the thread that forwards its connections.
    ///
    /// # Errors
    /// When the port is in use or not permitted, with the address in the message, or when the kernel gives no thread. A
    /// failure of the running thread is an error of [`Source::read`].
    pub fn bind(settings: PipeSettings) -> Result<Self> {
        let name = settings.name();
        ensure!(!settings.target_host.is_empty(), "{name}: no host to forward to");
        let listener = socket::listener(settings.bind, settings.port)?;
        let local_address = listener.local_addr().context("cannot read the listener's address")?;
        let stats = Arc::new(PipeStats::default());
        let log = Arc::new(PipeLog::new(name.escape_debug().to_string()));
        if settings.port == 0 {
            log.line(&format!("listens on port {}", local_address.port()));
        }
        let (mailbox, inbox) = Mailbox::new()?;
        let thread = PipeThread {
            listener,
            settings,
            stats: Arc::clone(&stats),
            log: Arc::clone(&log),
            mailbox: mailbox.clone(),
            inbox,
        };
        let thread = std::thread::Builder::new()
            .name(format!("pipe-{}", local_address.port()))
            .spawn(move || thread.run())
            .context("cannot start the pipe's thread")?;
        let subject = Arc::new(Subject::Named(name.into_bytes().into()));
        Ok(Self { subject, local_address, stats, log, mailbox, thread: Some(thread) })
    }

    /// The subject to which the traffic is credited: the pipe's [name](PipeSettings::name).
    pub fn subject(&self) -> &Arc<Subject> {
        &self.subject
    }

    /// The address that the pipe listens on, with the port that the kernel chose where the settings say 0.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        self.stats.connections.load(Ordering::Relaxed)
    }

    /// Closes the port; it is closed when this returns. Open connections go on; when the last of them ends, the pipe is
    /// [finished](Pipe::is_finished).
    pub fn stop_accepting(&self) {
        let (done, wait) = mpsc::channel();
        self.mailbox.send(PipeMessage::StopAccepting(done));
        // An error means that the thread has ended, and closed its listener.
        let _ = wait.recv();
    }

    /// Closes the port and resets all connections.
    pub fn close(&self) {
        self.mailbox.send(PipeMessage::Close);
    }

    /// Whether the pipe has stopped accepting and its last connection has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Source for Pipe {
    fn read(&mut self, _now: Instant) -> Result<Vec<Reading>> {
        if let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) {
            thread.join().map_err(|_| anyhow!("{}: its thread panicked", self.subject.label().escape_ascii()))??;
        }
        Ok(vec![Reading {
            subject: Arc::clone(&self.subject),
            bytes_in: self.stats.delivered(Way::In).load(Ordering::Relaxed),
            bytes_out: self.stats.delivered(Way::Out).load(Ordering::Relaxed),
        }])
    }

    fn notes(&mut self) -> Vec<String> {
        self.log.take_lines(Instant::now())
    }
}

/// Raises this process's limit of descriptors to its hard limit: each connection takes two.
///
/// # Errors
/// When the limit cannot be read or changed.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of descriptors")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of descriptors")
}
