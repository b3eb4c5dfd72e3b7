//! The loop that all three programs run: once a second read, show, wait for the next second or a signal.
//!
//! Only this module sleeps, writes to the terminal or looks at signals.

pub mod aggregate;
pub mod cli;
pub mod one_source;
pub mod pipe;

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The time from one refresh to the next.
pub const TICK: Duration = Duration::from_secs(1);

/// Notes that stay below the table on a terminal: enough for every warning at start and the latest events.
const NOTES_KEPT: usize = 8;

/// What one tick puts before the user.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Screen {
    /// The table, whole lines, for stdout.
    pub table: Vec<u8>,
    /// What is new to say on stderr, one line each and without the line's end.
    pub notes: Vec<String>,
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another tick.
    Continue,
    /// The program is done; it ends with success.
    End,
}

/// What the loop runs.
pub trait Program {
    /// Reads everything as of `now` and says what to show.
    ///
    /// # Errors
    /// What the program cannot go on after.
    fn tick(&mut self, now: Instant) -> Result<Screen>;

    /// SIGINT (Ctrl-C) came. By default that is the end.
    fn interrupted(&mut self, _screen: &mut Screen) -> Next {
        Next::End
    }

    /// SIGTERM came. By default the same as SIGINT.
    fn terminated(&mut self, screen: &mut Screen) -> Next {
        self.interrupted(screen)
    }

    /// SIGHUP came. By default that is the end, as it is for any program.
    fn hung_up(&mut self, _screen: &mut Screen) -> Next {
        Next::End
    }

    /// Asked after every tick: an end that no signal brings about.
    fn next(&self) -> Next {
        Next::Continue
    }
}

/// The signals that the loop answers. They are blocked in this thread and in every thread and child it starts later, so
/// call it before the first thread; the standard library gives children an empty mask again.
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Takes SIGINT, SIGTERM and SIGHUP away from their default action.
    ///
    /// # Errors
    /// When the kernel gives no signalfd(2).
    pub fn take() -> Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot make a signalfd")?;
        Ok(Self { fd })
    }

    /// Waits until `deadline` for a signal, or for the reader of stdout to go.
    fn wait(&mut self, deadline: Instant) -> Result<Waited> {
        loop {
            if let Some(info) = self.fd.read_signal().context("cannot read the signalfd")?
                && let Ok(signal) = Signal::try_from(info.ssi_signo as i32)
            {
                return Ok(Waited::Signal(signal));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Waited::Passed);
            }
            // Rounded up, so that the loop does not spin through the last millisecond.
            let millis = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
            let stdout = io::stdout();
            // A pipe without reader is an error that poll(2) tells unasked: nothing may be there to write for long.
            let mut fds =
                [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::empty())];
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) if fds[1].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) => {
                    return Ok(Waited::Closed);
                }
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for signals"),
            }
        }
    }
}

/// What ended a wait.
enum Waited {
    /// The time.
    Passed,
    Signal(Signal),
    /// Nobody reads stdout any more.
    Closed,
}

/// Where the screens go.
struct Output {
    /// What clears the terminal before each table; `None` where stdout is no terminal.
    clear: Option<&'static str>,
    /// Whether each clear erases the notes too, so that they are to be written again below the table.
    notes_erased: bool,
    kept: VecDeque<String>,
}

impl Output {
    fn of_this_process() -> Self {
        let terminal = io::stdout().is_terminal();
        let term = std::env::var("TERM").unwrap_or_default();
        Self {
            clear: terminal.then(|| clear_sequence(&term)),
            notes_erased: terminal && io::stderr().is_terminal(),
            kept: VecDeque::new(),
        }
    }

    /// Writes one screen: clear and table in one write, so that nothing flickers, then the notes.
    fn show(&mut self, screen: Screen) -> io::Result<()> {
        let mut text = Vec::from(self.clear.unwrap_or_default());
        text.extend_from_slice(&screen.table);
        write_all(&mut io::stdout().lock(), &text)?;
        self.note(screen.notes, self.notes_erased)
    }

    /// Writes notes, and with `again` also those of the screens before. A stderr that cannot be written to stops nothing.
    fn note(&mut self, notes: Vec<String>, again: bool) -> io::Result<()> {
        let new = notes.len();
        self.kept.extend(notes);
        let shown = if again { NOTES_KEPT.max(new) } else { new };
        let from = self.kept.len().saturating_sub(shown);
        let lines: String = self.kept.range(from..).flat_map(|note| [note, "\n"]).collect();
        let _ = io::stderr().lock().write_all(lines.as_bytes());
        self.kept.drain(..self.kept.len().saturating_sub(NOTES_KEPT));
        Ok(())
    }
}

fn write_all(out: &mut impl Write, text: &[u8]) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    out.write_all(text)?;
    out.flush()
}

/// What clears a terminal of type `term`, as terminfo(5) has it; a blank line where nothing can.
fn clear_sequence(term: &str) -> &'static str {
    const TO_THE_END: [&str; 6] = ["linux", "screen", "tmux", "ansi", "vt", "cygwin"];
    match term {
        "" | "dumb" | "unknown" => "\n",
        _ if TO_THE_END.iter().any(|known| term.starts_with(known)) => "\x1b[H\x1b[J",
        _ => "\x1b[H\x1b[2J",
    }
}

/// Runs `program` until it, a signal or a closed stdout ends it.
///
/// Ticks are on schedule: a second apart from the first, however long one took; those that could not be kept are left
/// out. A stdout that nobody reads any more (`| head -1`) is a success.
///
/// # Errors
/// What the program's tick gives, or a stdout that cannot be written to.
pub fn run(program: &mut dyn Program, mut signals: Signals) -> Result<()> {
    let mut output = Output::of_this_process();
    let mut next_tick = Instant::now();
    loop {
        let now = Instant::now();
        let screen = program.tick(now)?;
        if closed(output.show(screen))? || program.next() == Next::End {
            return Ok(());
        }
        next_tick += TICK;
        let now = Instant::now();
        while next_tick <= now {
            next_tick += TICK;
        }
        loop {
            let signal = match signals.wait(next_tick)? {
                Waited::Passed => break,
                Waited::Signal(signal) => signal,
                Waited::Closed => return Ok(()),
            };
            let mut screen = Screen::default();
            let next = match signal {
                Signal::SIGHUP => program.hung_up(&mut screen),
                Signal::SIGTERM => program.terminated(&mut screen),
                _ => program.interrupted(&mut screen),
            };
            // Said at once and without a clear: the figures before it stay on the screen.
            let written = write_all(&mut io::stdout().lock(), &screen.table);
            if closed(written.and_then(|()| output.note(screen.notes, false)))? || next == Next::End {
                return Ok(());
            }
        }
    }
}

/// What main returns: success, or 1 after the error with all that led to it as one line on stderr.
pub fn exit_code(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether stdout was closed by its reader; any other error is one.
fn closed(written: io::Result<()>) -> Result<bool> {
    match written {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

#[cfg(test)]
mod tests {
    use super::clear_sequence;

    #[test]
    fn the_clear_sequence_is_that_of_terminfo() {
        let vectors = include_str!("../../tests/vectors/terminfo.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        for (term, clear) in vectors["clear"].as_object().unwrap() {
            // The padding of a vt100 was printed as text, and a terminal that cannot clear ended the program.
            let expected = clear.as_str().unwrap_or("\n").trim_end_matches("$<50>");
            assert_eq!(clear_sequence(term), expected, "TERM={term}");
        }
        assert_eq!(clear_sequence(""), "\n");
    }
}
