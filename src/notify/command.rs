//! Running the commands of a notification file: without a shell, and without waiting for them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};

use super::Rule;
use crate::output::Notification;
use crate::printable::printable;

/// Commands that may run at the same time: one that hangs and is started each second would otherwise fill the process
/// table.
const MOST_RUNNING: usize = 64;

/// The commands that were started and have not ended yet.
#[derive(Debug, Default)]
pub struct Commands {
    running: Vec<Child>,
}

impl Commands {
    /// Starts the command that belongs to a notification, if there is one.
    ///
    /// The command learns what happened from its environment: `BWMON_APPLICATION`, `BWMON_DIRECTION` (`in` or `out`),
    /// `BWMON_THRESHOLD_KB_PER_S`, `BWMON_VALUE_KB_PER_S` and `BWMON_EVENT` (`exceeded` or `recovered`). Its stdin is
    /// empty; it shares stdout and stderr with this program.
    ///
    /// # Errors
    /// Why the command could not be started, as one line for the user.
    pub fn start(&mut self, rule: &Rule, notification: &Notification) -> Result<(), String> {
        let command = if notification.recovered { &rule.recovery_command } else { &rule.notification_command };
        let Some((program, arguments)) = command.as_deref().and_then(<[OsString]>::split_first) else { return Ok(()) };
        let section = printable(rule.section.as_bytes(), 50);
        let shown = printable(program.as_bytes(), 50);
        if self.running.len() >= MOST_RUNNING {
            return Err(format!("[{section}] {shown} is not started: {MOST_RUNNING} commands are still running"));
        }
        let child = Command::new(program)
            .args(arguments)
            .env("BWMON_APPLICATION", OsStr::from_bytes(&notification.application.label()))
            .env("BWMON_DIRECTION", notification.direction.to_string())
            .env("BWMON_THRESHOLD_KB_PER_S", notification.threshold_kb_per_s.to_string())
            .env("BWMON_VALUE_KB_PER_S", format!("{:.2}", notification.value_kb_per_s))
            .env("BWMON_EVENT", if notification.recovered { "recovered" } else { "exceeded" })
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("[{section}] cannot start {shown}: {error}"))?;
        self.running.push(child);
        Ok(())
    }

    /// Reaps the commands that have ended, so that none stays behind as a zombie.
    pub fn reap(&mut self) {
        self.running.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}
