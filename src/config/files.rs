//! Reads all configuration files that a command line names.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Diagnostic, Diagnostics, InvalidConfiguration, Monitors, applications, check, monitors, notifications};
use crate::grouping::Application;
use crate::ledger::Selection;
use crate::notify::Rule;

/// Which files to read.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// The monitors file; without it, the program counts all traffic and opens no pipe.
    pub monitors: Option<PathBuf>,
    /// The application file; without it, there are no applications.
    pub applications: Option<PathBuf>,
    /// The notification file; without it, there are no notifications.
    pub notifications: Option<PathBuf>,
}

/// The contents of all files.
#[derive(Debug)]
pub struct Configuration {
    /// Which traffic to count, and which pipes to open.
    pub(crate) monitors: Monitors,
    /// How to group it.
    pub(crate) applications: Vec<Application>,
    /// When to notify.
    pub(crate) notifications: Vec<Rule>,
    /// What the user probably did not mean, sorted by file and line.
    pub warnings: Vec<Diagnostic>,
}

impl Files {
    /// Reads all files.
    ///
    /// # Errors
    /// All mistakes in all files. A file that cannot be read is a mistake, too.
    pub fn read(&self) -> Result<Configuration, InvalidConfiguration> {
        let mut diagnostics = Diagnostics::default();
        let monitors = match read(self.monitors.as_deref(), &mut diagnostics, monitors) {
            Some(monitors) => monitors,
            None => Monitors { selections: vec![Selection::default()], pipes: Vec::new() },
        };
        let applications = read(self.applications.as_deref(), &mut diagnostics, applications).unwrap_or_default();
        let notifications = read(self.notifications.as_deref(), &mut diagnostics, notifications).unwrap_or_default();
        let warnings = check(diagnostics)?;
        Ok(Configuration { monitors, applications, notifications, warnings })
    }
}

/// What `parse` returns for the file; `None` if there is no path or the file cannot be read.
fn read<T>(
    path: Option<&Path>,
    diagnostics: &mut Diagnostics,
    parse: impl FnOnce(&str, &[u8], &mut Diagnostics) -> T,
) -> Option<T> {
    let path = path?;
    let file = path.display().to_string();
    match fs::read(path) {
        Ok(text) => Some(parse(&file, &text, diagnostics)),
        Err(error) => {
            diagnostics.add(Diagnostic::error(&file, None, format!("cannot be read: {error}")));
            None
        }
    }
}

/// The number of each: `2 monitors, 1 pipe, 12 applications, 1 notification`.
impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.monitors.selections.len(), "monitor"),
            (self.monitors.pipes.len(), "pipe"),
            (self.applications.len(), "application"),
            (self.notifications.len(), "notification"),
        ];
        for (i, (count, what)) in counts.into_iter().enumerate() {
            let (comma, plural) = (if i == 0 { "" } else { ", " }, if count == 1 { "" } else { "s" });
            write!(f, "{comma}{count} {what}{plural}")?;
        }
        Ok(())
    }
}
