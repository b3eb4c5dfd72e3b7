//! The alternate screen of the terminal, which is given back however the program ends (ctlseqs of xterm: DECSET 1049, 25, 1000,
//! 1006, 2026).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::output::tty::{self, Silenced};
use crate::output::writer::{Loss, Stream, Writer};

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";
const MOUSE_ON: &str = "\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &str = "\x1b[?1006l\x1b[?1000l";
/// Asks for the colour of the background (OSC 11).
const ASK_BACKGROUND: &str = "\x1b]11;?\x1b\\";
const BEGIN: &[u8] = b"\x1b[?2026h";
const CLEAR: &[u8] = b"\x1b[0m\x1b[2J";
const END: &[u8] = b"\x1b[?2026l";

/// How long leaving the screen waits for a terminal that takes nothing, and for one that takes something.
const PATIENCE: Duration = Duration::from_millis(200);
const TIME: Duration = Duration::from_secs(1);

/// The screen, shared by the loop and the thread that draws.
#[derive(Debug)]
pub(super) struct Screen {
    writer: Writer,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_entered: bool,
    /// Whether the terminal shows what was drawn last: only then it is enough to draw what has changed.
    is_known: bool,
    mouse_off: bool,
    mode: Silenced,
}

impl Screen {
    pub fn new() -> Self {
        Self { writer: Writer::new(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the terminal, unless it is taken, or another job has it.
    pub fn enter(&self) {
        let mut state = self.state();
        if state.is_entered || tty::is_background() {
            return;
        }
        state.mode.silence();
        state.is_entered = true;
        state.is_known = false;
        let mouse = if state.mouse_off { "" } else { MOUSE_ON };
        self.writer.lines(Stream::Stdout, format!("{ENTER}{mouse}{ASK_BACKGROUND}").into_bytes());
    }

    /// Gives the terminal back.
    pub fn leave(&self) {
        self.leave_with(self.state());
    }

    fn leave_with(&self, mut state: MutexGuard<'_, State>) {
        if std::mem::take(&mut state.is_entered) {
            self.writer.lines(Stream::Stdout, format!("{MOUSE_OFF}{LEAVE}").into_bytes());
            self.writer.finish(Instant::now(), PATIENCE, TIME);
            state.mode.restore();
        }
    }

    /// Gives the terminal back before a panic tells what has happened.
    pub fn leave_on_panic(this: &Arc<Self>) {
        let screen = Arc::downgrade(this);
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // The lock may be held by the thread that panics.
            if let Some(screen) = screen.upgrade()
                && let Ok(state) = screen.state.try_lock()
            {
                screen.leave_with(state);
            }
            tell(panic);
        }));
    }

    /// The reports of the mouse keep the terminal from selecting text.
    pub fn toggle_mouse(&self) {
        let mut state = self.state();
        state.mouse_off = !state.mouse_off;
        if state.is_entered {
            let sequence = if state.mouse_off { MOUSE_OFF } else { MOUSE_ON };
            self.writer.lines(Stream::Stdout, sequence.as_bytes().to_vec());
        }
    }

    /// Draws with the bytes of `changes` if the terminal has taken all before; it gets whether the terminal shows what was drawn last.
    /// Returns whether it has drawn, or must not.
    pub fn draw(&self, changes: impl FnOnce(bool) -> Vec<u8>) -> bool {
        let mut state = self.state();
        if !state.is_entered {
            state.is_known = false;
            return true;
        }
        let Loss { tables, error, is_idle } = self.writer.loss();
        if tables > 0 || error.is_some() {
            state.is_known = false;
        }
        if !is_idle {
            return false;
        }
        let changes = changes(state.is_known);
        if !changes.is_empty() || !state.is_known {
            let clear = if state.is_known { b"" } else { CLEAR };
            self.writer.table([BEGIN, clear, &changes, END].concat(), true);
            state.is_known = true;
        }
        true
    }

    /// Something else has written to the terminal.
    pub fn forget(&self) {
        self.state().is_known = false;
    }

    /// Why the last write failed, if it did.
    pub fn error(&self) -> Option<nix::errno::Errno> {
        self.writer.loss().error
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave();
    }
}
