//! An interactive view on the alternate screen of a terminal, with keys as in top(1).
//!
//! ```text
//! the loop ──▶ Frame ──▶ ┌ a thread ──────────────────────────┐
//! keys, by a thread ───▶ │ keys ──▶ model ──▶ draw ──▶ screen │ ──▶ writer ──▶ the terminal
//!                        └────────────────────────────────────┘
//! ```
//! The loop never waits for any of this. Where to read on: `model` is what the view shows; `keys` changes it; `draw` makes
//! lines of it, with the `columns` of the list, in the `look` of the terminal; `cells` makes bytes of them; `screen` is the terminal itself.

mod cells;
mod columns;
mod draw;
mod history;
mod input;
mod keys;
mod look;
mod model;
#[cfg(test)]
pub(crate) mod samples;
mod screen;
#[cfg(test)]
mod tests;
mod unit;

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;

use super::text::messages;
use super::tty;
use super::writer::{Stream, Writer};
use super::{Announcement, Frame, Moment, Output, host};
use crate::privileges::{Duty, keep_for};
use crate::traffic::subject::Subject;
use crate::workload::names::Names;
use input::{Input, Parser};
use keys::Effect;
use look::Look;
use model::Model;
use screen::Screen;

/// The number of remote ends that an opened row needs in the details of each subject.
pub const REMOTES: usize = 32;

/// The most events that wait for the thread that draws.
const QUEUED: usize = 64;
/// How often a drawing that the terminal has no room for is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// How long the bytes after an ESC may take, in milliseconds. After that, it is the key.
const ESCAPE_MS: u16 = 50;
/// The most messages that are written to stderr when the program ends.
const LAST_NOTES: usize = 8;
const LAST_PATIENCE: Duration = Duration::from_millis(30);
const LAST_TIME: Duration = Duration::from_secs(1);

/// A property of processes by which rows can be grouped; `None` if a subject has none.
pub type Property = fn(&Subject, &mut Names) -> Option<Vec<u8>>;

/// What rows are.
#[derive(Debug, Clone)]
pub struct Rows {
    /// One of them, and several, in a word: `("process", "processes")`.
    pub of: (&'static str, &'static str),
    /// How they can be grouped: the head of the column, and the property. The first one has a row for each subject. Empty if the
    /// rows are no processes.
    pub groupings: Vec<(&'static str, Property)>,
    /// The one with which the view begins.
    pub first: usize,
}

/// Shows frames on the alternate screen.
pub struct Top {
    screen: Arc<Screen>,
    events: SyncSender<Event>,
    /// Where messages go besides the screen; `None` if stderr is the same terminal.
    messages: Option<Writer>,
    /// The messages that are written to the terminal when the screen is left.
    last_notes: VecDeque<String>,
}

impl fmt::Debug for Top {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Top").finish_non_exhaustive()
    }
}

/// What the thread that draws has to handle.
enum Event {
    Frame(Box<Frame>),
    Notes(Vec<String>),
    Input(Input),
    /// The terminal has another size, or is ours again.
    Refresh,
}

impl Top {
    /// Takes the terminal on stdout when the first frame comes.
    ///
    /// # Errors
    /// When stdout is no terminal that can show it, or the kernel gives no thread.
    pub fn new(rows: Rows) -> Result<Self> {
        if !io::stdout().is_terminal() {
            bail!("--top needs a terminal on stdout; without --top, a pipe or a file gets lines");
        }
        if tty::is_dumb(&std::env::var("TERM").unwrap_or_default()) {
            bail!(
                "--top needs a terminal that can move its cursor, and TERM names none (TERM=xterm-256color is the most common)"
            );
        }
        let screen = Arc::new(Screen::new());
        Screen::leave_on_panic(&screen);
        let (events, to_handle) = sync_channel(QUEUED);
        let look = Look::of_environment(|name| std::env::var(name).ok());
        let model = Model::new(host(), look, rows, Moment::now());
        let drawing = Arc::clone(&screen);
        let draw = move || {
            keep_for(Duty::Showing);
            handle_events(&to_handle, &drawing, model);
        };
        std::thread::Builder::new().name("screen".into()).spawn(draw).context("cannot start a thread")?;
        let keys = events.clone();
        let read = move || {
            keep_for(Duty::Showing);
            read_keys(&keys);
        };
        std::thread::Builder::new().name("keys".into()).spawn(read).context("cannot start a thread")?;
        let messages = (!io::stderr().is_terminal()).then(Writer::new);
        Ok(Self { screen, events, messages, last_notes: VecDeque::new() })
    }

    fn send(&self, event: Event) -> io::Result<()> {
        match self.events.try_send(event) {
            // If the thread is behind, the next frame has the same totals and more.
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return Err(io::Error::other("the thread that draws has panicked")),
        }
        if self.screen.error() == Some(Errno::EPIPE) { Err(Errno::EPIPE.into()) } else { Ok(()) }
    }

    /// Keeps messages for the end, and writes them to stderr if that is elsewhere.
    fn keep(&mut self, notes: &[String]) {
        if let Some(messages) = &self.messages {
            messages.lines(Stream::Stderr, lines(notes));
            return;
        }
        self.last_notes.extend(notes.iter().cloned());
        self.last_notes.drain(..self.last_notes.len().saturating_sub(LAST_NOTES));
    }
}

fn lines<'a>(notes: impl IntoIterator<Item = &'a String>) -> Vec<u8> {
    notes.into_iter().flat_map(|note| [note.as_bytes(), b"\n"]).collect::<Vec<_>>().concat()
}

impl Output for Top {
    fn show(&mut self, frame: &Frame) -> io::Result<()> {
        self.screen.enter();
        self.keep(&messages(frame));
        self.send(Event::Frame(Box::new(frame.clone())))
    }

    fn tell(&mut self, frame: &Frame) -> io::Result<()> {
        let notes = messages(frame);
        self.keep(&notes);
        if notes.is_empty() { Ok(()) } else { self.send(Event::Notes(notes)) }
    }

    fn announce(&mut self, announcements: &[Announcement]) -> io::Result<()> {
        let notes = announcements.iter().filter_map(|announcement| match announcement {
            Announcement::Note(note) => Some(note.clone()),
            Announcement::Ending => None,
            Announcement::WaitingForConnections => Some("Waiting for threads to finish...".to_owned()),
        });
        let notes: Vec<String> = notes.collect();
        self.keep(&notes);
        if notes.is_empty() { Ok(()) } else { self.send(Event::Notes(notes)) }
    }

    fn suspend(&mut self) {
        self.screen.leave();
    }

    fn refresh(&mut self) {
        self.screen.enter();
        // If it has no room, it has something else to draw, and looks at the size then.
        let _ = self.events.try_send(Event::Refresh);
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        self.screen.leave();
        let start = Instant::now();
        let messages = self.messages.take().unwrap_or_else(|| {
            let writer = Writer::new();
            writer.lines(Stream::Stderr, lines(&self.last_notes));
            writer
        });
        messages.finish(start, LAST_PATIENCE, LAST_TIME);
    }
}

/// The thread that draws: handles events until the other side is dropped.
fn handle_events(events: &Receiver<Event>, screen: &Screen, mut model: Model) {
    let mut drawn = Buffer::default();
    let mut is_pending = false;
    loop {
        let event = if is_pending {
            events.recv_timeout(TRY_AGAIN)
        } else {
            events.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match event {
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
            Ok(event) => {
                for event in std::iter::once(event).chain(events.try_iter().take(QUEUED)) {
                    handle(event, screen, &mut model);
                }
            }
        }
        is_pending = !screen.draw(|is_known| changes(&mut model, &mut drawn, is_known));
    }
}

fn handle(event: Event, screen: &Screen, model: &mut Model) {
    match event {
        Event::Frame(frame) => model.take(*frame),
        Event::Notes(notes) => model.add_notes(notes),
        Event::Refresh => {}
        Event::Input(input) => match keys::press(model, input, tty::size()) {
            Effect::Draw => {}
            Effect::Repaint => screen.forget(),
            Effect::ToggleMouse => screen.toggle_mouse(),
            // The program ends as on a signal: the loop waits for those.
            Effect::Quit => drop(kill(getpid(), Signal::SIGTERM)),
        },
    }
}

/// The bytes that change a screen from what was `drawn`, if the terminal shows that, to the view of now.
fn changes(model: &mut Model, drawn: &mut Buffer, is_known: bool) -> Vec<u8> {
    let size = tty::size();
    let fit = |cells: usize| u16::try_from(cells).unwrap_or(u16::MAX);
    let area = Rect::new(0, 0, fit(size.columns), fit(size.lines));
    let mut bytes = Vec::new();
    if !is_known || drawn.area != area {
        if is_known {
            // What another size has left there.
            bytes.extend_from_slice(b"\x1b[0m\x1b[2J");
        }
        *drawn = Buffer::empty(area);
    }
    let mut next = Buffer::empty(area);
    draw::draw(model, &mut next);
    let different = drawn.diff(&next);
    if !different.is_empty() {
        bytes.extend(cells::encode(&different));
    }
    *drawn = next;
    bytes
}

/// The thread that reads keys. It ends when there are no more: the terminal is gone.
fn read_keys(events: &SyncSender<Event>) {
    // Keys come from the terminal even if stdin is something else.
    let stdin = io::stdin();
    let terminal =
        if stdin.is_terminal() { stdin.as_fd().try_clone_to_owned().map(File::from) } else { File::open("/dev/tty") };
    let Ok(mut terminal) = terminal else { return };
    let mut parser = Parser::default();
    let mut buffer = [0; 1024];
    loop {
        let timeout = if parser.is_waiting() { PollTimeout::from(ESCAPE_MS) } else { PollTimeout::NONE };
        let inputs = match poll(&mut [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => Vec::from_iter(parser.expire()),
            Err(Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => match terminal.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => parser.feed(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            },
        };
        for input in inputs {
            if events.send(Event::Input(input)).is_err() {
                return;
            }
        }
    }
}
