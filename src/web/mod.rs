//! The figures over HTTP: a live page, JSON, and metrics for Prometheus.
//!
//! ```text
//! the loop:    Output::show ──▶ Message: what moved, or the whole frame ──▶ channel
//! one thread:  server: clients and messages ──▶ site: GET / · /data.json · /history.json · /metrics · /healthz
//! ```
//! The loop only sends: everything that is remembered belongs to the thread, so neither waits for the other. A message has all rows
//! only if somebody has lately asked for them; the metrics and the chart need no more than what moved.
//!
//! Where to read on: `request` parses what clients send, `server` waits for them, `site` answers; `recent` is the chart of
//! the last minutes, `past` those of the history, [`metrics`] the counters for Prometheus; the page itself is in `page/`. [`served`] shows frames in another way, too.

pub mod metrics;
mod past;
mod recent;
pub(crate) mod request;
pub mod served;
mod server;
mod site;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::output::json::Named;
use crate::output::{Announcement, Frame, Output};
use crate::privileges::{Duty, keep_for};
use crate::traffic::interest::{Interest, Wanted};
use metrics::MetricsSettings;
use past::Past;
use site::Site;

/// The number of remote ends that the page needs in the details of each row.
pub(crate) const REMOTES: usize = 12;

/// What the loop sends to the server.
enum Message {
    /// A frame with all its rows, and their details.
    Whole(Frame),
    /// A frame with the rows that moved, and their details if somebody wants them.
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
    interest: Arc<Interest>,
}

impl Web {
    /// Listens on `address` and starts the server. `named` is what rows with a name are, `history` the file of the history, if there is
    /// one.
    ///
    /// # Errors
    /// If it cannot listen there, or not start a thread.
    pub fn start(
        address: SocketAddr,
        named: Named,
        metrics: MetricsSettings,
        history: Option<PathBuf>,
    ) -> Result<Self> {
        let cannot_listen = || format!("--http: cannot listen on {address}");
        let listener = TcpListener::bind(address).with_context(cannot_listen)?;
        listener.set_nonblocking(true).with_context(cannot_listen)?;
        let address = listener.local_addr().with_context(cannot_listen)?;
        let wakeup = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let wakeup = Arc::new(wakeup.context("--http: eventfd(2)")?);
        let (sender, messages) = channel();
        let interest = Arc::new(Interest::default());
        let past = history.clone().map(|file| Past::new(file, Arc::clone(&wakeup)));
        let site = Site::new(named, metrics, Arc::clone(&interest), past);
        let wakes = Arc::clone(&wakeup);
        let thread = std::thread::Builder::new().name("http".into());
        let serve = move || {
            keep_for(Duty::Serving(history.as_deref()));
            server::serve(&listener, &messages, &wakes, site);
        };
        thread.spawn(serve).context("--http: cannot start a thread")?;
        Ok(Self { address, messages: Some(sender), wakeup, interest })
    }

    /// The message that says where the page is.
    pub fn note(&self) -> String {
        format!("the figures are at http://{}/", self.address)
    }

    /// What those who look at the page want of frames.
    pub(crate) fn interest(&self) -> &Arc<Interest> {
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
        let wanted = self.interest.of_this_frame();
        self.interest.end_frame();
        let is_whole = wanted == Wanted::All || frame.interval.is_some_and(|interval| interval >= site::RARE);
        let rows = frame.rows.iter().filter(|row| is_whole || row.has_moved());
        let rows = rows.map(|row| if wanted == Wanted::Nothing { row.without_detail() } else { row.clone() });
        let frame = Frame {
            rows: rows.collect(),
            unowned: frame.unowned.clone(),
            interval: frame.interval,
            ..frame.without_figures()
        };
        self.send(if is_whole { Message::Whole(frame) } else { Message::Moved(frame) });
        Ok(())
    }

    fn tell(&mut self, frame: &Frame) -> io::Result<()> {
        self.send(Message::Events(frame.without_figures()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Moment;
    use crate::traffic::detail::Detail;
    use crate::traffic::rates::Row;
    use crate::traffic::subject::Subject;
    use std::sync::mpsc::Receiver;

    fn row(subject: Subject, moved_in: u64) -> Row {
        let detail = Some(Arc::new(Detail::default()));
        Row { subject: Arc::new(subject), bytes_in: 9, bytes_out: 9, moved_in, moved_out: 0, detail }
    }

    fn web() -> (Web, Receiver<Message>) {
        let (sender, messages) = channel();
        let address = ([127, 0, 0, 1], 0).into();
        let wakeup = Arc::new(EventFd::new().unwrap());
        (Web { address, messages: Some(sender), wakeup, interest: Arc::default() }, messages)
    }

    #[test]
    fn what_nobody_looks_at_is_only_what_moved() {
        let (mut web, messages) = web();
        let mut frame = Frame::at(Moment::now());
        frame.rows = vec![row(Subject::Named((*b"moves").into()), 1), row(Subject::Named((*b"rests").into()), 0)];
        web.interest.want_all();
        web.interest.follow(2);
        for _ in 0..3 {
            web.show(&frame).unwrap();
        }
        web.tell(&frame).unwrap();
        let Ok(Message::Whole(whole)) = messages.recv() else { panic!() };
        assert_eq!(whole.rows, frame.rows);
        let Ok(Message::Moved(moved)) = messages.recv() else { panic!() };
        assert_eq!(moved.rows, frame.rows[..1]);
        let Ok(Message::Moved(moved)) = messages.recv() else { panic!() };
        assert_eq!(moved.rows, [frame.rows[0].without_detail()]);
        assert!(matches!(messages.recv(), Ok(Message::Events(_))));
    }
}
