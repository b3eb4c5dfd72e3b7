//! The signals that the programs handle, through signalfd(2), and the wait from one tick to the next.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// How often a wait for a thread looks for signals.
const LOOK_FOR_SIGNALS: Duration = Duration::from_millis(20);

/// SIGINT, SIGTERM, SIGHUP, and SIGTSTP and SIGWINCH of a terminal, blocked and read from a descriptor, except those that were ignored when the program
/// started: nohup(1) and a shell's `&` make them ignored, and they stay so. They are blocked in the calling thread and in every
/// thread that it starts later, so take them before the first thread starts. Commands that we run do not have them
/// blocked, since the standard library gives each child an empty mask.
pub struct Signals {
    fd: SignalFd,
}

/// What ended a wait.
pub(super) enum Waited {
    /// The deadline passed.
    Passed,
    Signal(Signal),
    /// The reader of stdout is gone.
    Closed,
}

impl Signals {
    /// Blocks the signals, so that they no longer have their default actions.
    ///
    /// # Errors
    /// When the kernel gives no signalfd(2).
    pub fn take() -> Result<Self> {
        let ignored = ignored();
        let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGTSTP, Signal::SIGWINCH];
        // A blocked signal is delivered to a signalfd although it is ignored (`sig_ignored` in kernel/signal.c).
        let mask: SigSet = signals.into_iter().filter(|signal| ignored >> (*signal as u32 - 1) & 1 == 0).collect();
        mask.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot make a signalfd")?;
        Ok(Self { fd })
    }

    /// The result of `work`, which a thread does meanwhile; `None` if SIGINT or SIGTERM comes first, or the reader of
    /// stdout is gone. A SIGHUP that comes meanwhile is kept for later.
    ///
    /// # Errors
    /// When the kernel gives no thread or descriptor, or cannot wait.
    pub fn unless_ended<T: Send + 'static>(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Result<Option<T>> {
        let (done, is_done) = channel();
        std::thread::Builder::new().spawn(move || done.send(work())).context("cannot start a thread")?;
        let mut hung_up = false;
        let result = loop {
            match is_done.recv_timeout(LOOK_FOR_SIGNALS) {
                Ok(result) => break Some(result),
                Err(RecvTimeoutError::Disconnected) => bail!("a thread of this program has panicked"),
                Err(RecvTimeoutError::Timeout) => {}
            }
            match self.wait(Instant::now(), true)? {
                Waited::Passed => {}
                Waited::Signal(Signal::SIGHUP) => hung_up = true,
                Waited::Signal(Signal::SIGTSTP) => stand_still()?,
                Waited::Signal(Signal::SIGWINCH) => {}
                Waited::Signal(_) | Waited::Closed => break None,
            }
        };
        if hung_up {
            raise(Signal::SIGHUP).context("cannot keep a SIGHUP")?;
        }
        Ok(result)
    }

    /// Waits until a signal comes, or `deadline` passes, or, if `watch_stdout`, the reader of stdout is gone.
    pub(super) fn wait(&mut self, deadline: Instant, watch_stdout: bool) -> Result<Waited> {
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
            // poll(2) reports POLLERR for a pipe without a reader although we ask for no event. Otherwise the program
            // would notice only at its next write, and there may be nothing to write for a long time.
            let mut fds =
                [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::empty())];
            let watched = if watch_stdout { &mut fds[..] } else { &mut fds[..1] };
            match poll(watched, PollTimeout::from(millis)) {
                Ok(_) if fds[1].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) => {
                    return Ok(Waited::Closed);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for signals"),
            }
        }
    }
}

/// Stops this process, as SIGTSTP does by default, until SIGCONT.
pub(super) fn stand_still() -> Result<()> {
    let stop = SigSet::from(Signal::SIGTSTP);
    stop.thread_unblock().context("cannot unblock SIGTSTP")?;
    let stopped = raise(Signal::SIGTSTP).context("cannot stop");
    stop.thread_block().context("cannot block SIGTSTP")?;
    stopped
}

/// The signals that this process ignores, as bits from SIGHUP on: the line `SigIgn:` of /proc/self/status (proc(5)). Without
/// /proc, none.
fn ignored() -> u64 {
    procfs::process::Process::myself().and_then(|myself| myself.status()).map_or(0, |status| status.sigign)
}
