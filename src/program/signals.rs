//! The signals that the programs answer, through signalfd(2), and the wait from one tick to the next.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGINT, SIGTERM and SIGHUP, blocked and read from a descriptor. They are blocked in the calling thread and in every
/// thread and child that it starts later, so take them before the first thread; the standard library gives children an
/// empty mask again.
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
    /// Takes the signals away from their default actions.
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
    pub(super) fn wait(&mut self, deadline: Instant) -> Result<Waited> {
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
            // poll(2) reports POLLERR for a pipe without reader even if no event is asked for. Without it the program
            // would notice only at the next write, and there may be nothing to write for long.
            let mut fds =
                [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::empty())];
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) if fds[1].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) => {
                    return Ok(Waited::Closed);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for signals"),
            }
        }
    }
}
