//! The figures over HTTP: a live page, JSON, and metrics for Prometheus.
//!
//! ```text
//! the loop:    Output::show ──▶ Message: what moved, or the whole frame ──▶ channel
//! one thread:  server: clients and messages ──▶ site: GET / · /data.json · /metrics · /healthz
//! ```
//! The loop only sends: everything that is remembered belongs to the thread, so neither waits for the other. A message has all rows
//! only if somebody has lately asked for them; the metrics and the chart need no more than what moved.
//!
//! Where to read on: `request` parses what clients send, `server` waits for them, `site` answers; `history` is the chart,
//! [`metrics`] the counters for Prometheus; the page itself is in `page/`.

mod history;
pub mod metrics;
mod request;
mod server;
mod site;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::output::json::Named;
use crate::output::{Announcement, Frame, Output};
use metrics::MetricsSettings;
use site::Site;

/// What the loop sends to the server.
enum Message {
    /// A frame with all its rows.
    Whole(Frame),
    /// A frame with the rows that moved, without details.
    Moved(Frame),
    /// The messages and notifications of a tick that is not shown.
    Events(Frame),
}

/// The output that serves HTTP. The server ends when it is dropped.
#[derive(Debug)]
pub struct Web {
    address: SocketAddr,
    /// `None` only while it is dropped.
    messages: Option<Sender<Message>>,
    wakeup: Arc<EventFd>,
    interest: Arc<AtomicU32>,
}

impl Web {
    /// Listens on `address` and starts the server. `named` is what rows with a name are.
    ///
    /// # Errors
    /// If it cannot listen there, or not start a thread.
    pub fn start(address: SocketAddr, named: Named, metrics: MetricsSettings) -> Result<Self> {
        let cannot_listen = || format!("--http: cannot listen on {address}");
        let listener = TcpListener::bind(address).with_context(cannot_listen)?;
        listener.set_nonblocking(true).with_context(cannot_listen)?;
        let address = listener.local_addr().with_context(cannot_listen)?;
        let wakeup = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let wakeup = Arc::new(wakeup.context("--http: eventfd(2)")?);
        let (sender, messages) = channel();
        let interest = Arc::new(AtomicU32::new(0));
        let site = Site::new(named, metrics, Arc::clone(&interest));
        let wakes = Arc::clone(&wakeup);
        let thread = std::thread::Builder::new().name("http".into());
        thread.spawn(move || server::serve(&listener, &messages, &wakes, site)).context("--http: cannot start a thread")?;
        Ok(Self { address, messages: Some(sender), wakeup, interest })
    }

    /// The message that says where the page is.
    pub fn note(&self) -> String {
        format!("the figures are at http://{}/", self.address)
    }

    /// How many more frames are to have all there is: somebody looks at them.
    pub fn interest(&self) -> &Arc<AtomicU32> {
        &self.interest
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            // Without the thread, nobody can ask.
            let _ = messages.send(message);
        }
        // A counter that is full has woken it already.
        let _ = self.wakeup.write(1);
    }
}

impl Output for Web {
    fn show(&mut self, frame: &Frame) -> io::Result<()> {
        let interest = self.interest.load(Ordering::Relaxed);
        self.interest.store(interest.saturating_sub(1), Ordering::Relaxed);
        let is_whole = interest > 0 || frame.interval.is_some_and(|interval| interval >= site::RARE);
        let moved = frame.rows.iter().filter(|row| is_whole || row.moved_in + row.moved_out > 0);
        let rows = moved.map(|row| if is_whole { row.clone() } else { row.without_detail() });
        let frame = Frame {
            rows: rows.collect(),
            unowned: frame.unowned.clone(),
            interval: frame.interval,
            facts: frame.facts,
            took: frame.took,
            ..events(frame)
        };
        self.send(if is_whole { Message::Whole(frame) } else { Message::Moved(frame) });
        Ok(())
    }

    fn tell(&mut self, frame: &Frame) -> io::Result<()> {
        self.send(Message::Events(events(frame)));
        Ok(())
    }

    fn announce(&mut self, _announcements: &[Announcement]) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.messages = None;
        let _ = self.wakeup.write(1);
    }
}

/// The messages and notifications of a frame.
fn events(frame: &Frame) -> Frame {
    Frame { notifications: frame.notifications.clone(), notes: frame.notes.clone(), ..Frame::at(frame.at) }
}
