//! The TCP pipe: listens on a port, forwards every connection to a target, and counts what it delivers.
//!
//! One thread serves all connections of a pipe with epoll(7); many pipes may run in one process. [`Pipe::bind`] starts
//! one, and as a [`Source`] it tells how many bytes went each way: *in* is from the clients towards the target, as it
//! always was. Bytes are those of the streams, without the headers that the monitor's figures contain.
//!
//! Where to read on: `connection.rs` is the life of one connection, `flow.rs` how its bytes move, `engine.rs` the thread.

mod connection;
mod engine;
mod flow;
mod kernel_pipe;
mod notes;
mod processor;
mod resolve;
mod shaping;
mod slab;
mod socket;

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
use connection::Direction;
use engine::{Engine, Mailbox, Message};
use notes::Notes;

/// What a pipe is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The address to listen on; `None` is all of them, IPv4 and IPv6.
    pub bind: Option<IpAddr>,
    /// The port to listen on; 0 is any that is free.
    pub port: u16,
    /// A name, an IPv4 or an IPv6 address to forward to.
    pub target_host: String,
    /// The port to forward to.
    pub target_port: u16,
    /// The most that all connections together may move in each direction; `None` is no limit.
    pub limit_bytes_per_s: Option<NonZeroU64>,
    /// With so many connections open, further ones wait in the kernel's queue until one closes.
    pub max_connections: Option<NonZeroUsize>,
    /// How long each address of the target has to answer, and the look-up of its name.
    pub connect_timeout: Duration,
    /// Connections in which nothing moves for so long are closed; `None` keeps them.
    pub idle_timeout: Option<Duration>,
}

impl Settings {
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

/// What a pipe has delivered since it was made, and what it is doing; written by its thread, read by anyone.
#[derive(Debug, Default)]
struct Counters {
    bytes: [AtomicU64; 2],
    connections: AtomicUsize,
}

impl Counters {
    fn delivered(&self, direction: Direction) -> &AtomicU64 {
        &self.bytes[direction as usize]
    }
}

/// A pipe that is running. Dropping it closes its connections.
#[derive(Debug)]
pub struct Pipe {
    subject: Arc<Subject>,
    local_address: SocketAddr,
    counters: Arc<Counters>,
    notes: Arc<Notes>,
    mailbox: Mailbox,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Pipe {
    /// Listens, and forwards from now on.
    ///
    /// # Errors
    /// When the port cannot be listened on (in use, not allowed), with the address in the message, or the kernel gives no
    /// thread. What fails later is an error of [`Source::read`].
    pub fn bind(settings: Settings) -> Result<Self> {
        let name = settings.name();
        ensure!(!settings.target_host.is_empty(), "{name}: no host to forward to");
        let listener = socket::listener(settings.bind, settings.port)?;
        let local_address = listener.local_addr().context("cannot tell the listener's address")?;
        let counters = Arc::new(Counters::default());
        let notes = Arc::new(Notes::new(name.escape_debug().to_string()));
        if settings.port == 0 {
            notes.say(&format!("listens on port {}", local_address.port()));
        }
        let (mailbox, letters) = Mailbox::new()?;
        let engine = Engine {
            listener,
            settings,
            counters: Arc::clone(&counters),
            notes: Arc::clone(&notes),
            mailbox: mailbox.clone(),
            letters,
        };
        let thread = std::thread::Builder::new()
            .name(format!("pipe-{}", local_address.port()))
            .spawn(move || engine.run())
            .context("cannot start the pipe's thread")?;
        let subject = Arc::new(Subject::Named(name.into_bytes().into()));
        Ok(Self { subject, local_address, counters, notes, mailbox, thread: Some(thread) })
    }

    /// The subject to which the traffic is credited: the pipe's [name](Settings::name).
    pub fn subject(&self) -> &Arc<Subject> {
        &self.subject
    }

    /// Where it listens, with the real port where 0 was asked for.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.counters.connections.load(Ordering::Relaxed)
    }

    /// Closes the port. Connections that are open go on; with the last of them the pipe is
    /// [finished](Pipe::is_finished). The port is closed when this returns.
    pub fn stop_accepting(&self) {
        let (done, wait) = mpsc::channel();
        self.mailbox.send(Message::StopAccepting(done));
        // An error means that the thread is gone, and its listener with it.
        let _ = wait.recv();
    }

    /// Closes the port and resets all connections.
    pub fn close(&self) {
        self.mailbox.send(Message::Close);
    }

    /// Whether the pipe has stopped accepting and the last connection has closed.
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
            bytes_in: self.counters.delivered(Direction::In).load(Ordering::Relaxed),
            bytes_out: self.counters.delivered(Direction::Out).load(Ordering::Relaxed),
        }])
    }

    fn notes(&mut self) -> Vec<String> {
        self.notes.take(Instant::now())
    }
}

/// Allows this process as many descriptors as its hard limit permits: each connection takes two.
///
/// # Errors
/// When the limit cannot be read or changed.
pub fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of descriptors")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of descriptors")
}
